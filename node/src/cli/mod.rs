//! The command line `spry`: a client of the control socket.
//!
//! Results go to stdout, everything else to stderr. Exit codes are a contract: 0 done, 1 the function failed, 2 the
//! node refused or failed, 64 bad usage. `--output json` prints what the control API says, word for word
//! (`docs/control-api.md`); the text form is for people and may change.

mod chain;
mod client;
mod dead;
mod deploy;
mod invoke;
mod manual;
mod pack;
mod secret;
mod show;
mod table;
mod token;
mod top;
mod trigger;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use http::Method;
use serde::de::DeserializeOwned;

use crate::api::{ActivationView, FunctionView, LogLine, LogPage, StatusView};
use crate::config::{Config, DEFAULT_CONTROL_SOCKET};
use crate::doctor;
use crate::gateway::tls;
use crate::manifest::{self, Manifest};
use crate::schema;
use crate::units::Period;
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
    Logs(Logs),
    /// Look at single calls
    #[command(subcommand)]
    Activation(Activation),
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
    /// Check a configuration file, a function's or a chain's
    CheckConfig {
        /// The file: /etc/spry/spryd.toml, most often, or a spry.toml or chain.toml
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

#[derive(Debug, Args)]
struct Logs {
    /// The function
    name: String,
    /// Go on printing as lines come
    #[arg(short, long)]
    follow: bool,
    /// Print this many lines of the past
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: usize,
}

#[derive(Debug, Subcommand)]
enum Activation {
    /// List the latest calls, newest first
    List {
        /// Only this function's
        name: Option<String>,
        /// Only those that went so: ok, failed, an HTTP status, or an error's code
        #[arg(long, value_name = "HOW")]
        status: Option<String>,
        /// Only those accepted since then: a period before now (10m), or milliseconds since the Unix epoch
        #[arg(long, value_name = "WHEN")]
        since: Option<String>,
        /// Only those accepted before then
        #[arg(long, value_name = "WHEN")]
        until: Option<String>,
        /// At most this many
        #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
        limit: usize,
    },
    /// Show one call
    Get {
        /// The call's id (X-Call-Id)
        id: String,
        /// Wait so long for an asynchronous call to end, 60 s at most
        #[arg(long, value_name = "PERIOD")]
        wait: Option<Period>,
    },
    /// Print what an asynchronous call answered
    Result {
        /// The call's id (X-Call-Id)
        id: String,
        /// Wait so long for it to end, 60 s at most
        #[arg(long, value_name = "PERIOD")]
        wait: Option<Period>,
    },
    /// Print what one call wrote
    Logs {
        /// The call's id (X-Call-Id)
        id: String,
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
        Command::List => {
            show(&client, "/system/functions", output, |list: Vec<FunctionView>| show::functions(&list))
                .await?;
        }
        Command::Describe { name } => {
            let path = format!("/system/function/{}", segment(&name)?);
            show(&client, &path, output, |view: FunctionView| show::function(&view)).await?;
        }
        Command::Remove { name } => {
            client.call(Method::DELETE, &format!("/system/function/{}", segment(&name)?)).await?;
            if output == Output::Text {
                print(&format!("removed {name}\n"))?;
            }
        }
        Command::Chain(wanted) => chain::chain(&client, wanted, output).await?,
        Command::Secret(wanted) => secret::secret(&client, wanted, output).await?,
        Command::Logs(wanted) => logs(&client, &wanted, output).await?,
        Command::Activation(wanted) => activation(&client, wanted, output).await?,
        Command::Trigger(wanted) => trigger::trigger(&client, wanted, output).await?,
        Command::Dead(wanted) => dead::dead(&client, wanted, output).await?,
        Command::Token(wanted) => token::token(&client, wanted, output).await?,
        Command::Top(wanted) => top::top(&client, wanted).await?,
        Command::Status => {
            show(&client, "/system/status", output, |view: StatusView| show::status(&view)).await?;
        }
        Command::Doctor => return examine(&client, output).await,
        Command::CheckConfig { file } => check_config(&file, output)?,
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
async fn show<T: DeserializeOwned>(
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

async fn activation(client: &Client, wanted: Activation, output: Output) -> Result<(), Failure> {
    match wanted {
        Activation::List { name, status, since, until, limit } => {
            let mut path = format!("/system/activations?limit={limit}");
            for (key, value) in [("function", name), ("status", status), ("since", since), ("until", until)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{key}={}", segment(&value)?));
                }
            }
            show(client, &path, output, |list: Vec<ActivationView>| show::activations(&list)).await
        }
        Activation::Result { id, wait } => {
            let path = format!("/system/activation/{}/result{}", segment(&id)?, waiting(wait));
            invoke::result(client, &path).await
        }
        Activation::Get { id, wait } => {
            let path = format!("/system/activation/{}{}", segment(&id)?, waiting(wait));
            show(client, &path, output, |view: ActivationView| show::activation(&view)).await
        }
        Activation::Logs { id } => {
            let path = format!("/system/activation/{}/logs", segment(&id)?);
            show(client, &path, output, |lines: Vec<LogLine>| show::lines(&lines)).await
        }
    }
}

fn waiting(wait: Option<Period>) -> String {
    wait.map(|wait| format!("?wait={wait}")).unwrap_or_default()
}

async fn logs(client: &Client, wanted: &Logs, output: Output) -> Result<(), Failure> {
    let base = format!("/system/function/{}/logs", segment(&wanted.name)?);
    let mut path = format!("{base}?limit={}", wanted.lines);
    loop {
        let page: LogPage = client::read(&client.call(Method::GET, &path).await?)?;
        if page.missed > 0 {
            let _ = writeln!(io::stderr(), "spry: {} lines are no longer kept", page.missed);
        }
        match output {
            Output::Text => print(&show::lines(&page.lines))?,
            Output::Json => page.lines.iter().try_for_each(|line| match serde_json::to_string(line) {
                Ok(text) => print(&(text + "\n")),
                Err(error) => Err(Failure::Node(error.to_string())),
            })?,
        }
        if !wanted.follow {
            return Ok(());
        }
        path = format!("{base}?since={}&limit=1000&wait=30s", page.next);
    }
}

/// As the daemon finds it, if there is one that can be asked; else as this process does.
async fn examine(client: &Client, output: Output) -> Result<u8, Failure> {
    let report: doctor::Report = match client.call(Method::GET, "/system/doctor").await {
        Ok(body) => client::read(&body)?,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "spry: {failure}\nspry: what follows is how this user finds it.");
            doctor::examine(&doctor::Options::of(&configured()))
        }
    };
    match output {
        Output::Text => print(&doctor::text(&report))?,
        Output::Json => print_json(&serde_json::to_vec(&report).unwrap_or_default())?,
    }
    Ok(if report.usable { 0 } else { 2 })
}

/// The node's configuration if it can be read, for what the checks need of it.
fn configured() -> Config {
    Config::load(&crate::config::Flags::default()).unwrap_or_else(|_| {
        crate::config::raw::RawConfig::default()
            .try_into()
            .expect("a test holds the defaults to their bounds")
    })
}

fn check_config(file: &Path, output: Output) -> Result<(), Failure> {
    if chain::is_chain_file(file) {
        return chain::check(file, output);
    }
    if file.file_name().is_some_and(|name| name == manifest::FILE_NAME) {
        return check_manifest(file, output);
    }
    let config = Config::check_file(file).map_err(|error| Failure::Node(error.to_string()))?;
    if let Some(files) = &config.tls {
        tls::Door::open(files).map_err(|error| Failure::Node(error.to_string()))?;
    }
    match output {
        Output::Text => print(&format!(
            "{} is valid: state in {}, HTTP on {}\n",
            file.display(),
            config.state_dir.display(),
            config.listen
        )),
        Output::Json => print("{\"valid\":true}\n"),
    }
}

/// A function's manifest, with the folder that it lies in: what it names must be there.
fn check_manifest(file: &Path, output: Output) -> Result<(), Failure> {
    std::fs::metadata(file).map_err(|error| Failure::Node(format!("read {}: {error}", file.display())))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let manifest = Manifest::of_folder(folder, None, &[], &configured().defaults);
    let manifest = manifest.map_err(|error| Failure::Node(error.to_string()))?;
    match output {
        Output::Text => print(&format!(
            "{} is valid: the {} function {}, handler {}\n",
            file.display(),
            manifest.runtime,
            manifest.name,
            manifest.handler
        )),
        Output::Json => print("{\"valid\":true}\n"),
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
