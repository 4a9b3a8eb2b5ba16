//! Names of things on the bus: small integers, each in a type of its own.

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
