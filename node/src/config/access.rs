//! The sections of `spryd.toml` about who gets in, and about what is told of the node: checked values.

use http::Uri;

use super::raw::{RawControl, RawLog, RawRate, RawShutdown, RawTls, RawTrace};
use super::value::{bound, count, optional, period};
use super::{ConfigError, Rate, Tls, Trace};
use crate::log::{self, Format};
use crate::units::Period;

/// The log's form and level.
pub(super) fn log(raw: RawLog) -> Result<(Format, String), ConfigError> {
    let form = match raw.format.as_deref() {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => return bound("log.format", format!("\"{other}\""), "one of \"text\", \"json\""),
    };
    let level = raw.level.unwrap_or_else(|| log::DEFAULT_LEVEL.into());
    if !log::is_level(&level) {
        let known = "a level (\"error\", \"warn\", \"info\", \"debug\", \"trace\"), or several for parts, \
                     such as \"info,shm_bus=debug\"";
        return bound("log.level", format!("\"{level}\""), known);
    }
    Ok((form, level))
}

/// Where spans go, if anywhere.
pub(super) fn trace(raw: RawTrace) -> Result<Option<Trace>, ConfigError> {
    let sample = raw.sample.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&sample) {
        return bound("trace.sample", sample, "between 0 and 1");
    }
    let Some(text) = raw.otlp else { return Ok(None) };
    let whole = |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some();
    match text.parse::<Uri>().ok().filter(whole) {
        Some(endpoint) => Ok(Some(Trace { endpoint, sample })),
        None => bound(
            "trace.otlp",
            format!("\"{text}\""),
            "an address such as http://127.0.0.1:4318/v1/traces (without TLS: a collector on this machine)",
        ),
    }
}

/// The certificate and its key: both or none.
pub(super) fn tls(raw: RawTls) -> Result<Option<Tls>, ConfigError> {
    let certificate = optional("tls.certificate", raw.certificate)?;
    match (certificate, optional("tls.key", raw.key)?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Tls { certificate, key })),
        (Some(_), None) => bound("tls.key", "not there", "there, since tls.certificate is"),
        (None, Some(_)) => bound("tls.certificate", "not there", "there, since tls.key is"),
    }
}

/// The rate limit, if there is one.
pub(super) fn rate(raw: RawRate) -> Result<Option<Rate>, ConfigError> {
    let per_second = raw.per_second.unwrap_or(0.0);
    if !(0.0..=1e9).contains(&per_second) {
        return bound("rate.per_second", per_second, "between 0 (no limit) and 1000000000");
    }
    let burst = count("rate.burst", raw.burst, (per_second.ceil() as i64).max(1), 1, 1_000_000_000)?;
    let table = count("rate.table", raw.table, 65_536, 64, 1 << 22)? as usize;
    Ok((per_second > 0.0).then_some(Rate { per_second, burst: burst as f64, table }))
}

/// Who may use the control socket besides root and the daemon's own user: a user's and a group's id.
pub(super) fn control(raw: RawControl) -> Result<super::ControlAccess, ConfigError> {
    let user = |name: &str| nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    let group =
        |name: &str| nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    Ok(super::ControlAccess {
        owner: id("control.owner", raw.owner, user, "a user of this machine, or its number")?,
        group: id("control.group", raw.group, group, "a group of this machine, or its number")?,
    })
}

fn id(
    key: &'static str,
    written: Option<String>,
    named: impl Fn(&str) -> Option<u32>,
    what: &str,
) -> Result<Option<u32>, ConfigError> {
    let Some(text) = written else { return Ok(None) };
    match text.parse().ok().or_else(|| named(&text)) {
        Some(id) => Ok(Some(id)),
        None => bound(key, format!("\"{}\"", text.escape_debug()), what),
    }
}

/// How long a stop waits for calls that run.
pub(super) fn grace(raw: RawShutdown) -> Result<Period, ConfigError> {
    period("shutdown.grace", raw.grace, Period::seconds(10), Period::seconds(0), Period::minutes(60))
}
