//! Which of a port's trails are free.

use shm_bus::ids::{PortIndex, TrailIndex};
use spry_ebpf_common::TRAILS_PER_PORT;

/// The trails of one port.
pub(super) struct Trails {
    port: PortIndex,
    free: Vec<u16>,
}

impl Trails {
    pub(super) fn new(port: PortIndex) -> Self {
        Self { port, free: (0..TRAILS_PER_PORT as u16).rev().collect() }
    }

    pub(super) fn take(&mut self) -> Option<TrailIndex> {
        Some(TrailIndex { port: self.port, index: self.free.pop()? })
    }

    /// The bus has let go of the run that it was for: nobody writes to it any more.
    pub(super) fn give_back(&mut self, trail: TrailIndex) {
        debug_assert!(trail.port == self.port && !self.free.contains(&trail.index));
        self.free.push(trail.index);
    }
}
