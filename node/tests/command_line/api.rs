//! The control API over HTTP, where a token is needed, and with requests that no `spry` would make.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use spry_node::control::ROUTES;

use crate::server::Server;

/// Sends one request as it is and reads to the end; returns status and whole answer.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> (u16, String) {
    // What a server refuses before it has read everything may end the writing early.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_else(|| panic!("no HTTP answer: {answer:?}")), answer)
}

fn remote(server: &Server, method: &str, path: &str, header: &str) -> (u16, String) {
    let stream = TcpStream::connect(server.http).expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
    exchange(stream, request.as_bytes())
}

fn local(server: &Server, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let stream = UnixStream::connect(&server.socket).expect("it listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    exchange(stream, &[head.as_bytes(), body].concat())
}

#[test]
fn http_needs_the_token_on_every_route_and_the_socket_does_not() {
    let server = Server::start();
    for (method, path) in ROUTES {
        for header in ["", "authorization: Bearer wrong\r\n", "authorization: Basic eDp5\r\n"] {
            let (status, answer) = remote(&server, method, path, header);
            assert_eq!(status, 401, "{method} {path}");
            assert!(
                answer.contains("\"code\":\"unauthorised\"") && answer.contains("www-authenticate: Bearer")
            );
        }
    }
    assert_eq!(remote(&server, "GET", "/system/nothing", "").0, 401, "not even what exists is told");
    let good = format!("authorization: Bearer {}\r\n", server.token);
    assert_eq!(remote(&server, "GET", "/system/functions", &good).0, 200);
    assert_eq!(local(&server, "GET", "/system/functions", b"").0, 200);
}

#[test]
fn every_documented_route_is_there_and_every_route_is_documented() {
    let server = Server::start();
    let page = include_str!("../../../docs/control-api.md");
    for (method, path) in ROUTES {
        assert!(page.contains(&format!("| {method} | `{path}` |")), "{method} {path} is not documented");
        let (status, answer) = local(&server, method, path, b"");
        let known = status != 405 && !answer.contains("no_such_path");
        assert!(known, "{method} {path}: {answer}");
    }
    let documented = page.lines().filter(|line| line.contains("| `/system/")).count();
    assert_eq!(documented, ROUTES.len());
}

#[test]
fn what_is_not_there_says_so() {
    let server = Server::start();
    for path in [
        "/system",
        "/system/",
        "/system/x",
        "/system/function",
        "/system/function/a/b",
        "/system/function/a/logs/x",
        "/system/chain",
        "/system/chain/a",
        "/system/chain/a/logs",
    ] {
        let (status, answer) = local(&server, "GET", path, b"");
        assert!(status == 404 && answer.contains("\"error\""), "{path}: {answer}");
    }
    let (status, answer) = local(&server, "DELETE", "/system/functions", b"");
    assert!(status == 405 && answer.contains("allow: GET, POST, PUT"), "{answer}");
    assert_eq!(local(&server, "DELETE", "/system/function/..%2f..", b"").0, 404);
    assert_eq!(local(&server, "DELETE", "/system/chain/..%2f..", b"").0, 404);
    let (status, answer) = local(&server, "PUT", "/system/chains", b"");
    assert!(status == 405 && answer.contains("allow: GET\r"), "{answer}");
    assert_eq!(local(&server, "GET", "/system/activations?limit=many", b"").0, 400);
    assert_eq!(local(&server, "GET", "/system/function/hello/logs?wait=3", b"").0, 400);
}

#[test]
fn uploads_that_are_no_functions_are_refused_with_their_code() {
    let server = Server::start();
    for (path, body, status, code) in [
        ("/system/function/x", &[b'x'; 1024][..], 400, "bad_archive"),
        ("/system/function/x", b"", 400, "bad_archive"),
        ("/system/function/Bad.Name", b"", 400, "bad_manifest"),
        ("/system/function/x?set=nonsense", b"", 400, "bad_manifest"),
        ("/system/functions?name=-x", b"", 400, "bad_manifest"),
        ("/system/function/x", &vec![0; (1 << 20) + 1], 413, "upload_too_large"),
    ] {
        let (got, answer) = local(&server, "POST", path, body);
        assert_eq!(got, status, "{path}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{path}: {answer}");
    }
    let staging = server.folder.path().join("state/staging");
    assert_eq!(std::fs::read_dir(staging).expect("listed").count(), 0, "nothing is left");
}

#[test]
fn texts_that_are_no_chains_are_refused_with_their_code() {
    let server = Server::start();
    let file = server.file("a.py", "def main(params):\n    return {}\n");
    assert_eq!(crate::server::code(&server.spry(&["deploy", file.to_str().expect("plain")])), 0);
    let chain = |name: &str, function: &str| {
        format!("name = '{name}'\n[[step]]\nfunction = '{function}'\n").into_bytes()
    };
    for (path, body, status, code) in [
        ("/system/chain/x", b"".to_vec(), 400, "bad_chain"),
        ("/system/chain/x", vec![0xff; 16], 400, "bad_chain"),
        ("/system/chain/x", vec![b'#'; (256 << 10) + 1], 400, "bad_chain"),
        ("/system/chain/x", chain("x", "absent"), 400, "bad_chain"),
        ("/system/chain/y", chain("x", "a"), 400, "bad_chain"),
        ("/system/chain/Bad.Name", chain("x", "a"), 400, "bad_chain"),
        ("/system/chain/a", chain("a", "a"), 409, "name_taken"),
        ("/system/chain/x", chain("x", "a"), 200, "ready"),
        ("/system/function/x", Vec::new(), 400, "bad_archive"),
    ] {
        let (got, answer) = local(&server, "PUT", path, &body);
        assert_eq!(got, status, "{path}: {answer}");
        assert!(answer.contains(code), "{path}: {answer}");
    }
    let (status, answer) = local(&server, "DELETE", "/system/function/a", b"");
    assert!(status == 409 && answer.contains("\"code\":\"in_use\""), "{answer}");
    let (status, answer) = local(&server, "DELETE", "/system/chain/y", b"");
    assert!(status == 404 && answer.contains("\"code\":\"no_such_chain\""), "{answer}");
    assert_eq!(server.store.chains().expect("answers").len(), 1);
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let server = Server::start();
    let mut stream = UnixStream::connect(&server.socket).expect("it listens");
    stream
        .write_all(b"POST /system/function/x HTTP/1.1\r\nhost: x\r\ncontent-length: 4096\r\n\r\nhalf")
        .expect("it reads");
    stream.shutdown(std::net::Shutdown::Both).expect("hung up");
    // The server closes its end when it is done with the request; whatever it says is of no interest.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(local(&server, "GET", "/system/functions", b"").0, 200);
    assert_eq!(server.store.functions().expect("answers"), []);
}
