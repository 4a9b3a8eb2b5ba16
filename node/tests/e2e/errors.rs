//! Every error of the contract, by causing it; after each, the next call succeeds.

use super::daemon::Daemon;
use crate::need_root_and_cc;

/// Does `how` in a native function; checks status and code, and that the next call is served by another process.
fn native_fault(how: &str, status: u16, codes: &[&str]) {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    // Whose time is to run out has little; the others' calls are not to fail on a busy machine.
    let timeout = if status == 504 { "limits.timeout=5s" } else { "limits.timeout=30s" };
    daemon.deploy_native("hostile", &[timeout, "limits.memory=64MiB"]);
    let before = daemon.get("/function/hostile");
    assert_eq!(before.status, 200, "{}", before.text());
    let response = daemon.get(&format!("/function/hostile?{how}"));
    assert_eq!(response.status, status, "{how}: {}", response.text());
    let code = response.error_code();
    assert!(codes.contains(&code.as_str()), "{how}: {code}: {}", response.text());
    assert_eq!(response.json()["error"]["call_id"].as_str(), response.header("x-call-id"));
    let after = daemon.get("/function/hostile");
    assert_eq!(after.status, 200, "after {how}: {}", after.text());
    assert_ne!(after.text(), before.text(), "after {how}: the broken process still serves");
    daemon.stop();
}

#[test]
fn a_function_that_exits_is_a_502() {
    native_fault("exit", 502, &["process_exited"]);
}

#[test]
fn a_function_that_aborts_is_a_502() {
    native_fault("abort", 502, &["process_killed"]);
}

#[test]
fn a_function_that_crashes_is_a_502() {
    native_fault("segv", 502, &["process_killed"]);
}

#[test]
fn a_function_that_is_killed_is_a_502() {
    native_fault("kill", 502, &["process_killed"]);
}

#[test]
fn a_function_that_loops_is_a_504() {
    native_fault("loop", 504, &["timed_out"]);
}

#[test]
fn a_function_that_sleeps_is_a_504() {
    native_fault("sleep", 504, &["timed_out"]);
}

#[test]
fn a_function_that_allocates_without_end_is_a_507() {
    native_fault("allocate", 507, &["out_of_memory"]);
}

#[test]
fn a_function_that_closes_its_bus_socket_is_a_502() {
    native_fault("close", 502, &["protocol_broken"]);
}

#[test]
fn a_function_that_shuts_its_bus_socket_down_is_a_502() {
    native_fault("shutdown", 502, &["protocol_broken"]);
}

#[test]
fn a_function_that_writes_garbage_to_its_bus_socket_is_a_502() {
    native_fault("garbage", 502, &["protocol_broken"]);
}

#[test]
fn a_function_that_writes_a_false_descriptor_is_a_502() {
    native_fault("zeros", 502, &["protocol_broken"]);
}

#[test]
fn a_function_that_floods_its_bus_socket_is_a_502() {
    native_fault("flood", 502, &["protocol_broken"]);
}

#[test]
fn a_native_function_that_fails_is_a_500_with_its_message() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_native("hostile", &[]);
    let response = daemon.get("/function/hostile?fail");
    assert_eq!(
        (response.status, response.error_code().as_str()),
        (500, "function_failed"),
        "{}",
        response.text()
    );
    assert_eq!(response.json()["error"]["message"], "it went wrong");
    assert_eq!(daemon.get("/function/hostile?nonzero").status, 500);
    // The header is refused by the SDK already, or by the gateway; it never gets out.
    let split = daemon.get("/function/hostile?header");
    assert!(split.header("x-injected").is_none());
    assert_eq!(daemon.get("/function/hostile").status, 200);
    daemon.stop();
}

const PYTHON: &str = r#"
import os, sys, signal
def main(params):
    how = params.get("how")
    if how == "raise": raise ValueError("no such fruit: \u00fc")
    if how == "nonsense": return object()
    if how == "exit": exit(4)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "loop":
        while True: pass
    if how == "allocate":
        hoard = []
        while True: hoard.append(bytearray(1 << 20))
    if how == "print":
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
    return {"pid": os.getpid()}
"#;

#[test]
fn python_errors_have_the_contracts_statuses() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("faults", PYTHON, &["limits.timeout=6s", "limits.memory=64MiB"]);
    let cases = [
        ("raise", 500, "function_failed"),
        ("nonsense", 500, "function_failed"),
        ("exit", 502, "process_exited"),
        ("kill", 502, "process_killed"),
        ("loop", 504, "timed_out"),
        ("allocate", 507, "out_of_memory"),
    ];
    for (how, status, code) in cases {
        let response = daemon.post("/function/faults", format!("{{\"how\":\"{how}\"}}").as_bytes());
        assert_eq!(
            (response.status, response.error_code().as_str()),
            (status, code),
            "{how}: {}",
            response.text()
        );
        let after = daemon.post("/function/faults", b"{}");
        assert_eq!(after.status, 200, "after {how}: {}", after.text());
    }
    let raised = daemon.post("/function/faults", b"{\"how\":\"raise\"}");
    assert_eq!(raised.json()["error"]["message"], "ValueError: no such fruit: \u{fc}");
    let logs = daemon.spry_ok(&["logs", "faults"]);
    assert!(logs.contains("Traceback") && logs.contains("raise ValueError"), "{logs}");
    daemon.stop();
}

#[test]
fn a_deploy_of_broken_code_fails_with_the_interpreters_traceback_and_changes_nothing() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("greet", "def main(params): return {'v': 1}", &[]);
    for (source, expected) in [
        ("def main(params)\n  return 1", "SyntaxError"),
        ("import no_such_module_at_all\ndef main(params): return {}", "ModuleNotFoundError"),
        ("1/0\ndef main(params): return {}", "ZeroDivisionError"),
        ("x = 1", "main"),
    ] {
        let output = daemon.try_deploy_python("greet", source, &["handler=greet:main"]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains(expected), "{expected} is missing in: {err}");
        assert_eq!(daemon.get("/function/greet").json()["v"], 1);
    }
    daemon.stop();
}

#[test]
fn output_is_captured_per_invocation() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("talk", PYTHON, &[]);
    daemon.deploy_native("hostile", &[]);
    let quiet = daemon.post("/function/talk", b"{}");
    let loud = daemon.post("/function/talk", b"{\"how\":\"print\"}");
    let logs_of = |call: &str| daemon.spry_ok(&["activation", "logs", call]);
    let lines = logs_of(loud.header("x-call-id").expect("a call id"));
    for part in ["to stdout", "to stderr", "from a child"] {
        assert!(lines.contains(part), "{part} is missing in {lines}");
    }
    assert!(!logs_of(quiet.header("x-call-id").expect("a call id")).contains("to stdout"));
    for _ in 0..50 {
        let response = daemon.get("/function/hostile?print");
        let call = response.header("x-call-id").expect("a call id").to_owned();
        assert!(logs_of(&call).contains(&format!("to stdout of {call}")));
    }
    daemon.stop();
}

#[test]
fn requests_that_can_not_be_served_say_why() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("small", "def main(params): return {}", &["limits.payload=10KiB"]);
    let missing = daemon.get("/function/nobody");
    assert_eq!((missing.status, missing.error_code().as_str()), (404, "no_such_function"));
    assert_eq!(daemon.get("/nowhere").error_code(), "no_such_path");
    let large = daemon.post("/function/small", &vec![b'x'; 20_000]);
    assert_eq!((large.status, large.error_code().as_str()), (413, "payload_too_large"));
    assert_eq!(daemon.post("/function/small", b"{}").status, 200);
    let posted = daemon.post("/healthz", b"");
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    daemon.stop();
}

#[test]
fn overload_is_a_429_with_retry_after() {
    need_root_and_cc!();
    let daemon = Daemon::start("[queue]\nper_function = 2\n");
    daemon.deploy_native("hostile", &["limits.timeout=3s", "scale.max=1"]);
    let address = daemon.address;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || super::client::call(address, "GET", "/function/hostile?sleep", b""))
        })
        .collect();
    let mut responses: Vec<_> = calls.into_iter().map(|call| call.join().expect("a response")).collect();
    responses.sort_by_key(|response| response.status);
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert!(refused.len() >= 5, "{responses:?}");
    assert!(refused.iter().all(|response| response.header("retry-after").is_some()));
    assert_eq!(daemon.get("/function/hostile").status, 200);
    daemon.stop();
}
