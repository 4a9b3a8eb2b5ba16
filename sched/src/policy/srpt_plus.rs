//! srpt+: SRPT by Gittins index, with a credit for those who have waited too long, so that nobody starves.
//!
//! **Source**: ours, from known parts: the Gittins index in the place of the unknown remaining time
//! ([`crate::predict`]); a share of the CPU that is kept for those whom the first rule passes over, as Linux keeps one for
//! the fair class under real-time load (`dl_server`, 6.12); deadlines in proportion to size within that share.
//!
//! # The rule
//!
//! 1. The task with the smallest Gittins index runs; of those whose sizes can't be told apart when they arrive
//!    ([`super::alike`]) the first to come.
//! 2. A task that arrived at `a` and is thought to need `S` in all (what it has used plus its index) is *due* at
//!    `d = a + min(stretch * S, patience)`. A due date is put off when the task is seen to be larger, never brought forward.
//! 3. While tasks are overdue, the runnable one with the earliest due date has a credit of one `quantum` of CPU time in each
//!    `quantum / share`: with it, it goes before everybody. What it leaves of a quantum goes to the next one.
//!
//! Under a load that SRPT deals with in time hardly anybody is ever overdue, and this is SRPT. When there is more to do than
//! time to do it, the short ones still go first in all but `share` of one core.
//!
//! (Putting `d` itself in the place of the rank, so that all is one virtual deadline, has a tighter bound for the long ones
//! and was tried first. But from the moment when the long ones are overdue every short one waits for them: at a load
//! of 1.2, or in a burst, it was worse for the short ones than the kernel's fair class.)
//!
//! # Nobody starves
//!
//! Let task j arrive at `a`, need `s` of CPU time, be blocked for `b` in all, and let `D <= a + patience` be its last due
//! date. However many cores there are and whatever comes, the time from its arrival to its end is at most
//!
//! ```text
//! T <= (D - a) + b + (V + A + s) / share + 2 * quantum / share
//!                                   V: CPU time that the others present at a still needed then
//!                                   A: CPU time needed by those that arrive in (a, D]
//! ```
//!
//! *Proof.* Let D have passed, and count only time in which j isn't blocked. Then there is always an overdue runnable task,
//! j if no other, and the credit goes to one whose due date is at most D. It arrived before that date, so at or before D, and
//! its CPU time is counted in V, A or s. Who has credit goes before everybody and runs at once, so each period of
//! `quantum / share` sees a quantum of this work done. The first period may have spent its credit before D, and the last may be
//! begun only, so after `(V + A + s) / quantum + 2` periods all of it is done, j with it. ∎
//!
//! This holds for each run by itself, whatever the load, the predictions, and who lies: those that come after D have no
//! credit before j whatever they claim, and those that claim to be short lose their rank when they are seen to be not. If
//! arrivals in any span h need at most `burst + load * h` of CPU time, A is at most `burst + load * (D - a)`, so that the
//! bound is linear in the task's own (predicted) size. In the other direction: whoever isn't overdue loses at most
//! `share * h + quantum` to those who are, in any span h.
//!
//! `sched/tests/sim/starvation.rs` checks the bound on every task of random traces with liars among them.
//!
//! **Parameters**: `stretch`, `patience`, `share` (in percent of one core) and `quantum`; docs/scheduler.md has the numbers
//! behind the defaults.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::alike::Alike;
use super::known::{Known, Task};
use super::{Class, Decision, Event, Policy};
use crate::predict::{Predictor, SHORT_NS};
use crate::slots::Slots;
use crate::{FunctionId, TaskId};

/// The parameters of srpt+.
#[derive(Clone, Copy, Debug)]
pub struct SrptPlusConfig {
    /// A task is overdue after so many times its size,
    pub stretch: u32,
    /// or after so long.
    pub patience_ns: u64,
    /// In percent of one core, what the overdue ones have for themselves: 1 to 100.
    pub share_percent: u32,
    /// So much of it at a time.
    pub quantum_ns: u64,
}

impl Default for SrptPlusConfig {
    fn default() -> Self {
        Self { stretch: 20, patience_ns: 60_000_000_000, share_percent: 10, quantum_ns: 20_000_000 }
    }
}

impl SrptPlusConfig {
    /// The time for which one quantum of credit is meant.
    pub fn period_ns(&self) -> u64 {
        self.quantum_ns.max(1).saturating_mul(100) / u64::from(self.share_percent.clamp(1, 100))
    }
}

/// SRPT with a credit for the overdue.
#[derive(Clone, Debug)]
pub struct SrptPlus {
    config: SrptPlusConfig,
    known: Known,
    alike: Alike,
    due: Slots<Due>,
    /// Runnable tasks by due date; an entry whose turn isn't its task's any more is void.
    queue: BinaryHeap<Reverse<(u64, u64, TaskId)>>,
    runnable: usize,
    next_turn: u64,
    credit: Credit,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    at_ns: u64,
    /// Its entry on the queue, while runnable.
    turn: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Credit {
    left_ns: u64,
    /// When there is a whole quantum again.
    refill_ns: u64,
    /// Who has it, and since when.
    holder: Option<(TaskId, u64)>,
}

impl SrptPlus {
    /// With what has been learnt already.
    pub fn new(config: SrptPlusConfig, predictor: Predictor) -> Self {
        let left_ns = config.quantum_ns.max(1);
        Self {
            config,
            known: Known::new(predictor),
            alike: Alike::default(),
            due: Slots::default(),
            queue: BinaryHeap::new(),
            runnable: 0,
            next_turn: 0,
            credit: Credit { left_ns, refill_ns: 0, holder: None },
        }
    }

    /// When an open slot's task is due, as far as is known.
    pub fn due_ns(&self, task: TaskId) -> Option<u64> {
        self.due.get(task.0).map(|due| due.at_ns)
    }

    /// By its index; and its due date is put off if need be.
    fn decide(&mut self, task: TaskId, known: Task) -> Decision {
        let gittins = self.known.predictor.gittins(known.function, known.size_bytes, known.used_ns);
        let size_ns = known.used_ns.saturating_add(gittins.index_ns);
        let wait_ns = size_ns.saturating_mul(self.config.stretch.into()).min(self.config.patience_ns);
        self.queue_up(task, known.arrived_ns.saturating_add(wait_ns));
        Decision {
            task,
            class: Class::Fifo,
            rank: gittins.index_ns,
            fall: 1,
            // 0 is for whoever has the credit.
            floor: 1,
            // Not asked again for the crumbs at the end of an expectation.
            slice_ns: gittins.quantum_ns.min(gittins.index_ns).max(SHORT_NS / 4),
            preempt: true,
        }
    }

    fn queue_up(&mut self, task: TaskId, at_ns: u64) {
        let due = self.due.get_or_insert_with(task.0, || Due { at_ns, turn: None });
        if due.turn.is_some() && due.at_ns >= at_ns {
            return;
        }
        due.at_ns = due.at_ns.max(at_ns);
        self.runnable += usize::from(due.turn.is_none());
        due.turn = Some(self.next_turn);
        self.queue.push(Reverse((due.at_ns, self.next_turn, task)));
        self.next_turn += 1;
        // Void entries behind the head are swept when they are the larger part.
        if self.queue.len() > 2 * self.runnable + 64 {
            let due = &self.due;
            self.queue.retain(|Reverse((_, turn, task))| is_current(due, *task, *turn));
        }
    }

    /// Off the queue: it blocks, or its slot is closed.
    fn leave(&mut self, now_ns: u64, task: TaskId) {
        if let Some(due) = self.due.get_mut(task.0)
            && due.turn.take().is_some()
        {
            self.runnable -= 1;
        }
        self.take_credit_of(now_ns, task);
    }

    /// The runnable task with the earliest due date; void entries before it go.
    fn head(&mut self) -> Option<(TaskId, u64)> {
        while let Some(&Reverse((at_ns, turn, task))) = self.queue.peek() {
            if is_current(&self.due, task, turn) {
                return Some((task, at_ns));
            }
            self.queue.pop();
        }
        None
    }

    /// From whoever has it. It has run ever since it had it, since it went before everybody.
    fn take_credit(&mut self, now_ns: u64) -> Option<TaskId> {
        let (holder, since_ns) = self.credit.holder.take()?;
        self.credit.left_ns = self.credit.left_ns.saturating_sub(now_ns.saturating_sub(since_ns));
        Some(holder)
    }

    /// From this one, if it has it; whoever gets a new decision may be given it again.
    fn take_credit_of(&mut self, now_ns: u64, task: TaskId) -> Option<TaskId> {
        self.credit.holder.filter(|(holder, _)| *holder == task)?;
        self.take_credit(now_ns)
    }

    /// Gives the credit to whom it is due; adds the decisions that this makes.
    fn give_credit(&mut self, now_ns: u64, decisions: &mut Vec<Decision>, from: usize) {
        let Some((head, at_ns)) = self.head() else { return };
        if at_ns >= now_ns || self.credit.holder.is_some_and(|(holder, _)| holder == head) {
            return;
        }
        if let Some(holder) = self.take_credit(now_ns)
            && let Some(known) = self.known.get(holder)
        {
            // An earlier one has woken up.
            let decision = self.decide(holder, known);
            decisions.push(decision);
        }
        if now_ns >= self.credit.refill_ns {
            self.credit.left_ns = self.config.quantum_ns.max(1);
            self.credit.refill_ns = now_ns.saturating_add(self.config.period_ns());
        }
        if self.credit.left_ns == 0 {
            return;
        }
        self.credit.holder = Some((head, now_ns));
        let first = Decision {
            task: head,
            class: Class::Fifo,
            rank: 0,
            fall: 0,
            floor: 0,
            slice_ns: self.credit.left_ns,
            preempt: true,
        };
        // One decision a task and event.
        match decisions[from..].iter_mut().find(|decision| decision.task == head) {
            Some(decision) => *decision = first,
            None => decisions.push(first),
        }
    }
}

fn is_current(due: &Slots<Due>, task: TaskId, turn: u64) -> bool {
    due.get(task.0).is_some_and(|due| due.turn == Some(turn))
}

impl Policy for SrptPlus {
    fn forget(&mut self, function: FunctionId) {
        self.known.predictor.forget(function);
    }

    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        let from = decisions.len();
        match event {
            Event::Arrive { task, .. } | Event::Exit { task, .. } => {
                self.leave(now_ns, task);
                self.due.remove(task.0);
                self.alike.leave(task);
            }
            Event::Block { task, .. } => self.leave(now_ns, task),
            Event::Wake { task } => {
                self.take_credit_of(now_ns, task);
            }
            Event::SliceEnd { task, .. } => {
                if self.take_credit_of(now_ns, task).is_some() {
                    self.credit.left_ns = 0;
                }
            }
            Event::Start { .. } | Event::Tick => {}
        }
        if let Some((task, known)) = self.known.take(now_ns, event) {
            let decision = self.decide(task, known);
            let rank = match event {
                Event::Arrive { .. } => self.alike.join(task, decision.rank),
                // It has waited for an instance: it hasn't begun, and is as much like the others as when it came.
                Event::Wake { .. } if known.used_ns == 0 => self.alike.join(task, decision.rank),
                _ => decision.rank,
            };
            decisions.push(Decision { rank, ..decision });
        }
        self.give_credit(now_ns, decisions, from);
        // The head is always one who waits, so that `next_tick_ns` need not search.
        self.head();
    }

    fn next_tick_ns(&self) -> Option<u64> {
        if self.credit.holder.is_some() {
            // Whatever ends that is an event.
            return None;
        }
        let &Reverse((at_ns, ..)) = self.queue.peek()?;
        // Overdue is one nanosecond later.
        let overdue_ns = at_ns.saturating_add(1);
        Some(if self.credit.left_ns > 0 { overdue_ns } else { overdue_ns.max(self.credit.refill_ns) })
    }
}
