//! Pipes that function processes print to; and what a zygote prints while it loads its function: kept for the one who deployed it,
//! within bounds.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;

use crate::sys;

/// Bytes read at once.
const READ_BYTES: usize = 8 * 1024;
/// Bytes kept: the last ones, since a traceback ends with what matters.
const KEPT_BYTES: usize = 64 * 1024;

/// A pipe: the reading end, which doesn't block, and the writing end, which does; both close on exec.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Waits until there is something in such a pipe, and reads some of it; 0 at the end.
///
/// The others of this thread have their turn in between: the pipe of a process that prints without end is always ready, and its
/// reader would go on for as long.
pub(crate) async fn read_some(pipe: &AsyncFd<OwnedFd>, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        consume_budget().await;
        let mut ready = pipe.readable().await?;
        match read(pipe.get_ref(), bytes) {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The reading end of a zygote's output.
#[derive(Debug)]
pub(super) struct Output {
    pipe: AsyncFd<OwnedFd>,
    kept: VecDeque<u8>,
}

impl Output {
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: sys::watch(pipe)?, kept: VecDeque::new() })
    }

    /// Reads until the last writer is gone.
    pub(super) async fn drain(&mut self) {
        let mut bytes = [0; READ_BYTES];
        while let Ok(len @ 1..) = read_some(&self.pipe, &mut bytes).await {
            self.keep(&bytes[..len]);
        }
    }

    /// Reads what is there now.
    pub(super) fn drain_now(&mut self) {
        let mut bytes = [0; READ_BYTES];
        // bounded, for a process that writes faster than this reads
        for _ in 0..64 {
            let Ok(len @ 1..) = read(self.pipe.get_ref(), &mut bytes) else { return };
            self.keep(&bytes[..len]);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..surplus);
    }

    /// What was printed, as text.
    pub(super) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.kept.make_contiguous()).into_owned()
    }

    /// The pipe, for whoever reads on.
    pub(super) fn into_pipe(self) -> OwnedFd {
        self.pipe.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    /// More than one task may do before the turn of others comes.
    const MESSAGES: usize = 250;

    /// A pipe with so many messages, each of which is read by itself.
    fn full() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_DIRECT).expect("a pipe");
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)).expect("a large one");
        for _ in 0..MESSAGES {
            nix::unistd::write(&writer, b"x").expect("room");
        }
        (reader, writer)
    }

    #[tokio::test]
    async fn others_have_their_turn_while_there_is_more_to_read() {
        let (reader, writer) = full();
        let same = reader.try_clone().expect("a copy");
        let mut output = Output::new(reader).expect("watch");
        // It is known to be ready before anybody reads.
        output.pipe.readable().await.expect("ready").retain_ready();
        let tasks = async {
            let drained = spawn_local(async move {
                output.drain().await;
                output.kept.len()
            });
            let other = spawn_local(async move {
                poll(&mut [PollFd::new(same.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)
            });
            assert_eq!(other.await.expect("no panic"), Ok(1), "all was read before its turn");
            drop(writer);
            assert_eq!(drained.await.expect("no panic"), MESSAGES);
        };
        LocalSet::new().run_until(tasks).await;
    }
}
