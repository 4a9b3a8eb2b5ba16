//! spry-scx ends under load, in every way: no call fails, it is said what happened, and when it is back it is used again.

use std::fs;

use crate::machine::{Load, Loader, Node, guest};

const MIX: [(&str, &str); 6] = [
    ("short", "2000"),
    ("short", "2000"),
    ("short", "1000,2000,1000"),
    ("long", "60000"),
    ("long", "60000"),
    ("long", "90000"),
];

#[test]
fn killed_stopped_or_thrown_out_under_load_no_call_fails_and_it_is_taken_up_again() {
    let Some(_turn) = guest() else { return };
    let node = Node::start(&["short", "long"]);
    let how = node.until_uses("posix", "not sched_ext: ");
    assert!(how.ends_with("is spry-scx running?"), "{how}");
    let load = Load::start(node.address, &MIX);
    load.goes_on(20);
    let loader = Loader::start();
    node.until_uses("sched_ext", "");
    load.goes_on(20);

    loader.kill();
    let how = node.until_uses("posix", "left once");
    assert!(how.contains("not sched_ext: left once, last because: spry-scx ended"), "{how}");
    let shown = node.spry(&["status"]);
    assert!(shown.contains("srpt+ by posix: ") && shown.contains("spry-scx ended"), "{shown}");
    load.goes_on(20);
    node.until_all(false);

    let loader = Loader::start();
    let how = node.until_uses("sched_ext", "");
    assert!(how.contains("it was left once, last because: spry-scx ended"), "{how}");
    load.goes_on(20);
    node.until_all(true);

    // What the kernel does when a scheduler fails, at an administrator's word.
    fs::write("/proc/sysrq-trigger", "S").expect("sysrq");
    assert_eq!(loader.ended(), Some(1));
    node.until_uses("posix", "left 2 times, last because: disabled by sysrq-S");
    load.goes_on(20);

    drop(Loader::start());
    let again = Loader::start();
    node.until_uses("sched_ext", "");
    load.goes_on(20);
    assert_eq!(load.end(), [""; 0]);

    let fallbacks = node.scheduler()["fallbacks"].as_u64().expect("a number");
    // (The one that came and went may have gone unseen.)
    assert!((2..=3).contains(&fallbacks), "{fallbacks}");
    let page = node.metrics();
    assert!(page.contains(&format!("spry_scheduler_fallbacks_total {fallbacks}\n")), "{page}");
    let log = node.log();
    let said = log.iter().filter(|line| line.contains("spry-scx's scheduler has ended")).count();
    assert_eq!(said as u64, fallbacks, "each once:\n{}", log.join("\n"));
    let shown = node.spry(&["doctor"]);
    let line = shown.lines().find(|line| line.contains("sched_ext")).expect("a line");
    assert!(line.contains("yes") && line.contains("spry-scx schedules"), "{line}");
    node.stop();
    drop(again);
}
