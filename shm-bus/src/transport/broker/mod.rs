//! The transport that needs nothing: a Unix seqpacket pair per peer, and the hub in between.
//!
//! A packet is a descriptor. The kernel keeps packets apart and whole, so what isn't 32 bytes long is
//! malformed and nothing else. File descriptors that a peer attaches to a packet are dropped by the kernel,
//! because the hub gives no room for them.

mod endpoint;
#[cfg(feature = "hub")]
mod hub;

pub(super) use endpoint::open;
#[cfg(feature = "hub")]
pub use hub::transport;

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{MsgFlags, recv};
use spry_ebpf_common::{DESCRIPTOR_LEN, Descriptor};

/// One packet, as it came.
enum Packet {
    /// Exactly one descriptor.
    Whole(Descriptor),
    /// Another length.
    Malformed,
    /// End of file, or an empty packet.
    Empty,
}

fn receive(socket: BorrowedFd<'_>, how: MsgFlags) -> nix::Result<Packet> {
    let mut bytes = [0; DESCRIPTOR_LEN];
    let len = loop {
        // With MSG_TRUNC the packet's own length is returned, however long.
        match recv(socket.as_raw_fd(), &mut bytes, how | MsgFlags::MSG_TRUNC) {
            Err(nix::Error::EINTR) => {}
            done => break done?,
        }
    };
    Ok(match len {
        0 => Packet::Empty,
        DESCRIPTOR_LEN => Packet::Whole(super::from_bytes(&bytes)),
        _ => Packet::Malformed,
    })
}
