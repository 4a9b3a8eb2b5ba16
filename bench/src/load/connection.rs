//! One keep-alive connection: at most one request under way, sent and received as the socket allows.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Failure, Target};
use crate::http1::{Head, ResponseReader, Sink};

/// Compares a body with what it should be, as it comes in.
#[derive(Debug)]
struct Check<'a> {
    expect: &'a [u8],
    seen: &'a mut usize,
    same: &'a mut bool,
}

impl Sink for Check<'_> {
    fn body(&mut self, part: &[u8]) {
        let end = *self.seen + part.len();
        *self.same &= self.expect.get(*self.seen..end) == Some(part);
        *self.seen = end;
    }
}

/// What came of a readiness event.
#[derive(Debug)]
pub(super) enum Progress {
    /// Nothing that matters yet.
    Waiting,
    /// A request of a sequence was answered rightly, and the next one is on its way.
    Next,
    /// The request is done, rightly or not. Whether the connection can be used again.
    Ended { result: Result<Head, Failure>, reusable: bool },
    /// The server closed the connection between two requests, as it may.
    Gone,
    /// Bytes came between two requests, as they must not.
    Surplus,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    reader: ResponseReader,
    /// Which request of the target's sequence is under way.
    place: usize,
    sent: usize,
    seen: usize,
    same: bool,
    /// When the request under way was due and when it was sent; `None` between requests.
    pub(super) request: Option<Times>,
}

/// When a request was due and when it was sent, in nanoseconds since the run's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) due_ns: u64,
    pub(super) sent_ns: u64,
}

impl Connection {
    pub(super) fn open(target: &Target) -> io::Result<Self> {
        let timeout = std::time::Duration::from_secs(5);
        let stream = TcpStream::connect_timeout(&target.address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let reader = ResponseReader::default();
        Ok(Self { stream, reader, place: 0, sent: 0, seen: 0, same: true, request: None })
    }

    /// Starts a request; the rest of it goes out when the socket takes more.
    pub(super) fn start(&mut self, target: &Target, times: Times) -> Result<(), Failure> {
        self.request = Some(times);
        self.begin(target, 0)
    }

    fn begin(&mut self, target: &Target, place: usize) -> Result<(), Failure> {
        (self.place, self.sent, self.seen, self.same) = (place, 0, 0, true);
        self.send(target)
    }

    fn send(&mut self, target: &Target) -> Result<(), Failure> {
        let request = target.at(self.place).unwrap_or_default();
        while self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Failure::Reset),
            }
        }
        Ok(())
    }

    /// Does what an edge-triggered event allows: sends what is left, reads all there is. `hung_up`: the event said
    /// that the server has closed its side; no other event will say so.
    pub(super) fn ready(&mut self, target: &Target, hung_up: bool, buffer: &mut [u8]) -> Progress {
        // A server may answer before it has taken the whole request (413), so a failed send is only the
        // request's end when no answer is there to read.
        let sent = if self.request.is_some() { self.send(target) } else { Ok(()) };
        loop {
            let got = match self.stream.read(buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match sent {
                        Ok(()) => Progress::Waiting,
                        Err(failure) => Progress::Ended { result: Err(failure), reusable: false },
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if self.request.is_none() => return Progress::Gone,
                Err(_) => return Progress::Ended { result: Err(Failure::Reset), reusable: false },
            };
            if self.request.is_none() {
                return if got == 0 { Progress::Gone } else { Progress::Surplus };
            }
            if got == 0 {
                let result = match self.reader.end_of_file() {
                    Ok(()) => self.verdict(target),
                    Err(_) => Err(Failure::Closed),
                };
                return Progress::Ended { result, reusable: false };
            }
            let mut check = Check { expect: &target.body, seen: &mut self.seen, same: &mut self.same };
            match self.reader.feed(&buffer[..got], &mut check) {
                Ok(Some(taken)) => return self.whole(target, taken == got, hung_up),
                // A stream socket that gave less than was asked for has no more (epoll(7), question 9), save
                // its end.
                Ok(None) if got < buffer.len() && !hung_up => return Progress::Waiting,
                Ok(None) => {}
                Err(_) => return Progress::Ended { result: Err(Failure::Malformed), reusable: false },
            }
        }
    }

    fn whole(&mut self, target: &Target, nothing_left: bool, hung_up: bool) -> Progress {
        let result = if nothing_left { self.verdict(target) } else { Err(Failure::Surplus) };
        let closes = self.reader.head().is_none_or(|head| head.close);
        let sent = target.at(self.place).is_some_and(|request| self.sent == request.len());
        let reusable = nothing_left && !closes && !hung_up && sent;
        if result.is_err() || target.at(self.place + 1).is_none() {
            return Progress::Ended { result, reusable };
        }
        match if reusable { self.begin(target, self.place + 1) } else { Err(Failure::Closed) } {
            Ok(()) => Progress::Next,
            Err(failure) => Progress::Ended { result: Err(failure), reusable: false },
        }
    }

    fn verdict(&self, target: &Target) -> Result<Head, Failure> {
        let head = self.reader.head().ok_or(Failure::Malformed)?;
        if head.status != target.status {
            Err(Failure::Status(head.status))
        } else if self.seen != target.body.len() {
            Err(Failure::Length)
        } else if !self.same {
            Err(Failure::Body)
        } else {
            Ok(head)
        }
    }
}
