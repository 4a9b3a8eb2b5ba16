//! With `isolation = "request"`, a request that reads all that its process can, while others to the same function are under way
//! and waiting: it finds itself and nobody else. On each transport, and with processes that are rewound.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Connection, Response};
use super::daemon::Daemon;
use super::rewinding::rewinds;
use crate::need_root_and_cc;

const SECRET: &str = "canary-of-another-caller";
const INSTANCES: u64 = 3;
const OTHERS: usize = 6;

fn finds_nobody_else(config: &str, is_rewound: bool) {
    need_root_and_cc!();
    let daemon = Daemon::start(config);
    daemon.deploy_native(
        "spy",
        &["isolation=request", "limits.timeout=30s", &format!("scale.max={INSTANCES}")],
    );
    if is_rewound && !rewinds(&daemon, "spy") {
        return daemon.stop();
    }
    // Whom it could ask for segments; one that is rewound has no such socket.
    let refused = if is_rewound { 0 } else { 60 };
    let address = daemon.address;
    let call = move |query: &str, body: Vec<u8>| {
        let path = format!("/function/spy?{query}");
        std::thread::spawn(move || {
            Connection::open(address).call("POST", &path, &[("x-secret", SECRET)], &body)
        })
    };
    let counts = |daemon: &Daemon| {
        let described = daemon.spry_json(&["describe", "spy"]);
        let count = |count: &serde_json::Value| count.as_u64().expect("a number");
        (count(&described["instances"]["busy"]), count(&described["queued"]))
    };
    // Twice: the second time its process may be one that has served others.
    for round in 0..2 {
        let looks = {
            // (Without the secret in its own head.)
            let backwards: Vec<u8> = SECRET.bytes().rev().collect();
            std::thread::spawn(move || {
                Connection::open(address).call("POST", "/function/spy?look", &[], &backwards)
            })
        };
        daemon.until("it is at work", |daemon| counts(daemon).0 == 1);
        // Short ones and long ones: of one page, and of many.
        let lengths = (0..OTHERS).map(|number| [1, 5, 8000][number % 3]);
        let others: Vec<_> = lengths.map(|times| call("wait", SECRET.repeat(times).into_bytes())).collect();
        let waiting = OTHERS as u64 - (INSTANCES - 1);
        daemon.until("the others are at work or wait", |daemon| counts(daemon) == (INSTANCES, waiting));
        daemon.until("it has looked", |daemon| {
            for pid in daemon.processes_of("spy") {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGUSR2);
            }
            looks.is_finished()
        });
        let told: Response = looks.join().expect("it answers");
        let expected = format!("found 0, own 1, granted 0, refused {refused}");
        assert_eq!((told.status, told.text()), (200, expected), "{round}");
        daemon.until("the others are served", |daemon| {
            daemon.let_go("spy");
            others.iter().all(|other| other.is_finished())
        });
        for other in others {
            let response = other.join().expect("it answers");
            assert_eq!((response.status, response.text().as_str()), (200, "served"), "{round}");
        }
    }
    daemon.stop();
}

#[test]
fn rewound() {
    finds_nobody_else("[zygotes]\nrewind = \"auto\"\n", true);
}

#[test]
fn sockmap() {
    finds_nobody_else("transport = \"sockmap\"\n[zygotes]\nrewind = \"off\"\n", false);
}

#[test]
fn futex() {
    finds_nobody_else("transport = \"futex\"\n", false);
}

#[test]
fn broker() {
    finds_nobody_else("transport = \"broker\"\n", false);
}
