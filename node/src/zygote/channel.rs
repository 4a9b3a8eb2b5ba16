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
use tokio::task::coop::consume_budget;

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

/// spryd's end, and the one for the process (blocking); both close on exec.
pub(super) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

/// spryd's end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// This end, and the one for the process.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sockets()?;
        Ok((Self::new(ours)?, theirs))
    }

    /// Of the first of two [`sockets`].
    pub(super) fn new(ours: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: sys::watch(ours)? })
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
            // Who says one thing after the other is always ready, and others are to have their turn.
            consume_budget().await;
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

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use spry_wire::control::FromInstance;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_while_there_is_more_to_hear() {
        /// More than one task may do before the turn of others comes, and less than a socket holds.
        const MESSAGES: usize = 150;
        let (ours, theirs) = Channel::pair().expect("a pair");
        for _ in 0..MESSAGES {
            control::send(theirs.as_fd(), &FromInstance::Hello, &[]).expect("room");
        }
        let same = ours.as_fd().try_clone_to_owned().expect("a copy");
        // It is known to be ready before anybody listens.
        ours.socket.readable().await.expect("ready").retain_ready();
        let tasks = async {
            let heard = spawn_local(async move {
                for _ in 0..MESSAGES {
                    ours.receive::<FromInstance>().await.expect("a message");
                }
            });
            let other = spawn_local(async move {
                poll(&mut [PollFd::new(same.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)
            });
            assert_eq!(other.await.expect("no panic"), Ok(1), "all was heard before its turn");
            heard.await.expect("all is heard");
        };
        LocalSet::new().run_until(tasks).await;
    }
}
