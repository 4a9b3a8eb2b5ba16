//! The two forms of a line.
//!
//! journald reads a line's priority from `<N>` in front of it (sd-daemon(3)), and has its own clock: there lines have the one and
//! not the other.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format as Lines, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// For people.
#[derive(Debug)]
pub(super) struct Text {
    journal: bool,
    lines: Lines<Full>,
    bare: Lines<Full, ()>,
}

impl Text {
    pub(super) fn new(journal: bool) -> Self {
        let lines = || Lines::default().with_target(false);
        Self { journal, lines: lines(), bare: lines().without_time() }
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.journal {
            return self.lines.format_event(context, writer, event);
        }
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.bare.format_event(context, writer, event)
    }
}

/// An object a line: `time`, `level`, `message`, then what the event has.
#[derive(Debug)]
pub(super) struct Json {
    pub(super) journal: bool,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>", priority(level))?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut line = Fields(Map::new());
        line.0.insert("time".into(), crate::clock::rfc3339(now).into());
        line.0.insert("level".into(), level.as_str().to_ascii_lowercase().into());
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// syslog's.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics in here").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged<F>(format: F) -> String
    where
        F: FormatEvent<tracing_subscriber::Registry, fmt_fields::Default> + Send + Sync + 'static,
    {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).event_format(format);
        let layer = layer.with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(pid = 7, name = "a \"b\"\n", ready = true, why = ?Some(1), "it broke");
        });
        let bytes = sink.0.lock().expect("no test panics in here").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    mod fmt_fields {
        pub(super) use tracing_subscriber::fmt::format::DefaultFields as Default;
    }

    #[test]
    fn json_is_one_object_a_line_whatever_the_values_are() {
        let line = logged(Json { journal: false });
        assert_eq!(line.lines().count(), 1);
        let value: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["level"], "warn");
        assert_eq!(value["message"], "it broke");
        assert_eq!((&value["pid"], &value["ready"]), (&7.into(), &true.into()));
        assert_eq!((&value["name"], &value["why"]), (&"a \"b\"\n".into(), &"Some(1)".into()));
        assert!(value["time"].as_str().expect("text").ends_with('Z'));
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        let line = logged(Text::new(true));
        assert!(line.starts_with("<4> WARN it broke") || line.starts_with("<4>WARN it broke"), "{line}");
        let line = logged(Json { journal: true });
        assert!(line.starts_with("<4>{"), "{line}");
        let line = logged(Text::new(false));
        assert!(line.starts_with("20"), "{line}");
    }
}
