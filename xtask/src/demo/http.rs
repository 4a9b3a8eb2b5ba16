//! As much of an HTTP/1.1 client as the demo needs: one request at a time on a kept connection.
//!
//! Not for hostile servers: heads and bodies are read without a limit.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::failure::Failure;
use crate::sys;

/// No call of the demo takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of that (lower-case) name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let failed = Failure::from_display("connect to the gateway");
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            std::io::Result::Ok(stream)
        };
        connect().map(|stream| Self { stream: BufReader::new(stream) }).map_err(failed)
    }

    /// Sends one request and reads its whole answer.
    pub(crate) fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Failure> {
        sys::check_interrupted()?;
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        // One write: what is measured shall not be how two small packets meet.
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        let sent = self.stream.get_mut().write_all(&request);
        let answer = sent.and_then(|()| read_answer(&mut self.stream));
        // A signal interrupts the read; say so rather than "interrupted system call".
        sys::check_interrupted()?;
        answer.map_err(Failure::from_display("call the gateway"))
    }
}

fn read_answer(from: &mut impl BufRead) -> std::io::Result<Answer> {
    let status_line = line(from)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| invalid(format!("not a status line: {status_line}")))?;
    let mut headers = Vec::new();
    loop {
        let line = line(from)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("not a header: {line}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    let chunked = answer.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    if chunked {
        answer.body = read_chunks(from)?;
    } else if let Some(length) = answer.header("content-length") {
        let length = length.parse().map_err(|_| invalid(format!("not a length: {length}")))?;
        answer.body = exactly(from, length)?;
    }
    Ok(answer)
}

fn read_chunks(from: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size_line = line(from)?;
        let size = size_line.split(';').next().unwrap_or_default().trim();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| invalid(format!("not a chunk: {size_line}")))?;
        if size == 0 {
            while !line(from)?.is_empty() {}
            return Ok(body);
        }
        body.extend(exactly(from, size)?);
        if !line(from)?.is_empty() {
            return Err(invalid("a chunk is longer than it says".to_owned()));
        }
    }
}

fn exactly(from: &mut impl BufRead, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn line(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(whole.trim_end_matches('\r').to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(what: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::io::Result<Answer> {
        read_answer(&mut text.as_bytes())
    }

    #[test]
    fn a_body_of_known_length() {
        let answer = read("HTTP/1.1 200 OK\r\nX-Call-Id: a:b\r\ncontent-length: 2\r\n\r\nhiNEXT").unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"hi".as_slice()));
        assert_eq!(answer.header("x-call-id"), Some("a:b"));
    }

    #[test]
    fn a_body_in_chunks() {
        let answer = read(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        );
        assert_eq!(answer.unwrap().body, b"abc0123456789");
    }

    #[test]
    fn what_ends_early_or_makes_no_sense_is_an_error() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
            "HTTP/1.1 what\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
