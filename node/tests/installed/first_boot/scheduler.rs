//! `spry-scx` as a service: on a kernel with sched_ext it schedules, the daemon under its own unit uses it, and its end is
//! nobody's end.

use std::fs;

use crate::machine::{both_serve, main_pid, node, property, run, spry, until};
use crate::need_a_guest;

/// The daemon's, as the package brings it.
const CONFIGURATION: &str = "/etc/spry/spryd.toml";

fn state() -> String {
    fs::read_to_string("/sys/kernel/sched_ext/state").expect("this kernel has sched_ext").trim().to_owned()
}

/// Who goes first by what, as `spry status` says it.
fn backend() -> String {
    let status: serde_json::Value =
        serde_json::from_str(&spry(&["--output", "json", "status"])).expect("JSON");
    status["scheduler"]["backend"].as_str().expect("a name").to_owned()
}

#[test]
fn a_killed_scheduler_is_started_again_and_a_stopped_one_leaves_nothing() {
    need_a_guest!();
    node();
    let before = fs::read_to_string(CONFIGURATION).expect("the package brings it");
    fs::write(CONFIGURATION, "[scheduler]\npolicy = \"srpt+\"\n").expect("written");
    run("systemctl", &["restart", "spryd"]);
    both_serve();
    assert_eq!(backend(), "posix");
    run("systemctl", &["start", "spry-scx"]);
    assert_eq!(state(), "enabled");
    until("the daemon uses it", || backend() == "sched_ext");
    both_serve();
    run("systemctl", &["kill", "--kill-whom=main", "--signal=KILL", "spry-scx"]);
    until("the kernel is without it", || state() == "disabled");
    both_serve();
    until("it is there again, and used", || state() == "enabled" && backend() == "sched_ext");
    let shown = spry(&["status"]);
    assert!(shown.contains("left once, last because: spry-scx ended"), "{shown}");
    assert_eq!(property("spry-scx", "NRestarts"), "1");
    // It belongs to the daemon, and is there before it.
    assert!(property("spryd", "After").split(' ').any(|unit| unit == "spry-scx.service"));
    let pid = main_pid();
    run("systemctl", &["restart", "spryd"]);
    assert_ne!(main_pid(), pid);
    assert_eq!((property("spry-scx", "ActiveState").as_str(), state().as_str()), ("active", "enabled"));
    both_serve();
    until("the new one uses it", || backend() == "sched_ext");
    run("systemctl", &["stop", "spry-scx"]);
    assert_eq!(state(), "disabled");
    assert_eq!(run("find", &["/sys/fs/bpf", "-mindepth", "1"]), "", "its maps are left");
    until("the daemon does without it", || backend() == "posix");
    both_serve();
    fs::write(CONFIGURATION, before).expect("written");
    run("systemctl", &["restart", "spryd"]);
    both_serve();
}
