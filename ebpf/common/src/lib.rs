//! Types that the kernel programs and user space share: the descriptor, the tables of the bus, and
//! how a bus socket's address names its owner.
//!
//! Everything here is plain old data with a layout that is proven at compile time. Nothing here
//! decides anything; the program in `ebpf/programs` and the transports in `shm-bus` do.
#![no_std]

mod chain;

use core::mem::{offset_of, size_of};

pub use chain::{
    CHAIN_BIT, DEFAULT_ROUTES, Hop, Route, STEPS_PER_ROUTE, TO_GATEWAY, TRAILS_PER_PORT, Trail, port_of,
    source_of_port, trail_of,
};

/// Bytes of a [`Descriptor`]: one bus message is exactly this long.
pub const DESCRIPTOR_LEN: usize = size_of::<Descriptor>();

/// What travels on the bus: where the payload lies, never the payload.
///
/// ```text
///  0        4        8        12       16               24    26  27  28      32
///  ├ segment┼ generat┼ offset ┼ length ┼ invocation ────┼route┼step┼flag┼source┤
/// ```
///
/// All fields are in host byte order; a descriptor never leaves the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The segment's slot in the node's segment table.
    pub segment: u32,
    /// Incarnation of that slot: a reused slot can't answer for the old segment.
    pub generation: u32,
    /// First byte of the payload within the segment.
    pub offset: u32,
    /// Bytes of payload.
    pub length: u32,
    /// The invocation that this belongs to; never 0 in a valid descriptor.
    pub invocation: u64,
    /// The way that it goes. Without [`CHAIN_BIT`]: a function, by index, and back. With it: the [`Route`] of that
    /// index, through the functions of a chain.
    pub route: u16,
    /// Which step of the route is to be served; of an answer: the step that answered.
    pub step: u8,
    /// Bits of [`flags`], and in the low four bits a [`status`].
    pub flags: u8,
    /// Who sent it: an instance's [`Slot`] index, stamped by the bus, whatever the sender wrote. From a
    /// gateway port (trusted) it is the port that gets the answer and the run's trail ([`source_of_port`]).
    pub source: u32,
}

const _: () = {
    assert!(size_of::<Descriptor>() == 32);
    assert!(offset_of!(Descriptor, segment) == 0);
    assert!(offset_of!(Descriptor, generation) == 4);
    assert!(offset_of!(Descriptor, offset) == 8);
    assert!(offset_of!(Descriptor, length) == 12);
    assert!(offset_of!(Descriptor, invocation) == 16);
    assert!(offset_of!(Descriptor, route) == 24);
    assert!(offset_of!(Descriptor, step) == 26);
    assert!(offset_of!(Descriptor, flags) == 27);
    assert!(offset_of!(Descriptor, source) == 28);
};

/// The low four bits of [`Descriptor::flags`]: how a step ended.
pub mod status {
    /// The mask of the status bits.
    pub const MASK: u8 = 0x0f;
    /// The payload is the result.
    pub const OK: u8 = 0;
    /// The function raised or returned an error; the payload says what.
    pub const FAILED: u8 = 1;
    /// The step was not started, because its run's time was over. Only the bus says so.
    pub const EXPIRED: u8 = 2;
    /// Nothing: the port throws the message away. Only the kernel program says so, of an answer whose invocation the
    /// hub has taken back in the moment when the program handed it on.
    pub const VOID: u8 = 15;
}

/// The high four bits of [`Descriptor::flags`].
pub mod flags {
    /// From a gateway port only: the hub has put the invocation into a slot of the function itself, the one whose bit is
    /// in [`Descriptor::step`](super::Descriptor::step), and this is for that slot's instance. What arrives has neither.
    pub const CLAIMED: u8 = 0x10;
    /// The instance wrote to its log: the kernel leaves it busy, so that spryd can read the log
    /// before the next invocation writes to it. spryd puts the instance back in service.
    pub const HOLD: u8 = 0x20;
    /// The step answered, and the next one is to be started by spryd: no instance of its function was idle, or
    /// the answering instance has to be seen to. Only the bus sets it.
    pub const NEXT: u8 = 0x40;
    /// A value that an instance emits while it goes on serving: no answer, the instance stays busy.
    pub const EMIT: u8 = 0x80;
}

/// Values that one step may emit: [`flags::EMIT`] messages of one invocation in one slot.
pub const EMITS_MAX: u32 = 128;

/// Set in [`Descriptor::source`] when a gateway port, not an instance, is meant.
pub const PORT_BIT: u32 = 0x8000_0000;
/// Instances that one function can have at once: bits in [`Function::idle`].
pub const SLOTS_PER_FUNCTION: u32 = 64;
/// Slots that one instance can have: its own, and the further seats that follow it.
pub const SEATS: u32 = 4;
/// CPUs that [`Function::home`] tells apart; higher ones share (modulo).
pub const HOME_CPUS: usize = 16;
/// Gateway ports at most; they come before the slots in the socket map.
pub const MAX_PORTS: u32 = 64;
/// Functions at most, unless the loader asks for another number.
pub const DEFAULT_FUNCTIONS: u32 = 1024;
/// Functions at most, whoever asks: a [`Descriptor::route`] without [`CHAIN_BIT`] is one.
pub const MAX_FUNCTIONS: u32 = CHAIN_BIT as u32;
/// Gateway ports that have trails, unless the loader asks for another number.
pub const DEFAULT_PORTS: u32 = 8;

/// [`Slot::state`]: nobody is there, or nobody may be picked any more.
pub const STATE_DETACHED: u64 = 0;
/// [`Slot::state`]: attached, and in the hub's hands: not yet admitted, or answered with
/// [`flags::HOLD`]. Never picked, holds no invocation; whatever the instance sends is a violation.
pub const STATE_HELD: u64 = u64::MAX - 1;
/// [`Slot::state`]: waiting for an invocation.
pub const STATE_IDLE: u64 = u64::MAX;

/// The invocation in a [`Slot::state`], if there is one: every value that isn't one of the three
/// states is the invocation being served. So no invocation may be called by one of those values.
pub const fn invocation_of(state: u64) -> Option<u64> {
    match state {
        STATE_DETACHED | STATE_HELD | STATE_IDLE => None,
        invocation => Some(invocation),
    }
}

/// [`Slot::fault`]: what an instance did first against the rules.
pub mod fault {
    /// Nothing that the program has seen.
    pub const NONE: u8 = 0;
    /// It sent something that is not exactly one descriptor.
    pub const MALFORMED: u8 = 1;
    /// It answered an invocation that it doesn't hold.
    pub const NOT_ITS_INVOCATION: u8 = 2;
    /// It emitted more values than one step may.
    pub const FLOOD: u8 = 3;
}

/// One instance's entry. The index is `function * SLOTS_PER_FUNCTION + bit`.
///
/// `state` is the single source of truth and changes by compare-and-swap (or swap) only;
/// `Function::idle` is a hint to find idle slots fast.
///
/// ```text
///                 attach                 admit
///   DETACHED ───────────────► HELD ────────────────► IDLE ◄─────────────┐
///      ▲ ▲                     ▲ ▲                   │ │                │ answer
///      │ │       detach        │ │      retire       │ │  pick          │
///      │ └─────────────────────┘ │ ┌─────────────────┘ ▼                │
///      │                         │ ▼      answer+HOLD  invocation ──────┘
///      └── detach: swap          └─────────────────────┘
/// ```
///
/// An instance of a short function may have further *seats*: the slots that follow its own, each with a state and an
/// invocation of its own, and all with its one connection. What is put into any of them waits in the socket until the
/// instance reads it; so it needn't sleep between two invocations, and nothing else about a slot changes.
///
/// The sender that wins `IDLE -> invocation` owns `port`, `route`, `step`, `trail` and `emitted`, and publishes
/// them by writing the invocation to `claimed`. Whoever reads them first checks `claimed`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// `STATE_DETACHED`, `STATE_HELD`, `STATE_IDLE`, or the invocation that is being served.
    pub state: u64,
    /// The invocation that `port`, `route`, `step`, `trail` and `emitted` belong to; 0 when it has been answered.
    pub claimed: u64,
    /// Who gets the answer: a gateway port, without `PORT_BIT`.
    pub port: u32,
    /// Incarnation: counts attaches of this slot.
    pub generation: u32,
    /// The route being followed (of the descriptor that was delivered).
    pub route: u16,
    /// The step being served.
    pub step: u8,
    /// The first of [`fault`]'s codes since the attach.
    pub fault: u8,
    /// The TCP ports of the instance's connection ([`connection`]). Together with the address they
    /// name the connection that the hub made; a socket that was disconnected and bound to
    /// somebody's address doesn't have them.
    pub connection: u32,
    /// Messages that this instance sent against the rules.
    pub violations: u64,
    /// Not 0: this instance serves one invocation. Its answer leaves it HELD, whatever its flags say.
    pub single_use: u32,
    /// The slot whose connection this is: its own index, or that of the instance whose further seat it is.
    pub owner: u32,
    /// Index of the run's [`Trail`], on a chain's route.
    pub trail: u32,
    /// Values emitted for this invocation. Only what runs within the instance's own send adds to it.
    pub emitted: u32,
    /// How many of the slots that follow are this instance's further seats: 0, or `SEATS - 1`.
    pub seats: u32,
    /// Not 0: an answer leaves those seats HELD, for they are being taken away.
    pub seats_closed: u32,
}
// A slot has a cache line to itself: instances on different cores don't slow each other down.
const _: () = assert!(size_of::<Slot>() == 64);
const _: () = assert!(SLOTS_PER_FUNCTION.is_multiple_of(SEATS));

/// One gateway port's entry.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Port {
    /// Invocations that this port's socket has put into a slot. Only the program that runs inside
    /// the port's own `send` writes it, so the sender sees from it what became of its message.
    pub claims: u64,
    /// The slot of the last claim.
    pub slot: u32,
    /// The TCP ports of the gateway port's connection, as in [`Slot::connection`].
    pub connection: u32,
    /// A port has a cache line to itself.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<Port>() == 64);

/// The two TCP ports of a connection in one word, as the kernel program finds them: the remote one
/// in network byte order above the local one in host byte order.
pub const fn connection(local_port: u16, remote_port: u16) -> u32 {
    (remote_port.to_be() as u32) << 16 | local_port as u32
}

/// One function's entry.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Function {
    /// Bit b: slot b is probably idle. An idle slot's bit is set for sure (once whoever made it
    /// idle has returned); a set bit may be out of date.
    pub idle: u64,
    /// Not 0: invocations wait for this function in the hub. A run that one of its instances has answered then
    /// goes to its port, not on by itself: nobody else would tell the hub that the instance is idle. Whoever makes an
    /// instance idle looks here afterwards; the hub looks for idle ones after it has written here.
    pub waiting: u64,
    /// Keeps the mask, which everybody changes, off the cache lines that everybody reads.
    pub reserved: [u64; 6],
    /// Bit b of word c: slot b prefers CPU c (modulo `HOME_CPUS`). Written by user space only.
    pub home: [u64; HOME_CPUS],
}
const _: () = assert!(size_of::<Function>() == 64 + 8 * HOME_CPUS);

/// Counters of the program, one array entry per name.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Invocations redirected to an instance.
    Delivered = 0,
    /// Answers redirected to a gateway port, whatever their flags.
    Answered = 1,
    /// No idle instance: handed back to the gateway.
    Bounced = 2,
    /// Messages against the rules, handed to spryd.
    Violations = 3,
    /// Answers of a chain's step redirected to an instance of the next.
    Routed = 4,
    /// Emitted values redirected to a gateway port.
    Emitted = 5,
}
/// How many [`Counter`]s there are.
pub const COUNTERS: u32 = 6;

/// Where a bus socket's address keeps its owner: `127.a.b.c`, with `a.b.c` the index in the socket
/// map, plus one (so that 127.0.0.0 is never used). The kernel program reads the identity of a
/// sender from its socket's own address, which the sender can't change while the socket is connected.
///
/// Indices 0 to `MAX_PORTS` are gateway ports, then come the slots.
pub const fn address_of(socket_index: u32) -> u32 {
    0x7f00_0000 | (socket_index + 1)
}
/// The other way round: the socket-map index of a (host order) IPv4 address.
pub const fn index_of(address: u32) -> u32 {
    (address & 0x00ff_ffff).wrapping_sub(1)
}

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `#[repr(C)]`, `Copy`, no padding (sizes asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::Descriptor {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Port {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Function {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Route {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Trail {}
}

// (Last, so that the lines above stay where they are: the bus object, compared byte for byte, knows their numbers.)
pub mod signals;
