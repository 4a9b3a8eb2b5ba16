//! The peer's end of a seqpacket pair.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, send};
use spry_ebpf_common::Descriptor;

use super::{Packet, receive};
use crate::transport::{BusError, Endpoint, to_bytes};

struct BrokerEndpoint {
    socket: OwnedFd,
}

/// Takes one fd: the socket.
pub(in crate::transport) fn open(fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, BusError> {
    let [socket] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|fds| BusError::Endpoint { kind: crate::transport::Kind::Broker, fds: fds.len() })?;
    Ok(Box::new(BrokerEndpoint { socket }))
}

impl Endpoint for BrokerEndpoint {
    fn receive(&mut self) -> Result<Option<Descriptor>, BusError> {
        match receive(self.socket.as_fd(), MsgFlags::empty()) {
            Ok(Packet::Whole(descriptor)) => Ok(Some(descriptor)),
            // The hub sends nothing but descriptors: whatever else comes is its end.
            Ok(Packet::Empty | Packet::Malformed) | Err(nix::Error::ECONNRESET) => Ok(None),
            Err(errno) => Err(BusError::Os { operation: "receive on a bus socket", source: errno.into() }),
        }
    }

    fn send(&mut self, descriptor: &Descriptor) -> Result<(), BusError> {
        loop {
            match send(self.socket.as_raw_fd(), &to_bytes(descriptor), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => {
                    return Err(BusError::Os { operation: "send on a bus socket", source: errno.into() });
                }
            }
        }
    }
}
