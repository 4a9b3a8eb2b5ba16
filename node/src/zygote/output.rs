//! What a zygote prints while it loads its function: kept for the one who deployed it, within bounds.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Bytes kept: the last ones, since a traceback ends with what matters.
const KEPT_BYTES: usize = 64 * 1024;

/// A pipe: the reading end, which doesn't block, and the writing end, which does; both close on exec.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
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
        loop {
            let Ok(mut ready) = self.pipe.readable().await else { return };
            match take(self.pipe.get_ref(), &mut self.kept) {
                Ok(0) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// Reads what is there now.
    pub(super) fn drain_now(&mut self) {
        // bounded, for a process that writes faster than this reads
        for _ in 0..64 {
            if !matches!(take(self.pipe.get_ref(), &mut self.kept), Ok(1..)) {
                return;
            }
        }
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

fn take(pipe: &OwnedFd, kept: &mut VecDeque<u8>) -> Result<usize, Errno> {
    let mut bytes = [0; 8 * 1024];
    let len = read(pipe, &mut bytes)?;
    kept.extend(&bytes[..len]);
    let surplus = kept.len().saturating_sub(KEPT_BYTES);
    kept.drain(..surplus);
    Ok(len)
}
