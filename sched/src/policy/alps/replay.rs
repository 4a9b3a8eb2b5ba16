//! SRPT in hindsight: finished invocations, whose sizes are known now, run once more on as many cores.
//!
//! What comes out is how long each function ran at a stretch: from getting a core to losing it or being done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::FunctionId;

/// A finished invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) arrived_ns: u64,
    pub(super) function: FunctionId,
    pub(super) used_ns: u64,
}

/// How long a function ran at a stretch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stretch {
    pub(super) function: FunctionId,
    pub(super) mean_ns: f64,
    pub(super) deviation_ns: f64,
}

/// The outcome: functions with the shortest stretches first, and the load that it all was.
#[derive(Debug)]
pub(super) struct Stretches<'a> {
    pub(super) by_function: &'a [Stretch],
    /// CPU time asked for, in parts of what the cores had between the first arrival and the last.
    pub(super) load: f64,
}

/// The replay, with memory for the next one.
#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Who runs: what is left, which one, for how long at this stretch.
    running: Vec<(u64, usize, u64)>,
    ran: Vec<(FunctionId, u64)>,
    by_function: Vec<Stretch>,
}

impl Replay {
    /// Runs `past`, which is in order of arrival.
    pub(super) fn run(&mut self, past: &[Past], cores: usize) -> Stretches<'_> {
        self.waiting.clear();
        self.running.clear();
        self.ran.clear();
        let mut arrivals = past.iter().enumerate().peekable();
        let mut now_ns = 0;
        loop {
            while self.running.len() < cores.max(1) {
                let Some(Reverse((rest_ns, index))) = self.waiting.pop() else { break };
                self.running.push((rest_ns, index, 0));
            }
            let end_ns = self.running.iter().map(|&(rest_ns, ..)| now_ns + rest_ns).min();
            let next_ns = match (end_ns, arrivals.peek()) {
                (None, None) => break,
                (Some(end_ns), None) => end_ns,
                (None, Some((_, arrival))) => arrival.arrived_ns,
                (Some(end_ns), Some((_, arrival))) => end_ns.min(arrival.arrived_ns),
            };
            for (rest_ns, _, ran_ns) in &mut self.running {
                *rest_ns -= next_ns - now_ns;
                *ran_ns += next_ns - now_ns;
            }
            now_ns = next_ns;
            let ran = &mut self.ran;
            self.running.retain(|&(rest_ns, index, ran_ns)| {
                if rest_ns == 0 {
                    ran.push((past[index].function, ran_ns));
                }
                rest_ns > 0
            });
            while let Some((index, arrival)) = arrivals.next_if(|(_, arrival)| arrival.arrived_ns <= now_ns) {
                self.waiting.push(Reverse((arrival.used_ns, index)));
                self.make_room(past, cores);
            }
        }
        self.summarise();
        Stretches { by_function: &self.by_function, load: load(past, cores) }
    }

    /// The longest one that runs goes, if all cores are taken and a shorter one waits.
    fn make_room(&mut self, past: &[Past], cores: usize) {
        if self.running.len() < cores.max(1) {
            return;
        }
        let Some(&Reverse((shortest_ns, _))) = self.waiting.peek() else { return };
        let longest = (0..self.running.len()).max_by_key(|&place| self.running[place].0);
        if let Some(place) = longest.filter(|&place| self.running[place].0 > shortest_ns) {
            let (rest_ns, index, ran_ns) = self.running.swap_remove(place);
            if ran_ns > 0 {
                self.ran.push((past[index].function, ran_ns));
            }
            self.waiting.push(Reverse((rest_ns, index)));
            if let Some(Reverse((rest_ns, index))) = self.waiting.pop() {
                self.running.push((rest_ns, index, 0));
            }
        }
    }

    fn summarise(&mut self) {
        self.ran.sort_unstable();
        self.by_function.clear();
        for ran in self.ran.chunk_by(|one, other| one.0 == other.0) {
            let count = ran.len() as f64;
            let mean_ns = ran.iter().map(|&(_, ns)| ns as f64).sum::<f64>() / count;
            let variance = ran.iter().map(|&(_, ns)| (ns as f64 - mean_ns).powi(2)).sum::<f64>() / count;
            self.by_function.push(Stretch { function: ran[0].0, mean_ns, deviation_ns: variance.sqrt() });
        }
        self.by_function.sort_by(|a, b| a.mean_ns.total_cmp(&b.mean_ns).then(a.function.cmp(&b.function)));
    }
}

fn load(past: &[Past], cores: usize) -> f64 {
    let (Some(first), Some(last)) = (past.first(), past.last()) else { return 0.0 };
    let had_ns = (last.arrived_ns - first.arrived_ns) as f64 * cores as f64;
    let asked_ns: f64 = past.iter().map(|past| past.used_ns as f64).sum();
    if had_ns > 0.0 { asked_ns / had_ns } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(arrived_ns: u64, function: u32, used_ns: u64) -> Past {
        Past { arrived_ns, function: FunctionId(function), used_ns }
    }

    /// One core, by hand: the long one (10) starts at 0, is pushed aside at 2 by 3, at 6 by 1, and ends at 14.
    #[test]
    fn stretches_end_where_a_shorter_one_comes() {
        let mut replay = Replay::default();
        let all = [past(0, 7, 10), past(2, 1, 3), past(6, 1, 1)];
        let got = replay.run(&all, 1);
        // Function 7 ran 2, 1 and 7; function 1 ran 3 and 1.
        let mean = |stretch: &Stretch| (stretch.function.0, stretch.mean_ns);
        assert_eq!(got.by_function.iter().map(mean).collect::<Vec<_>>(), [(1, 2.0), (7, 10.0 / 3.0)]);
        assert_eq!(got.by_function[0].deviation_ns, 1.0);
        assert!((got.load - 14.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn nobody_is_pushed_aside_while_a_core_is_free_or_for_a_longer_one() {
        let mut replay = Replay::default();
        let two_cores = replay.run(&[past(0, 7, 10), past(2, 1, 3)], 2);
        assert_eq!(two_cores.by_function.iter().map(|s| s.mean_ns).collect::<Vec<_>>(), [3.0, 10.0]);
        let longer = replay.run(&[past(0, 7, 4), past(1, 1, 9)], 1);
        assert_eq!(longer.by_function.iter().map(|s| s.mean_ns).collect::<Vec<_>>(), [4.0, 9.0]);
    }

    #[test]
    fn an_empty_past_teaches_nothing() {
        let got = Replay::default().run(&[], 2).by_function.len();
        assert_eq!(got, 0);
    }
}
