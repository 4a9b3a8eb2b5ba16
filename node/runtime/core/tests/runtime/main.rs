//! The runtimes as spryd meets them: real zygotes and instances of both languages, over a real transport.
//!
//! The harness plays spryd. Nothing needs privileges; cc compiles the C functions.
//! With `SPRY_TEST_RUNTIMES` naming a folder, the runtimes in it are tested instead of those that cargo builds; with
//! `SPRY_TEST_PYTHON` naming an interpreter, that one instead of `/usr/bin/python3`.

mod chains;
mod cost;
mod emitting;
mod freezing;
mod harness;
mod hostile;
#[cfg(target_arch = "x86_64")]
mod layers;
mod native;
mod process;
mod python;
mod python_chains;
