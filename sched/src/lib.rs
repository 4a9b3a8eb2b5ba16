//! Scheduling policy: pure decisions, no system calls. Inputs in, decisions out; time comes as a parameter.
//!
//! - [`placement`]: whether a function's instances run on the core where the request landed.
#![forbid(unsafe_code)]

pub mod placement;
