//! `trigger.toml`: what starts a function or chain by itself, as written and as checked.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::str::FromStr;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::manifest::Name;

/// Bytes of a `trigger.toml` at most.
pub const FILE_MAX: usize = 256 * 1024;
/// Bytes of a fixed body.
const BODY_MAX: usize = 64 * 1024;

/// Why a text is no trigger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("trigger: {0}")]
    Toml(String),
    /// It is longer than any that is read.
    #[error("the trigger's text is {bytes} bytes long; {FILE_MAX} are the most that is read")]
    TooLong {
        /// How long.
        bytes: u64,
    },
    /// A key has a value that it can't have.
    #[error("trigger: {key} is \"{value}\", but must be {bound}")]
    Bound {
        /// Which.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is allowed.
        bound: String,
    },
    /// It has no way to fire, or two.
    #[error("trigger: write exactly one of [cron] and [spool]")]
    NotOne,
}

/// `trigger.toml` as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSpec {
    /// A name.
    name: String,
    /// A name.
    call: String,
    /// A text.
    body: Option<String>,
    /// A media type.
    content_type: Option<String>,
    /// `[cron]`
    cron: Option<RawCron>,
    /// `[spool]`
    spool: Option<RawSpool>,
}

/// `[cron]` as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawCron {
    /// Five fields or six.
    schedule: String,
    /// A time zone.
    zone: Option<String>,
    /// `skip`, `once` or `all`.
    missed: Option<String>,
}

/// `[spool]` as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawSpool {
    /// A folder.
    folder: PathBuf,
    /// A folder.
    done: Option<PathBuf>,
}

/// What is done about instants that passed while spryd was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// Nothing.
    Skip,
    /// One call for all of them.
    Once,
    /// A call for each.
    All,
}

/// A trigger, checked.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: Name,
    /// The function or chain that it calls.
    pub call: Name,
    /// What it sends (a spool sends the file).
    pub body: String,
    /// Of what it sends.
    pub content_type: String,
    /// When it fires.
    pub source: Source,
}

/// What makes it fire.
#[derive(Debug, Clone)]
pub enum Source {
    /// A schedule.
    Cron(Schedule),
    /// Files that arrive in a folder.
    Spool {
        /// The folder.
        folder: PathBuf,
        /// Where files go that were accepted; `None`: they are deleted.
        done: Option<PathBuf>,
    },
}

/// Instants by the calendar of a place.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Box<Cron>,
    zone: TimeZone,
    zone_name: String,
    /// What is done about those that were missed.
    pub missed: Missed,
    /// As it was written.
    pub text: String,
}

impl Schedule {
    /// The first instant after this one (both in milliseconds since the Unix epoch); `None`: there is none any more.
    pub fn next(&self, after_unix_ms: u64) -> Option<u64> {
        let after = Timestamp::from_millisecond(i64::try_from(after_unix_ms).ok()?).ok()?;
        let next = self.cron.find_next_occurrence(&after.to_zoned(self.zone.clone()), false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }

    /// What is to be fired for: of the instants after `fired`, up to `now`, the one that is on time (at most `grace` late),
    /// and what the trigger wants of those that were missed; at most `most`, the latest.
    pub fn due(&self, fired_unix_ms: u64, now_unix_ms: u64, grace_ms: u64, most: usize) -> Vec<u64> {
        let mut found = VecDeque::new();
        let mut at = fired_unix_ms;
        while let Some(next) = self.next(at).filter(|next| *next <= now_unix_ms) {
            if found.len() == most {
                found.pop_front();
            }
            found.push_back(next);
            at = next;
        }
        let latest = found.back().copied();
        match self.missed {
            Missed::Skip => latest.filter(|at| now_unix_ms - at <= grace_ms).into_iter().collect(),
            Missed::Once => latest.into_iter().collect(),
            Missed::All => found.into(),
        }
    }

    /// The zone's name.
    pub fn zone(&self) -> &str {
        &self.zone_name
    }
}

impl FromStr for Spec {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.len() > FILE_MAX {
            return Err(SpecError::TooLong { bytes: text.len() as u64 });
        }
        let raw: RawSpec = toml::from_str(text).map_err(|error| SpecError::Toml(error.to_string()))?;
        let bad = |key, value: &str, bound: &str| SpecError::Bound {
            key,
            value: value.into(),
            bound: bound.into(),
        };
        let name = |key, text: String| {
            text.parse::<Name>()
                .map_err(|_| bad(key, &text, "1 to 63 small letters, digits and hyphens, not a hyphen first"))
        };
        let body = raw.body.unwrap_or_default();
        if body.len() > BODY_MAX {
            return Err(bad("body", "…", "at most 64 KiB"));
        }
        let source = match (raw.cron, raw.spool) {
            (Some(cron), None) => Source::Cron(schedule(cron)?),
            (None, Some(spool)) => {
                for (key, folder) in
                    [("spool.folder", Some(&spool.folder)), ("spool.done", spool.done.as_ref())]
                {
                    if let Some(folder) = folder.filter(|folder| !folder.is_absolute()) {
                        return Err(bad(key, &folder.display().to_string(), "an absolute path"));
                    }
                }
                Source::Spool { folder: spool.folder, done: spool.done }
            }
            _ => return Err(SpecError::NotOne),
        };
        let default =
            if matches!(source, Source::Cron(_)) { "application/json" } else { "application/octet-stream" };
        let content_type = raw.content_type.unwrap_or_else(|| default.into());
        if http::HeaderValue::from_str(&content_type).is_err() {
            return Err(bad("content_type", &content_type, "a header's value"));
        }
        Ok(Self { name: name("name", raw.name)?, call: name("call", raw.call)?, body, content_type, source })
    }
}

fn schedule(raw: RawCron) -> Result<Schedule, SpecError> {
    let bad = |key, value: &str, bound: String| SpecError::Bound { key, value: value.into(), bound };
    let zone_name = raw.zone.unwrap_or_else(|| "UTC".into());
    let zone = TimeZone::get(&zone_name).map_err(|_| {
        bad("cron.zone", &zone_name, "the name of a time zone, such as \"Europe/Berlin\" or \"UTC\"".into())
    })?;
    let cron = Cron::from_str(&raw.schedule).map_err(|error| {
        bad(
            "cron.schedule",
            &raw.schedule,
            format!("minute, hour, day, month and weekday, such as \"0 3 * * *\" ({error})"),
        )
    })?;
    let missed = match raw.missed.as_deref() {
        None | Some("skip") => Missed::Skip,
        Some("once") => Missed::Once,
        Some("all") => Missed::All,
        Some(other) => return Err(bad("cron.missed", other, "skip, once or all".into())),
    };
    Ok(Schedule { cron: Box::new(cron), zone, zone_name, missed, text: raw.schedule })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, zone: &str, missed: &str) -> Schedule {
        let text =
            format!("name='n'\ncall='f'\n[cron]\nschedule='{text}'\nzone='{zone}'\nmissed='{missed}'\n");
        match text.parse::<Spec>().expect("valid").source {
            Source::Cron(schedule) => schedule,
            Source::Spool { .. } => panic!("a schedule"),
        }
    }

    fn ms(text: &str) -> u64 {
        text.parse::<Timestamp>().expect("an instant").as_millisecond() as u64
    }

    #[test]
    fn schedules_follow_the_calendar_of_their_zone() {
        let daily = schedule("30 3 * * *", "Europe/Berlin", "skip");
        assert_eq!(daily.next(ms("2026-01-10T00:00:00Z")), Some(ms("2026-01-10T02:30:00Z")));
        assert_eq!(daily.next(ms("2026-07-10T00:00:00Z")), Some(ms("2026-07-10T01:30:00Z")));
        // Not the same instant twice.
        assert_eq!(daily.next(ms("2026-01-10T02:30:00Z")), Some(ms("2026-01-11T02:30:00Z")));
        assert_eq!(schedule("0 0 30 2 *", "UTC", "skip").next(0), None);
        // Over the hour that clocks skip, and the one that they repeat, a day has its call.
        let in_the_gap = schedule("30 2 * * *", "Europe/Berlin", "skip");
        let over = in_the_gap.next(ms("2026-03-28T23:30:00Z")).expect("there is a next");
        assert!(over <= ms("2026-03-30T00:30:00Z"));
    }

    #[test]
    fn missed_instants_are_skipped_made_up_for_once_or_each() {
        let (from, to) = (ms("2026-01-01T00:00:00Z"), ms("2026-01-01T05:30:00Z"));
        let missed = |how, most| schedule("0 * * * *", "UTC", how).due(from, to, 60_000, most);
        assert!(missed("skip", 100).is_empty());
        assert_eq!(missed("once", 100), [ms("2026-01-01T05:00:00Z")]);
        assert_eq!(missed("all", 100).len(), 5);
        assert_eq!(missed("all", 2), [ms("2026-01-01T04:00:00Z"), ms("2026-01-01T05:00:00Z")]);
        // A clock that was set back has missed nothing.
        assert!(schedule("0 * * * *", "UTC", "all").due(to, from, 60_000, 100).is_empty());
        // One that is on time isn't missed.
        let on_time = ms("2026-01-01T05:00:30Z");
        assert_eq!(
            schedule("0 * * * *", "UTC", "skip").due(from, on_time, 60_000, 9),
            [ms("2026-01-01T05:00:00Z")]
        );
    }

    #[test]
    fn what_is_no_trigger_is_refused_with_its_key() {
        for (text, says) in [
            ("name='n'\ncall='f'\n", "exactly one of"),
            ("name='n'\ncall='f'\n[cron]\nschedule='* * * * *'\n[spool]\nfolder='/x'\n", "exactly one of"),
            ("name='N'\ncall='f'\n[cron]\nschedule='* * * * *'\n", "name is \"N\""),
            ("name='n'\ncall='../f'\n[cron]\nschedule='* * * * *'\n", "call is"),
            ("name='n'\ncall='f'\n[cron]\nschedule='61 * * * *'\n", "cron.schedule is \"61 * * * *\""),
            ("name='n'\ncall='f'\n[cron]\nschedule='* * * * *'\nzone='Mars'\n", "cron.zone is \"Mars\""),
            ("name='n'\ncall='f'\n[cron]\nschedule='* * * * *'\nmissed='twice'\n", "skip, once or all"),
            ("name='n'\ncall='f'\n[spool]\nfolder='x'\n", "an absolute path"),
            ("name='n'\ncall='f'\nwhen='x'\n", "unknown field"),
        ] {
            let error = text.parse::<Spec>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
