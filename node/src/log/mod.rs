//! spryd's own log, on stderr: lines for people or JSON for programs, with journald's priorities where it listens.
//!
//! The level can change while spryd runs (`SIGHUP`); the form can't. What functions print is not here: that is theirs
//! ([`crate::activation`]).

mod format;

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use format::{Json, Text};

/// The environment variable that wins over `log.level`.
pub const VARIABLE: &str = "SPRY_LOG";
/// The level when nothing says otherwise.
pub const DEFAULT_LEVEL: &str = "info";

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl Format {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Changes the level of a log that runs.
#[derive(Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Level(…)")
    }
}

impl Level {
    /// From now on, what `level` says, unless the environment says otherwise.
    pub fn set(&self, level: &str) {
        if let Err(error) = self.0.reload(filter(level)) {
            tracing::warn!(%error, "the log's level could not be changed");
        }
    }
}

/// Whether a text is a level, or several for single parts (`info,shm_bus=debug`).
///
/// A word by itself must be a level: the filter would take `warning` for a part of the program, and show nothing else.
pub fn is_level(text: &str) -> bool {
    let is_known = |part: &str| part.contains(['=', '[', ']']) || part.trim().parse::<LevelFilter>().is_ok();
    !text.trim().is_empty()
        && text.len() <= 512
        && EnvFilter::try_new(text).is_ok()
        && text.split(',').all(is_known)
}

fn from_environment() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

fn filter(level: &str) -> EnvFilter {
    let wanted = from_environment().filter(|text| is_level(text)).unwrap_or_else(|| level.to_owned());
    EnvFilter::try_new(wanted).unwrap_or_else(|_| EnvFilter::new(DEFAULT_LEVEL))
}

/// Starts the log of this process; once.
pub fn start(form: Format, level: &str) -> Level {
    let (filter, handle) = reload::Layer::new(filter(level));
    let journal = is_journal();
    let layer = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let begun = match form {
        Format::Json => registry.with(layer.event_format(Json { journal }).with_ansi(false)).try_init(),
        Format::Text => {
            let ansi = !journal && std::io::stderr().is_terminal();
            registry.with(layer.event_format(Text::new(journal)).with_ansi(ansi)).try_init()
        }
    };
    if let Err(error) = begun {
        eprintln!("spryd: the log can't be started: {error}");
    }
    if let Some(text) = from_environment().filter(|text| !is_level(text)) {
        tracing::warn!(
            "{VARIABLE} is \"{text}\", which is no level (write one like debug, or info,shm_bus=debug): ignored"
        );
    }
    Level(handle)
}

/// Whether stderr goes to systemd's journal: it says which file that is (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return false };
    said == format!("{}:{}", metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_or_directives() {
        for good in ["info", "debug", "warn,shm_bus=trace", "off"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "  ", "info,=", "spry=loud", "info,a=b=c", "warning", "info,verbose"] {
            assert!(!is_level(bad), "{bad}");
        }
    }
}
