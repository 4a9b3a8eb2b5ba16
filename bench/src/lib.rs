//! Measures spry from outside, always beside a floor that is measured in the same run.
//!
//! - [`http1`]: a strict, incremental reader of HTTP/1.1 responses, and a small blocking client on it.
//! - [`load`]: the load generator: closed loop, or open loop free of coordinated omission.
//! - [`floor`]: a bare hyper server that answers the same bytes, as a process of its own.
//! - [`pingpong`]: the bare bus, without a node.
//! - [`node`]: a spryd of the benchmark's own, gone without a trace when its handle is dropped.
//! - [`process`]: what a process tree uses: CPU, descriptors, segments.
//! - [`bpf`]: what BPF programs use, by the kernel's account.
//! - [`micro`]: what criterion's benches (`benches/`) have measured, as rows of the same kind.
//! - [`rewind`]: an experiment with processes that go back to what they were.
//! - [`sched`]: scheduling policies on a simulated machine; [`keepalive`]: keep-alive policies on a simulated node.
//! - [`suite`]: the benchmarks, one file each; [`report`] is what they come to.
//!
//! Nothing here is linked into the node. The measured servers are always other processes, so that no
//! allocator, runtime or lock is shared with the generator.

pub mod bpf;
pub mod floor;
pub mod http1;
pub mod keepalive;
pub mod load;
pub mod micro;
pub mod node;
pub mod perf;
pub mod pingpong;
pub mod process;
pub mod random;
pub mod report;
pub mod rewind;
pub mod sched;
pub mod stop;
pub mod suite;
pub mod sys;
