//! From `spryd.toml` as written to what it means: every value within its bounds, or an error that names both.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::available_parallelism;

use spry_sched::keepalive::Kind;
use spry_wire::freeze::Freeze;

use super::access;
use super::raw::{RawConfig, RawPackages, UID_BASE, UID_COUNT, UIDS_OF_TOOLS};
use super::scheduler::scheduler;
use super::value::{absolute, bound, count, optional, period, size};
use super::{
    Config, ConfigError, DEFAULT_CONTROL_SOCKET, PackageIndex, Packages, Queue, TransportChoice, UploadLimits,
};
use crate::manifest::Defaults;
use crate::manifest::raw::Quantity;
use crate::units::{Period, Size};

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
            layers_memory: layers_memory(raw.zygotes.layers_memory)?,
            rewind: rewind(raw.zygotes.rewind.as_deref())?,
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
        split: written.split.unwrap_or(default.split),
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

fn rewind(written: Option<&str>) -> Result<bool, ConfigError> {
    match written {
        None | Some("auto") => Ok(true),
        Some("off") => Ok(false),
        Some(text) => bound("zygotes.rewind", format!("\"{text}\""), "one of \"auto\", \"off\""),
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

fn layers_memory(written: Option<Quantity>) -> Result<Option<Size>, ConfigError> {
    let (least, most) = (Size::default(), Size::gib(1024));
    let of = |written| size("zygotes.layers_memory", Some(written), least, least, most);
    written.map(of).transpose()
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
