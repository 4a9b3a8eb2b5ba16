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
    /// Between `successes:` and what follows: the output of tests that succeeded.
    in_successes: bool,
}

impl Tally {
    /// Reads one line of output. False: nobody needs to see it.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.ignored += count(counts, " ignored");
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ if line.starts_with("test result: ") => self.in_successes = false,
            _ => {}
        }
        if let Some(reason) = skip_reason(line) {
            *self.skips.entry(reason.to_owned()).or_default() += 1;
        }
        !self.in_successes
    }

    /// Counts tests that aren't libtest's.
    pub(crate) fn add_passed(&mut self, passed: u64) {
        self.passed += passed;
    }

    /// A suite that can't run here, as one test: its harness isn't there to print it.
    pub(crate) fn add_skipped(&mut self, reason: String) {
        *self.skips.entry(reason).or_default() += 1;
        // As a test that returns early.
        self.passed += 1;
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

/// `SKIP why`, at the start of a line, or behind libtest's "test name ... " when a harness doesn't capture.
fn skip_reason(line: &str) -> Option<&str> {
    let start = line.find(" ... ").map_or(0, |at| at + " ... ".len());
    let skips = |text: &&str| text.starts_with("SKIP") || text.starts_with("skip ");
    [line, &line[start..]].into_iter().find(skips).map(str::trim_end)
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
    fn a_suite_that_is_left_out_is_counted_once() {
        let mut tally = Tally::default();
        tally.add_passed(2);
        tally.add_skipped("SKIP needs root".into());
        assert_eq!(tally.to_string(), "2 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_skip_is_counted_by_its_reason_and_not_as_passed() {
        let mut tally = Tally::default();
        tally.read("SKIP needs CAP_BPF");
        tally.read("test conformance ... SKIP needs CAP_BPF");
        tally.read("the word SKIP in a sentence is not one");
        tally.read("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skip_reasons().collect::<Vec<_>>(), ["  2x SKIP needs CAP_BPF"]);
    }

    #[test]
    fn what_successful_tests_print_is_counted_but_not_shown() {
        let mut tally = Tally::default();
        let lines = [
            ("test a ... ok", true),
            ("successes:", false),
            ("---- a stdout ----", false),
            ("SKIP a: needs root", false),
            ("failures:", true),
            ("---- b stdout ----", true),
            ("test result: ok. 1 passed; 0 failed; 0 ignored", true),
            ("running 3 tests", true),
        ];
        for (line, shown) in lines {
            assert_eq!(tally.read(line), shown, "{line}");
        }
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 1 skipped");
    }
}
