//! What spryd and a new instance talk by: a control socket, and two pipes for what it prints.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;

use super::channel;
use super::output;

/// The ends of all of them.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) control: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// The instance's: its control socket, where it prints to, and what tells whether that has been read.
    pub(super) theirs: [OwnedFd; 4],
}

impl Kit {
    fn make() -> io::Result<Self> {
        let (control, their_control) = channel::sockets()?;
        let (stdout, stdout_writer) = output::pipe()?;
        let (stderr, stderr_writer) = output::pipe()?;
        let watch = spry_wire::output::watch([stdout.as_fd(), stderr.as_fd()])?;
        Ok(Self { control, stdout, stderr, theirs: [their_control, stdout_writer, stderr_writer, watch] })
    }
}

/// One kit, made while spryd waits for a zygote to fork: making it takes a tenth of a birth.
#[derive(Debug, Default)]
pub(super) struct SpareKit(Mutex<Option<Kit>>);

impl SpareKit {
    /// It, or a new one.
    pub(super) fn take(&self) -> io::Result<Kit> {
        self.0.lock().take().map_or_else(Kit::make, Ok)
    }

    /// Makes one if there is none.
    pub(super) fn refill(&self) {
        let mut spare = self.0.lock();
        if spare.is_none() {
            // If that can't be done, whoever needs the next hears why.
            *spare = Kit::make().ok();
        }
    }
}
