//! What became of instances that were to be rewound after their answers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why one ended instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// Its request has made a system call whose effects aren't put back.
    Call,
    /// Its answer took more of its outbox than is zeroed.
    LargeAnswer,
    /// It wrote to its log without end, or didn't come to be rewound in time.
    Late,
    /// It has shown which pages requests write to, and one that was made with this in mind is rewound sooner.
    Learned,
    /// A new one was not what it would have to go back to, and its function is forked from then on.
    Plan,
}

impl Replaced {
    /// All of them, in the order of [`Rewinds::replaced`].
    pub const ALL: [Self; 5] = [Self::Call, Self::LargeAnswer, Self::Late, Self::Learned, Self::Plan];

    /// As on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::LargeAnswer => "large_answer",
            Self::Late => "late",
            Self::Learned => "learned",
            Self::Plan => "plan",
        }
    }
}

/// A function's.
#[derive(Debug, Default)]
pub struct Rewinds {
    done: AtomicU64,
    replaced: [AtomicU64; Replaced::ALL.len()],
}

impl Rewinds {
    /// Counts one that serves on.
    pub fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that doesn't.
    pub fn replaced(&self, why: Replaced) {
        self.replaced[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many served on.
    pub fn done_count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many didn't, by reason.
    pub fn replaced_counts(&self) -> [(Replaced, u64); Replaced::ALL.len()] {
        Replaced::ALL.map(|why| (why, self.replaced[why as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let rewinds = Rewinds::default();
        for (at, why) in Replaced::ALL.into_iter().enumerate() {
            (0..=at).for_each(|_| rewinds.replaced(why));
        }
        rewinds.done();
        assert_eq!(rewinds.done_count(), 1);
        assert_eq!(rewinds.replaced_counts().map(|(_, count)| count), [1, 2, 3, 4, 5]);
    }
}
