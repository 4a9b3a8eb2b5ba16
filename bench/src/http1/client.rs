//! A blocking client, one request at a time: for warming up, for looking, and where each answer is another.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Head, ResponseError, ResponseReader};

/// Why a blocking request got no whole response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket failed or timed out.
    #[error("{operation} {address}: {source}")]
    Io {
        /// `connect to`, `send to`, `receive from`.
        operation: &'static str,
        /// The server.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The response breaks the protocol.
    #[error("the answer of {address}: {source}")]
    Response {
        /// The server.
        address: SocketAddr,
        /// How.
        source: ResponseError,
    },
    /// More came than was asked for.
    #[error("{address} has sent {bytes} bytes more than its answer")]
    Surplus {
        /// The server.
        address: SocketAddr,
        /// How many.
        bytes: usize,
    },
}

/// A keep-alive connection.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    stream: TcpStream,
    reader: ResponseReader,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects; `timeout` is for this and for every send and receive.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, CallError> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            io::Result::Ok(stream)
        };
        let stream =
            connect().map_err(|source| CallError::Io { operation: "connect to", address, source })?;
        Ok(Self { address, stream, reader: ResponseReader::default(), buffer: vec![0; 64 * 1024] })
    }

    /// Sends a whole request and reads its whole answer; `body` is emptied first.
    pub fn call(&mut self, request: &[u8], body: &mut Vec<u8>) -> Result<Head, CallError> {
        let address = self.address;
        let io = |operation| move |source| CallError::Io { operation, address, source };
        let bad = |source| CallError::Response { address, source };
        self.stream.write_all(request).map_err(io("send to"))?;
        body.clear();
        loop {
            let got = self.stream.read(&mut self.buffer).map_err(io("receive from"))?;
            let whole = if got == 0 {
                self.reader.end_of_file().map_err(bad)?;
                true
            } else {
                match self.reader.feed(&self.buffer[..got], body).map_err(bad)? {
                    Some(taken) if taken < got => {
                        return Err(CallError::Surplus { address, bytes: got - taken });
                    }
                    taken => taken.is_some(),
                }
            };
            if whole && let Some(head) = self.reader.head() {
                return Ok(head);
            }
        }
    }
}

/// One request on a connection of its own.
pub fn call(address: SocketAddr, request: &[u8], timeout: Duration) -> Result<(Head, Vec<u8>), CallError> {
    let mut body = Vec::new();
    let head = Client::connect(address, timeout)?.call(request, &mut body)?;
    Ok((head, body))
}
