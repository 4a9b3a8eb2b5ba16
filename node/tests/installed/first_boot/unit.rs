//! The unit as systemd runs it.

use crate::machine::{both_serve, journal, node, property, run, spry};
use crate::need_a_guest;

/// As in `xtask/src/units.rs`, which asks a systemd that doesn't run the unit.
const EXPOSURE_MAX: f64 = 6.0;

#[test]
fn it_is_active_watched_and_hardened() {
    need_a_guest!();
    node();
    for (name, value) in [
        ("ActiveState", "active"),
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("WatchdogUSec", "30s"),
        ("Delegate", "yes"),
        ("NoNewPrivileges", "yes"),
    ] {
        assert_eq!(property("spryd", name), value, "{name}");
    }
    assert_eq!(property("spryd.socket", "ActiveState"), "active");
    let said = run("systemd-analyze", &["security", "--no-pager", "spryd.service"]);
    let (_, score) = said.split_once("exposure level for spryd.service: ").expect("a score");
    let score = score.lines().next().unwrap_or_default();
    println!("systemd-analyze security: spryd.service: {score}");
    let score: f64 = score.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert!(score <= EXPOSURE_MAX, "exposure {score}:\n{said}");
}

#[test]
fn its_doctor_misses_nothing_but_pip() {
    need_a_guest!();
    node();
    let said = spry(&["doctor"]);
    let missing: Vec<&str> = said.lines().filter(|line| line.starts_with("no ")).collect();
    assert!(missing.iter().all(|line| line.contains("python packages")), "{said}");
    assert!(said.contains("yes    cgroup layout        v2"), "{said}");
    let layout =
        said.lines().filter(|line| line.ends_with("below /sys/fs/cgroup/system.slice/spryd.service"));
    assert_eq!(layout.count(), 3, "memory, CPU and processes: {said}");
}

#[test]
fn python_and_native_functions_serve() {
    need_a_guest!();
    node();
    both_serve();
    let status = spry(&["status"]);
    assert!(status.contains("transport     sockmap"), "{status}\n{}", journal());
}
