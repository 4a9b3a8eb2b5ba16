//! The daemon: reads its configuration, then [`spry_node::daemon::run`].

use std::process::ExitCode;

use clap::Parser;
use spry_node::cli::Spryd;
use spry_node::config::Config;

/// As in sysexits.h: the command line, or the configuration, is wrong.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Spryd::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let config = match Config::load(&arguments.flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("spryd: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let level = spry_node::log::start(config.log_format, &config.log_level);
    match spry_node::daemon::run(config, arguments.flags, level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spryd: {error}");
            ExitCode::from(2)
        }
    }
}
