//! Chains at their bounds: the longest lists, the most values that may wait, texts that are all structure.

use serde_json::{Value, json};

use super::chains::{apply, chain_of};
use super::client::Connection;
use super::daemon::{Daemon, UNTIL_LET_GO};
use crate::need_root_and_cc;

/// Elements of a list at most.
const LONGEST: usize = 2048;

/// Functions that get one element, a number.
fn number(daemon: &Daemon, name: &str, returns: &str, settings: &[&str]) {
    let source = format!(
        "import json, spry\ndef main(r: spry.Request):\n  n = json.loads(bytes(r.body))\n  return {returns}\n"
    );
    daemon.deploy_python(name, &source, settings);
}

fn longest_lists_on(transport: &str) {
    need_root_and_cc!();
    let daemon = Daemon::start(&format!("transport = \"{transport}\"\n"));
    // (All by one process, which can't have as many blocks out as there are elements.)
    number(&daemon, "next", "{'n': n + 1}", &["scale.max=1"]);
    apply(&daemon, "name = \"each\"\n[[step]]\nmap = \"next\"\nat_once = 64\n");
    apply(&daemon, "name = \"nested\"\n[[step]]\nmap = \"each\"\nat_once = 2\n");
    let address = daemon.address;
    // Two at a time: neither waits for blocks that the other has.
    let clients = [0, 10_000].map(|from| {
        std::thread::spawn(move || {
            let numbers: Vec<usize> = (from..from + LONGEST).collect();
            let next: Vec<Value> = numbers.iter().map(|n| json!({"n": n + 1})).collect();
            let body = serde_json::to_vec(&numbers).expect("JSON");
            let response = Connection::open(address).call("POST", "/function/each", &[], &body);
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.json(), json!(next));
        })
    });
    clients.into_iter().for_each(|client| client.join().expect("all are right"));
    let lists: Vec<Vec<usize>> = (0..3).map(|list| (0..300).map(|n| list * 1000 + n).collect()).collect();
    let next: Vec<Vec<Value>> =
        lists.iter().map(|list| list.iter().map(|n| json!({"n": n + 1})).collect()).collect();
    let response = daemon.post("/function/nested", &serde_json::to_vec(&lists).expect("JSON"));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.json(), json!(next));
    let over = daemon.post("/function/each", format!("[{}0]", "0,".repeat(LONGEST)).as_bytes());
    assert_eq!((over.status, over.error_code()), (500, "bad_value".into()));
    daemon.stop();
}

#[test]
fn a_list_may_be_as_long_as_is_allowed_on_sockmap() {
    longest_lists_on("sockmap");
}

#[test]
fn a_list_may_be_as_long_as_is_allowed_on_futex() {
    longest_lists_on("futex");
}

#[test]
fn a_list_may_be_as_long_as_is_allowed_on_broker() {
    longest_lists_on("broker");
}

#[test]
fn what_an_element_took_on_its_way_goes_with_it() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    // Each value in between is a quarter of what its function has room for.
    number(&daemon, "blow", "bytes([n]) * 900_000", &["scale.max=1", "limits.payload=1MiB"]);
    let source = "import spry\ndef main(r: spry.Request): return {'of': r.body[0], 'len': len(r.body)}\n";
    daemon.deploy_python("measure", source, &["limits.payload=1MiB"]);
    apply(&daemon, &format!("payload = \"1MiB\"\n{}", chain_of("both", &["blow", "measure"])));
    apply(&daemon, "name = \"each\"\npayload = \"1MiB\"\n[[step]]\nmap = \"both\"\nat_once = 2\n");
    let numbers: Vec<u8> = (0..40).collect();
    let measured: Vec<Value> = numbers.iter().map(|n| json!({"of": n, "len": 900_000})).collect();
    let response = daemon.post("/function/each", json!(numbers).to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.json(), json!(measured));
    daemon.stop();
}

#[test]
fn values_that_wait_leave_their_function_room_to_answer() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source = "import spry\ndef main(p):\n  for n in range(p['count']): spry.emit(p['name'], {'n': n})\n  return {}\n";
    daemon.deploy_python("source", source, &["scale.max=1"]);
    daemon.deploy_python("sink", "def main(p): print(sum(x['n'] for x in p), len(p))\n", &[]);
    apply(
        &daemon,
        &format!(
            "{}[[trigger]]\nfunction = \"sink\"\non = {{ count = 128, of = \"a\" }}\n\
             [[trigger]]\nfunction = \"sink\"\non = {{ count = 127, of = \"b\" }}\n\
             [[trigger]]\nfunction = \"sink\"\non = {{ count = 126, of = \"c\" }}\n",
            chain_of("emits", &["source"])
        ),
    );
    let emit = |name: &str, count: u32| {
        let body = json!({"name": name, "count": count}).to_string();
        let response = daemon.post("/function/emits", body.as_bytes());
        assert_eq!(response.status, 200, "{count} of {name}: {}", response.text());
    };
    // One less than each trigger waits for; then the last of each.
    for (name, count) in [("a", 127), ("b", 126), ("c", 125), ("a", 1), ("b", 1), ("c", 1)] {
        emit(name, count);
    }
    for (last, count) in [(126, 128), (125, 127), (124, 126)] {
        let sum = (0..=last).sum::<u32>();
        daemon.until("all of them have come", |daemon| {
            daemon.spry_ok(&["logs", "sink"]).contains(&format!("{sum} {count}"))
        });
    }
    daemon.stop();
}

/// The most memory that spryd has had, in bytes.
fn peak_bytes(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn a_condition_takes_no_multiple_of_the_text_that_it_looks_into() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("other", "def main(p): return {}\n", &[]);
    apply(
        &daemon,
        "name = \"looks\"\n[[step]]\nwhen = [{ field = \"/1048575/kind\", equals = \"x\", then = \"other\" }]\n",
    );
    let text = format!("[{}{{}}]", "{\"\":0},".repeat(700_000));
    let before = peak_bytes(&daemon);
    let response = daemon.post("/function/looks", text.as_bytes());
    assert!(response.status == 200 && response.body == text.as_bytes(), "it passes on unchanged");
    let more = peak_bytes(&daemon) - before;
    assert!(more < 8 * text.len() as u64, "{more} bytes more, for a text of {}", text.len());
    daemon.stop();
}

#[test]
fn a_chain_goes_at_once_and_what_waits_in_its_windows_with_it() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("source", "import spry\ndef main(p):\n  spry.emit('w', p)\n  return {}\n", &[]);
    daemon.deploy_python("late", "def main(p): print('started')\n", &[]);
    let window = "[[trigger]]\nfunction = \"late\"\non = { window = \"30s\", of = \"w\" }\n";
    apply(&daemon, &format!("{}{window}", chain_of("emits", &["source"])));
    assert_eq!(daemon.post("/function/emits", b"{}").status, 200);
    // (It waits until all of the chain has ended.)
    daemon.spry_ok(&["chain", "remove", "emits"]);
    assert!(!daemon.spry_ok(&["logs", "late"]).contains("started"), "a chain that is gone starts nothing");
    daemon.stop();
}

#[test]
fn a_chain_that_is_out_of_time_says_that_it_is_the_chain() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("slow", UNTIL_LET_GO, &[]);
    apply(&daemon, &format!("timeout = \"300ms\"\n{}", chain_of("slowly", &["slow"])));
    let response = daemon.post("/function/slowly", br#"{"wait": true}"#);
    assert_eq!((response.status, response.error_code()), (504, "timed_out".into()));
    assert!(
        response.text().contains("the chain did not end within its limit of 300ms"),
        "{}",
        response.text()
    );
    daemon.stop();
}
