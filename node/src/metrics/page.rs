//! Prometheus' text format: families with their description, samples with their labels.

use std::fmt::{Display, Write};

use super::histogram::{BOUNDS, Snapshot};

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, from 0 at the start of spryd.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations by length.
    Histogram,
}

/// Labels of one sample.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    /// Begins a family. All its samples follow before the next one begins.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.family = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the family.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.line("", labels, None, value);
    }

    /// A family of one sample without labels.
    pub(super) fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// One histogram of the family.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, snapshot: &Snapshot) {
        for (at, sum) in snapshot.cumulative.iter().enumerate() {
            let le = BOUNDS.get(at).map_or("+Inf", |(_, words)| words);
            self.line("_bucket", labels, Some(("le", le)), sum);
        }
        self.line("_sum", labels, None, snapshot.sum_ns as f64 / 1e9);
        self.line("_count", labels, None, snapshot.count());
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, last: Option<(&str, &str)>, value: impl Display) {
        let text = &mut self.text;
        let _ = write!(text, "{}{suffix}", self.family);
        let mut before = '{';
        for (name, label) in labels.iter().copied().chain(last) {
            let _ = write!(text, "{before}{name}=\"");
            for letter in label.chars() {
                match letter {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
            before = ',';
        }
        if before == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::*;

    #[test]
    fn labels_are_escaped_and_histograms_whole() {
        let mut page = Page::default();
        page.single("a_total", Kind::Counter, "Some.", 3);
        page.family("b_seconds", Kind::Histogram, "Others.");
        let histogram = Histogram::default();
        histogram.observe(20_000);
        page.histogram(&[("why", "a \"b\"\\\n")], &histogram.snapshot());
        let text = page.finish();
        assert!(text.starts_with("# HELP a_total Some.\n# TYPE a_total counter\na_total 3\n"), "{text}");
        assert!(text.contains("b_seconds_bucket{why=\"a \\\"b\\\"\\\\\\n\",le=\"0.00001\"} 0\n"), "{text}");
        assert!(text.contains("le=\"0.00003\"} 1\n"), "{text}");
        assert!(text.contains("le=\"+Inf\"} 1\n"), "{text}");
        assert!(text.contains("b_seconds_sum{why=\"a \\\"b\\\"\\\\\\n\"} 0.00002\n"), "{text}");
    }
}
