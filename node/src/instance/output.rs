//! What one instance writes to its standard output and error, between its process and the log.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::activation::Stream;

/// See the module.
#[derive(Debug)]
pub struct Output {
    pipes: Mutex<Pipes>,
    /// Something may have been read.
    is_held: AtomicBool,
}

/// Output of one invocation.
#[derive(Debug)]
pub struct Taken {
    /// In the order in which it was read.
    pub chunks: Vec<(Stream, Vec<u8>)>,
    /// What was over the limit.
    pub dropped_bytes: u64,
}

impl Output {
    /// From the read ends of its pipes, which don't block. At most `max_bytes` are held for one invocation.
    pub(super) fn new(pipes: [OwnedFd; 2], max_bytes: usize) -> Self {
        let pipes =
            Pipes { open: pipes.into(), held: Vec::new(), held_bytes: 0, dropped_bytes: 0, max_bytes };
        Self { pipes: pipes.into(), is_held: AtomicBool::new(false) }
    }

    /// It has been read to the end: what its instance is kept for now is its outbox.
    pub fn close(&self) {
        self.pipes.lock().open.clear();
    }

    /// Reads what is in the pipes into memory, so that the writer isn't held up.
    pub fn drain(&self) {
        // Before the read: whoever sees an answer that was sent after the read sees the flag, and
        // waits for the lock.
        self.is_held.store(true, Ordering::SeqCst);
        self.pipes.lock().drain();
    }

    /// Reads what is in the pipes; true if they are empty now.
    pub fn drain_whole(&self) -> bool {
        let mut pipes = self.pipes.lock();
        let before = pipes.held_bytes;
        let is_whole = pipes.drain();
        if pipes.held_bytes > before {
            self.is_held.store(true, Ordering::SeqCst);
        }
        is_whole
    }

    /// Takes what came since the last call. `more`: the pipes may hold some that wasn't read yet.
    pub fn take(&self, more: bool) -> Option<Taken> {
        if !more && !self.is_held.load(Ordering::SeqCst) {
            return None;
        }
        let mut pipes = self.pipes.lock();
        if more {
            pipes.drain();
        }
        self.is_held.store(false, Ordering::SeqCst);
        let taken = Taken { chunks: std::mem::take(&mut pipes.held), dropped_bytes: pipes.dropped_bytes };
        pipes.held_bytes = 0;
        pipes.dropped_bytes = 0;
        (!taken.chunks.is_empty()).then_some(taken)
    }
}

#[derive(Debug)]
struct Pipes {
    /// Standard output and error, until they are closed.
    open: Vec<OwnedFd>,
    held: Vec<(Stream, Vec<u8>)>,
    held_bytes: usize,
    dropped_bytes: u64,
    max_bytes: usize,
}

/// Bytes read from one pipe in one go, at most: a process that writes without end must not keep a worker.
const DRAIN_MAX: usize = 256 * 1024;

impl Pipes {
    /// True: until there was no more, rather than until it was enough.
    fn drain(&mut self) -> bool {
        // Both are asked at once: mostly nothing was written.
        if let [stdout, stderr] = &self.open[..]
            && is_empty([stdout, stderr])
        {
            return true;
        }
        let mut buffer = [0; 16 * 1024];
        let mut is_whole = true;
        for (pipe, stream) in self.open.iter().zip([Stream::Stdout, Stream::Stderr]) {
            let mut total = 0;
            while total < DRAIN_MAX {
                let Ok(len) = nix::unistd::read(pipe, &mut buffer) else { break };
                if len == 0 {
                    break;
                }
                total += len;
                is_whole &= total < DRAIN_MAX;
                let room = self.max_bytes.saturating_sub(self.held_bytes).min(len);
                self.held_bytes += room;
                self.dropped_bytes += (len - room) as u64;
                match self.held.last_mut() {
                    _ if room == 0 => {}
                    Some((last, bytes)) if *last == stream => bytes.extend_from_slice(&buffer[..room]),
                    _ => self.held.push((stream, buffer[..room].to_vec())),
                }
            }
        }
        is_whole
    }
}

/// Whether there is nothing to read in these pipes, nor an end.
fn is_empty(pipes: [&OwnedFd; 2]) -> bool {
    let mut polled = pipes.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
    poll(&mut polled, PollTimeout::ZERO) == Ok(0)
}
