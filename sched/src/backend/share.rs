//! What rank means among those at the front: how much of a core, and how soon, where two of them meet on one.
//!
//! There are no more at the front than cores, but the kernel doesn't spread them: whoever wakes is put on a core by what the
//! kernel takes for idle, and two of them share one while somebody at the back has the other, until the next balancing. By
//! itself the fair class then gives each half, by turns of a tick: a short one waits for 2 ms before it begins and for 4 ms
//! in between. With a weight in inverse proportion to the rank the shorter one has nearly all of the core, and with a shorter slice it
//! goes before the longer one at once when it wakes (`PREEMPT_SHORT`, Linux 6.12).
//!
//! Whoever is nearly done has what he was born with: nothing is gained any more, and processes of functions that turn out to be
//! very short keep what they were told last (nobody is asked about those, and with a short slice they would interrupt the
//! gateway at each call).
//!
//! Weights are between groups, so they act where processes have groups of their own side by side; slices also without.

/// Below this rank (but for 0, the first of all) weight and slice are the usual ones.
const NEARLY_DONE_NS: u64 = 500_000;
/// The weight that the kernel gives to a new group is that of this rank.
const USUAL_RANK_NS: u64 = 50_000_000;
/// A slice is this part of the rank.
const SLICE_DIVISOR: u64 = 10;
/// Slices that are asked for. The shortest is longer than that of the scheduler's thread
/// ([`wake_soon`](super::wake_soon)): it goes first.
const SLICE_NS: std::ops::RangeInclusive<u64> = 500_000..=20_000_000;

/// The file that a group's weight is written to, and in which units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// cgroup v2: 1 to 10,000, usually 100.
    Weight,
    /// cgroup v1: 2 to 262,144, usually 1024.
    Shares,
}

impl Scale {
    pub(super) const ALL: [Self; 2] = [Self::Weight, Self::Shares];

    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Weight => "cpu.weight",
            Self::Shares => "cpu.shares",
        }
    }

    fn usual(self) -> u64 {
        match self {
            Self::Weight => 100,
            Self::Shares => 1024,
        }
    }

    fn range(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Weight => 1..=10_000,
            Self::Shares => 10..=102_400,
        }
    }
}

/// How much a group gets beside others, by the rank of the process in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    rank: u64,
}

impl Weight {
    /// That of a new group, but for the rounding.
    pub(super) const USUAL: Self = Self { rank: USUAL_RANK_NS.next_power_of_two() };

    /// In inverse proportion to the rank, as far as the kernel goes; in powers of two, so that predictions that waver change
    /// nothing.
    pub(super) fn of_rank(rank: u64) -> Self {
        if is_nearly_done(rank) {
            return Self::USUAL;
        }
        Self { rank: rank.clamp(1, 1 << 62).next_power_of_two() }
    }

    pub(super) fn on(self, scale: Scale) -> u32 {
        let (low, high) = scale.range().into_inner();
        (scale.usual().saturating_mul(USUAL_RANK_NS) / self.rank).clamp(low, high) as u32
    }
}

fn is_nearly_done(rank: u64) -> bool {
    (1..NEARLY_DONE_NS).contains(&rank)
}

/// The slice to ask for; 0: the kernel's own.
pub(super) fn slice_of_rank_ns(rank: u64) -> u64 {
    if is_nearly_done(rank) {
        return 0;
    }
    let rank = rank.clamp(1, 1 << 62).next_power_of_two();
    (rank / SLICE_DIVISOR).clamp(*SLICE_NS.start(), *SLICE_NS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_fall_as_ranks_rise_within_what_the_kernel_takes() {
        for scale in Scale::ALL {
            let of = |rank| Weight::of_rank(rank).on(scale);
            let weights: Vec<u32> =
                [0, 600_000, 5_000_000, 20_000_000, 50_000_000, 500_000_000, u64::MAX].map(of).into();
            assert!(weights.is_sorted_by(|a, b| a >= b), "{weights:?}");
            let (low, high) = scale.range().into_inner();
            assert_eq!((u64::from(weights[0]), u64::from(weights[6])), (high, low));
            // Near the usual rank it is near the usual weight.
            let usual = u64::from(of(USUAL_RANK_NS));
            assert!(usual >= scale.usual() / 2 && usual <= scale.usual(), "{usual}");
        }
    }

    #[test]
    fn slices_grow_with_ranks_and_are_longer_than_that_of_the_schedulers_thread() {
        assert_eq!((slice_of_rank_ns(0), slice_of_rank_ns(1_000_000)), (500_000, 500_000));
        assert!(slice_of_rank_ns(30_000_000) > slice_of_rank_ns(5_000_000));
        assert_eq!(slice_of_rank_ns(u64::MAX), 20_000_000);
    }

    #[test]
    fn who_is_nearly_done_has_what_others_have() {
        assert_eq!(Weight::of_rank(20_000), Weight::of_rank(USUAL_RANK_NS));
        assert_eq!(slice_of_rank_ns(20_000), 0);
    }
}
