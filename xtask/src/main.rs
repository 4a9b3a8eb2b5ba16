//! The project's own commands: `cargo xtask help` lists them.
//!
//! This crate only starts other programs, in the right order and with what they need, and says what it
//! does. What is built, tested or measured lives in the crates themselves. It depends on next to
//! nothing, because it is the first thing that a newcomer compiles.

mod artifacts;
mod bench;
mod ci;
mod cli;
mod cross;
mod deb;
mod debian;
mod demo;
mod ebpf;
mod failure;
mod fuzz;
#[cfg(test)]
mod pages;
mod process;
mod rust_src;
mod setup;
mod stage;
mod suite;
mod sys;
#[cfg(test)]
mod units;
mod vm;

use std::process::ExitCode;

use cli::Command;
use failure::Failure;

fn main() -> ExitCode {
    let outcome = cli::parse(std::env::args().skip(1)).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    std::env::set_current_dir(process::root())
        .map_err(|source| Failure::io("enter", process::root(), source))?;
    match command {
        Command::Help => {
            print!("{}", cli::USAGE);
            Ok(())
        }
        Command::Setup => setup::everything(),
        Command::Test(args) => suite::run(&args),
        Command::Ci(stages) => ci::run(&stages),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options).map(drop),
        Command::Ebpf { check } => ebpf::run(check),
        Command::Vm(options) => vm::run(&options),
        Command::Deb(contents) => deb::run(contents),
    }
}
