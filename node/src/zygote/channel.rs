//! A control socket on the tokio side: `spry_wire::control`, without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Serialize, de::DeserializeOwned};
use spry_wire::control::{self, ControlError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::exit::Exit;
use super::nursery::Child;
use crate::sys;

/// A control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The message or the socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Waiting for it.
    #[error("wait for a control socket: {0}")]
    Wait(#[source] io::Error),
    /// The other side has closed it.
    #[error("the control socket was closed")]
    Closed,
    /// Descriptors came beside a message that has none.
    #[error("a control message came with {0} descriptors instead of none")]
    Descriptors(usize),
}

/// spryd's end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// A pair: this end, and the one for the process (blocking, close-on-exec).
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self { socket: sys::watch(ours)? }, theirs))
    }

    pub(super) async fn send<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.when(Interest::WRITABLE, |socket| control::send(socket, message, fds)).await
    }

    /// Sends without waiting; an error when the other side has left so much unread that there is no room.
    pub(super) fn send_now<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        match control::send(self.as_fd(), message, fds) {
            Err(ControlError::Os { source: Errno::EPIPE | Errno::ECONNRESET, .. }) => {
                Err(ChannelError::Closed)
            }
            result => Ok(result?),
        }
    }

    /// The next message; [`ChannelError::Closed`] at the end.
    pub(super) async fn receive<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.when(Interest::READABLE, |socket| control::receive(socket)).await?.ok_or(ChannelError::Closed)
    }

    /// The next message, if it is there already.
    pub(super) fn receive_now<M: DeserializeOwned>(&self) -> Option<Result<(M, Vec<OwnedFd>), ChannelError>> {
        match control::receive(self.as_fd()) {
            Ok(message) => message.map(Ok),
            Err(ControlError::Os { source: Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET, .. }) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    /// The next message of this process. What it said before it died counts, though its end may be heard of first.
    pub(super) async fn receive_from<M: DeserializeOwned>(
        &self,
        child: &Child,
    ) -> Result<Result<(M, Vec<OwnedFd>), ChannelError>, Exit> {
        tokio::select! {
            biased;
            message = self.receive() => Ok(message),
            exit = child.exited_or_lost() => self.receive_now().ok_or(exit),
        }
    }

    async fn when<T>(
        &self,
        interest: Interest,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> Result<T, ControlError>,
    ) -> Result<T, ChannelError> {
        loop {
            let mut ready = self.socket.ready(interest).await.map_err(ChannelError::Wait)?;
            match attempt(self.socket.get_ref().as_fd()) {
                Err(ControlError::Os { source: Errno::EAGAIN, .. }) => ready.clear_ready(),
                Err(ControlError::Os { source: Errno::EPIPE | Errno::ECONNRESET, .. }) => {
                    return Err(ChannelError::Closed);
                }
                result => return Ok(result?),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}
