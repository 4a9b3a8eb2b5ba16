//! Counting what test harnesses print.

use std::collections::BTreeMap;
use std::fmt;

/// Sums over all harnesses of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    skips: BTreeMap<String, u64>,
}

impl Tally {
    /// Reads one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.ignored += count(counts, " ignored");
        }
        // Also after libtest's "test name ... ", when a harness doesn't capture.
        if let Some(at) = line.find("SKIP") {
            let starts_a_word = line[..at].chars().next_back().is_none_or(char::is_whitespace);
            if starts_a_word {
                *self.skips.entry(line[at..].trim_end().to_owned()).or_default() += 1;
            }
        }
    }

    /// Counts tests that aren't libtest's.
    pub(crate) fn add_passed(&mut self, passed: u64) {
        self.passed += passed;
    }

    /// A harness ended badly: at least one failure, even when it couldn't print its count.
    pub(crate) fn note_failure(&mut self) {
        self.failed = self.failed.max(1);
    }

    /// Why tests were skipped, a line a reason, with how often.
    pub(crate) fn skip_reasons(&self) -> impl Iterator<Item = String> + '_ {
        self.skips.iter().map(|(reason, times)| format!("{times:>3}x {reason}"))
    }

    fn skipped(&self) -> u64 {
        self.ignored + self.skips.values().sum::<u64>()
    }
}

fn count(counts: &str, what: &str) -> u64 {
    let part = counts.split(['.', ';']).find_map(|part| part.strip_suffix(what));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A skipped test returns early and so "passes"; it isn't counted twice.
        let ran = self.passed.saturating_sub(self.skips.values().sum());
        write!(f, "{ran} passed, {} failed, {} skipped", self.failed, self.skipped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_harnesses() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        tally.read("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(tally.to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_skip_is_counted_by_its_reason_and_not_as_passed() {
        let mut tally = Tally::default();
        tally.read("SKIP needs CAP_BPF");
        tally.read("test conformance ... SKIP needs CAP_BPF");
        tally.read("the word NOSKIP is not one");
        tally.read("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skip_reasons().collect::<Vec<_>>(), ["  2x SKIP needs CAP_BPF"]);
    }
}
