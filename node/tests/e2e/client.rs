//! A small HTTP/1.1 client that sees what is on the wire: nothing is hidden, retried or followed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any test's function may take: a watchdog, not a measurement.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A response, whole.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// One connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect to spryd");
        stream.set_read_timeout(Some(WATCHDOG)).expect("set the watchdog");
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("send");
    }

    /// Sends a request with a body of known length.
    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut all = head.into_bytes();
        all.extend_from_slice(body);
        self.write(&all);
    }

    /// Reads one response; `head_only` when it answers a HEAD.
    pub(crate) fn receive(&mut self, head_only: bool) -> Response {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a header");
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header has a colon");
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if head_only || status == 204 || status == 304 {
            return response;
        }
        let length =
            response.header("content-length").expect("responses have a length").parse().expect("a number");
        response.body = vec![0; length];
        self.stream.read_exact(&mut response.body).expect("the body");
        response
    }

    /// Reads an interim response (1xx); returns its status.
    pub(crate) fn interim(&mut self) -> u16 {
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            self.stream.read_line(line).expect("a line");
        }
        assert_eq!(lines[1], "\r\n", "it has no headers");
        let status = lines[0].split(' ').nth(1).and_then(|word| word.parse().ok());
        status.unwrap_or_else(|| panic!("not a status line: {lines:?}"))
    }

    pub(crate) fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.send(method, path, headers, body);
        self.receive(method == "HEAD")
    }

    /// Says nothing more, as who closes his end does.
    pub(crate) fn leave(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).expect("open");
    }

    /// Whether the server has closed the connection (waits for it).
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            // The watchdog.
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn call(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Response {
    Connection::open(address).call(method, path, &[], body)
}
