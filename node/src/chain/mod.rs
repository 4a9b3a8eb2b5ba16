//! Chains: functions that call on, with one deadline over all of them.

pub mod plan;
