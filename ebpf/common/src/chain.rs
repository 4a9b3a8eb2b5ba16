//! Chains: routes through several functions, and the trails that runs leave on them.

use core::mem::size_of;

use crate::{MAX_PORTS, PORT_BIT};

/// Routes that there are.
pub const DEFAULT_ROUTES: u32 = 1024;
/// Runs that one port can have on chains' routes at once.
pub const TRAILS_PER_PORT: u32 = 512;
/// Functions that one route goes through at most.
pub const STEPS_PER_ROUTE: usize = 32;
/// In [`Descriptor::route`](crate::Descriptor::route): the rest is the index of a [`Route`].
pub const CHAIN_BIT: u16 = 0x8000;
/// In [`Route::functions`]: the way ends here, at the port that began it.
pub const TO_GATEWAY: u16 = u16::MAX;

const TRAIL_SHIFT: u32 = 8;

/// [`Descriptor::source`](crate::Descriptor::source) of what a gateway port sends: who gets the answer, and (on a chain's route) which of that
/// port's trails the run leaves.
///
/// ```text
///  31  30       17       8        0
///  ├ 1 ┼ zero ──┼ trail ─┼ port ──┤
/// ```
pub const fn source_of_port(port: u8, trail: u16) -> u32 {
    PORT_BIT | (trail as u32 % TRAILS_PER_PORT) << TRAIL_SHIFT | port as u32
}
/// The port in such a source, below [`MAX_PORTS`] whatever the number.
pub const fn port_of(source: u32) -> u32 {
    source % MAX_PORTS
}
/// The trail in such a source, below [`TRAILS_PER_PORT`] whatever the number.
pub const fn trail_of(source: u32) -> u32 {
    (source >> TRAIL_SHIFT) % TRAILS_PER_PORT
}

/// The functions of a chain, in order. Written by user space only, and only while no run is on it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// By step; [`TO_GATEWAY`] after the last.
    pub functions: [u16; STEPS_PER_ROUTE],
}
const _: () = assert!(size_of::<Route>() == 64);

/// One run on a chain's route: until when it may go on, and where it has been.
///
/// The index is `port * TRAILS_PER_PORT + trail`. The port begins it, and may not begin it again for another
/// invocation before this one is settled. A hop is written by whoever moves the invocation at that moment, which is
/// one at a time; who finds another invocation here writes nothing.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    /// No step starts at this time or later (`CLOCK_MONOTONIC`, nanoseconds). 0: cancelled.
    pub deadline_ns: u64,
    /// Whose trail this is; 0: nobody's.
    pub invocation: u64,
    /// By step.
    pub hop: [Hop; STEPS_PER_ROUTE],
    /// Up to a whole number of cache lines.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<Trail>() == 16 + STEPS_PER_ROUTE * size_of::<Hop>() + 48);
const _: () = assert!(size_of::<Trail>().is_multiple_of(64));

/// What one step of a run did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// When the bus put it into an instance's slot (`CLOCK_MONOTONIC`, nanoseconds); 0: not yet.
    pub sent_ns: u64,
    /// When its answer was accepted; 0: not yet. What follows is written with it.
    pub answered_ns: u64,
    /// The slot of the instance that answered.
    pub slot: u32,
    /// Its incarnation.
    pub slot_generation: u32,
    /// Where the answer's payload lies, as the instance says: not validated.
    pub segment: u32,
    /// As [`Descriptor::generation`](crate::Descriptor::generation).
    pub generation: u32,
    /// As [`Descriptor::offset`](crate::Descriptor::offset).
    pub offset: u32,
    /// As [`Descriptor::length`](crate::Descriptor::length).
    pub length: u32,
}
const _: () = assert!(size_of::<Hop>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_keeps_port_and_trail_apart() {
        for port in [0, 1, 63] {
            for trail in [0, 1, 255, 256, TRAILS_PER_PORT as u16 - 1] {
                let source = source_of_port(port, trail);
                assert_eq!(source & PORT_BIT, PORT_BIT);
                assert_eq!((port_of(source), trail_of(source)), (port.into(), trail.into()));
            }
        }
        assert!(port_of(u32::MAX) < MAX_PORTS && trail_of(u32::MAX) < TRAILS_PER_PORT);
    }
}
