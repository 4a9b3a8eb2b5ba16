//! `cargo fuzz run hostile_bus`: see `../hostile.rs`.
#![no_main]

#[path = "../hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|input: &[u8]| hostile::run(input));
