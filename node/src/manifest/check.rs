//! From `spry.toml` as written to a checked [`Manifest`]: every value within its bounds, or an error that names both.

use std::collections::BTreeMap;

use super::raw::{Quantity, RawLimits, RawManifest, RawPolicy, RawScale};
use super::{
    AccessRule, Defaults, ENV_MAX, Egress, Isolation, Limits, Manifest, ManifestError, Name, Network,
    Runtime, SCALE_MAX, Scale,
};
use crate::calls::policy::Policy;
use crate::secrets::{PER_FUNCTION_MAX, SecretName};
use crate::units::{Period, Size};

impl RawManifest {
    /// Checks every value; what is silent gets its default. Name, runtime and handler must be there by now.
    pub fn check(self, defaults: &Defaults) -> Result<Manifest, ManifestError> {
        let missing = |key, hint: &str| ManifestError::Missing { key, hint: hint.into() };
        let name = self.name.ok_or_else(|| missing("name", "write name = \"my-function\""))?;
        let runtime = self.runtime.ok_or_else(|| missing("runtime", "write \"python\" or \"native\""))?;
        let handler =
            self.handler.ok_or_else(|| missing("handler", "write handler = \"module:function\""))?;
        let runtime = runtime_of(&runtime)?;
        check_handler(runtime, &handler)?;
        let packages = super::requirement::check(self.packages.unwrap_or_default())?;
        let bound = || "left out: only runtime = \"python\" has packages".to_owned();
        let fits = packages.is_empty() || runtime == Runtime::Python;
        within(fits, "packages", format!("{} long", packages.len()), bound())?;
        Ok(Manifest {
            name: Name::try_from(name)?,
            runtime,
            handler,
            isolation: isolation_of(self.isolation.as_deref())?,
            packages,
            secrets: check_secrets(self.secrets.unwrap_or_default())?,
            limits: self.limits.check(&defaults.limits, "limits")?,
            scale: self.scale.check(&defaults.scale, "scale")?,
            env: check_env(self.env)?,
            network: Network { egress: egress_of(self.network.egress.as_deref())? },
            asynchronous: self.asynchronous.check(&defaults.asynchronous, "async")?,
            access: AccessRule { token: self.access.token },
        })
    }
}

fn runtime_of(word: &str) -> Result<Runtime, ManifestError> {
    match word {
        "python" => Ok(Runtime::Python),
        "native" => Ok(Runtime::Native),
        "lambda" | "exec" => Err(ManifestError::NotInThisVersion(word.into())),
        _ => Err(ManifestError::Word { key: "runtime", value: word.into(), known: "\"python\", \"native\"" }),
    }
}

fn isolation_of(word: Option<&str>) -> Result<Isolation, ManifestError> {
    match word {
        None => Ok(Isolation::default()),
        Some("instance") => Ok(Isolation::Instance),
        Some("request") => Ok(Isolation::Request),
        Some(other) => {
            let known = "\"instance\", \"request\"";
            Err(ManifestError::Word { key: "isolation", value: other.into(), known })
        }
    }
}

fn egress_of(word: Option<&str>) -> Result<Egress, ManifestError> {
    match word {
        None => Ok(Egress::default()),
        Some("none") => Ok(Egress::None),
        Some("host") => Ok(Egress::Host),
        Some(other) => {
            let known = "\"none\", \"host\"";
            Err(ManifestError::Word { key: "network.egress", value: other.into(), known })
        }
    }
}

/// Each once, in order.
fn check_secrets(written: Vec<String>) -> Result<Vec<SecretName>, ManifestError> {
    let mut names: Vec<SecretName> =
        written.into_iter().map(SecretName::try_from).collect::<Result<_, _>>()?;
    names.sort();
    names.dedup();
    let bound = format!("at most {PER_FUNCTION_MAX} names");
    within(names.len() <= PER_FUNCTION_MAX, "secrets", format!("{} names", names.len()), bound)?;
    Ok(names)
}

/// The handler's shape. That the file exists is checked where the folder is at hand.
fn check_handler(runtime: Runtime, handler: &str) -> Result<(), ManifestError> {
    let bad = |why: &str| ManifestError::Handler { handler: handler.into(), why: why.into() };
    if handler.len() > 512 || handler.chars().any(char::is_control) {
        return Err(bad("it must be one line of at most 512 bytes"));
    }
    match runtime {
        Runtime::Python => {
            let (module, function) =
                handler.split_once(':').ok_or_else(|| bad("a Python handler is written module:function"))?;
            let part = |text: &str| !text.is_empty() && !text.contains(['/', '\\', ':', ' ']);
            let dotted = |text: &str| text.split('.').all(part);
            if dotted(module) && dotted(function) {
                Ok(())
            } else {
                Err(bad("a Python handler is written module:function, with no path in it"))
            }
        }
        Runtime::Native => {
            let inside = handler.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if inside { Ok(()) } else { Err(bad("a native handler is a .so file within the folder")) }
        }
    }
}

/// The interpreter's and the loader's own variables decide what code runs before the sandbox is shut.
fn check_env(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ManifestError> {
    let mut total = 0;
    for (name, value) in &env {
        let bad = |why| ManifestError::Env { name: name.escape_default().to_string(), why };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(letter) {
            return Err(bad("a variable's name has letters, digits and underscores, not a digit first"));
        }
        let reserved = ["LD_", "PYTHON", "SPRY_", "GLIBC_", "GCONV_"];
        if reserved.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(bad("names that start with LD_, PYTHON, SPRY_, GLIBC_ or GCONV_ are spry's to set"));
        }
        if value.contains('\0') {
            return Err(bad("its value has a NUL byte"));
        }
        total += name.len() + value.len() + 2;
    }
    let bound = format!("at most {ENV_MAX} bytes in all");
    within(total <= ENV_MAX, "env", format!("{total} bytes"), bound)?;
    Ok(env)
}

impl RawLimits {
    /// Checks each limit; `section` names the table in errors (`limits`, or `defaults.limits`).
    pub fn check(self, defaults: &Limits, section: &'static str) -> Result<Limits, ManifestError> {
        let key = |name| key_in(section, name);
        let limits = Limits {
            memory: size(self.memory, key("memory"))?.unwrap_or(defaults.memory),
            cpu: self.cpu.unwrap_or(defaults.cpu),
            timeout: period(self.timeout, key("timeout"))?.unwrap_or(defaults.timeout),
            payload: size(self.payload, key("payload"))?.unwrap_or(defaults.payload),
            processes: count(self.processes, key("processes"), 1, 4096)?.unwrap_or(defaults.processes),
            tmpfs: size(self.tmpfs, key("tmpfs"))?.unwrap_or(defaults.tmpfs),
        };
        between(key("memory"), limits.memory, Size::mib(4), Size::gib(1024))?;
        between(key("timeout"), limits.timeout, Period::millis(1), Period::minutes(24 * 60))?;
        between(key("payload"), limits.payload, Size::kib(1), Size::gib(1))?;
        between(key("tmpfs"), limits.tmpfs, Size::kib(64), Size::gib(1024))?;
        let cpu_fits = (0.01..=1024.0).contains(&limits.cpu);
        within(cpu_fits, key("cpu"), limits.cpu.to_string(), "between 0.01 and 1024".into())?;
        Ok(limits)
    }
}

impl RawPolicy {
    /// Checks the section; `section` names it in errors.
    pub fn check(self, defaults: &Policy, section: &'static str) -> Result<Policy, ManifestError> {
        let key = |name| key_in(section, name);
        let policy = Policy {
            retries: count(self.retries, key("retries"), 0, 1000)?.unwrap_or(defaults.retries),
            backoff: period(self.backoff, key("backoff"))?.unwrap_or(defaults.backoff),
            backoff_max: period(self.backoff_max, key("backoff_max"))?.unwrap_or(defaults.backoff_max),
            age: period(self.age, key("age"))?.unwrap_or(defaults.age),
            in_flight: count(self.in_flight, key("in_flight"), 0, 4096)?.unwrap_or(defaults.in_flight),
        };
        let days = |n: u64| Period::minutes(n * 24 * 60);
        between(key("backoff"), policy.backoff, Period::millis(1), days(1))?;
        between(key("backoff_max"), policy.backoff_max, Period::millis(1), days(7))?;
        between(key("age"), policy.age, Period::seconds(1), days(365))?;
        Ok(policy)
    }
}

impl RawScale {
    /// Checks the section; `section` names it in errors.
    pub fn check(self, defaults: &Scale, section: &'static str) -> Result<Scale, ManifestError> {
        let key = |name| key_in(section, name);
        let min = count(self.min, key("min"), 0, SCALE_MAX)?;
        let max = count(self.max, key("max"), 1, SCALE_MAX)?;
        let idle = period(self.idle, key("idle"))?.unwrap_or(defaults.idle);
        between(key("idle"), idle, Period::millis(100), Period::minutes(7 * 24 * 60))?;
        // One given without the other pulls the other's default along, so that `min = 12` alone works.
        let (min, max) = match (min, max) {
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, defaults.max.max(min)),
            (None, Some(max)) => (defaults.min.min(max), max),
            (None, None) => (defaults.min, defaults.max),
        };
        within(min <= max, key("min"), min.to_string(), format!("at most {} ({max})", key("max")))?;
        Ok(Scale { min, max, idle })
    }
}

/// The full key: a closed set, so that errors can name it without carrying text around.
fn key_in(section: &'static str, name: &'static str) -> &'static str {
    match (section, name) {
        ("limits", "memory") => "limits.memory",
        ("limits", "cpu") => "limits.cpu",
        ("limits", "timeout") => "limits.timeout",
        ("limits", "payload") => "limits.payload",
        ("limits", "processes") => "limits.processes",
        ("limits", "tmpfs") => "limits.tmpfs",
        ("scale", "min") => "scale.min",
        ("scale", "max") => "scale.max",
        ("scale", "idle") => "scale.idle",
        ("defaults.limits", "memory") => "defaults.limits.memory",
        ("defaults.limits", "cpu") => "defaults.limits.cpu",
        ("defaults.limits", "timeout") => "defaults.limits.timeout",
        ("defaults.limits", "payload") => "defaults.limits.payload",
        ("defaults.limits", "processes") => "defaults.limits.processes",
        ("defaults.limits", "tmpfs") => "defaults.limits.tmpfs",
        ("defaults.scale", "min") => "defaults.scale.min",
        ("defaults.scale", "max") => "defaults.scale.max",
        ("defaults.scale", "idle") => "defaults.scale.idle",
        ("async", "retries") => "async.retries",
        ("async", "backoff") => "async.backoff",
        ("async", "backoff_max") => "async.backoff_max",
        ("async", "age") => "async.age",
        ("async", "in_flight") => "async.in_flight",
        ("defaults.async", "retries") => "defaults.async.retries",
        ("defaults.async", "backoff") => "defaults.async.backoff",
        ("defaults.async", "backoff_max") => "defaults.async.backoff_max",
        ("defaults.async", "age") => "defaults.async.age",
        ("defaults.async", "in_flight") => "defaults.async.in_flight",
        _ => name,
    }
}

fn size(written: Option<Quantity>, key: &'static str) -> Result<Option<Size>, ManifestError> {
    match written {
        None => Ok(None),
        Some(Quantity::Text(text)) => {
            text.parse().map(Some).map_err(|source| ManifestError::Unit { key, source })
        }
        Some(Quantity::Number(bytes)) => match u64::try_from(bytes) {
            Ok(bytes) => Ok(Some(Size::bytes(bytes))),
            Err(_) => Err(ManifestError::Bound { key, value: bytes.to_string(), bound: "positive".into() }),
        },
    }
}

fn period(written: Option<Quantity>, key: &'static str) -> Result<Option<Period>, ManifestError> {
    let text = match written {
        None => return Ok(None),
        Some(Quantity::Text(text)) => text,
        Some(Quantity::Number(number)) => number.to_string(),
    };
    text.parse().map(Some).map_err(|source| ManifestError::Unit { key, source })
}

fn count(
    written: Option<i64>,
    key: &'static str,
    least: u32,
    most: u32,
) -> Result<Option<u32>, ManifestError> {
    let Some(number) = written else { return Ok(None) };
    let fitting = u32::try_from(number).ok().filter(|number| (least..=most).contains(number));
    let bound = || format!("between {least} and {most}");
    fitting.map(Some).ok_or_else(|| ManifestError::Bound { key, value: number.to_string(), bound: bound() })
}

fn between<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ManifestError> {
    let fits = value >= least && value <= most;
    within(fits, key, value.to_string(), format!("between {least} and {most}"))
}

fn within(fits: bool, key: &'static str, value: String, bound: String) -> Result<(), ManifestError> {
    if fits { Ok(()) } else { Err(ManifestError::Bound { key, value, bound }) }
}
