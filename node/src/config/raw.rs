//! The shape of `spryd.toml` as written. [`super::check`] says what it means.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::scheduler::RawScheduler;
use super::{ConfigError, Flags};
use crate::calls::settings::RawSettings;
use crate::manifest::raw::{Quantity, RawLimits, RawPolicy, RawScale};
use crate::records;

/// User ids after those of functions, for what spryd runs beside them (installing packages).
pub const UIDS_OF_TOOLS: u32 = 16;
/// User ids set aside for functions, one each, from `uid_base` on.
pub const UID_COUNT: u32 = 65_536;
/// The default of `uid_base`: above what distributions, containers' subordinate ids and systemd's dynamic
/// users (61184-65519, 524288-1879048191) hand out.
pub const UID_BASE: u32 = 1_879_048_192;

/// `spryd.toml` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// A folder.
    pub state_dir: Option<PathBuf>,
    /// `address:port`.
    pub listen: Option<String>,
    /// A path.
    pub control_socket: Option<PathBuf>,
    /// A count.
    pub workers: Option<i64>,
    /// `auto`, `sockmap`, `futex` or `broker`.
    pub transport: Option<String>,
    /// A user id.
    pub uid_base: Option<i64>,
    /// A path.
    pub api_token_file: Option<PathBuf>,
    /// A path.
    pub secret_key_file: Option<PathBuf>,
    /// A folder.
    pub runtime_dir: Option<PathBuf>,
    /// `[python]`
    pub python: RawPython,
    /// `[zygotes]`
    pub zygotes: RawZygotes,
    /// `[queue]`
    pub queue: RawQueue,
    /// `[logs]`
    pub logs: RawLogs,
    /// `[upload]`
    pub upload: RawUpload,
    /// `[versions]`
    pub versions: RawVersions,
    /// `[packages]`
    pub packages: RawPackages,
    /// `[async]`
    #[serde(rename = "async")]
    pub asynchronous: RawSettings,
    /// `[node]`
    pub node: RawNode,
    /// `[keepalive]`
    pub keepalive: RawKeepAlive,
    /// `[activations]`
    pub activations: records::settings::RawSettings,
    /// `[scheduler]`
    pub scheduler: RawScheduler,
    /// `[defaults]`
    pub defaults: RawDefaults,
    /// `[log]`
    pub log: RawLog,
    /// `[trace]`
    pub trace: RawTrace,
    /// `[tls]`
    pub tls: RawTls,
    /// `[control]`
    pub control: RawControl,
    /// `[rate]`
    pub rate: RawRate,
    /// `[shutdown]`
    pub shutdown: RawShutdown,
}

/// `[log]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// `text` or `json`.
    pub format: Option<String>,
    /// A level, or directives.
    pub level: Option<String>,
}

/// `[trace]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTrace {
    /// A collector's address.
    pub otlp: Option<String>,
    /// A part, 0 to 1.
    pub sample: Option<f64>,
}

/// `[tls]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// A path.
    pub certificate: Option<PathBuf>,
    /// A path.
    pub key: Option<PathBuf>,
}

/// `[control]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawControl {
    /// A user's name or number.
    pub owner: Option<String>,
    /// A group's name or number.
    pub group: Option<String>,
}

/// `[rate]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRate {
    /// Requests; 0: no limit.
    pub per_second: Option<f64>,
    /// Requests.
    pub burst: Option<i64>,
    /// Callers.
    pub table: Option<i64>,
}

/// `[shutdown]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// A period.
    pub grace: Option<Quantity>,
}

/// `[packages]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPackages {
    /// An address, or `none`.
    pub index: Option<String>,
    /// A folder.
    pub find_links: Option<PathBuf>,
    /// Whether packages may be built.
    pub build: Option<bool>,
    /// Whether distributions get folders of their own.
    pub split: Option<bool>,
    /// A size.
    pub size: Option<Quantity>,
    /// A period.
    pub timeout: Option<String>,
}

/// `[python]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPython {
    /// A path.
    pub interpreter: Option<PathBuf>,
}

/// `[zygotes]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawZygotes {
    /// `auto`, `memfd`, `huge` or `off`.
    pub freeze: Option<String>,
    /// A size.
    pub layers_memory: Option<Quantity>,
    /// `auto` or `off`.
    pub rewind: Option<String>,
}

/// `[queue]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawQueue {
    /// A count.
    pub per_function: Option<i64>,
    /// A count.
    pub node: Option<i64>,
    /// A size.
    pub memory: Option<Quantity>,
}

/// `[logs]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLogs {
    /// A size.
    pub per_invocation: Option<Quantity>,
}

/// `[upload]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawUpload {
    /// A size.
    pub size: Option<Quantity>,
    /// A count.
    pub files: Option<i64>,
}

/// `[versions]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawVersions {
    /// A count.
    pub keep: Option<i64>,
}

/// `[node]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawNode {
    /// A size, or a share of the machine's memory (`"80%"`).
    pub memory_budget: Option<Quantity>,
}

/// `[keepalive]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeepAlive {
    /// A policy's name.
    pub policy: Option<String>,
}

/// `[defaults]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawDefaults {
    /// As in a manifest.
    pub limits: RawLimits,
    /// As in a manifest.
    pub scale: RawScale,
    /// As in a manifest.
    #[serde(rename = "async")]
    pub asynchronous: RawPolicy,
}

impl RawConfig {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Toml { path: path.to_owned(), message: error.to_string() })
    }

    /// Puts the command line and the environment on top.
    pub fn under(mut self, flags: &Flags) -> Self {
        let flags = flags.clone();
        self.state_dir = flags.state_dir.or(self.state_dir);
        self.listen = flags.listen.or(self.listen);
        self.control_socket = flags.control_socket.or(self.control_socket);
        self
    }
}
