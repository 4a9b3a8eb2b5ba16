//! `spryd.toml`: the daemon's configuration, from what is written to what is checked.
//!
//! Four layers, each winning over the next: the command line, the environment (`SPRY_STATE_DIR`, `SPRY_LISTEN`,
//! `SPRY_CONTROL_SOCKET`), the file, the defaults. clap merges the first two into [`Flags`]; [`Config::load`]
//! does the rest. Every key is explained in `docs/configuration.md`; a test holds the two together.

mod access;
mod check;
pub mod raw;
mod reload;
mod scheduler;
pub(crate) mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use spry_wire::freeze::Freeze;

use crate::calls::settings::Settings;
use crate::log;
use crate::manifest::{Defaults, ManifestError};
use crate::schedule::SchedulerChoice;
use crate::units::{Period, Size, UnitError};

/// The file that is read when none is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/spry/spryd.toml";
/// Where the control socket is when nothing says otherwise; the client's default too.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/spry/control.sock";

/// What spryd's command line and environment say. `None`: nothing.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file [default: /etc/spry/spryd.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where functions and their database are kept [default: /var/lib/spry]
    #[arg(long, value_name = "DIR", env = "SPRY_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where HTTP is served [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT", env = "SPRY_LISTEN")]
    pub listen: Option<String>,
    /// Where the command line `spry` finds this daemon [default: /run/spry/control.sock]
    #[arg(long, value_name = "PATH", env = "SPRY_CONTROL_SOCKET")]
    pub control_socket: Option<PathBuf>,
}

/// Which transport the bus is asked to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// The best that works here: sockmap, then futex, then broker.
    #[default]
    Auto,
    /// Only sockmap; spryd doesn't start without it.
    Sockmap,
    /// Only futex.
    Futex,
    /// Only the broker.
    Broker,
}

impl TransportChoice {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Futex => "futex",
            Self::Broker => "broker",
        }
    }
}

/// How much may wait in spryd before it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Requests that wait for one function; beyond it: 429.
    pub per_function: usize,
    /// Requests that wait on the whole node; beyond it: 503.
    pub node: usize,
    /// Bytes of requests' bodies held on the whole node; beyond it: 503.
    pub memory: Size,
}

/// What may be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes of one upload, and of all its files together.
    pub size: Size,
    /// Files and folders in one upload.
    pub files: u32,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self { size: Size::mib(256), files: 20_000 }
    }
}

/// Where pip looks for packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageIndex {
    /// Where it looks when it isn't told.
    OfPip,
    /// At this address.
    At(String),
    /// Nowhere: there is only `find_links`.
    Nowhere,
}

/// Where Python packages come from, and within which bounds they are installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packages {
    /// The index.
    pub index: PackageIndex,
    /// A folder of wheels that are looked at as well.
    pub find_links: Option<PathBuf>,
    /// Whether packages may be built, by code of their own, where there is no wheel.
    pub build: bool,
    /// Whether each distribution gets a folder of its own, where that can be.
    pub split: bool,
    /// Bytes of one installed set of packages.
    pub size: Size,
    /// How long installing one set may take.
    pub timeout: Period,
}

impl Default for Packages {
    fn default() -> Self {
        Self {
            index: PackageIndex::OfPip,
            find_links: None,
            build: false,
            split: true,
            size: Size::gib(1),
            timeout: Period::minutes(10),
        }
    }
}

/// The daemon's configuration, checked: every value present and within its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Functions and their database.
    pub state_dir: PathBuf,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Where the control API is served without a token, to those whom the file system lets in.
    pub control_socket: PathBuf,
    /// Gateway workers: threads with an event loop and a bus port each.
    pub workers: usize,
    /// Which transport the bus uses.
    pub transport: TransportChoice,
    /// Python zygotes run this; `None`: the first `python3` that functions can run.
    pub python: Option<PathBuf>,
    /// Where the runtimes are put (the Python module, the native host); `None`: in the state folder.
    pub runtime_dir: Option<PathBuf>,
    /// The first of the 65536 user ids that functions run as.
    pub uid_base: u32,
    /// What zygotes do to their memory, so that forks are cheap.
    pub freeze: Freeze,
    /// Memory of all package layers, when something is said of it: see [`Self::layers_memory`].
    pub layers_memory: Option<Size>,
    /// Whether instances that serve one request at a time are rewound after it, where that can be done.
    pub rewind: bool,
    /// Bounds of the queues.
    pub queue: Queue,
    /// Asynchronous calls.
    pub asynchronous: Settings,
    /// Records of calls.
    pub activations: crate::records::settings::Settings,
    /// Bytes of output kept of one invocation; the rest is cut and said to be.
    pub log_volume: Size,
    /// What may be uploaded.
    pub upload: UploadLimits,
    /// Versions of a function that are kept, the current one included.
    pub versions: usize,
    /// Python packages.
    pub packages: Packages,
    /// Where the control API's bearer token is; made at the first start.
    pub api_token_file: PathBuf,
    /// The sum of the memory limits of all function processes at any time.
    pub memory_budget: Size,
    /// When idle processes go, and when they are made ahead.
    pub keepalive: spry_sched::keepalive::Kind,
    /// The key that secrets are encrypted by; made with the first of them.
    pub secret_key_file: PathBuf,
    /// Who goes first when there is more to do than cores.
    pub scheduler: SchedulerChoice,
    /// For manifests that are silent.
    pub defaults: Defaults,
    /// How the log's lines look.
    pub log_format: log::Format,
    /// What the log tells.
    pub log_level: String,
    /// Where traces go, if anywhere.
    pub trace: Option<Trace>,
    /// With what HTTP is encrypted, if it is.
    pub tls: Option<Tls>,
    /// Who may use the control socket.
    pub control: ControlAccess,
    /// How many requests a caller may make, if that is limited.
    pub rate: Option<Rate>,
    /// How long a stop waits for calls that run.
    pub grace: Period,
}

/// Where spans are told.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// A collector's OTLP address.
    pub endpoint: http::Uri,
    /// The part of the calls without a trace that get one.
    pub sample: f64,
}

/// What HTTP is encrypted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and those that vouch for it, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
}

/// Who may use the control socket, besides root and the user that runs spryd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlAccess {
    /// This user.
    pub owner: Option<u32>,
    /// Who is in this group.
    pub group: Option<u32>,
}

/// How many requests one caller may make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// In the long run.
    pub per_second: f64,
    /// At once, after a pause.
    pub burst: f64,
    /// Callers that are told apart.
    pub table: usize,
}

/// Why there is no usable configuration. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind; says the line.
    #[error("{}: {message}", path.display())]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong.
        message: String,
    },
    /// A value is outside its bounds.
    #[error("{key} is {value}, but must be {bound}")]
    Bound {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is allowed.
        bound: String,
    },
    /// A size can't be read.
    #[error("{key}: {source}")]
    Unit {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        source: UnitError,
    },
    /// The machine's memory can't be found out, and it isn't said how much of it functions may have.
    #[error("find out how much memory there is (or set node.memory_budget): {0}")]
    Memory(#[source] std::io::Error),
    /// One of `[defaults]` is not a manifest's value.
    #[error(transparent)]
    Defaults(#[from] ManifestError),
}

impl Config {
    /// Reads the file that `flags` name (or the default one, if it is there) and puts `flags` on top.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let raw = match &flags.config {
            Some(path) => raw::RawConfig::read(path)?,
            None => {
                let path = Path::new(DEFAULT_FILE);
                if path.exists() { raw::RawConfig::read(path)? } else { raw::RawConfig::default() }
            }
        };
        raw.under(flags).try_into()
    }

    /// Memory of all package layers; 0: there are none.
    pub fn layers_memory(&self) -> Size {
        /// Of what is promised to functions, they may have one part in so many when nothing is said.
        const PART: u64 = 10;
        self.layers_memory.unwrap_or(Size::bytes(self.memory_budget.as_bytes() / PART))
    }

    /// Checks one file by itself (`spry check-config`).
    pub fn check_file(path: &Path) -> Result<Self, ConfigError> {
        raw::RawConfig::read(path)?.try_into()
    }
}

#[cfg(test)]
mod tests;
