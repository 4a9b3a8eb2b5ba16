//! Shared memory and the messages that point into it.
//!
//! - [`segment`]: a memfd with one writer; everybody else maps it read-only.
//! - [`alloc`]: the size-class allocator that a segment's owner keeps in private memory.
//! - [`begun`]: the header of an outbox: which invocation its owner began last.
//! - [`release`]: how the reader of a segment tells its owner which blocks it is done with.
//! - [`descriptor`]: validation of the 32 bytes that travel.
//! - [`ring`]: the single-producer single-consumer ring under the futex transport.
//! - [`transport`]: how descriptors get from the hub to a peer and back: `sockmap`, `futex`, `broker`.
//!
//! The crate knows nothing of HTTP or of functions' code: a *peer* is a process with one connection
//! to the *hub*, and belongs to a *function*, a set of interchangeable peers.
//!
//! With `default-features = false` only the peer's side is built (no kernel program, no io_uring). Under
//! `cfg(loom)` there is the ring alone, on loom's atomics.
#![deny(unsafe_code)]

#[cfg(not(loom))]
pub mod alloc;
#[cfg(not(loom))]
pub mod begun;
pub mod copy;
#[cfg(not(loom))]
pub mod descriptor;
pub mod ids;
#[cfg(not(loom))]
pub mod release;
pub mod ring;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
pub mod transport;

pub use spry_ebpf_common::{Descriptor, Hop};
#[cfg(not(loom))]
pub use transport::endpoint;
