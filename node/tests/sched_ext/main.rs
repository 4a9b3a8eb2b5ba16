//! The node on a kernel with sched_ext: a real `spryd` and a real `spry-scx`, which come, go, and are killed.
//!
//! There is one sched_ext scheduler on a machine, and its maps have one place, so these tests run one at a time, in a guest
//! that `cargo xtask vm test` makes for them; outside of one they do nothing. What the scheduler itself promises is tested
//! in `ebpf/scx/tests`.

#[path = "../e2e/client.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod client;
mod falls;
mod machine;
mod order;
mod pins;
