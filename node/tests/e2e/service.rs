//! spryd as a service: an inherited socket, what systemd is told, a stop that leaves nobody without an answer, a reload.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::SIGTERM;

use super::client::{self, Connection};
use super::daemon::{Daemon, UNTIL_LET_GO};
use super::kept::Kept;
use crate::need_root_and_cc;

const HELLO: &str = "def main(params): return {'hello': 1}\n";

#[test]
fn a_restart_on_an_inherited_socket_refuses_nobody() {
    need_root_and_cc!();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut daemon = Daemon::start_with_socket("", &listener);
    let address = listener.local_addr().expect("bound");
    assert_eq!(daemon.address, address);
    daemon.deploy_python("hello", HELLO, &[]);
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = [true, false, true]
        .into_iter()
        .map(|keeps_alive| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                let mut kept = Kept::default();
                while !stop.load(Ordering::Relaxed) {
                    let mut connection = kept.take(address);
                    let response = connection.call("POST", "/function/hello", &[], b"{}");
                    assert_eq!(response.status, 200, "{}", response.text());
                    served.fetch_add(1, Ordering::Relaxed);
                    if keeps_alive {
                        kept.keep(connection, &response);
                    }
                }
            })
        })
        .collect();
    for _ in 0..2 {
        let before = served.load(Ordering::Relaxed);
        daemon.until("calls are served", |_| served.load(Ordering::Relaxed) > before + 50);
        daemon.signal(SIGTERM);
        daemon.ended();
        daemon.launch_with_socket(&listener);
    }
    let before = served.load(Ordering::Relaxed);
    daemon.until("calls are served", |_| served.load(Ordering::Relaxed) > before + 50);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("every call was answered well");
    }
    daemon.stop();
}

fn until_begun(daemon: &Daemon) {
    daemon.until("the call has begun", |daemon| {
        daemon.get("/metrics").text().contains("spry_instances{function=\"waits\",state=\"busy\"} 1")
    });
}

#[test]
fn what_ends_within_the_grace_is_answered_and_what_does_not_gets_503() {
    need_root_and_cc!();
    // Long enough for the first call, which is let go when the stop has come; the others never are.
    let mut daemon = Daemon::start("[shutdown]\ngrace = \"5s\"\n");
    daemon.deploy_python("waits", UNTIL_LET_GO, &["scale.max=1", "limits.timeout=60s"]);
    let address = daemon.address;
    let call = move || {
        std::thread::spawn(move || client::call(address, "POST", "/function/waits", b"{\"wait\": true}"))
    };
    let first = call();
    until_begun(&daemon);
    let second = call();
    daemon.until("the second waits", |daemon| {
        daemon.get("/metrics").text().contains("spry_queued_invocations{function=\"waits\"} 1")
    });
    let third = call();
    daemon.until("the third waits", |daemon| {
        daemon.get("/metrics").text().contains("spry_queued_invocations{function=\"waits\"} 2")
    });
    // A body that never comes to its end.
    let mut slow = Connection::open(address);
    slow.write(b"POST /function/waits HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n{");
    let mut idle = Connection::open(address);
    assert_eq!(idle.call("GET", "/healthz", &[], b"").status, 200);
    daemon.signal(SIGTERM);
    assert!(idle.is_closed());
    daemon.let_go("waits");
    let answers = [first, second, third].map(|call| call.join().expect("an answer"));
    assert_eq!(answers[0].status, 200, "{}", answers[0].text());
    assert_eq!(answers[0].header("connection"), Some("close"));
    for answer in [&answers[1], &answers[2], &slow.receive(false)] {
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (503, "shutting_down"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    daemon.ended();
    assert!(!daemon.socket().exists(), "the control socket is left");
}

/// The next message to systemd that isn't a sign of life.
fn told(systemd: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    loop {
        let len = systemd.recv(&mut buffer).expect("spryd tells systemd (or the watchdog ends this test)");
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if text != "WATCHDOG=1" {
            return text;
        }
    }
}

#[test]
fn systemd_is_told_what_becomes_of_it() {
    need_root_and_cc!();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    systemd.set_read_timeout(Some(Duration::from_secs(60))).expect("a watchdog");
    let env = [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "1000000".into())];
    let mut daemon = Daemon::start_with_env("", &env);
    assert!(told(&systemd).starts_with("READY=1\nSTATUS=serving on 127.0.0.1:"));
    let mut buffer = [0; 64];
    for _ in 0..3 {
        let len = systemd.recv(&mut buffer).expect("a sign of life");
        assert_eq!(&buffer[..len], b"WATCHDOG=1");
    }
    daemon.reload();
    assert!(told(&systemd).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told(&systemd).starts_with("READY=1\n"));
    daemon.signal(SIGTERM);
    assert!(told(&systemd).starts_with("STOPPING=1\n"));
    daemon.ended();
}

#[test]
fn a_reload_applies_what_can_change_and_a_bad_file_changes_nothing() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("hello", HELLO, &[]);
    let limited = |daemon: &Daemon| {
        let mut connection = Connection::open(daemon.address);
        (0..3).any(|_| connection.call("POST", "/function/hello", &[], b"{}").status == 429)
    };
    assert!(!limited(&daemon));
    daemon.configure("workers = 7\n[rate]\nper_second = 0.001\nburst = 1\n");
    daemon.reload();
    daemon.until("the rate counts", limited);
    daemon.configure("[rate]\nper_second = \"nonsense\"\n");
    daemon.reload();
    daemon.configure("[defaults.scale]\nmax = 3\n");
    daemon.reload();
    daemon.until("the rate has gone", |daemon| !limited(daemon));
    daemon.deploy_python("next", HELLO, &[]);
    assert_eq!(daemon.spry_json(&["describe", "next"])["scale"]["max"], 3, "new defaults for new deploys");
    daemon.stop();
}
