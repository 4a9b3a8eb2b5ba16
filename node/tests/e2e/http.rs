//! HTTP as clients speak it: methods, keep-alive, pipelining, chunks, HTTP/2, resets, garbage.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::client::{Connection, call};
use super::daemon::Daemon;
use crate::need_root_and_cc;

const MIRROR: &str = r#"
import spry
def main(request: spry.Request):
    if request.method == "DELETE":
        return spry.Response(status=204)
    return {"method": request.method, "path": request.path, "query": request.query,
            "length": len(request.body), "sum": sum(request.body) % 65521,
            "agent": request.headers.get("x-agent", ""), "host": request.headers.get("host", "")}
"#;

fn with_mirror() -> Daemon {
    let daemon = Daemon::start("");
    daemon.deploy_python("mirror", MIRROR, &["limits.payload=64MiB", "limits.memory=512MiB"]);
    daemon
}

#[test]
fn method_path_query_headers_and_body_reach_the_function() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let mut connection = Connection::open(daemon.address);
    for method in ["GET", "POST", "PUT", "PATCH", "OPTIONS"] {
        let headers = [("x-agent", "tester"), ("connection", "keep-alive")];
        let response = connection.call(method, "/function/mirror/a/b%20c?x=1&y=2", &headers, b"abc");
        let seen = response.json();
        assert_eq!((response.status, seen["method"].as_str()), (200, Some(method)));
        assert_eq!(seen["path"], "/a/b%20c");
        assert_eq!(seen["query"], "x=1&y=2");
        assert_eq!(seen["agent"], "tester");
        assert_eq!(seen["length"], 3);
        for header in ["x-call-id", "server-timing", "x-spry-start"] {
            assert!(response.header(header).is_some(), "{header} is missing");
        }
        let timing = response.header("server-timing").expect("checked");
        assert!(
            timing.contains("queue;dur=") && timing.contains("start;dur=") && timing.contains("exec;dur=")
        );
    }
    assert_eq!(connection.call("DELETE", "/function/mirror", &[], b"").status, 204);
    daemon.stop();
}

#[test]
fn head_has_the_length_and_no_body() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let mut connection = Connection::open(daemon.address);
    let head = connection.call("HEAD", "/function/mirror", &[], b"");
    assert_eq!(head.status, 200);
    let length: usize = head.header("content-length").expect("a length").parse().expect("a number");
    assert!(length > 10);
    // The connection is still in step.
    assert_eq!(connection.call("GET", "/function/mirror", &[], b"").status, 200);
    let missing = connection.call("HEAD", "/function/nobody", &[], b"");
    assert_eq!(missing.status, 404);
    assert_eq!(connection.call("GET", "/healthz", &[], b"").status, 200);
    daemon.stop();
}

#[test]
fn bodies_of_every_size_arrive_whole_however_they_are_framed() {
    need_root_and_cc!();
    let daemon = with_mirror();
    for size in [0, 1, 63, 64, 4096, 65_535, 65_537, 1 << 20, 20 << 20] {
        let body: Vec<u8> = (0..size).map(|i: usize| (i * 31 % 251) as u8).collect();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum::<u64>() % 65521;
        let plain = daemon.post("/function/mirror", &body);
        assert_eq!((plain.status, plain.json()["length"].as_u64()), (200, Some(size as u64)));
        assert_eq!(plain.json()["sum"], sum);
        let mut connection = Connection::open(daemon.address);
        connection.write(b"POST /function/mirror HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n");
        for chunk in body.chunks(100_001) {
            connection.write(format!("{:x}\r\n", chunk.len()).as_bytes());
            connection.write(chunk);
            connection.write(b"\r\n");
        }
        connection.write(b"0\r\n\r\n");
        let chunked = connection.receive(false).json();
        assert_eq!((chunked["length"].as_u64(), chunked["sum"].as_u64()), (Some(size as u64), Some(sum)));
    }
    daemon.stop();
}

#[test]
fn a_body_that_grows_beyond_the_limit_is_refused_while_it_is_read() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("small", "def main(params): return {}", &["limits.payload=100KiB"]);
    let mut stream = TcpStream::connect(daemon.address).expect("connect");
    stream
        .write_all(b"POST /function/small HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        .expect("send");
    let chunk = [b"2000\r\n".as_slice(), &[b'x'; 0x2000], b"\r\n"].concat();
    // Without end: the server must answer before it.
    while stream.write_all(&chunk).is_ok() {}
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(daemon.post("/function/small", b"{}").status, 200);
    daemon.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let mut connection = Connection::open(daemon.address);
    let mut all = Vec::new();
    for number in 0..20 {
        all.extend_from_slice(
            format!("GET /function/mirror/{number} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes(),
        );
    }
    connection.write(&all);
    for number in 0..20 {
        assert_eq!(connection.receive(false).json()["path"], format!("/{number}"));
    }
    daemon.stop();
}

#[test]
fn a_request_says_once_whom_it_is_for() {
    need_root_and_cc!();
    let daemon = with_mirror();
    for (head, status) in [
        ("HTTP/1.1\r\n", 400),
        ("HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        ("HTTP/1.1\r\nhost: a b\r\n", 400),
        ("HTTP/1.1\r\nhost: [::1]:80\r\n", 200),
        ("HTTP/1.0\r\n", 200),
    ] {
        for path in ["/function/mirror", "/healthz"] {
            let mut connection = Connection::open(daemon.address);
            connection.write(format!("GET {path} {head}\r\n").as_bytes());
            let response = connection.receive(false);
            assert_eq!(response.status, status, "{path} {head:?}");
            if status == 400 {
                assert_eq!(response.error_code(), "bad_host");
            }
        }
    }
    daemon.stop();
}

#[test]
fn a_target_that_names_a_host_says_which_it_is() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let mut connection = Connection::open(daemon.address);
    connection.write(b"GET http://named:80/function/mirror/a?b HTTP/1.1\r\nhost: other\r\n\r\n");
    let seen = connection.receive(false).json();
    assert_eq!((&seen["host"], &seen["path"]), (&"named:80".into(), &"/a".into()));
    connection.write(b"GET http://me@named/function/mirror HTTP/1.1\r\nhost: other\r\n\r\n");
    assert_eq!(connection.receive(false).error_code(), "bad_host");
    daemon.stop();
}

#[test]
fn a_tunnel_is_refused_in_so_many_words() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let mut connection = Connection::open(daemon.address);
    for target in ["/function/mirror", "http://t/function/mirror", "t:80"] {
        connection.write(format!("CONNECT {target} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes());
        let refused = connection.receive(false);
        assert_eq!((refused.status, refused.error_code().as_str()), (405, "method_not_allowed"), "{target}");
    }
    assert_eq!(connection.call("GET", "/function/mirror", &[], b"").status, 200);
    daemon.stop();
}

#[test]
fn who_announces_bodies_and_sends_none_keeps_nobody_out() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("mirror", MIRROR, &["limits.payload=100MiB", "limits.memory=512MiB"]);
    // Twenty times what the function's inbox has place for.
    let idle: Vec<_> = (0..320)
        .map(|number| {
            let mut connection = Connection::open(daemon.address);
            let framing = ["content-length: 100000000", "transfer-encoding: chunked"][number % 2];
            connection.write(
                format!(
                    "POST /function/mirror HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\n{framing}\r\n\r\n"
                )
                .as_bytes(),
            );
            // Its body is waited for: it has its place.
            assert_eq!(connection.interim(), 100);
            connection
        })
        .collect();
    assert_eq!(daemon.get("/function/mirror").status, 200);
    let body = vec![1; 20 << 20];
    let large = daemon.post("/function/mirror", &body);
    assert_eq!((large.status, large.json()["sum"].as_u64()), (200, Some(body.len() as u64 % 65521)));
    drop(idle);
    daemon.stop();
}

#[test]
fn a_body_that_is_coded_otherwise_reaches_no_function() {
    need_root_and_cc!();
    let daemon = with_mirror();
    for (coding, status) in [
        ("transfer-encoding: Chunked\r\n", 200),
        ("transfer-encoding: gzip, chunked\r\n", 501),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 501),
    ] {
        let mut connection = Connection::open(daemon.address);
        let head = format!("POST /function/mirror HTTP/1.1\r\nhost: t\r\n{coding}\r\n");
        connection.write(&[head.as_bytes(), b"2\r\nhi\r\n0\r\n\r\n"].concat());
        let response = connection.receive(false);
        assert_eq!(response.status, status, "{coding:?}");
        if status == 501 {
            assert_eq!(response.error_code(), "unknown_coding");
        }
    }
    daemon.stop();
}

#[test]
fn http2_with_prior_knowledge_is_served() {
    need_root_and_cc!();
    let daemon = with_mirror();
    let address = daemon.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        use http_body_util::{BodyExt, Full};
        let stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (client, connection) = hyper::client::conn::http2::handshake(executor, io).await.expect("HTTP/2");
        tokio::spawn(connection);
        let calls = (0..50).map(|number| {
            let mut client = client.clone();
            async move {
                let body = Full::new(bytes::Bytes::from(vec![7; number * 1000]));
                let uri = format!("http://t/function/mirror/{number}");
                let request = http::Request::post(uri).body(body).expect("a request");
                let response = client.send_request(request).await.expect("a response");
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.expect("a body").to_bytes();
                let seen: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                assert_eq!(seen["length"], number * 1000);
                assert_eq!(seen["host"], "t", "where HTTP/1.1 has it");
            }
        });
        let mut all = tokio::task::JoinSet::new();
        calls.for_each(|call| drop(all.spawn(call)));
        while let Some(done) = all.join_next().await {
            done.expect("a call");
        }
    });
    daemon.stop();
}

#[test]
fn clients_that_reset_or_talk_nonsense_harm_nobody() {
    need_root_and_cc!();
    // A layer that is made meanwhile would be one descriptor more.
    let daemon = Daemon::start("[zygotes]\nlayers_memory = 0\n");
    // One instance: those that resets leave behind at work must not make it look like a leak.
    daemon.deploy_python("mirror", MIRROR, &["scale.max=1"]);
    daemon.get("/function/mirror");
    let before = daemon.open_fds();
    for round in 0..100 {
        let mut stream = TcpStream::connect(daemon.address).expect("connect");
        let text: &[u8] = match round % 5 {
            0 => b"GET /function/mirror HTTP/1.1\r\nhost: t\r\n\r\n",
            1 => b"GET /function/mir",
            2 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP at all\r\n\r\n",
            3 => b"POST /function/mirror HTTP/1.1\r\nhost: t\r\ncontent-length: 1000\r\n\r\nonly this",
            _ => b"GET /function/mirror HTTP/9.9\r\n\r\n",
        };
        stream.write_all(text).expect("send");
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("SO_LINGER: a reset at close");
        drop(stream);
        assert_eq!(daemon.get("/function/mirror").status, 200);
    }
    daemon.until("all connections are closed", |daemon| daemon.open_fds() <= before);
    let partial = call(daemon.address, "GET", "/function/mirror", b"");
    assert_eq!(partial.status, 200);
    let mut broken = Connection::open(daemon.address);
    broken.write(b"GET /function/mirror HTTP/1.1\r\nno colon here\r\n\r\n");
    assert_eq!(broken.receive(false).status, 400);
    assert!(broken.is_closed());
    let mut nonsense = Connection::open(daemon.address);
    nonsense.write(b"NONSENSE\r\n\r\n");
    assert!(nonsense.is_closed());
    daemon.stop();
}

/// An answer of seven million bytes, for clients that take it and for clients that don't.
#[test]
fn clients_that_do_not_take_their_answers_keep_nobody_from_theirs() {
    need_root_and_cc!();
    // Room for four answers in half of the outbox, and for one copy.
    let daemon = Daemon::start("[queue]\nmemory = \"16MiB\"\n");
    let large = "def main(params):\n    return {'large': 'x' * 7_000_000}\n";
    daemon.deploy_python("large", large, &["scale.max=1", "limits.payload=8MiB"]);
    let whole = daemon.get("/function/large");
    assert_eq!((whole.status, whole.body.len()), (200, 7_000_012));
    let deaf: Vec<TcpStream> = (0..24)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address).expect("connect");
            nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::RcvBuf, &4096)
                .expect("SO_RCVBUF");
            stream.write_all(b"GET /function/large HTTP/1.1\r\nhost: t\r\n\r\n").expect("send");
            stream
        })
        .collect();
    // (The first may come when the outbox is full, and a busy machine be slow to make room.)
    let whole = || {
        let whole = daemon.get("/function/large");
        (whole.status, whole.body.len()) == (200, 7_000_012)
    };
    assert!((0..3).any(|_| whole()) && (0..3).all(|_| whole()));
    drop(deaf);
    daemon.stop();
}
