//! The node: `spryd` and `spry` are thin programs over this library. See docs/architecture.md.

pub mod activation;
pub mod api;
pub mod cgroup;
pub mod chain;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dispatch;
pub mod doctor;
pub mod embedded;
pub mod function;
pub mod gateway;
pub mod inbox;
pub mod instance;
pub mod keeper;
pub mod manifest;
pub mod metrics;
pub mod node;
pub mod packages;
pub mod progress;
pub mod sandbox;
pub mod store;
pub mod sys;
pub mod units;
pub mod zygote;
