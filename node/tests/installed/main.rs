//! The package as an operator has it: installed by dpkg, started by systemd, restarted, rebooted, removed.
//!
//! These tests change the machine that they run on, so they run nowhere but in a guest that `cargo xtask vm test` makes for
//! them, one at a time: `first_boot`, then after a reboot `second_boot`, then `the_end`. What a test needs it
//! makes itself ([`machine::node`]); within a boot their order doesn't matter.

#[path = "../e2e/client.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod client;
mod first_boot;
#[path = "../e2e/kept.rs"]
mod kept;
mod machine;
mod second_boot;
mod the_end;
