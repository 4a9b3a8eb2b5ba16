//! The sockmap transport against hostile peers and unlucky moments, on the running kernel.
//!
//! Needs the rights to load BPF programs and to make a network namespace. Without them each test prints why it is
//! skipped and the count so far; with `SPRY_TEST_ALL=1` a skip is a failure.

#[path = "sockmap_kernel/bench.rs"]
mod bench;
#[path = "sockmap_kernel/chains.rs"]
mod chains;
#[path = "sockmap_kernel/object.rs"]
mod object;
#[path = "sockmap_kernel/races.rs"]
mod races;
#[path = "sockmap_kernel/rig.rs"]
mod rig;
#[path = "sockmap_kernel/rules.rs"]
mod rules;
#[path = "sockmap_kernel/seats.rs"]
mod seats;
#[path = "sockmap_kernel/sockets.rs"]
mod sockets;
