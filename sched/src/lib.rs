//! Scheduling: pure decisions, and the ways to make them true. Inputs in, decisions out; time comes as a parameter; only
//! [`backend`] and [`signals`] make system calls.
//!
//! - [`keepalive`]: how long idle processes stay, and which go first when memory is short.
//! - [`layers`]: which packages are imported once for several functions.
//! - [`pool`]: how many single-use instances are kept ready.
//! - [`crowd`]: whether the functions of a chain may interrupt one another.
//! - [`placement`]: whether a function's instances run on the core where the request landed.
//! - [`predict`]: how much CPU time an invocation has left, learnt from the ones before it.
//! - [`policy`]: who runs first, for how long, and in which of the kernel's classes.
//! - [`engine`]: a node's dispatch by a policy: who begins, who goes first, who waits.
//! - [`backend`]: what that becomes in the kernel.
//! - [`signals`]: what processes do, as the kernel's scheduler sees it.
//! - [`sim`]: a machine of many cores on which the same policies run a trace, beside textbook ones.
//!
//! Names are slots ([`FunctionId`], [`TaskId`]): what a function or an invocation is, nothing here knows.
#![deny(unsafe_code)]

pub mod backend;
pub mod crowd;
pub mod engine;
pub mod keepalive;
pub mod layers;
pub mod placement;
pub mod policy;
pub mod pool;
pub mod predict;
pub mod signals;
pub mod sim;
mod slots;

/// A function's slot. Slots are small numbers that the caller hands out and reuses: arrays are kept by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

/// The slot of an invocation under way. It is free for the next one after [`policy::Event::Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);
