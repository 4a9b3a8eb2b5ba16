//! The system calls of this crate: reading one packet with the descriptors beside it.
//!
//! Written on `libc` and not on `nix`, whose control-message iterator refuses a packet with `MSG_CTRUNC`
//! as a whole: the descriptors that the kernel did install would stay open for ever, and a hostile
//! zygote could fill spryd's descriptor table by sending one descriptor too many, again and again.
#![allow(unsafe_code, reason = "the crate's one place for system calls")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Room for control messages: the most that we take, and a few more that are closed again.
const CONTROL_WORDS: usize = 16;

/// One packet as the kernel gave it.
#[derive(Debug)]
pub(crate) struct Packet {
    /// Bytes put into the buffer.
    pub(crate) len: usize,
    /// Every descriptor that is now open because of this packet.
    pub(crate) fds: Vec<OwnedFd>,
    /// The packet, or what was beside it, was longer than the room for it.
    pub(crate) cut: bool,
}

/// Waits for a packet and returns its length, leaving it in the queue. 0: end of file, or an empty packet.
pub(crate) fn next_len(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
    // SAFETY: a buffer of no bytes is never written to.
    retry(|| unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), 0, flags) })
}

/// Takes the next packet out of the queue; the descriptors beside it are close-on-exec.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Packet> {
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid `msghdr`: no address, no buffers.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<[u64; CONTROL_WORDS]>() as _;
    // SAFETY: `message` points at `part` and `control`, which outlive the call and have the stated sizes.
    let len =
        retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) })?;
    let cut = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Packet { len, fds: take(&message), cut })
}

/// Owns every descriptor in a message that `recvmsg` has just filled in.
fn take(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `message` was filled in by the kernel, so its headers chain within `msg_controllen`, and
    // the CMSG macros stay within it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: a header that the macros return is whole and aligned (the buffer is of `u64`).
    while let Some(current) = unsafe { header.as_ref() } {
        if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `current` lies in the control buffer and its data follows it.
            let data = unsafe { libc::CMSG_DATA(current) }.cast::<RawFd>();
            // The kernel shortens `cmsg_len` to what it installed, whole descriptors only.
            let bytes = current.cmsg_len.saturating_sub(data as usize - header as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: `index` is within the data by `cmsg_len`; the kernel has just put this descriptor
                // into the process for this message, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, current) };
    }
    fds
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let got = call();
        if got >= 0 {
            return Ok(got as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
