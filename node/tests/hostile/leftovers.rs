//! Staying: a process after its request, a file or a global for the next one.

use std::path::Path;

use super::daemon::Daemon;
use super::neighbour::Neighbour;
use crate::need_root_and_cc;

const STAYER: &str = r#"
import os, signal, time
left = None

def main(params):
    global left
    seen = {"global": left, "tmp": os.listdir("/tmp"), "shm": os.listdir("/dev/shm"), "code": sorted(os.listdir("."))}
    left = "something"
    wrote = []
    for path in ["/tmp/left", "/dev/shm/left", "left", "/usr/left", "/left"]:
        try:
            with open(path, "w") as file: file.write("something")
            wrote.append(path)
        except OSError: pass
    reader, writer = os.pipe()
    if os.fork() == 0:
        # out of its session, an orphan, deaf to what can be ignored
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 32):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            os.write(writer, str(os.getpid()).encode())
            time.sleep(1000)
        os._exit(0)
    os.close(writer)
    return {"seen": seen, "wrote": wrote, "child": int(os.read(reader, 16))}
"#;

/// In processes that are rewound if their requests allow that (these don't, so each is replaced), and in forks.
const KINDS: [&str; 2] = ["[zygotes]\nrewind = \"auto\"\n", "[zygotes]\nrewind = \"off\"\n"];

#[test]
fn nothing_is_left_for_the_next_request() {
    need_root_and_cc!();
    KINDS.into_iter().for_each(nothing_is_left);
}

fn nothing_is_left(kind: &str) {
    let daemon = Daemon::start(kind);
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("stayer", STAYER, &["isolation=request"]);
    let first = daemon.post("/function/stayer", b"{}");
    assert_eq!(first.status, 200, "{}", first.text());
    for _ in 0..5 {
        let next = daemon.post("/function/stayer", b"{}");
        assert_eq!(next.json()["seen"], first.json()["seen"], "the same as the first saw");
        assert_eq!(next.json()["seen"]["global"], serde_json::Value::Null);
        assert_eq!(next.json()["wrote"], serde_json::json!([]));
    }
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn no_process_lives_on_after_its_request() {
    need_root_and_cc!();
    KINDS.into_iter().for_each(no_process_lives_on);
}

fn no_process_lives_on(kind: &str) {
    let daemon = Daemon::start(kind);
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("stayer", STAYER, &["isolation=request"]);
    for _ in 0..5 {
        let response = daemon.post("/function/stayer", b"{}");
        assert_eq!(response.status, 200, "{}", response.text());
        let child = response.json()["child"].as_i64().expect("a pid");
        daemon.until("the orphan is gone", |daemon| daemon.outside("stayer", child).is_none());
    }
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

/// The death signal isn't inherited by what a function forks; its namespace's init has one.
#[test]
fn no_process_outlives_a_spryd_that_is_killed() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("stayer", STAYER, &["isolation=instance"]);
    let child = daemon.post("/function/stayer", b"{}").json()["child"].as_i64().expect("a number");
    let left = daemon.outside("stayer", child).expect("it is there");
    let everything = daemon.children();
    daemon.kill();
    for pid in everything.into_iter().chain([left]) {
        let path = format!("/proc/{pid}");
        daemon.until("it is gone, and nobody has started spryd again", |_| !Path::new(&path).exists());
    }
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/stayer", b"{}").status, 200);
    daemon.stop();
}
