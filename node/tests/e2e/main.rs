//! The node as its users meet it: the real `spryd`, the real `spry`, HTTP over TCP, functions of both runtimes.
//!
//! Needs root (zygotes change their user) and `cc` for the native functions. What is missing is said and counted
//! as a skip; with `SPRY_TEST_ALL=1` a skip is a failure. Every test has a daemon of its own, and checks at the
//! end that nothing is left of it.

mod client;
mod daemon;

mod access;
mod callbacks;
mod chain_bounds;
mod chain_isolation;
mod chains;
mod crash;
mod errors;
mod http;
mod kept;
mod later;
mod layers;
mod libraries;
mod life;
mod memory;
mod names;
mod outage;
#[path = "../process_support/outside.rs"]
mod outside;
mod packages;
mod scheduling;
mod secrets;
mod seeing;
mod service;
mod tls;
mod transports;
mod triggers;
mod versions;
mod wheels;
