//! The shape of `spry.toml` as written. [`super::check`] makes a [`super::Manifest`] of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ManifestError, Override};

/// Every key that `--set` knows; `env.` is followed by the variable's name.
pub const KEYS: [&str; 24] = [
    "name",
    "runtime",
    "handler",
    "isolation",
    "packages",
    "requirements",
    "secrets",
    "limits.memory",
    "limits.cpu",
    "limits.timeout",
    "limits.payload",
    "limits.processes",
    "limits.tmpfs",
    "scale.min",
    "scale.max",
    "scale.idle",
    "env.NAME",
    "network.egress",
    "async.retries",
    "async.backoff",
    "async.backoff_max",
    "async.age",
    "async.in_flight",
    "access.token",
];

/// `spry.toml` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawManifest {
    /// The function's name.
    pub name: Option<String>,
    /// `python` or `native`.
    pub runtime: Option<String>,
    /// What is called.
    pub handler: Option<String>,
    /// `instance` or `request`.
    pub isolation: Option<String>,
    /// Python packages.
    pub packages: Option<Vec<String>>,
    /// A file with a Python package in each line.
    pub requirements: Option<String>,
    /// Names of secrets.
    pub secrets: Option<Vec<String>>,
    /// `[limits]`
    pub limits: RawLimits,
    /// `[scale]`
    pub scale: RawScale,
    /// `[env]`
    pub env: BTreeMap<String, String>,
    /// `[network]`
    pub network: RawNetwork,
    /// `[async]`
    #[serde(rename = "async")]
    pub asynchronous: RawPolicy,
    /// `[access]`
    pub access: RawAccess,
}

/// A quantity: text with a unit, or a number.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text with a unit (such as \"128MiB\" or \"30s\") or a number")]
pub enum Quantity {
    /// With a unit.
    Text(String),
    /// Without.
    Number(i64),
}

/// `[limits]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// A size.
    pub memory: Option<Quantity>,
    /// A number of CPUs.
    pub cpu: Option<f64>,
    /// A period.
    pub timeout: Option<Quantity>,
    /// A size.
    pub payload: Option<Quantity>,
    /// A count.
    pub processes: Option<i64>,
    /// A size.
    pub tmpfs: Option<Quantity>,
}

/// `[scale]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawScale {
    /// A count.
    pub min: Option<i64>,
    /// A count.
    pub max: Option<i64>,
    /// A period.
    pub idle: Option<Quantity>,
}

/// `[async]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    /// A count.
    pub retries: Option<i64>,
    /// A period.
    pub backoff: Option<Quantity>,
    /// A period.
    pub backoff_max: Option<Quantity>,
    /// A period.
    pub age: Option<Quantity>,
    /// A count.
    pub in_flight: Option<i64>,
}

/// `[network]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawNetwork {
    /// `none` or `host`.
    pub egress: Option<String>,
}

/// `[access]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAccess {
    /// Whether callers need a token.
    pub token: bool,
}

impl RawManifest {
    /// Reads the text and puts the overrides in place.
    pub fn parse(text: &str, overrides: &[Override]) -> Result<Self, ManifestError> {
        // Twice: an error in the file itself is shown with its line.
        toml::from_str::<Self>(text).map_err(|error| ManifestError::Toml(error.to_string()))?;
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| ManifestError::Toml(error.to_string()))?;
        for wanted in overrides {
            put(&mut table, wanted)?;
        }
        table.try_into().map_err(|error: toml::de::Error| ManifestError::Toml(error.message().to_owned()))
    }
}

fn put(table: &mut toml::Table, wanted: &Override) -> Result<(), ManifestError> {
    let no_such_key = || ManifestError::NoSuchKey(wanted.key.clone());
    let text = || toml::Value::String(wanted.value.clone());
    let (section, key) = match wanted.key.split_once('.') {
        None if matches!(wanted.key.as_str(), "packages" | "secrets") => {
            let words = wanted.value.split_whitespace().map(|word| toml::Value::String(word.to_owned()));
            table.insert(wanted.key.clone(), toml::Value::Array(words.collect()));
            return Ok(());
        }
        None if KEYS.contains(&wanted.key.as_str()) => {
            table.insert(wanted.key.clone(), text());
            return Ok(());
        }
        None => return Err(no_such_key()),
        Some(parts) => parts,
    };
    let value = match (section, key) {
        ("env", "") => return Err(no_such_key()),
        ("env", _) => text(),
        _ if !KEYS.contains(&wanted.key.as_str()) => return Err(no_such_key()),
        ("access", "token") => {
            wanted.value.trim().parse().map(toml::Value::Boolean).unwrap_or_else(|_| text())
        }
        ("limits", "cpu") => wanted.value.trim().parse().map(toml::Value::Float).unwrap_or_else(|_| text()),
        ("limits", "processes") | ("scale", "min" | "max") | ("async", "retries" | "in_flight") => {
            wanted.value.trim().parse().map(toml::Value::Integer).unwrap_or_else(|_| text())
        }
        _ => text(),
    };
    let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    entry.as_table_mut().ok_or_else(no_such_key)?.insert(key.to_owned(), value);
    Ok(())
}
