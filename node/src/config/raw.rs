//! The shape of `spryd.toml` as written, and its checks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use schemars::JsonSchema;
use serde::Deserialize;
use spry_sched::keepalive::Kind;
use spry_wire::freeze::Freeze;

use super::access;
use super::scheduler::{RawScheduler, scheduler};
use super::value::{absolute, bound, count, optional, period, size};
use super::{
    Config, ConfigError, DEFAULT_CONTROL_SOCKET, Flags, PackageIndex, Packages, Queue, TransportChoice,
    UploadLimits,
};
use crate::calls::settings::RawSettings;
use crate::manifest::Defaults;
use crate::manifest::raw::{Quantity, RawLimits, RawPolicy, RawScale};
use crate::records;
use crate::units::{Period, Size};

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

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let state_dir = absolute("state_dir", raw.state_dir, "/var/lib/spry")?;
        let cores = available_parallelism().map_or(1, usize::from).min(32) as i64;
        let queue = Queue {
            per_function: count("queue.per_function", raw.queue.per_function, 256, 1, 1 << 20)? as usize,
            node: count("queue.node", raw.queue.node, 4096, 1, 1 << 20)? as usize,
            memory: size("queue.memory", raw.queue.memory, Size::mib(256), Size::mib(1), Size::gib(1024))?,
        };
        let volume =
            size("logs.per_invocation", raw.logs.per_invocation, Size::kib(64), Size::kib(1), Size::mib(16))?;
        let upload = UploadLimits::default();
        let highest = i64::from(u32::MAX - UID_COUNT - UIDS_OF_TOOLS);
        let (log_format, log_level) = access::log(raw.log)?;
        Ok(Self {
            listen: listen(raw.listen)?,
            control_socket: control_socket(raw.control_socket)?,
            workers: count("workers", raw.workers, cores, 1, 32)? as usize,
            transport: transport(raw.transport.as_deref())?,
            python: optional("python.interpreter", raw.python.interpreter)?,
            runtime_dir: optional("runtime_dir", raw.runtime_dir)?,
            uid_base: count("uid_base", raw.uid_base, i64::from(UID_BASE), 65_536, highest)? as u32,
            freeze: freeze(raw.zygotes.freeze.as_deref())?,
            queue,
            asynchronous: raw.asynchronous.check()?,
            activations: raw.activations.check()?,
            log_volume: volume,
            upload: UploadLimits {
                size: size("upload.size", raw.upload.size, upload.size, Size::kib(1), Size::gib(16))?,
                files: count("upload.files", raw.upload.files, i64::from(upload.files), 1, 1 << 20)? as u32,
            },
            versions: count("versions.keep", raw.versions.keep, 5, 1, 1000)? as usize,
            packages: packages(raw.packages)?,
            api_token_file: match raw.api_token_file {
                Some(path) => absolute("api_token_file", Some(path), "/")?,
                None => state_dir.join("api-token"),
            },
            memory_budget: memory_budget(raw.node.memory_budget)?,
            keepalive: keepalive(raw.keepalive.policy.as_deref())?,
            secret_key_file: match raw.secret_key_file {
                Some(path) => absolute("secret_key_file", Some(path), "/")?,
                None => state_dir.join("secrets.key"),
            },
            scheduler: scheduler(raw.scheduler)?,
            defaults: Defaults {
                limits: raw.defaults.limits.check(&Defaults::default().limits, "defaults.limits")?,
                scale: raw.defaults.scale.check(&Defaults::default().scale, "defaults.scale")?,
                asynchronous: raw
                    .defaults
                    .asynchronous
                    .check(&Defaults::default().asynchronous, "defaults.async")?,
            },
            log_format,
            log_level,
            trace: access::trace(raw.trace)?,
            tls: access::tls(raw.tls)?,
            control: access::control(raw.control)?,
            rate: access::rate(raw.rate)?,
            grace: access::grace(raw.shutdown)?,
            state_dir,
        })
    }
}

fn packages(written: RawPackages) -> Result<Packages, ConfigError> {
    let default = Packages::default();
    let index = match written.index {
        None => default.index,
        Some(word) if word == "none" => PackageIndex::Nowhere,
        Some(url) => {
            let is_web = url.starts_with("https://") || url.starts_with("http://");
            if !is_web || url.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
                return bound(
                    "packages.index",
                    format!("{url:?}"),
                    "an https:// or http:// address, or \"none\"",
                );
            }
            PackageIndex::At(url)
        }
    };
    let (least, most) = (Period::seconds(1), Period::minutes(24 * 60));
    let timeout =
        period("packages.timeout", written.timeout.map(Quantity::Text), default.timeout, least, most)?;
    Ok(Packages {
        index,
        find_links: optional("packages.find_links", written.find_links)?,
        build: written.build.unwrap_or(default.build),
        size: size("packages.size", written.size, default.size, Size::mib(1), Size::gib(1024))?,
        timeout,
    })
}

fn listen(written: Option<String>) -> Result<SocketAddr, ConfigError> {
    let text = written.unwrap_or_else(|| "127.0.0.1:8080".into());
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) => bound("listen", format!("\"{text}\""), "ADDRESS:PORT such as 127.0.0.1:8080 or [::1]:8080"),
    }
}

/// `sockaddr_un` has room for 107 bytes and the final NUL.
fn control_socket(written: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let path = absolute("control_socket", written, DEFAULT_CONTROL_SOCKET)?;
    if path.as_os_str().len() > 107 {
        return bound("control_socket", format!("\"{}\"", path.display()), "at most 107 bytes long");
    }
    Ok(path)
}

fn transport(written: Option<&str>) -> Result<TransportChoice, ConfigError> {
    match written {
        None | Some("auto") => Ok(TransportChoice::Auto),
        Some("sockmap") => Ok(TransportChoice::Sockmap),
        Some("futex") => Ok(TransportChoice::Futex),
        Some("broker") => Ok(TransportChoice::Broker),
        Some(other) => {
            bound("transport", format!("\"{other}\""), "one of \"auto\", \"sockmap\", \"futex\", \"broker\"")
        }
    }
}

fn freeze(written: Option<&str>) -> Result<Freeze, ConfigError> {
    let known = [Freeze::Auto, Freeze::Memfd, Freeze::Huge, Freeze::Off];
    let Some(text) = written else { return Ok(Freeze::Auto) };
    match known.into_iter().find(|known| known.as_str() == text) {
        Some(known) => Ok(known),
        None => {
            bound("zygotes.freeze", format!("\"{text}\""), "one of \"auto\", \"memfd\", \"huge\", \"off\"")
        }
    }
}

/// What is promised to functions when nothing is said: so many percent of the machine's memory.
const BUDGET_PERCENT: u64 = 80;

fn memory_budget(written: Option<Quantity>) -> Result<Size, ConfigError> {
    const KEY: &str = "node.memory_budget";
    let percent = match &written {
        None => BUDGET_PERCENT,
        Some(Quantity::Text(text)) if text.ends_with('%') => {
            let share =
                text.trim_end_matches('%').trim().parse().ok().filter(|share| (1..=1000).contains(share));
            match share {
                Some(share) => share,
                None => return bound(KEY, format!("\"{text}\""), "a size, or between \"1%\" and \"1000%\""),
            }
        }
        Some(_) => return size(KEY, written, Size::default(), Size::mib(8), Size::gib(1 << 20)),
    };
    let all_bytes = crate::budget::machine_bytes().map_err(ConfigError::Memory)?;
    Ok(Size::bytes(all_bytes / 100 * percent))
}

fn keepalive(written: Option<&str>) -> Result<Kind, ConfigError> {
    let Some(name) = written else { return Ok(Kind::Ttl) };
    match Kind::parse(name) {
        Some(kind) => Ok(kind),
        None => {
            let known = Kind::ALL.map(|kind| format!("\"{}\"", kind.name())).join(", ");
            bound("keepalive.policy", format!("\"{name}\""), format!("one of {known}"))
        }
    }
}
