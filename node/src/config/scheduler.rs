//! `[scheduler]`: who goes first, and by what.

use schemars::JsonSchema;
use serde::Deserialize;

use super::ConfigError;
use super::value::bound;
use crate::schedule::{BackendChoice, PolicyChoice, SchedulerChoice};

/// `[scheduler]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawScheduler {
    /// `eevdf`, `sfs`, `alps`, `srpt` or `srpt+`.
    pub policy: Option<String>,
    /// `auto`, `posix` or `sched_ext`.
    pub backend: Option<String>,
    /// True or false.
    pub realtime: Option<bool>,
    /// True or false.
    pub signals: Option<bool>,
}

pub(super) fn scheduler(written: RawScheduler) -> Result<SchedulerChoice, ConfigError> {
    let default = SchedulerChoice::default();
    let policy = match &written.policy {
        None => default.policy,
        Some(name) => match PolicyChoice::named(name) {
            Some(policy) => policy,
            None => return bound("scheduler.policy", quoted(name), one_of(&PolicyChoice::NAMES)),
        },
    };
    let backend = match &written.backend {
        None => default.backend,
        Some(name) => match BackendChoice::named(name) {
            Some(backend) => backend,
            None => return bound("scheduler.backend", quoted(name), one_of(&BackendChoice::NAMES)),
        },
    };
    let realtime = written.realtime.unwrap_or(default.realtime);
    if realtime && backend == BackendChoice::SchedExt {
        let bound_by = "false with backend = \"sched_ext\": a real-time process goes before all others";
        return bound("scheduler.realtime", "true", bound_by);
    }
    Ok(SchedulerChoice { policy, backend, realtime, signals: written.signals.unwrap_or(default.signals) })
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn one_of(names: &[&str]) -> String {
    format!("one of {}", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "))
}
