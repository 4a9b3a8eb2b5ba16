//! What an operator sees: the metrics page.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use super::client::Connection;
use super::daemon::Daemon;
use crate::need_root_and_cc;

/// Where each of them is explained.
const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// The page's samples; checks its form on the way.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut families, mut current) = (BTreeMap::new(), BTreeSet::new(), String::new());
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a description");
            assert!(text.ends_with('.'), "{line}");
            assert!(families.insert(name.to_owned()), "{name} twice");
            let documented = name.starts_with("process_") || OPERATIONS.contains(&format!("`{name}`"));
            assert!(documented, "docs/operations.md doesn't list {name}");
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            assert!(matches!(kind, Some("counter" | "gauge" | "histogram")), "{name}: {kind:?}");
            assert_eq!(kind == Some("counter"), name.ends_with("_total"), "{name}");
            current = name.to_owned();
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
        assert!(key.starts_with(&current), "{key} lies among {current}");
        let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        assert!(samples.insert(key.to_owned(), value).is_none(), "{key} twice");
    }
    samples
}

#[test]
fn metrics_tell_what_happened_and_each_has_its_description() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source =
        "def main(params):\n  print('x' * params.get('print', 0))\n  return {'v': 1 / params['by']}\n";
    daemon.deploy_python("divide", source, &[]);
    for (body, status) in [
        (&br#"{"by":2}"#[..], 200),
        (br#"{"by":4}"#, 200),
        (br#"{"by":0}"#, 500),
        (br#"{"by":1,"print":100000}"#, 200),
    ] {
        assert_eq!(daemon.post("/function/divide", body).status, status);
    }
    let response = daemon.get("/metrics");
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = samples(&response.text());
    let value =
        |key: &str| *page.get(key).unwrap_or_else(|| panic!("{key} is missing:\n{}", response.text()));
    assert_eq!(value("spry_invocations_total{function=\"divide\",outcome=\"ok\"}"), 3.0);
    assert_eq!(value("spry_invocations_total{function=\"divide\",outcome=\"function_failed\"}"), 1.0);
    assert_eq!(value("spry_starts_total{function=\"divide\",kind=\"forked\"}"), 1.0);
    assert_eq!(value("spry_starts_total{function=\"divide\",kind=\"warm\"}"), 3.0);
    assert_eq!(value("spry_instances{function=\"divide\",state=\"idle\"}"), 1.0);
    for phase in ["queue", "exec"] {
        let key = format!("spry_invocation_phase_seconds_count{{function=\"divide\",phase=\"{phase}\"}}");
        assert_eq!(value(&key), 4.0);
        let last = "spry_invocation_phase_seconds_bucket";
        assert_eq!(value(&format!("{last}{{function=\"divide\",phase=\"{phase}\",le=\"+Inf\"}}")), 4.0);
    }
    assert_eq!(value("spry_invocation_phase_seconds_count{function=\"divide\",phase=\"start\"}"), 1.0);
    assert_eq!(value("spry_fork_seconds_count"), 1.0);
    assert_eq!(value("spry_zygote_start_seconds_count"), 1.0);
    assert_eq!(value("spry_pool_misses_total"), 1.0);
    assert!(value("spry_dropped_output_bytes_total") > 0.0);
    assert!(value("spry_function_resident_bytes{function=\"divide\"}") > 0.0);
    assert!(value("process_resident_memory_bytes") > 0.0);
    let transport = daemon.spry_json(&["status"])["transport"].as_str().expect("a word").to_owned();
    assert_eq!(value(&format!("spry_transport_info{{transport=\"{transport}\"}}")), 1.0);
    // What an instance has used is not forgotten when it ends.
    let instance = || {
        let page = samples(&daemon.get("/metrics").text());
        page["spry_function_peak_resident_bytes{function=\"divide\"}"]
    };
    assert_eq!(instance(), 0.0);
    for pid in daemon.children() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    daemon.until("an instance's end is counted", |_| instance() > 0.0);
    daemon.stop();
}

/// A function that says what it was given, and what the caller got back.
const ECHO: &str = "import spry\ndef main(request: spry.Request):\n  return {k.lower(): v for k, v in dict(request.headers).items()}\n";

#[test]
fn top_counts_the_cpus_of_the_node() {
    need_root_and_cc!();
    // (Its workers have one each.)
    let daemon = Daemon::start("");
    // (Not what a quota leaves of them, which `available_parallelism` says.)
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::this()).expect("a set");
    let cpus = (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).expect("a CPU")).count();
    let shown = daemon.spry_ok(&["top", "--once", "-i", "1ms"]);
    assert!(shown.contains(&format!(", {cpus} CPUs,")) && !shown.contains("-0"), "{shown}");
    daemon.stop();
}

#[test]
fn what_is_printed_while_a_function_is_loaded_is_in_its_log() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source = "import sys\nprint('told at import')\nprint('warned at import', file=sys.stderr)\n\
                  def main(params):\n    print('told in a call')\n    return {}\n";
    daemon.deploy_python("fn", source, &[]);
    assert_eq!(daemon.post("/function/fn", b"{}").status, 200);
    daemon.until("all of it is there", |daemon| {
        let logs = daemon.spry_ok(&["logs", "fn"]);
        ["told at import", "warned at import", "told in a call"].iter().all(|words| logs.contains(words))
    });
    daemon.stop();
}

#[test]
fn who_follows_the_log_of_what_is_removed_is_told() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("fn", "def main(params): return {}\n", &[]);
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).expect("connected");
    // A watchdog, far below the wait.
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("set");
    let path = "/system/function/fn/logs?since=0&wait=60s";
    write!(stream, "GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").expect("sent");
    daemon.spry_ok(&["remove", "fn"]);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is told before its wait is over");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no_such_function"), "{answer}");
    daemon.stop();
}

#[test]
fn a_trace_goes_through_the_function_and_comes_back() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("echo", ECHO, &[]);
    let mut connection = Connection::open(daemon.address);
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("traceparent", given), ("tracestate", "vendor=1")];
    let response = connection.call("GET", "/function/echo", &headers, b"");
    let seen = response.json();
    let passed = seen["traceparent"].as_str().expect("the function has it").to_owned();
    assert_eq!(passed[..36], given[..36]);
    assert_ne!(passed[36..52], given[36..52], "the parent is the gateway's span");
    assert!(passed.ends_with("-01"));
    assert_eq!(response.header("traceparent"), Some(passed.as_str()));
    assert_eq!(seen["tracestate"], "vendor=1");
    // What can't be read goes no further; without a collector, nothing new begins.
    let headers = [("traceparent", "00-nonsense"), ("tracestate", "vendor=1")];
    let response = connection.call("GET", "/function/echo", &headers, b"");
    assert_eq!(response.header("traceparent"), None);
    assert!(response.json().get("traceparent").is_none() && response.json().get("tracestate").is_none());
    daemon.stop();
}

#[test]
fn spans_are_told_to_a_collector() {
    need_root_and_cc!();
    let collector = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = collector.local_addr().expect("bound").port();
    let daemon = Daemon::start(&format!("[trace]\notlp = \"http://127.0.0.1:{port}/v1/traces\"\n"));
    daemon.deploy_python("echo", ECHO, &[]);
    daemon.deploy_python("bad", "def main(params): raise ValueError('no')\n", &[]);
    let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let mut connection = Connection::open(daemon.address);
    connection.call("GET", "/function/echo", &[("traceparent", unsampled)], b"");
    let response = connection.call("POST", "/function/bad", &[], b"{}");
    let call_id = response.header("x-call-id").expect("an id").to_owned();
    let (request, body) = collect(&collector);
    assert!(request.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{request}");
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone();
    let whole = spans.iter().find(|span| span["kind"] == 2).expect("the call");
    assert_eq!((&whole["name"], &whole["status"]["message"]), (&"bad".into(), &"function_failed".into()));
    assert_eq!(whole["traceId"], call_id.as_str(), "a trace of our own is named by its call");
    assert!(spans.iter().all(|span| span["traceId"] == call_id.as_str()), "the unsampled call is not told");
    assert!(spans.iter().any(|span| span["name"] == "exec" && span["parentSpanId"] == whole["spanId"]));
    daemon.until("the spans are counted", |daemon| {
        samples(&daemon.get("/metrics").text()).get("spry_spans_total{outcome=\"sent\"}") == Some(&1.0)
    });
    daemon.stop();
}

/// One request to a collector, answered well.
fn collect(collector: &std::net::TcpListener) -> (String, serde_json::Value) {
    use std::io::{BufRead, BufReader, Read, Write};
    let (stream, _) = collector.accept().expect("the exporter connects");
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).expect("a line") > 0, "cut off: {head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).expect("the body");
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("answered");
    (head, serde_json::from_slice(&body).expect("JSON"))
}
