//! Limits that are hit below the unit's own group (cgroup v2, `Delegate=yes`), beside a neighbour who notices nothing.

use std::fs;
use std::path::Path;

use crate::client::Response;
use crate::machine::{GROUP, both_serve, deploy_python, node, post, run};
use crate::need_a_guest;

/// Deploys a function, calls it once, and checks that its neighbour is the same process before and after.
fn beside_a_neighbour(name: &str, source: &str, settings: &[&str]) -> Response {
    node();
    deploy_python(name, source, settings);
    let before = both_serve();
    let response = post(&format!("/function/{name}"), b"{}");
    assert_eq!(both_serve(), before, "the neighbour isn't who it was");
    response
}

/// What is written in a file of the groups of this function's instances; the same in all.
fn in_its_groups(function: &str, file: &str) -> String {
    let found = run("find", &[GROUP, "-path", &format!("*/{function}/instance-*/{file}")]);
    let mut texts: Vec<String> =
        found.lines().map(|path| fs::read_to_string(Path::new(path)).expect("a group's file")).collect();
    texts.dedup();
    assert_eq!(texts.len(), 1, "{function}: {found}");
    texts.remove(0).trim().to_owned()
}

#[test]
fn memory_that_runs_out_is_507() {
    need_a_guest!();
    let source = "def main(params):\n  kept = []\n  while True: kept.append(bytearray(1 << 20))\n";
    let response = beside_a_neighbour("hog", source, &["limits.memory=32MiB"]);
    assert_eq!(
        (response.status, response.error_code().as_str()),
        (507, "out_of_memory"),
        "{}",
        response.text()
    );
    assert_eq!(in_its_groups("hog", "memory.max"), (32 << 20).to_string());
}

#[test]
fn time_that_runs_out_is_504() {
    need_a_guest!();
    let source = "def main(params):\n  while True: pass\n";
    let response = beside_a_neighbour("spin", source, &["limits.timeout=500ms"]);
    assert_eq!(response.status, 504, "{}", response.text());
}

#[test]
fn processes_are_counted_and_the_quota_is_the_kernels() {
    need_a_guest!();
    let source = "import os, signal\n\
        def main(params):\n  made = []\n  try:\n    while len(made) < 100:\n      pid = os.fork()\n      \
        if pid == 0: signal.pause()\n      made.append(pid)\n  except OSError as error:\n    why = error.errno\n  \
        for pid in made: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)\n  return {'made': len(made), 'why': why}\n";
    let response = beside_a_neighbour("forks", source, &["limits.processes=6", "limits.cpu=0.5"]);
    assert_eq!(response.status, 200, "{}", response.text());
    let answer = response.json();
    assert_eq!(answer["why"], libc::EAGAIN, "{answer}");
    assert!((4..=6).contains(&answer["made"].as_u64().expect("a number")), "{answer}");
    let quota = in_its_groups("forks", "cpu.max");
    let numbers: Vec<f64> = quota.split(' ').map(|number| number.parse().expect("a number")).collect();
    assert!((numbers[0] / numbers[1] - 0.5).abs() < 0.001, "{quota}");
}
