//! An instance's end: a blocking TCP socket. No BPF here; the kernel does its part unseen.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use spry_ebpf_common::{DESCRIPTOR_LEN, Descriptor};

use crate::transport::{BusError, Endpoint, from_bytes, to_bytes};

/// Opens the peer's end from the fds of an attachment: exactly one.
pub fn open(mut fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, BusError> {
    match (fds.pop(), fds.len()) {
        (Some(socket), 0) => Ok(Box::new(SockmapEndpoint::new(socket))),
        _ => Err(os("open a bus endpoint", ErrorKind::InvalidInput.into())),
    }
}

/// A peer's end of the sockmap transport.
#[derive(Debug)]
pub struct SockmapEndpoint {
    socket: TcpStream,
}

impl SockmapEndpoint {
    /// Over the peer's half of a connection that the hub made.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket: socket.into() }
    }
}

impl SockmapEndpoint {
    /// Until there is something to read.
    fn wait(&self) -> Result<(), BusError> {
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut socket, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(os("wait for a descriptor", errno.into())),
        }
    }
}

impl AsFd for SockmapEndpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Endpoint for SockmapEndpoint {
    fn receive(&mut self) -> Result<Option<Descriptor>, BusError> {
        let mut bytes = [0; DESCRIPTOR_LEN];
        loop {
            // The kernel queues whole descriptors, and the next comes only after an answer: so one read
            // gives one descriptor.
            match self.socket.read(&mut bytes) {
                Ok(DESCRIPTOR_LEN) => return Ok(Some(from_bytes(&bytes))),
                Ok(0) => return Ok(None),
                Ok(_) => return Err(os("receive a whole descriptor", ErrorKind::InvalidData.into())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A redirect woke this socket and was taken back, or what woke it was queued elsewhere: the
                // kernel's sk_msg receive path then returns EAGAIN though the socket blocks.
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(os("receive a descriptor", error)),
            }
        }
    }

    fn send(&mut self, descriptor: &Descriptor) -> Result<(), BusError> {
        // One system call: the program sees each call's bytes as one message.
        loop {
            match self.socket.write(&to_bytes(descriptor)) {
                Ok(DESCRIPTOR_LEN) => return Ok(()),
                Ok(_) => return Err(os("send a whole descriptor", ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(os("send a descriptor", error)),
            }
        }
    }
}

fn os(operation: &'static str, source: std::io::Error) -> BusError {
    BusError::Os { operation, source }
}
