//! See docs/architecture.md.

pub mod api;
pub mod config;
pub mod manifest;
pub mod store;
pub mod units;
