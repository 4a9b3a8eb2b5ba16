//! Function processes against a real kernel: what holds them, seen from inside; limits that are hit; zygotes and
//! instances that lie.
//!
//! Needs root for most of it, and control groups for the limits; what is missing is skipped and counted, or fails
//! with `SPRY_TEST_ALL=1`.

mod process_support;

#[path = "process_isolation/confinement.rs"]
mod confinement;
#[path = "process_isolation/hostile.rs"]
mod hostile;
#[path = "process_isolation/limits.rs"]
mod limits;
#[path = "process_isolation/loading.rs"]
mod loading;
#[path = "process_isolation/namespaces.rs"]
mod namespaces;
