//! Reading `Server-Timing`: where a call's time went, and how its instance came to be.

/// `Server-Timing: queue;dur=0.02, start;dur=1.20, exec;dur=3.40, kind;desc="warm"`, in milliseconds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ServerTiming {
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq)]
struct Entry {
    name: String,
    duration_ms: Option<f64>,
    description: Option<String>,
}

impl ServerTiming {
    pub(crate) fn parse(header: &str) -> Self {
        Self { entries: header.split(',').filter_map(entry).collect() }
    }

    /// A phase's duration.
    pub(crate) fn duration_ms(&self, name: &str) -> Option<f64> {
        self.entries.iter().find(|entry| entry.name == name)?.duration_ms
    }

    /// What has a duration and says what it is, in the header's order: a chain's steps and the ways between them.
    pub(crate) fn described(&self) -> impl Iterator<Item = (&str, f64)> {
        self.entries.iter().filter_map(|entry| Some((entry.description.as_deref()?, entry.duration_ms?)))
    }

    /// `cold`, `forked` or `warm`.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.entries.iter().find(|entry| entry.name == "kind")?.description.as_deref()
    }
}

fn entry(text: &str) -> Option<Entry> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let mut entry = Entry { name, duration_ms: None, description: None };
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "dur" => entry.duration_ms = value.parse().ok(),
            "desc" => entry.description = Some(value.trim_matches('"').to_owned()),
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_header() {
        let timing =
            ServerTiming::parse(r#"queue;dur=0.02, start;dur=1.20, exec;dur=3.40, kind;desc="warm""#);
        assert_eq!(timing.duration_ms("queue"), Some(0.02));
        assert_eq!(timing.duration_ms("exec"), Some(3.4));
        assert_eq!(timing.duration_ms("kind"), None);
        assert_eq!(timing.kind(), Some("warm"));
        assert_eq!(timing.described().count(), 0);
    }

    #[test]
    fn a_chains_header_names_its_steps() {
        let timing = ServerTiming::parse(
            r#"exec;dur=5.1, kind;desc="warm", s0;dur=3.000;desc="decode", h0;dur=0.006;desc="to resize""#,
        );
        assert_eq!(timing.described().collect::<Vec<_>>(), [("decode", 3.0), ("to resize", 0.006)]);
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(ServerTiming::parse(""), ServerTiming::default());
        assert_eq!(ServerTiming::parse("queue;dur=x").duration_ms("queue"), None);
    }
}
