//! Chains as their users meet them.

use serde_json::json;

use super::client::{Connection, Response};
use super::daemon::{Daemon, UNTIL_LET_GO};
use crate::need_root_and_cc;

/// Appends its own name to the list that it gets.
fn append(daemon: &Daemon, name: &str, settings: &[&str]) {
    let source =
        format!("def main(p): return {{'at': p.get('at', []) + ['{name}'], 'n': p.get('n', 0) + 1}}\n");
    daemon.deploy_python(name, &source, settings);
}

pub(super) fn apply(daemon: &Daemon, chain: &str) {
    let output = try_apply(daemon, chain);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "apply: {err}");
}

fn try_apply(daemon: &Daemon, chain: &str) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("chain.toml");
    std::fs::write(&file, chain).expect("write the chain");
    daemon.spry(&["chain", "apply", file.to_str().expect("a UTF-8 path")])
}

pub(super) fn chain_of(name: &str, functions: &[&str]) -> String {
    let steps = functions.iter().map(|function| format!("[[step]]\nfunction = \"{function}\"\n"));
    format!("name = \"{name}\"\n{}", steps.collect::<String>())
}

/// The entries of `Server-Timing` whose names start with `letter`.
pub(super) fn timings(response: &Response, letter: char) -> Vec<String> {
    let header = response.header("server-timing").expect("every response has it");
    let entries = header.split(", ").filter(|entry| {
        entry.starts_with(letter) && entry[1..].starts_with(|digit: char| digit.is_ascii_digit())
    });
    entries
        .map(|entry| entry.split("desc=").nth(1).unwrap_or_default().trim_matches('"').to_owned())
        .collect()
}

fn goes_through_all_steps_on(transport: &str) {
    need_root_and_cc!();
    let daemon = Daemon::start(&format!("transport = \"{transport}\"\n"));
    for name in ["a", "b", "c"] {
        append(&daemon, name, &[]);
    }
    apply(&daemon, &chain_of("abc", &["a", "b", "c", "a"]));
    for _ in 0..20 {
        let response = daemon.post("/function/abc", b"{\"n\": 5}");
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json(), json!({"at": ["a", "b", "c", "a"], "n": 9}));
        assert_eq!(timings(&response, 's'), ["a", "b", "c", "a-2"]);
        assert_eq!(timings(&response, 'h'), ["to b", "to c", "to a-2"]);
    }
    // Functions and chains don't get in each other's way.
    assert_eq!(daemon.post("/function/b", b"{}").json(), json!({"at": ["b"], "n": 1}));
    many_at_once(&daemon);
    daemon.stop();
}

fn many_at_once(daemon: &Daemon) {
    let address = daemon.address;
    let clients = (0..6).map(|client| {
        std::thread::spawn(move || {
            let mut connection = Connection::open(address);
            for call in 0..60 {
                let n = client * 1000 + call;
                let response =
                    connection.call("POST", "/function/abc", &[], format!("{{\"n\": {n}}}").as_bytes());
                assert_eq!(response.status, 200, "{}", response.text());
                assert_eq!(response.json()["n"], n + 4, "somebody else's result");
            }
        })
    });
    clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().expect("all are right"));
}

#[test]
fn a_chain_goes_through_all_its_steps_on_sockmap() {
    goes_through_all_steps_on("sockmap");
}

#[test]
fn a_chain_goes_through_all_its_steps_on_futex() {
    goes_through_all_steps_on("futex");
}

#[test]
fn a_chain_goes_through_all_its_steps_on_broker() {
    goes_through_all_steps_on("broker");
}

/// More runs than instances: those that wait at a step are sent on whenever one of its instances is idle, also if
/// nobody but the kernel has seen that.
#[test]
fn no_run_is_left_waiting_when_there_are_more_than_instances() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    for name in ["a", "b", "c"] {
        append(&daemon, name, &["scale.max=1"]);
    }
    apply(&daemon, &format!("timeout = \"20s\"\n{}", chain_of("abc", &["a", "b", "c", "a"])));
    for _ in 0..4 {
        many_at_once(&daemon);
    }
    daemon.stop();
}

#[test]
fn branches_maps_conditions_and_chains_within_chains() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    for name in ["a", "b"] {
        append(&daemon, name, &[]);
    }
    daemon.deploy_python("total", "def main(p): return {'sum': sum(x['n'] for x in p)}\n", &[]);
    daemon.deploy_python("square", "def main(p): return {'is': p * p}\n", &[]);
    apply(&daemon, &chain_of("inner", &["a", "b"]));
    apply(
        &daemon,
        "name = \"fan\"\n[[step]]\nparallel = [\"a\", \"inner\", \"b\"]\n[[step]]\nfunction = \"total\"\n",
    );
    assert_eq!(daemon.post("/function/fan", b"{\"n\": 10}").json(), json!({"sum": 11 + 12 + 11}));
    apply(&daemon, "name = \"list\"\n[[step]]\nparallel = [\"b\", \"inner\"]\n");
    let listed = daemon.post("/function/list", b"{}");
    assert_eq!(listed.json(), json!([{"at": ["b"], "n": 1}, {"at": ["a", "b"], "n": 2}]));
    assert_eq!(listed.header("content-type"), Some("application/json"));
    apply(&daemon, "name = \"squares\"\n[[step]]\nmap = \"square\"\nat_once = 3\n");
    let numbers: Vec<u64> = (0..40).collect();
    let squares = daemon.post("/function/squares", json!(numbers).to_string().as_bytes());
    assert_eq!(
        squares.json(),
        json!(numbers.iter().map(|n| json!({"is": n * n})).collect::<Vec<_>>()),
        "{}",
        squares.text()
    );
    assert_eq!(daemon.post("/function/squares", b"[]").json(), json!([]));
    let refused = daemon.post("/function/squares", b"{\"no\": \"list\"}");
    assert_eq!((refused.status, refused.error_code()), (500, "bad_value".into()));
    apply(
        &daemon,
        "name = \"choose\"\n[[step]]\nwhen = [{ field = \"/kind\", equals = \"x\", then = \"inner\" }, \
         { field = \"/n\", equals = 7, then = \"a\" }]\n",
    );
    assert_eq!(daemon.post("/function/choose", b"{\"kind\": \"x\"}").json()["at"], json!(["a", "b"]));
    assert_eq!(daemon.post("/function/choose", b"{\"n\": 7}").json(), json!({"at": ["a"], "n": 8}));
    assert_eq!(daemon.post("/function/choose", b"{\"n\": 8}").json(), json!({"n": 8}), "passes on");
    daemon.stop();
}

#[test]
fn a_step_that_fails_is_named_retried_and_mended() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    append(&daemon, "a", &[]);
    daemon.deploy_python("fails", "def main(p): raise ValueError('no luck')\n", &[]);
    let flaky = "count = 0\ndef main(p):\n  global count\n  count += 1\n  if count % 3: raise ValueError('not yet')\n  return {'n': p['n'] + 100}\n";
    daemon.deploy_python("flaky", flaky, &["scale.max=1"]);
    daemon.deploy_python("mend", "def main(p): return {'n': 1000, 'error': p['error']}\n", &[]);
    apply(&daemon, &chain_of("plain", &["a", "fails", "a"]));
    let failed = daemon.post("/function/plain", b"{}");
    assert_eq!((failed.status, failed.error_code()), (500, "function_failed".into()));
    assert_eq!(failed.json()["error"]["step"], "fails");
    assert!(failed.json()["error"]["message"].as_str().expect("text").contains("no luck"));
    apply(
        &daemon,
        "name = \"tries\"\n[[step]]\nfunction = \"a\"\n[[step]]\nfunction = \"flaky\"\nretry = 2\n[[step]]\nfunction = \"a\"\n",
    );
    for _ in 0..3 {
        let response = daemon.post("/function/tries", b"{\"n\": 0}");
        assert_eq!((response.status, &response.json()["n"]), (200, &json!(102)), "{}", response.text());
        assert_eq!(timings(&response, 's'), ["a", "flaky", "flaky", "flaky", "a-2"]);
    }
    apply(
        &daemon,
        "name = \"mended\"\n[[step]]\nfunction = \"a\"\n[[step]]\nfunction = \"fails\"\nretry = 1\non_error = \"mend\"\n\
         [[step]]\nfunction = \"a\"\n",
    );
    let mended = daemon.post("/function/mended", b"{}");
    assert_eq!((mended.status, &mended.json()["n"]), (200, &json!(1001)), "{}", mended.text());
    daemon.stop();
}

fn dies_at_a_step_on(transport: &str) {
    need_root_and_cc!();
    let daemon = Daemon::start(&format!("transport = \"{transport}\"\n"));
    daemon.deploy_native("hostile", &["limits.timeout=20s"]);
    daemon.deploy_python("first", "import spry\ndef main(r: spry.Request): return r.body\n", &[]);
    apply(&daemon, &format!("timeout = \"6s\"\n{}", chain_of("fragile", &["first", "hostile", "first"])));
    for (how, status) in
        [("exit", 502), ("kill", 502), ("garbage", 502), ("zeros", 502), ("flood", 502), ("loop", 504)]
    {
        let response = daemon.post(&format!("/function/fragile?{how}"), b"{}");
        assert_eq!(response.status, status, "{how} on {transport}: {}", response.text());
        assert_eq!(response.json()["error"]["step"], "hostile", "{how} on {transport}");
        assert_eq!(timings(&response, 's'), ["first"], "{how} on {transport}");
        let fine = daemon.post("/function/fragile", b"{}");
        assert_eq!(fine.status, 200, "after {how} on {transport}: {}", fine.text());
    }
    daemon.stop();
}

#[test]
fn a_process_that_dies_at_a_step_costs_its_call_only_on_sockmap() {
    dies_at_a_step_on("sockmap");
}

#[test]
fn a_process_that_dies_at_a_step_costs_its_call_only_on_futex() {
    dies_at_a_step_on("futex");
}

#[test]
fn a_process_that_dies_at_a_step_costs_its_call_only_on_broker() {
    dies_at_a_step_on("broker");
}

/// Several runs wait in one process, and one of them ends it: the others haven't begun, and are served by the next.
#[test]
fn a_process_that_dies_costs_none_of_those_who_wait_in_it() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_native("hostile", &["scale.max=1"]);
    apply(&daemon, &format!("timeout = \"20s\"\n{}", chain_of("pair", &["hostile", "hostile"])));
    // It shows that it is short.
    for _ in 0..40 {
        assert_eq!(daemon.post("/function/pair", b"{}").status, 200);
    }
    let address = daemon.address;
    let clients = (0..6).map(|client| {
        std::thread::spawn(move || {
            let mut connection = Connection::open(address);
            for call in 0..90 {
                let kills = client == 0 && call % 15 == 14;
                let (path, expected) =
                    if kills { ("/function/pair?kill", 502) } else { ("/function/pair", 200) };
                let response = connection.call("POST", path, &[], b"{}");
                assert_eq!(response.status, expected, "{client}, {call}: {}", response.text());
            }
        })
    });
    clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().expect("as expected"));
    daemon.stop();
}

#[test]
fn no_step_starts_after_the_deadline_nor_for_a_client_that_has_left() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("slow", UNTIL_LET_GO, &[]);
    daemon.deploy_python("late", "def main(p):\n  print('late was here')\n  return p\n", &[]);
    apply(&daemon, &format!("timeout = \"300ms\"\n{}", chain_of("short", &["slow", "late"])));
    let response = daemon.post("/function/short", br#"{"wait": true}"#);
    assert_eq!((response.status, response.error_code()), (504, "timed_out".into()));
    assert_eq!(response.json()["error"]["step"], "slow");
    apply(&daemon, &format!("timeout = \"20s\"\n{}", chain_of("left", &["slow", "late"])));
    let mut connection = Connection::open(daemon.address);
    connection.send("POST", "/function/left", &[], br#"{"wait": true}"#);
    let busy = |daemon: &Daemon| {
        let view = daemon.spry_json(&["chain", "describe", "left"]);
        view.to_string().contains("\"busy\":1")
    };
    daemon.until("the first step runs", busy);
    connection.leave();
    assert!(connection.is_closed(), "spryd has seen it");
    daemon.let_go("slow");
    daemon.until("it has ended", |daemon| !busy(daemon));
    assert!(!daemon.spry_ok(&["logs", "late"]).contains("late was here"));
    assert_eq!(daemon.post("/function/left", b"{}").status, 200);
    assert!(daemon.spry_ok(&["logs", "late"]).contains("late was here"));
    daemon.stop();
}

#[test]
fn values_of_any_size_pass_and_their_memory_comes_back() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let settings = ["limits.payload=16MiB"];
    daemon.deploy_python("pass", "import spry\ndef main(r: spry.Request): return r.body\n", &settings);
    let source = "import spry\ndef main(r: spry.Request): return bytes(r.body)[::-1]\n";
    daemon.deploy_python("turn", source, &settings);
    let turns = chain_of("turns", &["turn", "pass", "turn", "pass"]);
    apply(&daemon, &format!("payload = \"16MiB\"\n{turns}"));
    for size in [0, 1, 63, 64, 65, 4096, 16 * 1024 + 1, 1 << 20, 15 << 20] {
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let response = daemon.post("/function/turns", &body);
        assert_eq!(response.status, 200, "{size}: {}", response.text());
        assert!(response.body == body, "{size} bytes are not the same");
    }
    // More values than an instance may have outstanding, and more bytes than its outbox has.
    let mut connection = Connection::open(daemon.address);
    let body = vec![7; 200_000];
    for _ in 0..600 {
        let response = connection.call("POST", "/function/turns", &[], &body);
        assert!(response.status == 200 && response.body == body, "{}", response.text());
    }
    apply(&daemon, &format!("payload = \"64KiB\"\n{}", chain_of("small", &["pass"])));
    let over = daemon.post("/function/small", &vec![0; (64 << 10) + 1]);
    assert_eq!((over.status, over.error_code()), (413, "payload_too_large".into()));
    daemon.stop();
}

#[test]
fn steps_may_print_and_may_be_used_once() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    append(&daemon, "a", &["isolation=request"]);
    daemon.deploy_python("loud", "def main(p):\n  print('n is', p['n'])\n  return p\n", &[]);
    apply(&daemon, &chain_of("mixed", &["a", "loud", "a", "loud"]));
    for n in 0..10 {
        let response = daemon.post("/function/mixed", format!("{{\"n\": {n}}}").as_bytes());
        assert_eq!((response.status, &response.json()["n"]), (200, &json!(n + 2)), "{}", response.text());
    }
    let logs = daemon.spry_ok(&["logs", "loud"]);
    assert!(logs.contains("n is 1") && logs.contains("n is 11"), "{logs}");
    daemon.stop();
}

#[test]
fn emitted_values_start_what_their_triggers_say() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source = "import spry\ndef main(p):\n  spry.emit('item', {'n': p['n']})\n  return {'done': p['n']}\n";
    daemon.deploy_python("source", source, &[]);
    daemon.deploy_python("each", "def main(p):\n  print('each', p['n'])\n  return p\n", &[]);
    daemon.deploy_python(
        "batch",
        "def main(p):\n  print('batch', sorted(x['n'] for x in p))\n  return p\n",
        &[],
    );
    apply(
        &daemon,
        &format!(
            "{}[[trigger]]\nfunction = \"each\"\non = {{ every = \"item\" }}\n\
             [[trigger]]\nfunction = \"batch\"\non = {{ count = 3, of = \"item\" }}\n",
            chain_of("emits", &["source"])
        ),
    );
    for n in 0..6 {
        assert_eq!(
            daemon.post("/function/emits", format!("{{\"n\": {n}}}").as_bytes()).json(),
            json!({"done": n})
        );
    }
    daemon.until("every value has started one", |daemon| {
        let logs = daemon.spry_ok(&["logs", "each"]);
        (0..6).all(|n| logs.contains(&format!("each {n}")))
    });
    daemon.until("and each three another", |daemon| {
        let logs = daemon.spry_ok(&["logs", "batch"]);
        logs.contains("batch [0, 1, 2]") && logs.contains("batch [3, 4, 5]")
    });
    daemon.stop();
}

#[test]
fn a_set_waits_for_its_last_value_and_a_window_for_its_end() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source =
        "import spry\ndef main(p):\n  for name, value in p.items(): spry.emit(name, value)\n  return {}\n";
    daemon.deploy_python("source", source, &[]);
    let pair = "import spry\ndef main(r: spry.Request):\n  print('pair', sorted(name for name, _ in r.parts), r.bytes())\n";
    daemon.deploy_python("pair", pair, &[]);
    daemon.deploy_python("late", "def main(p):\n  print('window', sorted(p))\n", &[]);
    let source = chain_of("emits", &["source"]);
    apply(
        &daemon,
        &format!(
            "{source}[[trigger]]\nfunction = \"pair\"\non = {{ set = [\"a\", \"b\"] }}\n\
             [[trigger]]\nfunction = \"late\"\non = {{ window = \"200ms\", of = \"w\" }}\n"
        ),
    );
    for body in [r#"{"a": [1], "w": [1]}"#, r#"{"a": [2], "w": [2]}"#, r#"{"b": [3]}"#] {
        let response = daemon.post("/function/emits", body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    daemon.until("the set is whole", |daemon| {
        daemon.spry_ok(&["logs", "pair"]).contains("pair ['a', 'b'] b'[[1],[3]]'")
    });
    daemon.until("the window has closed", |daemon| daemon.spry_ok(&["logs", "late"]).contains("window [["));
    assert_eq!(daemon.spry_ok(&["logs", "pair"]).matches("pair").count(), 1, "one b, one pair");
    daemon.stop();
}

#[test]
fn later_steps_are_started_while_the_first_one_works() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("slow", UNTIL_LET_GO, &[]);
    append(&daemon, "a", &[]);
    append(&daemon, "b", &[]);
    apply(&daemon, &chain_of("chained", &["slow", "a", "b"]));
    // After a restart nothing runs until somebody calls.
    daemon.crash_and_restart();
    let mut connection = Connection::open(daemon.address);
    connection.send("POST", "/function/chained", &[], br#"{"wait": true}"#);
    let views = |daemon: &Daemon| daemon.spry_json(&["chain", "describe", "chained"])["functions"].clone();
    daemon.until("all three have an idle or busy instance while the first works", |daemon| {
        let functions = views(daemon);
        let of = |name: &str| {
            functions.as_array().expect("list").iter().find(|f| f["name"] == name).cloned().expect("it")
        };
        of("slow")["instances"]["busy"] == 1
            && of("a")["instances"]["idle"] == 1
            && of("b")["instances"]["idle"] == 1
    });
    daemon.let_go("slow");
    let response = connection.receive(false);
    assert_eq!((response.status, response.json()["at"].clone()), (200, json!(["a", "b"])));
    daemon.stop();
}

#[test]
fn chains_follow_their_functions_and_survive_a_crash() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    append(&daemon, "a", &[]);
    daemon.deploy_python("b", "def main(p): return {'v': 1}\n", &[]);
    apply(&daemon, &chain_of("ab", &["a", "b"]));
    assert_eq!(daemon.post("/function/ab", b"{}").json(), json!({"v": 1}));
    daemon.deploy_python("b", "def main(p): return {'v': 2}\n", &[]);
    assert_eq!(daemon.post("/function/ab", b"{}").json(), json!({"v": 2}));
    for refused in [&["remove", "b"][..], &["deploy", "/nowhere.py", "--name", "ab"]] {
        assert!(!daemon.spry(refused).status.success(), "{refused:?}");
    }
    assert!(!try_apply(&daemon, &chain_of("a", &["b"])).status.success(), "a function has that name");
    assert!(!try_apply(&daemon, &chain_of("x", &["nobody"])).status.success(), "no such function");
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/ab", b"{}").json(), json!({"v": 2}));
    daemon.spry_ok(&["chain", "remove", "ab"]);
    assert_eq!(daemon.post("/function/ab", b"{}").status, 404);
    daemon.spry_ok(&["remove", "b"]);
    daemon.stop();
}
