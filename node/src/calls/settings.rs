//! `[async]` of `spryd.toml`, as written and as checked.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::BODY_MAX;
use super::database::Keep;
use super::policy::Policy;
use super::target::Rules;
use super::trust::SYSTEM_ROOTS;
use crate::config::ConfigError;
use crate::config::value::{absolute, count, period, size};
use crate::manifest::raw::Quantity;
use crate::units::{Period, Size};

const DAY: u64 = 24 * 60;

/// `[async]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSettings {
    /// A count.
    pub calls: Option<i64>,
    /// A size.
    pub bytes: Option<Quantity>,
    /// A size.
    pub memory: Option<Quantity>,
    /// A count.
    pub in_flight: Option<i64>,
    /// A count.
    pub dead: Option<i64>,
    /// A period.
    pub idempotency: Option<Quantity>,
    /// `[async.results]`
    pub results: RawResults,
    /// `[async.callback]`
    pub callback: RawCallback,
}

/// `[async.results]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawResults {
    /// A count.
    pub count: Option<i64>,
    /// A size.
    pub bytes: Option<Quantity>,
    /// A period.
    pub age: Option<Quantity>,
    /// A size.
    pub each: Option<Quantity>,
}

/// `[async.callback]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCallback {
    /// Names, addresses, networks.
    pub hosts: Option<Vec<String>>,
    /// A file.
    pub roots: Option<PathBuf>,
    /// A period.
    pub timeout: Option<Quantity>,
    /// A count.
    pub retries: Option<i64>,
    /// A period.
    pub backoff: Option<Quantity>,
}

/// `[async]`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Calls that may wait.
    pub calls: usize,
    /// Bytes of their heads and bodies.
    pub bytes: u64,
    /// Bytes of bodies that are kept in memory as well.
    pub memory: u64,
    /// Calls that run at once, of all functions.
    pub in_flight: usize,
    /// Bytes of one answer that are kept.
    pub result_max: usize,
    /// What is remembered of what is over.
    pub keep: Keep,
    /// Callbacks.
    pub callback: CallbackSettings,
}

/// `[async.callback]`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct CallbackSettings {
    /// Where they may go.
    pub rules: Rules,
    /// Whom those over TLS trust: a PEM file.
    pub roots: PathBuf,
    /// Bytes of an answer that they get.
    pub body_max: usize,
    /// For one of them.
    pub timeout: Duration,
    /// How they are retried.
    pub policy: Policy,
}

impl Default for Settings {
    fn default() -> Self {
        RawSettings::default().check().expect("a test holds the defaults to their bounds")
    }
}

impl RawSettings {
    /// Checks every value; what is silent gets its default.
    pub fn check(self) -> Result<Settings, ConfigError> {
        let (results, callback) = (self.results, self.callback);
        let hosts = callback.hosts.unwrap_or_else(|| vec!["public".into()]);
        let rules = Rules::parse(&hosts).map_err(|entry| ConfigError::Bound {
            key: "async.callback.hosts",
            value: format!("\"{entry}\""),
            bound: "\"public\", a host, \"*.domain\", an address or a network, a port behind it if need be"
                .into(),
        })?;
        let days = |n| Period::minutes(n * DAY);
        let second = Period::seconds(1);
        let keep = Keep {
            count: count("async.results.count", results.count, 10_000, 0, 10_000_000)? as u64,
            bytes: size(
                "async.results.bytes",
                results.bytes,
                Size::mib(256),
                Size::kib(64),
                Size::gib(1024),
            )?
            .as_bytes(),
            age: period("async.results.age", results.age, days(1), second, days(365))?.as_duration(),
            dead_count: count("async.dead", self.dead, 10_000, 0, 10_000_000)? as u64,
            key_age: period("async.idempotency", self.idempotency, days(1), second, days(365))?.as_duration(),
        };
        Ok(Settings {
            calls: count("async.calls", self.calls, 100_000, 1, 10_000_000)? as usize,
            bytes: size("async.bytes", self.bytes, Size::gib(1), Size::kib(64), Size::gib(1024))?.as_bytes(),
            memory: size("async.memory", self.memory, Size::mib(32), Size::bytes(0), Size::gib(64))?
                .as_bytes(),
            in_flight: count("async.in_flight", self.in_flight, 64, 1, 4096)? as usize,
            result_max: size(
                "async.results.each",
                results.each,
                Size::mib(1),
                Size::bytes(0),
                Size::mib(64),
            )?
            .as_usize(),
            keep,
            callback: CallbackSettings {
                rules,
                body_max: BODY_MAX as usize,
                roots: absolute("async.callback.roots", callback.roots, SYSTEM_ROOTS)?,
                timeout: period(
                    "async.callback.timeout",
                    callback.timeout,
                    Period::seconds(30),
                    Period::millis(10),
                    Period::minutes(60),
                )?
                .as_duration(),
                policy: Policy {
                    retries: count("async.callback.retries", callback.retries, 5, 0, 1000)? as u32,
                    backoff: period(
                        "async.callback.backoff",
                        callback.backoff,
                        second,
                        Period::millis(1),
                        days(1),
                    )?,
                    ..Policy::default()
                },
            },
        })
    }
}
