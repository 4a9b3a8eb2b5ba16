//! Names of things on the bus: small integers, each in a type of its own.

use spry_ebpf_common::{CHAIN_BIT, Descriptor, TRAILS_PER_PORT, port_of, source_of_port, trail_of};

/// A set of interchangeable peers (a function, in spry's terms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionIndex(pub u16);

/// One of the hub's own ends: a gateway worker has one port and gets its answers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortIndex(pub u8);

/// A peer: its place in the slot table, and which incarnation of that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerId {
    /// Index into the slot table: `function * SLOTS_PER_FUNCTION + bit`.
    pub slot: u32,
    /// How often that slot had been given out before.
    pub generation: u32,
}

impl PeerId {
    /// The function that this peer belongs to.
    pub fn function(self) -> FunctionIndex {
        FunctionIndex((self.slot / spry_ebpf_common::SLOTS_PER_FUNCTION) as u16)
    }
    /// The peer's bit in its function's idle mask.
    pub fn bit(self) -> u32 {
        self.slot % spry_ebpf_common::SLOTS_PER_FUNCTION
    }
}

/// An invocation; never 0 and never `u64::MAX` (those are slot states).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InvocationId(pub u64);

/// A way through the functions of a chain, set by `Transport::set_route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteIndex(pub u16);

impl RouteIndex {
    /// What a descriptor has in `route` when it goes this way.
    pub fn in_descriptor(self) -> u16 {
        self.0 | CHAIN_BIT
    }
    /// The chain's route in a descriptor; `None`: it goes to a function and back.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        (descriptor.route & CHAIN_BIT != 0).then_some(Self(descriptor.route & !CHAIN_BIT))
    }
}

/// One of a port's trails: what a run on a chain's route leaves behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrailIndex {
    /// The port that gets the run's result.
    pub port: PortIndex,
    /// Which of its trails, below `TRAILS_PER_PORT`.
    pub index: u16,
}

impl TrailIndex {
    /// What a descriptor that this port sends has in `source`.
    pub fn in_descriptor(self) -> u32 {
        source_of_port(self.port.0, self.index)
    }
    /// Port and trail in the `source` of a descriptor that a port sends.
    pub fn of(descriptor: &Descriptor) -> Self {
        let source = descriptor.source;
        Self { port: PortIndex(port_of(source) as u8), index: trail_of(source) as u16 }
    }
    /// Its place in the table of all ports' trails.
    pub fn global(self) -> u32 {
        u32::from(self.port.0) * TRAILS_PER_PORT + u32::from(self.index) % TRAILS_PER_PORT
    }
}
