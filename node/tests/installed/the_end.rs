//! The package is removed, installed again, and purged: what was deployed outlives the first, and nothing the last.

use std::fs;
use std::path::Path;

use crate::client::call;
use crate::machine::{
    ADDRESS, both_serve, deploy_python, files, files_before, install, journal, node, post, run, try_run,
    until,
};
use crate::need_a_guest;

/// The first of the users that functions run as.
const FIRST_USER: u32 = 1_879_048_192;

#[test]
fn a_removal_keeps_what_was_deployed_and_a_purge_nothing() {
    need_a_guest!();
    node();
    both_serve();
    let mounts = mounts();
    run("dpkg", &["--remove", "spry"]);
    nothing_runs();
    assert!(Path::new("/var/lib/spry/spry.db").exists() && Path::new("/etc/spry/spryd.toml").exists());
    assert_eq!(self::mounts(), mounts);

    install();
    both_serve();
    // One that isn't idle when the end comes.
    deploy_python("waits", "import time\ndef main(params): time.sleep(3600)\n", &["limits.timeout=2h"]);
    assert_eq!(post("/async-function/waits", b"{}").status, 202);
    until("it waits", || {
        let metrics = call(ADDRESS, "GET", "/metrics", b"").text();
        metrics.contains("spry_instances{function=\"waits\",state=\"busy\"} 1")
    });
    run("dpkg", &["--purge", "spry"]);
    nothing_runs();
    let (before, after) = (files_before(), files());
    let left: Vec<_> = after.difference(&before).filter(|file| !of_systemd(file)).collect();
    assert!(left.is_empty(), "a purge leaves {left:#?}\n{}", journal());
}

/// Written by systemd for itself, at its first boot.
fn of_systemd(file: &str) -> bool {
    ["/var/lib/systemd/random-seed", "/etc/.pwd.lock", "/etc/.updated", "/var/.updated"].contains(&file)
}

/// No process, no group, no socket, no unit that anybody could start.
fn nothing_runs() {
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
        let user: u32 = user.and_then(|user| user.parse().ok()).unwrap_or(0);
        assert!(user < FIRST_USER, "a function's process is left: {status}");
        let name = status.lines().next().unwrap_or_default();
        assert!(!name.contains("spry"), "{name} is left");
    }
    assert_eq!(run("find", &["/sys/fs/cgroup", "-name", "*spry*"]), "", "control groups are left");
    assert_eq!(run("find", &["/sys/fs/bpf", "-mindepth", "1"]), "", "BPF objects are left");
    assert!(!Path::new("/run/spry").exists(), "{}", run("ls", &["-la", "/run/spry"]));
    let listening = fs::read_to_string("/proc/net/tcp").expect("sockets");
    assert!(!listening.contains("0100007F:1F90 00000000:0000 0A"), "somebody listens on 8080:\n{listening}");
    // (Its exit status says whether there are any.)
    let units = try_run("systemctl", &["list-unit-files", "--plain", "--no-legend", "spry*"]);
    let units = String::from_utf8_lossy(&units.stdout);
    assert!(units.lines().all(|unit| unit.contains("masked")), "{units}");
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").expect("mounts")
}
