//! Chains: functions that call on, with one deadline over all of them.
//!
//! [`spec`] reads a `chain.toml`; [`flatten`] looks its names up, in functions and other chains; what comes out is
//! a [`plan`]. [`graph`] draws it.

mod flatten;
pub mod graph;
pub mod plan;
pub mod spec;

pub use flatten::{Known, flatten};
