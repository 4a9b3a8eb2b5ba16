//! Taking all there is: processes, memory, descriptors, files, space, output. Each limit answers as the contract says.

use super::daemon::Daemon;
use super::neighbour::Neighbour;
use crate::need_root_and_cc;

const GLUTTON: &str = r#"
import errno, os, time

def forks():
    made = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(1000)
                os._exit(0)
            made += 1
    except OSError as error:
        return {"made": made, "error": errno.errorcode[error.errno]}

def bomb():
    hoard = []
    while True: hoard.append(bytearray(1 << 20))

def descriptors():
    held = []
    try:
        while True: held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        count = len(held)
        for fd in held: os.close(fd)
        return {"made": count, "error": errno.errorcode[error.errno]}

def files():
    made = 0
    try:
        while True:
            os.close(os.open("/tmp/%d" % made, os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        for number in range(made): os.unlink("/tmp/%d" % number)
        return {"made": made, "error": errno.errorcode[error.errno]}

def space():
    made = 0
    try:
        with open("/tmp/big", "wb", buffering=0) as file:
            while True: made += file.write(bytes(1 << 20))
    except OSError as error:
        os.unlink("/tmp/big")
        return {"made": made, "error": errno.errorcode[error.errno]}

def flood():
    line = "x" * 1023 + "\n"
    for _ in range(16 * 1024): os.write(1, line.encode())
    return {"made": 16 << 20}

def payload(): return {"made": "x" * (1 << 20)}

def spin():
    while True: pass

def main(params): return globals()[params["how"]]()
"#;

/// Answers to one way of taking everything, while the neighbour is called; after it the next call works.
fn take(how: &str, settings: &[&str]) -> super::client::Response {
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("glutton", GLUTTON, settings);
    let response = daemon.post("/function/glutton", format!("{{\"how\":\"{how}\"}}").as_bytes());
    let after = daemon.post("/function/glutton", b"{\"how\":\"descriptors\"}");
    assert_eq!(after.status, 200, "after {how}: {}", after.text());
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
    response
}

fn is(response: &super::client::Response, error: &str, at_most: i64) -> i64 {
    assert_eq!(response.status, 200, "{}", response.text());
    let answer = response.json();
    assert_eq!(answer["error"], error, "{answer}");
    let made = answer["made"].as_i64().expect("a count");
    assert!((1..=at_most).contains(&made), "{made}");
    made
}

#[test]
fn a_fork_bomb() {
    need_root_and_cc!();
    is(&take("forks", &["limits.processes=16"]), "EAGAIN", 16);
}

#[test]
fn a_memory_bomb() {
    need_root_and_cc!();
    let response = take("bomb", &["limits.memory=64MiB"]);
    assert_eq!((response.status, response.error_code().as_str()), (507, "out_of_memory"));
    let text = response.text();
    assert!(text.contains("64MiB") && text.contains("limits.memory"), "which limit to raise: {text}");
}

/// The same before there is anything to call: the deploy says so, and what served before serves on.
#[test]
fn a_memory_bomb_at_load() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("glutton", GLUTTON, &[]);
    let output =
        daemon.try_deploy_python("glutton", &format!("{GLUTTON}\nbomb()\n"), &["limits.memory=64MiB"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("64MiB") && text.contains("limits.memory"), "{text}");
    let after = daemon.post("/function/glutton", b"{\"how\":\"descriptors\"}");
    assert_eq!(after.status, 200, "{}", after.text());
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn descriptor_exhaustion() {
    need_root_and_cc!();
    is(&take("descriptors", &[]), "EMFILE", 1024);
}

#[test]
fn inode_exhaustion() {
    need_root_and_cc!();
    is(&take("files", &[]), "ENOSPC", 4096);
}

#[test]
fn a_full_tmp() {
    need_root_and_cc!();
    assert_eq!(is(&take("space", &["limits.tmpfs=8MiB"]), "ENOSPC", 8 << 20), 8 << 20);
}

/// What lies in /tmp counts as memory of who wrote it.
#[test]
fn a_tmp_that_is_larger_than_memory() {
    need_root_and_cc!();
    let response = take("space", &["limits.tmpfs=256MiB", "limits.memory=32MiB"]);
    assert_eq!((response.status, response.error_code().as_str()), (507, "out_of_memory"));
}

#[test]
fn a_log_flood() {
    need_root_and_cc!();
    let daemon = Daemon::start("[logs]\nper_invocation = \"16KiB\"\n");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("glutton", GLUTTON, &[]);
    let response = daemon.post("/function/glutton", b"{\"how\":\"flood\"}");
    assert_eq!(response.status, 200, "{}", response.text());
    let call = response.header("x-call-id").expect("a call id").to_owned();
    let kept = daemon.spry_ok(&["activation", "logs", &call]).len();
    assert!((1..64 << 10).contains(&kept), "{kept} bytes are kept");
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn an_answer_that_is_too_large() {
    need_root_and_cc!();
    let response = take("payload", &["limits.payload=64KiB"]);
    assert_eq!(response.status, 500, "{}", response.text());
}

#[test]
fn all_the_time_there_is() {
    need_root_and_cc!();
    let response = take("spin", &["limits.timeout=4s"]);
    assert_eq!((response.status, response.error_code().as_str()), (504, "timed_out"));
}
