//! Hostile functions, deployed to a real `spryd` as anyone would. Each test is one attack by name: it comes to nothing,
//! and a neighbour function is called all the while and answers.
//!
//! Needs root and `cc`; see `tests/e2e`.

#[allow(dead_code, reason = "shared with tests/e2e, which uses all of it")]
#[path = "../e2e/client.rs"]
mod client;
#[allow(dead_code, reason = "shared with tests/e2e, which uses all of it")]
#[path = "../e2e/daemon.rs"]
mod daemon;

mod concurrent;
mod escape;
mod exhaustion;
mod leftovers;
mod neighbour;
mod ordinary;
mod others;
#[path = "../process_support/outside.rs"]
mod outside;
mod rewinding;
mod rewinding_python;
