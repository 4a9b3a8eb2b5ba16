//! Single values of a configuration: read, given their default, and held to their bounds. An error names key, value and
//! bound.

use std::path::PathBuf;

use super::ConfigError;
use crate::manifest::raw::Quantity;
use crate::units::{Period, Size};

pub(crate) fn bound<T>(
    key: &'static str,
    value: impl ToString,
    bound: impl Into<String>,
) -> Result<T, ConfigError> {
    Err(ConfigError::Bound { key, value: value.to_string(), bound: bound.into() })
}

/// Relative paths would mean another place for the client than for the daemon: made absolute from where the
/// daemon was started.
pub(crate) fn absolute(
    key: &'static str,
    path: Option<PathBuf>,
    default: &str,
) -> Result<PathBuf, ConfigError> {
    let path = path.unwrap_or_else(|| default.into());
    match std::path::absolute(&path) {
        Ok(path) => Ok(path),
        Err(_) => bound(key, format!("\"{}\"", path.display()), "a path"),
    }
}

pub(crate) fn optional(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    path.map(|path| absolute(key, Some(path), "/")).transpose()
}

pub(crate) fn count(
    key: &'static str,
    written: Option<i64>,
    default: i64,
    least: i64,
    most: i64,
) -> Result<i64, ConfigError> {
    let value = written.unwrap_or(default);
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    bound(key, value, format!("between {least} and {most}"))
}

pub(crate) fn size(
    key: &'static str,
    written: Option<Quantity>,
    default: Size,
    least: Size,
    most: Size,
) -> Result<Size, ConfigError> {
    let value = match written {
        None => default,
        Some(Quantity::Text(text)) => text.parse().map_err(|source| ConfigError::Unit { key, source })?,
        Some(Quantity::Number(bytes)) => match u64::try_from(bytes) {
            Ok(bytes) => Size::bytes(bytes),
            Err(_) => return bound(key, bytes, format!("between {least} and {most}")),
        },
    };
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    bound(key, value, format!("between {least} and {most}"))
}

pub(crate) fn period(
    key: &'static str,
    written: Option<Quantity>,
    default: Period,
    least: Period,
    most: Period,
) -> Result<Period, ConfigError> {
    let value = match written {
        None => default,
        Some(Quantity::Text(text)) => text.parse().map_err(|source| ConfigError::Unit { key, source })?,
        Some(Quantity::Number(number)) => return bound(key, number, "a text with a unit such as \"30s\""),
    };
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    bound(key, value, format!("between {least} and {most}"))
}
