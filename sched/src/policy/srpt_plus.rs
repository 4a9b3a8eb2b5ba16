//! srpt+: SRPT under a virtual deadline, so that nobody starves.
//!
//! **Source**: ours, from three known parts: the Gittins index in the place of the unknown remaining time
//! ([`crate::predict`]); a deadline instead of a bare size, as in EDF (Liu, Layland, JACM 20(1), 1973); and waiting
//! that counts for a task as in highest-response-ratio-next (Brinch Hansen, 1971), but without ever recomputing a rank.
//!
//! # The rule
//!
//! A task that arrived at `a` and is expected to have `g` left (its Gittins index given what it has used) has the rank
//!
//! ```text
//! r = a + min(stretch * g, patience)
//! ```
//!
//! and the smallest rank runs, at once, wherever it comes from. While it is below its cap the rank falls by
//! `stretch` for each nanosecond that the task runs, not below `a`; when the quantum or the index has been used, it is
//! made anew. Nothing changes while it waits: ageing is that
//! later arrivals have larger `a`. With an endless stretch and patience this is SRPT, with a stretch of 0 it is FIFO.
//! A task may be passed over by shorter ones for `stretch` times what it has left itself.
//!
//! # Nobody starves
//!
//! Let m cores run the smallest ranks, without idling, and let task j arrive at `a`, need `s` of CPU time and be blocked
//! for `b` in all. Let `D` be the largest rank that it ever has (so `D <= a + patience`). Then the time from its
//! arrival to its end is at most
//!
//! ```text
//! T <= s + b + (V + A) / m        V: CPU time that the others present at a still needed then
//!                                 A: CPU time needed by those that arrive in (a, D]
//! ```
//!
//! *Proof.* At each moment of T task j runs (s in all), is blocked (b in all), or waits while it could run. In the last
//! case all m cores are busy with tasks whose ranks are at most j's own, which is at most D. A task's rank is never below
//! its arrival, so each of these tasks arrived at or before D: its CPU time is counted in V or A. All of them
//! together can keep m cores busy for no longer than (V + A) / m. ∎
//!
//! The bound holds for each run by itself, whatever the load, the predictions, and who lies: an invocation that claims
//! to be short gets its rank from its arrival like all others, and those that come after D are behind j whatever
//! they claim. If the arrivals in any span h need at most `burst + load * m * h` (a load of at most `load`, once bursts
//! are over), A is at most `burst + load * m * (D - a)`, and with G the largest index that the task ever has
//!
//! ```text
//! T <= s + b + (V + burst) / m + load * min(stretch * G, patience)
//! ```
//!
//! which is linear in the task's own size when predictions hold (G = s). Each context switch that costs c adds
//! c to the work: at most two a quantum, wake-up or arrival. `sched/tests/sim/starvation.rs` checks the bound on every task
//! of random traces with liars among them.
//!
//! **Parameters**: `stretch` and `patience`. Larger ones come closer to SRPT in the mean, smaller ones bound the wait
//! of long tasks tighter; docs/scheduler.md has the numbers behind the defaults.

use super::known::Known;
use super::{Class, Decision, Event, Policy};
use crate::predict::{Predictor, SHORT_NS};

/// The parameters of srpt+.
#[derive(Clone, Copy, Debug)]
pub struct SrptPlusConfig {
    /// For how many times what it has left a task may be passed over.
    pub stretch: u32,
    /// For how long at most.
    pub patience_ns: u64,
}

impl Default for SrptPlusConfig {
    fn default() -> Self {
        Self { stretch: 20, patience_ns: 60_000_000_000 }
    }
}

/// SRPT under a virtual deadline.
#[derive(Clone, Debug, Default)]
pub struct SrptPlus {
    config: SrptPlusConfig,
    known: Known,
}

impl SrptPlus {
    /// With what has been learnt already.
    pub fn new(config: SrptPlusConfig, predictor: Predictor) -> Self {
        Self { config, known: Known::new(predictor) }
    }
}

impl Policy for SrptPlus {
    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        let Some((task, known)) = self.known.take(now_ns, event) else { return };
        let SrptPlusConfig { stretch, patience_ns } = self.config;
        let gittins = self.known.predictor.gittins(known.function, known.size_bytes, known.used_ns);
        // Above so much time left the rank is the patience, and stays so until what is left has come down to it.
        let capped_above_ns = patience_ns / u64::from(stretch.max(1));
        let over_ns = gittins.index_ns.saturating_sub(capped_above_ns);
        let (wait_ns, fall, until_ns) = match over_ns {
            0 => (gittins.index_ns * u64::from(stretch), stretch, gittins.index_ns),
            _ => (patience_ns, 0, over_ns),
        };
        decisions.push(Decision {
            task,
            class: Class::Fifo,
            rank: known.arrived_ns.saturating_add(wait_ns),
            fall,
            floor: known.arrived_ns,
            // Not asked again for the crumbs at the end of an expectation.
            slice_ns: gittins.quantum_ns.min(until_ns).max(SHORT_NS / 4),
            preempt: true,
        });
    }
}
