//! The fair class: EEVDF with equal weights, one queue for all cores.
//!
//! **Source**: Stoica, Abdel-Wahab: "Earliest Eligible Virtual Deadline First", TR-95-22, 1995, sections 2 and 3; the
//! virtual time as the mean of the tasks' own, slices that are run to their end, and lag that is kept while asleep
//! as in Linux 6.6 and later (`kernel/sched/fair.c`: `avg_vruntime`, `RUN_TO_PARITY`, `PLACE_LAG`).
//!
//! Each task has a virtual runtime v, which grows as it runs, and a virtual deadline d = v at its request + slice. The
//! virtual time V is the mean of all v. A task has got less than its share while v < V; its lag is V - v. Who has
//! lag 0 or more is eligible; the eligible one with the earliest deadline runs, until its slice is used up. One
//! that comes gets v = V - lag, with the lag that it left with, at most a slice either way.
//!
//! Virtual times are in 1/1024 ns, so that means aren't rounded to nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual times have so many binary places.
const PLACES: u32 = 10;

/// A task's state in the class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// While on the queue or running: the virtual runtime. Otherwise void.
    v: i64,
    deadline: i64,
    /// What it left with.
    lag: i64,
}

/// An entry's key, its task, and the stamp that it must still have.
type Entry = Reverse<(i64, u32, u32)>;

/// Who is runnable in the class: the waiting ones in heaps, the running ones only in the sums.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By deadline: who was eligible when last looked at.
    eligible: BinaryHeap<Entry>,
    /// By virtual runtime: who was not.
    ahead: BinaryHeap<Entry>,
    sum_v: i128,
    members: i128,
    /// The virtual time when the last one left.
    last_v: i64,
}

impl Queue {
    fn virtual_time(&self) -> i64 {
        if self.members == 0 { self.last_v } else { (self.sum_v / self.members) as i64 }
    }

    /// A task comes, with what it left with.
    pub(super) fn join(&mut self, share: &mut Share, slice_ns: u64) {
        share.v = self.virtual_time() - share.lag;
        share.deadline = share.v + fixed(slice_ns);
        self.sum_v += i128::from(share.v);
        self.members += 1;
    }

    /// A task goes: it blocks, ends, or changes class.
    pub(super) fn leave(&mut self, share: &mut Share, slice_ns: u64) {
        let slice = fixed(slice_ns);
        let v = self.virtual_time();
        share.lag = (v - share.v).clamp(-slice, slice);
        self.sum_v -= i128::from(share.v);
        self.members -= 1;
        self.last_v = v;
    }

    /// A running task has run.
    pub(super) fn ran(&mut self, share: &mut Share, ran_ns: u64) {
        share.v += fixed(ran_ns);
        self.sum_v += i128::from(fixed(ran_ns));
    }

    /// What is left of a task's slice; a new one is begun when it is used up.
    pub(super) fn slice_left_ns(&self, share: &mut Share, slice_ns: u64) -> u64 {
        if share.deadline - share.v < fixed(1) {
            share.deadline = share.v + fixed(slice_ns);
        }
        (share.deadline - share.v) as u64 >> PLACES
    }

    /// A member waits from now on.
    pub(super) fn wait(&mut self, task: u32, share: &Share, stamp: u32) {
        self.ahead.push(Reverse((share.v, task, stamp)));
    }

    /// Takes the one who is to run next. `waits` says whether an entry still holds.
    pub(super) fn pick(
        &mut self,
        shares: impl Fn(u32) -> Share,
        waits: impl Fn(u32, u32) -> bool,
    ) -> Option<u32> {
        // v <= sum / n without rounding.
        let (sum_v, members) = (self.sum_v, self.members);
        let is_eligible = |v: i64| i128::from(v) * members <= sum_v;
        while let Some(&Reverse((v, task, stamp))) = self.ahead.peek() {
            if waits(task, stamp) && !is_eligible(v) {
                break;
            }
            self.ahead.pop();
            if waits(task, stamp) {
                self.eligible.push(Reverse((shares(task).deadline, task, stamp)));
            }
        }
        while let Some(Reverse((_, task, stamp))) = self.eligible.pop() {
            if !waits(task, stamp) {
                continue;
            }
            let share = shares(task);
            if is_eligible(share.v) {
                return Some(task);
            }
            // Others have left since, and the mean with them.
            self.ahead.push(Reverse((share.v, task, stamp)));
        }
        // All who wait are ahead of those who run. A core must not idle for that.
        let Reverse((_, task, _)) = self.ahead.pop()?;
        Some(task)
    }

    /// The deadline by which running tasks are compared.
    pub(super) fn deadline(share: &Share) -> i64 {
        share.deadline
    }
}

fn fixed(ns: u64) -> i64 {
    (ns as i64) << PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn joined<const N: usize>(queue: &mut Queue, slices_ms: [u64; N]) -> [Share; N] {
        slices_ms.map(|slice_ms| {
            let mut share = Share::default();
            queue.join(&mut share, slice_ms * MS);
            share
        })
    }

    fn pick(queue: &mut Queue, shares: &[Share]) -> Option<u32> {
        queue.pick(|task| shares[task as usize], |_, _| true)
    }

    #[test]
    fn who_has_had_too_much_still_has_after_a_sleep() {
        let mut queue = Queue::default();
        let mut shares = joined(&mut queue, [3, 3]);
        queue.ran(&mut shares[0], 3 * MS);
        queue.leave(&mut shares[0], 3 * MS);
        queue.join(&mut shares[0], 3 * MS);
        (0..2).for_each(|task| queue.wait(task, &shares[task as usize], 0));
        assert_eq!(pick(&mut queue, &shares), Some(1));
    }

    #[test]
    fn the_earliest_deadline_among_the_eligible_goes_first() {
        let mut queue = Queue::default();
        // Of equal virtual runtimes the shorter slice.
        let shares = joined(&mut queue, [9, 3]);
        (0..2).for_each(|task| queue.wait(task, &shares[task as usize], 0));
        assert_eq!(pick(&mut queue, &shares), Some(1));
    }

    #[test]
    fn who_was_eligible_may_not_be_when_others_have_left() {
        let mut queue = Queue::default();
        let mut shares = joined(&mut queue, [100, 3, 3, 1]);
        queue.ran(&mut shares[1], 2 * MS);
        queue.ran(&mut shares[2], 10 * MS);
        [0, 1, 3].into_iter().for_each(|task| queue.wait(task, &shares[task as usize], 0));
        // V is 3 ms: three are eligible, the one with the shortest slice goes and leaves, and so does the third.
        assert_eq!(pick(&mut queue, &shares), Some(3));
        queue.leave(&mut shares[3], MS);
        queue.leave(&mut shares[2], 3 * MS);
        // V is 1 ms now: 1 (v = 2 ms, deadline 3 ms) has to wait for 0 (v = 0, deadline 100 ms).
        assert_eq!(pick(&mut queue, &shares), Some(0));
    }
}
