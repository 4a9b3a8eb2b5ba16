//! The messages of the control sockets: spryd to a zygote, a zygote to spryd, an instance to spryd.
//!
//! Sockets are `AF_UNIX`/`SOCK_SEQPACKET`; one message is one packet of JSON, at most
//! [`MESSAGE_MAX`] bytes, with at most [`FDS_MAX`] descriptors beside it. These messages are rare (a deploy,
//! a fork); invocations never come this way.
//!
//! A function zygote's life: spryd starts it with its end of the socket as fd [`ZYGOTE_FD`], sends
//! [`ToZygote::Init`], gets [`FromZygote::Ready`] or [`FromZygote::Failed`], then any number of
//! [`ToZygote::Fork`], each answered by [`FromZygote::Forked`] (with the pidfd) or
//! [`FromZygote::ForkFailed`]. Closing the socket ends the zygote.
//!
//! An instance's life: it maps its segments, seals its outbox, sends [`FromInstance::Hello`] on its own control
//! socket, and serves. spryd puts it on the bus after it has both `Forked` and `Hello`. The socket stays
//! open: its end of file tells each side that the other is gone.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where a zygote finds its control socket.
pub const ZYGOTE_FD: RawFd = 3;
/// Bytes of one message at most.
pub const MESSAGE_MAX: usize = 128 * 1024;
/// Descriptors beside one message at most.
pub const FDS_MAX: usize = 12;

/// spryd to a zygote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToZygote {
    /// Load the function.
    Init(Init),
    /// Make an instance. Beside it, in this order: the instance's control socket, stdout, stderr, the
    /// inbox segment, the outbox segment, the release page, then the transport's endpoint (1 or 2).
    Fork(Fork),
}

/// What a zygote needs to load its function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The function's name.
    pub name: String,
    /// Python: `module:function`. Native: the file name of the `.so` within `code`.
    pub handler: String,
    /// The folder with the function's code.
    pub code: String,
}

/// What an instance needs to know; the fds come beside the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// spryd's name for the instance, echoed in the answer.
    pub instance: u64,
    /// Which transport the endpoint fds are of: `sockmap`, `futex` or `broker`.
    pub transport: String,
    /// Segment id and generation of the inbox (read-only for the instance) and its length.
    pub inbox: SegmentSpec,
    /// The same for the outbox, which the instance maps writable and then seals.
    pub outbox: SegmentSpec,
    /// Largest response (head and body), in bytes.
    pub payload_max: u64,
}

/// How a segment is named in descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSpec {
    /// `Descriptor::segment`.
    pub id: u32,
    /// `Descriptor::generation`.
    pub generation: u32,
    /// Bytes.
    pub len: u32,
}

/// A zygote to spryd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromZygote {
    /// The function is loaded.
    Ready {
        /// The runtime's own version, e.g. `CPython 3.11.2`.
        runtime: String,
    },
    /// The function can't be loaded; the zygote ends.
    Failed {
        /// For the user: the interpreter's traceback, or the loader's message.
        message: String,
    },
    /// An instance was made; its pidfd is beside the message.
    Forked {
        /// As in [`Fork::instance`].
        instance: u64,
        /// The instance's pid, in the zygote's pid namespace.
        pid: i32,
    },
    /// No instance was made.
    ForkFailed {
        /// As in [`Fork::instance`].
        instance: u64,
        /// Which step failed.
        step: String,
        /// The errno.
        errno: i32,
    },
}

/// An instance to spryd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInstance {
    /// Mapped, sealed, ready to receive.
    Hello,
    /// Setting up failed; the instance ends.
    Failed {
        /// Which step.
        step: String,
        /// Why.
        message: String,
    },
}

/// Why a control message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The system call failed.
    #[error("{operation} on a control socket: {source}")]
    Os {
        /// `send` or `receive`.
        operation: &'static str,
        /// What the kernel said.
        source: nix::Error,
    },
    /// The packet is longer than [`MESSAGE_MAX`] or had more fds than [`FDS_MAX`].
    #[error("a control message was cut short")]
    Truncated,
    /// The packet is not a message that is expected here.
    #[error("a control message is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Sends one message and its descriptors.
pub fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_MAX || fds.len() > FDS_MAX {
        return Err(ControlError::Truncated);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let beside: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], beside, MsgFlags::MSG_NOSIGNAL, None)
        {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(source) => return Err(ControlError::Os { operation: "send", source }),
        }
    }
}

/// Receives one message and its descriptors (close-on-exec). `None`: the other side is gone.
/// On a non-blocking socket with nothing there, the error is `Os` with `EAGAIN`.
pub fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(M, Vec<OwnedFd>)>, ControlError> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let (len, fds, cut) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(got) => {
                let fds = take_fds(&got)?;
                break (got.bytes, fds, got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
            }
            Err(nix::Error::EINTR) => {}
            Err(source) => return Err(ControlError::Os { operation: "receive", source }),
        }
    };
    if cut {
        return Err(ControlError::Truncated);
    }
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..len])?, fds)))
}

fn take_fds(got: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Result<Vec<OwnedFd>, ControlError> {
    let beside = got.cmsgs().map_err(|_| ControlError::Truncated)?;
    Ok(beside
        .filter_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .map(own)
        .collect())
}

#[allow(unsafe_code, reason = "the one place where a received descriptor number becomes an owned descriptor")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just put `fd` into this process for this message; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
