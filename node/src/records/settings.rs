//! `[activations]` of `spryd.toml`, as written and as checked.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Keep;
use crate::config::ConfigError;
use crate::config::value::{count, period, size};
use crate::manifest::raw::Quantity;
use crate::units::{Period, Size};

/// `[activations]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSettings {
    /// A count.
    pub count: Option<i64>,
    /// A size.
    pub bytes: Option<Quantity>,
    /// A period.
    pub age: Option<Quantity>,
    /// A size.
    pub results: Option<Quantity>,
    /// A size.
    pub buffer: Option<Quantity>,
}

/// `[activations]`, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How much is kept; a count of 0 keeps nothing.
    pub keep: Keep,
    /// Bytes kept of each answer; 0: none.
    pub result_max: usize,
    /// Bytes that wait to be written; beyond it, what comes is dropped.
    pub buffer: usize,
}

impl Default for Settings {
    fn default() -> Self {
        RawSettings::default().check().expect("a test holds the defaults to their bounds")
    }
}

impl RawSettings {
    /// Checks every value; what is silent gets its default.
    pub fn check(self) -> Result<Settings, ConfigError> {
        let days = |n: u64| Period::minutes(n * 24 * 60);
        let gib = Size::gib(1024);
        Ok(Settings {
            keep: Keep {
                count: count("activations.count", self.count, 1_000_000, 0, 1 << 40)? as u64,
                bytes: size("activations.bytes", self.bytes, Size::mib(256), Size::kib(64), gib)?.as_bytes(),
                age: period("activations.age", self.age, days(7), Period::seconds(1), days(3650))?
                    .as_duration(),
            },
            result_max: size(
                "activations.results",
                self.results,
                Size::bytes(0),
                Size::bytes(0),
                Size::mib(1),
            )?
            .as_usize(),
            buffer: size("activations.buffer", self.buffer, Size::mib(8), Size::kib(64), Size::gib(1))?
                .as_usize(),
        })
    }
}
