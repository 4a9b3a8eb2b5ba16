//! The messages of the control sockets: spryd to a zygote, a zygote to spryd, an instance to spryd.
//!
//! Sockets are `AF_UNIX`/`SOCK_SEQPACKET`; one message is one packet of JSON, at most
//! [`MESSAGE_MAX`] bytes, with at most [`FDS_MAX`] descriptors beside it. These messages are rare (a deploy,
//! a fork); invocations never come this way.
//!
//! A function zygote's life: spryd starts it with its end of the socket as fd [`ZYGOTE_FD`], sends
//! [`ToZygote::Init`], gets [`FromZygote::Imported`] and [`FromZygote::Ready`] or [`FromZygote::Failed`], then any number of
//! [`ToZygote::Fork`], each answered by [`FromZygote::Forked`] (with the pidfd) or
//! [`FromZygote::ForkFailed`]. Closing the socket ends the zygote.
//!
//! An instance's life: it maps its segments, seals its outbox, sends [`FromInstance::Hello`] on its own control
//! socket, and serves. spryd believes it nothing before it has both `Forked` and `Hello`. The socket stays
//! open: its end of file tells each side that the other is gone. In a chain, an instance asks on it for the segments
//! that its input lies in: [`FromInstance::Map`], one at a time, each answered by a [`ToInstance`].

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::freeze::{FreezeWish, Frozen};
use crate::layer::{Imports, Layer, LayerWish};

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
    /// Import packages, write this process down, and end.
    MakeLayer(LayerWish),
    /// Become the process that the layer's file beside this message describes; then comes [`Self::Init`].
    Restore {
        /// Its system calls are to be filtered before that, so that its instances can be rewound: [`Init::rewind`], which
        /// follows, needs nothing more. Beside the message is the stub's file, too.
        #[serde(default)]
        rewind: bool,
    },
    /// spryd has taken the descriptor of [`FromZygote::Filtered`].
    Taken,
    /// Make an instance. Beside it, in this order: the instance's control socket, stdout, stderr, an epoll descriptor
    /// that is ready when one of those two holds bytes ([`crate::output::watch`]), the inbox segment, the outbox
    /// segment, the release page, then the transport's endpoint (1 or 2).
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
    /// Python: the folders with packages, in the order in which modules are looked for.
    #[serde(default)]
    pub packages: Vec<String>,
    /// What it does to its memory then.
    #[serde(default)]
    pub freeze: FreezeWish,
    /// Its instances are to be rewound ([`crate::rewind`]). Beside the message is the stub's file.
    #[serde(default)]
    pub rewind: bool,
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
    /// It is to be rewound: it asks for a plan with [`FromInstance::Hold`] instead of saying hello.
    #[serde(default)]
    pub rewind: bool,
    /// It is to keep its signals to itself and to what it starts. The kernel can see to it (landlock, since Linux 6.12).
    #[serde(default)]
    pub scope_signals: bool,
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
    /// Before the function is loaded or a layer restored, if [`Init::rewind`] was asked for: its system calls are filtered from now on. It waits
    /// for [`ToZygote::Taken`].
    Filtered {
        /// The descriptor by which the filter asks. spryd takes it from the process: to send it along would be a call that
        /// is asked about.
        asks: RawFd,
    },
    /// The same, and why they aren't.
    Unfiltered {
        /// In words.
        why: String,
    },
    /// The function is loaded: this is what it has imported. Said before its memory is frozen, for what a long message takes and
    /// gives back afterwards would lie on pages of which each fork has a copy.
    Imported(Imports),
    /// It can be forked.
    Ready {
        /// The runtime's own version, e.g. `CPython 3.11.2`.
        runtime: String,
        /// What has become of its memory.
        #[serde(default)]
        frozen: Frozen,
    },
    /// The layer is made: its file is beside the message, and the process ends.
    Layer(Layer),
    /// The zygote is now what the layer's process was, and waits for [`ToZygote::Init`].
    Restored,
    /// It can't be, or there is no layer; the process ends.
    NoLayer {
        /// Why.
        why: String,
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
    /// The same, of an instance that is to be rewound: this is what it shall go back to. Answered by [`ToInstance::Plan`].
    Hold {
        /// Where its [`crate::rewind::Registers`] lie, in a mapping that holds nothing else.
        registers: u64,
    },
    /// Setting up failed; the instance ends.
    Failed {
        /// Which step.
        step: String,
        /// Why.
        message: String,
    },
    /// It asks for a segment that it was sent a descriptor or a part of, to map it read-only.
    Map {
        /// `Descriptor::segment`.
        segment: u32,
        /// `Descriptor::generation`.
        generation: u32,
    },
}

/// spryd to an instance: the answer to [`FromInstance::Map`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInstance {
    /// The segment's file is beside the message.
    Segment {
        /// Bytes.
        len: u32,
    },
    /// What it goes back to after each request: beside the message are the sealed file, the page with spryd's orders
    /// ([`crate::rewind::ORDERS_AT`]), and the sealed file of pages that it has in common with others. It maps them, seals
    /// its mappings, and goes to the stub, which says that it has.
    Plan,
    /// The instance may not see it, or it isn't there any more.
    Refused {
        /// Which of the two, in words for the function's author.
        why: String,
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
    // Without descriptors by a simpler call, which no function is ever asked about ([`crate::rewind`]).
    if raw.is_empty() {
        return loop {
            match nix::sys::socket::send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => break Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(source) => break Err(ControlError::Os { operation: "send", source }),
            }
        };
    }
    let rights = [ControlMessage::ScmRights(&raw)];
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(source) => return Err(ControlError::Os { operation: "send", source }),
        }
    }
}

/// Receives one message and its descriptors (close-on-exec). `None`: the other side is gone.
/// On a non-blocking socket with nothing there, the error is `Os` with `EAGAIN`.
///
/// Whatever the other side sends, no descriptor outlives a failed call: those of a refused packet are
/// closed. The buffer is as long as the packet, so that a zygote's small messages touch no other memory.
pub fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(M, Vec<OwnedFd>)>, ControlError> {
    let len = crate::sys::next_len(socket).map_err(received)?;
    let mut bytes = vec![0; len.min(MESSAGE_MAX)];
    let packet = crate::sys::receive(socket, &mut bytes).map_err(received)?;
    if packet.cut || packet.fds.len() > FDS_MAX {
        return Err(ControlError::Truncated);
    }
    if packet.len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..packet.len])?, packet.fds)))
}

fn received(error: io::Error) -> ControlError {
    let source = error.raw_os_error().map_or(nix::Error::UnknownErrno, nix::Error::from_raw);
    ControlError::Os { operation: "receive", source }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send as send_bytes, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .expect("socketpair")
    }

    /// Descriptors of this process that are open on a file made by `memfd_create(name)`.
    fn open_on(name: &str) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").expect("list fds");
        entries
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().contains(name))
            .count()
    }

    fn memfd(name: &str) -> OwnedFd {
        nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd")
    }

    #[test]
    fn message_and_descriptors_arrive() {
        let (a, b) = pair();
        let (one, two) = (memfd("spry-wire-one"), memfd("spry-wire-two"));
        let sent = FromZygote::Forked { instance: 7 };
        send(a.as_fd(), &sent, &[one.as_fd(), two.as_fd()]).expect("send");
        let (got, fds) = receive::<FromZygote>(b.as_fd()).expect("receive").expect("open");
        assert_eq!(got, sent);
        assert_eq!(fds.len(), 2);
        let name =
            |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("link");
        assert!(name(&fds[0]).to_string_lossy().contains("spry-wire-one"));
        assert!(name(&fds[1]).to_string_lossy().contains("spry-wire-two"));
    }

    #[test]
    fn longest_message_fits_and_a_longer_one_is_refused() {
        let (a, b) = pair();
        let overhead =
            serde_json::to_vec(&FromZygote::Failed { message: String::new() }).expect("json").len();
        let message = "x".repeat(MESSAGE_MAX - overhead);
        send(a.as_fd(), &FromZygote::Failed { message: message.clone() }, &[]).expect("send");
        let got = receive::<FromZygote>(b.as_fd()).expect("receive").expect("open").0;
        assert_eq!(got, FromZygote::Failed { message });
        let longer = FromZygote::Failed { message: "x".repeat(MESSAGE_MAX) };
        assert!(matches!(send(a.as_fd(), &longer, &[]), Err(ControlError::Truncated)));
        send_bytes(a.as_raw_fd(), &[b' '; MESSAGE_MAX + 1], MsgFlags::empty()).expect("send");
        assert!(matches!(receive::<FromZygote>(b.as_fd()), Err(ControlError::Truncated)));
    }

    #[test]
    fn end_of_file_and_nothing_there_differ() {
        let (a, b) = pair();
        nix::fcntl::fcntl(&b, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("fcntl");
        let nothing = receive::<FromZygote>(b.as_fd());
        assert!(matches!(nothing, Err(ControlError::Os { source: nix::Error::EAGAIN, .. })), "{nothing:?}");
        drop(a);
        assert!(receive::<FromZygote>(b.as_fd()).expect("receive").is_none());
    }

    /// A hostile sender: too many descriptors, descriptors beside garbage, beside nothing, beside too much.
    #[test]
    fn no_descriptor_of_a_refused_packet_stays_open() {
        let name = "spry-wire-refused";
        let file = File::from(memfd(name));
        let (a, b) = pair();
        let empty: &[u8] = b"";
        let long = vec![b' '; MESSAGE_MAX + 1];
        for count in [1, FDS_MAX, FDS_MAX + 1, FDS_MAX + 20, 253] {
            for bytes in [b"garbage".as_slice(), empty, &long] {
                let raw = vec![file.as_raw_fd(); count];
                let beside = [ControlMessage::ScmRights(&raw)];
                sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(bytes)], &beside, MsgFlags::empty(), None)
                    .expect("send");
                let got = receive::<FromZygote>(b.as_fd());
                assert!(!matches!(got, Ok(Some(_))), "{count} fds beside {} bytes", bytes.len());
                assert_eq!(open_on(name), 1, "{count} fds beside {} bytes", bytes.len());
            }
        }
        send(a.as_fd(), &FromInstance::Hello, &[]).expect("send");
        let (after, _) = receive::<FromInstance>(b.as_fd()).expect("receive").expect("open");
        assert_eq!(after, FromInstance::Hello);
    }
}
