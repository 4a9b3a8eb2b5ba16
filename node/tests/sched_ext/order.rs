//! Who is in SCHED_EXT, who goes first, and how much anybody gets.

use std::path::Path;

use spry_scx::Scheduler;

use crate::client;
use crate::machine::{Load, Loader, Node, PINS, guest, is_extensible, until};

/// Learns how long the functions take.
fn learn(node: &Node) {
    for _ in 0..3 {
        node.burn("short", "2000");
        node.burn("long", "300000");
    }
}

#[test]
fn all_processes_of_functions_are_in_and_a_short_call_takes_a_core_from_a_long_one() {
    let Some(_turn) = guest() else { return };
    let loader = Loader::start();
    let node = Node::start(&["short", "long"]);
    node.until_uses("sched_ext", "ranks in the kernel, by spry-scx");
    learn(&node);
    assert!(node.until_all(true) >= 4, "two zygotes, two instances");
    assert_eq!(is_extensible(0), Some(false), "this test");
    let scheduler = Scheduler::open(Path::new(PINS)).expect("it is there");
    let before = scheduler.health().counts;
    // More than there are cores. Only the kernel can take one from those who have begun.
    let load = Load::start(node.address, &[("long", "1000000"); 4]);
    until("long ones run", || scheduler.health().counts.enqueued > before.enqueued + 4);
    let kept = node.scheduler()["held"].as_u64().expect("a number");
    for _ in 0..5 {
        node.burn("short", "2000");
    }
    let counts = scheduler.health().counts;
    assert!(counts.preempted > before.preempted, "{before:?} {counts:?}, {kept} were kept back");
    assert_eq!(load.end(), [""; 0]);
    let page = node.metrics();
    assert!(page.contains("spry_scheduler_info{policy=\"srpt+\",backend=\"sched_ext\"} 1"), "{page}");
    node.stop();
    drop(loader);
    assert!(!Path::new(PINS).exists(), "its maps are left");
}

#[test]
fn the_cpu_limit_holds_though_control_groups_do_not_hold_it() {
    let Some(_turn) = guest() else { return };
    let _loader = Loader::start();
    let node = Node::start(&[]);
    node.until_uses("sched_ext", "");
    node.deploy("limited", &["limits.cpu=0.2", "limits.timeout=1m"]);
    let before = Scheduler::open(Path::new(PINS)).expect("it is there").health().counts.spent;
    // 120 ms of CPU time at 20 ms in each 100.
    let told = node.burn("limited", "120000").text();
    let times: Vec<u64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (from, to) = (times[1], times[times.len() - 1]);
    // It may have had the rest of one period, and what runs on until the next tick.
    assert!(to - from >= 300_000_000, "{told}");
    assert!(Scheduler::open(Path::new(PINS)).expect("it is there").health().counts.spent > before);
    node.stop();
}

#[test]
fn members_of_chains_are_in_as_well() {
    let Some(_turn) = guest() else { return };
    let _loader = Loader::start();
    let node = Node::start(&["short", "long"]);
    node.until_uses("sched_ext", "");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("chain.toml");
    let library = std::env::var("SPRY_TEST_ECHO").expect("the lane names the function");
    for name in ["first", "second"] {
        node.spry(&["deploy", &library, "--name", name]);
    }
    let text = "name = \"both\"\n[[step]]\nfunction = \"first\"\n[[step]]\nfunction = \"second\"\n";
    std::fs::write(&file, text).expect("written");
    node.spry(&["chain", "apply", file.to_str().expect("a UTF-8 path")]);
    let load = Load::start(node.address, &[("long", "200000"), ("long", "200000"), ("short", "2000")]);
    for _ in 0..20 {
        let answer = client::call(node.address, "POST", "/function/both", b"as it came");
        assert_eq!((answer.status, answer.text().as_str()), (200, "as it came"));
    }
    assert_eq!(load.end(), [""; 0]);
    node.until_all(true);
    node.stop();
}
