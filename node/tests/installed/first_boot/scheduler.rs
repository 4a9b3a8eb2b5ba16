//! `spry-scx` as a service: on a kernel with sched_ext it schedules, and its end is nobody's end.

use std::fs;

use crate::machine::{both_serve, main_pid, node, property, run, until};
use crate::need_a_guest;

fn state() -> String {
    fs::read_to_string("/sys/kernel/sched_ext/state").expect("this kernel has sched_ext").trim().to_owned()
}

#[test]
fn a_killed_scheduler_is_started_again_and_a_stopped_one_leaves_nothing() {
    need_a_guest!();
    node();
    run("systemctl", &["start", "spry-scx"]);
    assert_eq!(state(), "enabled");
    both_serve();
    run("systemctl", &["kill", "--kill-whom=main", "--signal=KILL", "spry-scx"]);
    until("the kernel is without it", || state() == "disabled");
    both_serve();
    until("it is there again", || state() == "enabled");
    assert_eq!(property("spry-scx", "NRestarts"), "1");
    // It belongs to the daemon, and is there before it.
    assert!(property("spryd", "After").split(' ').any(|unit| unit == "spry-scx.service"));
    let before = main_pid();
    run("systemctl", &["restart", "spryd"]);
    assert_ne!(main_pid(), before);
    assert_eq!((property("spry-scx", "ActiveState").as_str(), state().as_str()), ("active", "enabled"));
    both_serve();
    run("systemctl", &["stop", "spry-scx"]);
    assert_eq!(state(), "disabled");
    assert_eq!(run("find", &["/sys/fs/bpf", "-mindepth", "1"]), "", "its maps are left");
    both_serve();
}
