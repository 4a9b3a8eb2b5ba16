//! See docs/architecture.md.

pub mod api;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod manifest;
pub mod sandbox;
pub mod store;
pub mod sys;
pub mod units;
pub mod zygote;
