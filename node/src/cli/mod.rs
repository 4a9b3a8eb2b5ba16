//! The command line `spry`: a client of the control socket.
//!
//! Results go to stdout, everything else to stderr. Exit codes are a contract: 0 done, 1 the function failed, 2 the
//! node refused or failed, 64 bad usage. `--output json` prints what the control API says, word for word
//! (`docs/control-api.md`); the text form is for people and may change.

mod activation;
mod chain;
mod check;
mod client;
mod dead;
mod deploy;
mod invoke;
mod logs;
mod manual;
mod pack;
mod rollback;
mod secret;
mod show;
mod table;
mod token;
mod top;
mod trigger;

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use http::Method;
use serde::de::DeserializeOwned;

use crate::api::{FunctionView, StatusView};
use crate::chain::spec::FILE_MAX;
use crate::config::DEFAULT_CONTROL_SOCKET;
use crate::schema;
use client::Client;
pub use manual::Spryd;

/// Deploys and calls functions on this node, and shows how they fare.
#[derive(Debug, Parser)]
#[command(name = "spry", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// Where the daemon listens for commands
    #[arg(long, global = true, value_name = "PATH", env = "SPRY_CONTROL_SOCKET", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,
    /// How results are printed
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs; stable
    Json,
    /// For graphviz; `spry chain describe` only
    Dot,
}

/// How the results of most commands are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put a function in service, or replace it without losing a request
    Deploy(deploy::Deploy),
    /// Call a function; its answer's body goes to stdout as it came
    Invoke(invoke::Invoke),
    /// Put an earlier version of a function in service again, without losing a request
    Rollback(rollback::Rollback),
    /// List the functions
    List,
    /// Show one function with its limits and its processes
    Describe {
        /// The function
        name: String,
    },
    /// Take a function out of service and forget it
    Remove {
        /// The function
        name: String,
    },
    /// Apply, look at and remove chains of functions
    #[command(subcommand)]
    Chain(chain::Chain),
    /// Set, list and remove secrets
    #[command(subcommand)]
    Secret(secret::Secret),
    /// Print what a function wrote to stdout and stderr
    Logs(logs::Logs),
    /// Look at single calls
    #[command(subcommand)]
    Activation(activation::Activation),
    /// Look at asynchronous calls that were given up, run them again or forget them
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Make, list and revoke tokens for callers over HTTP
    #[command(subcommand)]
    Token(token::Token),
    /// Apply, look at, pause and remove triggers: schedules and spool folders
    #[command(subcommand)]
    Trigger(trigger::Trigger),
    /// Show the node: transport, limits, processes
    Status,
    /// Watch what the node does, function by function
    Top(top::Top),
    /// Check what this kernel and these rights give
    Doctor,
    /// Check a configuration file, a function's, a chain's or a trigger's
    CheckConfig {
        /// The file: /etc/spry/spryd.toml, most often, or a spry.toml, chain.toml or trigger.toml
        file: PathBuf,
    },
    /// Print the JSON Schema of a file, for editors
    Schema {
        /// Which file
        file: schema::File,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    ManPages {
        /// The folder
        folder: PathBuf,
    },
}

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The function's fault: exit code 1.
    #[error("{0}")]
    Function(String),
    /// The node's, or what it refuses: exit code 2.
    #[error("{0}")]
    Node(String),
    /// The caller's: exit code 64.
    #[error("{0}")]
    Usage(String),
    /// Whoever read our output has enough.
    #[error("the reader of the output is gone")]
    ReaderGone,
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Function(_) => 1,
            Self::Node(_) => 2,
            Self::Usage(_) => 64,
            Self::ReaderGone => 0,
        }
    }

    fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Node(format!("write the output: {error}")),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::Node(format!("start an event loop: {error}"))),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "spry: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<u8, Failure> {
    let client = Client::new(cli.control_socket);
    let output = match cli.output {
        Format::Text => Output::Text,
        Format::Json => Output::Json,
        Format::Dot => {
            let Command::Chain(chain::Chain::Describe { name }) = &cli.command else {
                return Err(Failure::Usage("--output dot goes with `spry chain describe` only".into()));
            };
            return chain::dot(&client, name).await.map(|()| 0);
        }
    };
    match cli.command {
        Command::Deploy(wanted) => deploy::deploy(&client, wanted, output).await?,
        Command::Invoke(wanted) => invoke::invoke(&client, wanted).await?,
        Command::Rollback(wanted) => rollback::roll_back(&client, wanted, output).await?,
        Command::List => {
            show_at(&client, "/system/functions", output, |list: Vec<FunctionView>| show::functions(&list))
                .await?;
        }
        Command::Describe { name } => {
            let path = format!("/system/function/{}", segment(&name)?);
            show_at(&client, &path, output, |view: FunctionView| show::function(&view)).await?;
        }
        Command::Remove { name } => {
            client.call(Method::DELETE, &format!("/system/function/{}", segment(&name)?)).await?;
            if output == Output::Text {
                print(&format!("removed {name}\n"))?;
            }
        }
        Command::Chain(wanted) => chain::chain(&client, wanted, output).await?,
        Command::Secret(wanted) => secret::secret(&client, wanted, output).await?,
        Command::Logs(wanted) => logs::logs(&client, &wanted, output).await?,
        Command::Activation(wanted) => activation::activation(&client, wanted, output).await?,
        Command::Trigger(wanted) => trigger::trigger(&client, wanted, output).await?,
        Command::Dead(wanted) => dead::dead(&client, wanted, output).await?,
        Command::Token(wanted) => token::token(&client, wanted, output).await?,
        Command::Top(wanted) => top::top(&client, wanted).await?,
        Command::Status => {
            show_at(&client, "/system/status", output, |view: StatusView| show::status(&view)).await?;
        }
        Command::Doctor => return check::examine(&client, output).await,
        Command::CheckConfig { file } => check::check_config(&file, output)?,
        Command::Schema { file } => {
            let text = serde_json::to_string_pretty(&schema::schema(file));
            print(&(text.map_err(|error| Failure::Node(error.to_string()))? + "\n"))?;
        }
        Command::Completions { shell } => manual::completions(shell)?,
        Command::ManPages { folder } => manual::man_pages(&folder)?,
    }
    Ok(0)
}

/// Gets a path and prints what is there.
async fn show_at<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    output: Output,
    text: impl FnOnce(T) -> String,
) -> Result<(), Failure> {
    let body = client.call(Method::GET, path).await?;
    match output {
        Output::Json => print_json(&body),
        Output::Text => print(&text(client::read(&body)?)),
    }
}

/// A name or an id as one part of a path: nothing that would change the path's shape.
fn segment(text: &str) -> Result<&str, Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !text.is_empty() && text.len() <= 128 && text.bytes().all(fits) && !matches!(text, "." | "..") {
        return Ok(text);
    }
    Err(Failure::Usage(format!("{text:?} can't be a name or an id: letters, digits, hyphens")))
}

/// A chain's or a trigger's file: as much as the daemon takes of one, and a byte, so that what is too long is told from what
/// just fits.
fn read_file(file: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::Usage(format!("read {}: {error}", file.display()));
    let opened = std::fs::File::open(file).map_err(failed)?;
    let mut text = String::new();
    opened.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::output)
}

/// Indented for a terminal, one line for a pipe.
fn print_json(body: &[u8]) -> Result<(), Failure> {
    let value: serde_json::Value = client::read(body)?;
    let text = match io::stdout().is_terminal() {
        true => serde_json::to_string_pretty(&value),
        false => serde_json::to_string(&value),
    };
    print(&(text.map_err(|error| Failure::Node(error.to_string()))? + "\n"))
}
