//! Asynchronous calls as their users meet them: accepted, run, retried, cancelled, called back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};

use super::client::{Connection, Response};
use super::daemon::Daemon;
use crate::need_root_and_cc;

const ECHO: &str = "
import spry
def main(request: spry.Request):
    print('ran', request.path)
    seen = {name: value for name, value in request.headers.items()}
    return {'method': request.method, 'path': request.path, 'query': request.query,
            'x': seen.get('x-mine'), 'callback': seen.get('x-callback-url'), 'body': request.bytes().decode()}
";

const FLAKY: &str = "
def main(params):
    raise ValueError('not today')
";

pub(crate) fn later(address: SocketAddr, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    Connection::open(address).call("POST", &format!("/async-function/{name}"), headers, body)
}

pub(crate) fn id_of(response: &Response) -> String {
    assert_eq!(response.status, 202, "{}", response.text());
    response.header("x-call-id").expect("every accepted call has an id").to_owned()
}

/// The call's answer, once it has ended.
pub(crate) fn answer(address: SocketAddr, id: &str) -> Response {
    loop {
        let response =
            Connection::open(address).call("GET", &format!("/async-function/{id}?wait=60s"), &[], b"");
        if response.header("x-spry-call-state").is_some() || response.status != 202 {
            return response;
        }
    }
}

#[test]
fn an_asynchronous_call_reaches_the_function_as_it_was_sent() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("echo", ECHO, &[]);
    let mut connection = Connection::open(daemon.address);
    let headers = [("x-mine", "yes"), ("x-callback-url", "http://192.0.2.1/"), ("x-delay", "0")];
    // The default lets nothing be called back that isn't the public Internet's.
    let refused = connection.call("POST", "/async-function/echo", &headers, b"");
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "bad_callback"));
    let sent = connection.call("PUT", "/async-function/echo/a/b?c=d", &headers[..1], b"hello");
    let id = id_of(&sent);
    assert_eq!(sent.header("location"), Some(format!("/async-function/{id}").as_str()));
    let got = answer(daemon.address, &id);
    assert_eq!(got.header("x-call-id"), Some(id.as_str()));
    let seen = got.json();
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&"PUT".into(), &"/a/b".into(), &"c=d".into())
    );
    assert_eq!(
        (&seen["x"], &seen["callback"], &seen["body"]),
        (&"yes".into(), &serde_json::Value::Null, &"hello".into())
    );
    // The command line does the same.
    let id = daemon.spry_ok(&["invoke", "echo", "--async", "-d", "typed"]);
    let printed = daemon.spry_ok(&["activation", "result", id.trim(), "--wait", "30s"]);
    assert!(printed.contains("typed"), "{printed}");
    let call = daemon.spry_json(&["activation", "get", id.trim()]);
    assert_eq!((&call["later"]["state"], &call["later"]["attempts"]), (&"done".into(), &1.into()));
    let logged = daemon.spry_ok(&["activation", "logs", id.trim()]);
    assert!(logged.contains("ran"), "{logged}");
    for (path, headers, status, code) in [
        ("nobody", vec![], 404, "no_such_function"),
        ("echo", vec![("x-delay", "soon")], 400, "bad_header"),
        ("echo", vec![("x-delay", "31d")], 400, "bad_header"),
        ("echo", vec![("idempotency-key", "")], 400, "bad_header"),
        ("echo", vec![("x-callback-url", "file:///etc/passwd")], 400, "bad_callback"),
    ] {
        let refused = later(daemon.address, path, &headers, b"");
        assert_eq!((refused.status, refused.error_code().as_str()), (status, code), "{path} {headers:?}");
    }
    let unknown = format!("/async-function/{}", "0".repeat(32));
    assert_eq!(daemon.get(&unknown).status, 404);
    assert_eq!(Connection::open(daemon.address).call("DELETE", &unknown, &[], b"").status, 404);
    daemon.stop();
}

#[test]
fn failed_calls_are_retried_buried_revived_and_dropped() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let fast = ["async.retries=2", "async.backoff=10ms"];
    daemon.deploy_python("flaky", FLAKY, &fast);
    let id = id_of(&later(daemon.address, "flaky", &[], b"{}"));
    let got = answer(daemon.address, &id);
    assert_eq!(
        (got.status, got.header("x-spry-call-state"), got.header("x-spry-attempts")),
        (500, Some("dead"), Some("3"))
    );
    let dead = daemon.spry_json(&["dead", "list", "flaky"]);
    assert_eq!((&dead[0]["call_id"], &dead[0]["attempts"]), (&id.as_str().into(), &3.into()));
    assert!(dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("not today")), "{dead}");
    // Mended and revived, it goes through.
    daemon.deploy_python("flaky", "def main(params): return 'mended'\n", &fast);
    daemon.spry_ok(&["dead", "retry", &id]);
    assert!(answer(daemon.address, &id).text().contains("mended"));
    assert!(daemon.spry_json(&["dead", "list"]).as_array().is_some_and(Vec::is_empty));
    assert_eq!(daemon.spry(&["dead", "drop", &id]).status.code(), Some(2));
    // What is called may go away; its calls wait for it, and then die.
    daemon.deploy_python("flaky", FLAKY, &["async.retries=0"]);
    let id = id_of(&later(daemon.address, "flaky", &[], b"{}"));
    assert_eq!(answer(daemon.address, &id).header("x-spry-call-state"), Some("dead"));
    daemon.spry_ok(&["dead", "drop", &id]);
    assert!(daemon.spry_json(&["dead", "list"]).as_array().is_some_and(Vec::is_empty));
    // Many at once: those of one function, and no others.
    daemon.deploy_python("other", FLAKY, &["async.retries=0"]);
    let mut ids: Vec<_> = (0..3).map(|_| id_of(&later(daemon.address, "flaky", &[], b"{}"))).collect();
    let others = id_of(&later(daemon.address, "other", &[], b"{}"));
    for id in ids.iter().chain([&others]) {
        assert_eq!(answer(daemon.address, id).header("x-spry-call-state"), Some("dead"));
    }
    daemon.deploy_python("flaky", "def main(params): return 'mended'\n", &fast);
    assert_eq!(daemon.spry_ok(&["dead", "retry", "--all-of", "flaky"]).lines().count(), 3);
    ids.retain(|id| answer(daemon.address, id).status != 200);
    assert!(ids.is_empty(), "these did not run again: {ids:?}");
    assert_eq!(daemon.spry_json(&["dead", "list"])[0]["call_id"], others.as_str());
    assert_eq!(daemon.spry(&["dead", "drop"]).status.code(), Some(64), "which ones?");
    // However many have died since it was asked for, none that was there is passed over.
    let database = rusqlite::Connection::open(daemon.state().join("calls.db")).expect("the database opens");
    let copies = "WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 1000) \
                  INSERT INTO dead SELECT n + i, printf('%032x', i), function, head, callback, accepted_unix_ms, \
                  died_unix_ms + 86400000, attempts, status, error, reason, body FROM k, dead WHERE id = ?1";
    assert_eq!(database.execute(copies, [&others]).expect("written"), 1000);
    drop(database);
    assert_eq!(daemon.spry_ok(&["dead", "drop", "--all-of", "other"]).lines().count(), 1);
    daemon.stop();
}

#[test]
fn answers_of_synchronous_calls_are_kept_if_the_operator_wants_that() {
    need_root_and_cc!();
    let daemon = Daemon::start("[activations]\nresults = \"10B\"\n");
    daemon.deploy_python("quick", "def main(params): return 'a' * params['n']\n", &[]);
    daemon.deploy_python("flaky", FLAKY, &[]);
    let id_and_text = |body: &[u8]| {
        let response = daemon.post("/function/quick", body);
        (response.header("x-call-id").expect("an id").to_owned(), response.text())
    };
    let (id, text) = id_and_text(br#"{"n": 3}"#);
    assert_eq!(daemon.spry_ok(&["activation", "result", &id]), text);
    let (id, text) = id_and_text(br#"{"n": 30}"#);
    assert_eq!(daemon.spry_ok(&["activation", "result", &id]), text[..10], "its beginning");
    let failed = daemon.post("/function/flaky", b"{}");
    let id = failed.header("x-call-id").expect("an id");
    assert_eq!(daemon.spry(&["activation", "result", id]).status.code(), Some(1), "a failure is one");
    daemon.stop();
    let daemon = Daemon::start("");
    daemon.deploy_python("quick", "def main(params): return 'ok'\n", &[]);
    let id = daemon.post("/function/quick", b"{}").header("x-call-id").expect("an id").to_owned();
    let none = daemon.spry(&["activation", "result", &id]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("activations.results"), "{none:?}");
    daemon.stop();
}

#[test]
fn one_slow_function_blocks_no_other_and_waiting_calls_can_be_cancelled() {
    need_root_and_cc!();
    // The slow ones won't end by themselves.
    let daemon = Daemon::start("[async]\nin_flight = 8\n[shutdown]\ngrace = \"0s\"\n");
    daemon.deploy_python(
        "slow",
        "import time\ndef main(params): time.sleep(3600)\n",
        &["scale.max=2", "limits.timeout=1h"],
    );
    daemon.deploy_python("quick", "def main(params): return 'ok'\n", &[]);
    let slow: Vec<_> = (0..6).map(|_| id_of(&later(daemon.address, "slow", &[], b"{}"))).collect();
    let quick: Vec<_> = (0..6).map(|_| id_of(&later(daemon.address, "quick", &[], b"{}"))).collect();
    for id in &quick {
        assert_eq!(answer(daemon.address, id).status, 200);
    }
    // Those that run can't be taken back; the others never run.
    daemon.until("two run", |daemon| {
        let of =
            |id: &String| daemon.get(&format!("/async-function/{id}")).json()["later"]["state"] == "running";
        slow.iter().filter(|id| of(id)).count() == 2
    });
    let cancelled: Vec<u16> = slow
        .iter()
        .map(|id| {
            Connection::open(daemon.address).call("DELETE", &format!("/async-function/{id}"), &[], b"").status
        })
        .collect();
    assert_eq!(cancelled.iter().filter(|status| **status == 204).count(), 4, "{cancelled:?}");
    assert_eq!(cancelled.iter().filter(|status| **status == 409).count(), 2, "{cancelled:?}");
    let gone = slow.iter().zip(&cancelled).find(|(_, status)| **status == 204).expect("counted above").0;
    assert_eq!(daemon.get(&format!("/async-function/{gone}")).status, 410);
    let call = daemon.spry_json(&["activation", "get", gone]);
    assert_eq!(call["later"]["state"], "cancelled");
    let delayed = id_of(&later(daemon.address, "quick", &[("x-delay", "10m")], b"{}"));
    let call = daemon.spry_json(&["activation", "get", &delayed]);
    assert_eq!(call["later"]["state"], "delayed");
    // The command line has its own words for the headers, and cancels.
    let put_off = ["invoke", "quick", "--async", "--delay", "10m", "--key", "once", "-d", "{}"];
    let id = daemon.spry_ok(&put_off);
    assert_eq!(daemon.spry_ok(&put_off), id, "the same key is the same call");
    assert!(daemon.spry_ok(&["activation", "cancel", id.trim()]).contains("won't run"));
    let waited = daemon.spry_json(&["activation", "get", id.trim(), "--wait", "1h"]);
    assert_eq!(waited["later"]["state"], "cancelled", "and nobody waits for what has ended");
    assert_eq!(daemon.spry(&["activation", "cancel", id.trim()]).status.code(), Some(2));
    assert_eq!(daemon.spry(&["invoke", "quick", "--delay", "10m"]).status.code(), Some(64));
    let no_id = daemon.spry(&["activation", "cancel", "quick"]);
    assert_eq!(no_id.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&no_id.stderr).contains("\"quick\" is no call's id"));
    assert_eq!(
        daemon.spry_ok(&["dead", "retry", "--all-of", "quick"]),
        "no call of \"quick\" was given up\n"
    );
    let runs = slow.iter().zip(&cancelled).find(|(_, status)| **status == 409).expect("counted above").0;
    let early = daemon.spry(&["activation", "result", runs, "--wait", "1ms"]);
    assert_eq!(early.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&early.stderr).contains("has not ended yet"));
    daemon.stop();
}

#[test]
fn a_full_queue_refuses_with_retry_after() {
    need_root_and_cc!();
    let daemon = Daemon::start("[async]\ncalls = 3\n");
    daemon.deploy_python("quick", "def main(params): return 'ok'\n", &["limits.payload=1KiB"]);
    let put_off = [("x-delay", "1h")];
    let ids: Vec<_> = (0..3).map(|_| id_of(&later(daemon.address, "quick", &put_off, b""))).collect();
    let refused = later(daemon.address, "quick", &put_off, b"");
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "async_queue_full"));
    assert!(refused.header("retry-after").is_some());
    let over = later(daemon.address, "quick", &[], &[b'x'; 2000]);
    assert_eq!((over.status, over.error_code().as_str()), (413, "payload_too_large"));
    let long = "x".repeat(100 * 1024);
    let over = later(daemon.address, "quick", &[("x-long", &long)], b"");
    assert_eq!((over.status, over.error_code().as_str()), (431, "head_too_large"));
    let status = Connection::open(daemon.address)
        .call("DELETE", &format!("/async-function/{}", ids[0]), &[], b"")
        .status;
    assert_eq!(status, 204);
    // The same key is the same call, however often it is sent, and takes no more room.
    let keyed = [("idempotency-key", "one"), ("x-delay", "1h")];
    let first = later(daemon.address, "quick", &keyed, b"a");
    let again = later(daemon.address, "quick", &keyed, b"a");
    // (The queue is full again; a repetition needs no room but is only known to be one once it is looked up.)
    assert!(again.status == 429 || id_of(&again) == id_of(&first));
    assert_eq!(
        Connection::open(daemon.address)
            .call("DELETE", &format!("/async-function/{}", ids[1]), &[], b"")
            .status,
        204
    );
    let again = later(daemon.address, "quick", &keyed, b"a");
    assert_eq!((id_of(&again), again.header("x-spry-repeated")), (id_of(&first), Some("true")));
    let other = later(daemon.address, "quick", &keyed, b"b");
    assert_eq!((other.status, other.error_code().as_str()), (422, "idempotency_key_reused"));
    daemon.stop();
}

#[test]
fn bodies_that_arrive_count_among_the_requests_in_memory() {
    need_root_and_cc!();
    let daemon = Daemon::start("[queue]\nmemory = \"1MiB\"\n");
    daemon.deploy_python("quick", "def main(params): return 'ok'\n", &[]);
    let body = vec![b'x'; 700_000];
    let mut slow = Connection::open(daemon.address);
    slow.write(b"POST /async-function/quick HTTP/1.1\r\nhost: t\r\ncontent-length: 700000\r\n\r\n");
    slow.write(&body[1..]);
    daemon.until("there is no room for as much again", |daemon| {
        let refused = later(daemon.address, "quick", &[], &body);
        refused.status == 503
            && refused.error_code() == "node_full"
            && refused.header("retry-after").is_some()
    });
    assert_eq!(daemon.post("/function/quick", &body).error_code(), "node_full", "it is the same memory");
    slow.write(b"x");
    assert_eq!(slow.receive(false).status, 202);
    daemon.until("its place is free again", |daemon| {
        later(daemon.address, "quick", &[("x-delay", "1h")], &body).status == 202
    });
    daemon.stop();
}

/// A receiver of callbacks that refuses the first `refuse` of them.
fn receiver(refuse: usize) -> (SocketAddr, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            let mut reader = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                    break;
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                head.push_str(&lower);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the body");
            let status = if count < refuse { "503 Later" } else { "204 Thanks" };
            let _ = reader
                .get_mut()
                .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes());
            if count >= refuse && sender.send((head, body)).is_err() {
                return;
            }
        }
    });
    (address, received)
}

#[test]
fn the_end_is_called_back_with_openfaas_headers_and_retried() {
    need_root_and_cc!();
    let (address, received) = receiver(2);
    let config = format!("[async.callback]\nhosts = [\"{address}\"]\nbackoff = \"10ms\"\n");
    let daemon = Daemon::start(&config);
    daemon.deploy_python("echo", ECHO, &[]);
    daemon.deploy_python("flaky", FLAKY, &["async.retries=0"]);
    let url = format!("http://{address}/hook?x=1");
    let id = id_of(&later(daemon.address, "echo", &[("x-callback-url", &url)], b"told"));
    let watchdog = std::time::Duration::from_secs(60);
    let (head, body) = received.recv_timeout(watchdog).expect("the callback comes");
    assert!(head.starts_with("post /hook?x=1 http/1.1"), "{head}");
    for line in [
        format!("x-call-id: {id}"),
        "x-function-name: echo".into(),
        "x-function-status: 200".into(),
        "x-duration-seconds: ".into(),
        "x-start-time: ".into(),
        "content-type: application/json".into(),
    ] {
        assert!(head.contains(&line), "{line}: {head}");
    }
    assert!(String::from_utf8_lossy(&body).contains("told"));
    // A call that was given up is reported as well.
    later(daemon.address, "flaky", &[("x-callback-url", &url)], b"{}");
    let (head, _) = received.recv_timeout(watchdog).expect("the callback comes");
    assert!(head.contains("x-function-status: 500"), "{head}");
    daemon.stop();
}
