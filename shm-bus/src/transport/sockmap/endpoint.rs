//! An instance's end: a blocking TCP socket. No BPF here; the kernel does its part unseen.
//!
//! It sends and receives by `rustix`, whose system calls are part of the code around them. In a chain of many
//! functions each process begins its hop without a translation in the TLB, and libc's wrappers lie on another page.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
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
    socket: OwnedFd,
}

impl SockmapEndpoint {
    /// Over the peer's half of a connection that the hub made.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl SockmapEndpoint {
    /// Until there is something to read.
    #[cold]
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
            match recv(&self.socket, &mut bytes, RecvFlags::empty()).map(|(len, _)| len) {
                Ok(DESCRIPTOR_LEN) => return Ok(Some(from_bytes(&bytes))),
                Ok(0) => return Ok(None),
                Ok(_) => return Err(os("receive a whole descriptor", ErrorKind::InvalidData.into())),
                Err(Errno::INTR) => {}
                // A redirect woke this socket and was taken back, or what woke it was queued elsewhere: the
                // kernel's sk_msg receive path then returns EAGAIN though the socket blocks.
                Err(Errno::AGAIN) => self.wait()?,
                Err(Errno::CONNRESET) => return Ok(None),
                Err(errno) => return Err(os("receive a descriptor", errno.into())),
            }
        }
    }

    fn send(&mut self, descriptor: &Descriptor) -> Result<(), BusError> {
        // One system call: the program sees each call's bytes as one message.
        loop {
            match send(&self.socket, &to_bytes(descriptor), SendFlags::NOSIGNAL) {
                Ok(DESCRIPTOR_LEN) => return Ok(()),
                Ok(_) => return Err(os("send a whole descriptor", ErrorKind::WriteZero.into())),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(os("send a descriptor", errno.into())),
            }
        }
    }
}

#[cold]
fn os(operation: &'static str, source: std::io::Error) -> BusError {
    BusError::Os { operation, source }
}
