//! The daemon: reads its configuration, then [`spry_node::daemon::run`].

use std::process::ExitCode;

use clap::Parser;
use spry_node::config::{Config, Flags};

/// Runs functions on this node, over HTTP.
#[derive(Parser)]
#[command(
    name = "spryd",
    version,
    after_help = "The log's detail: SPRY_LOG=debug (as RUST_LOG elsewhere). Manual: docs/operations.md"
)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

/// As in sysexits.h: the command line, or the configuration, is wrong.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let detail = std::env::var("SPRY_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(detail))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let config = match Config::load(&arguments.flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("spryd: {error}");
            return ExitCode::from(USAGE);
        }
    };
    match spry_node::daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spryd: {error}");
            ExitCode::from(2)
        }
    }
}
