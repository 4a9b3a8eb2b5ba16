//! SFS: everybody gets a first slice in turn, undisturbed; who needs more goes to the fair class.
//!
//! **Source**: Fu, Liu, Wang, Cheng, Chen: "SFS: Smart OS Scheduling for Serverless Functions", SC 2022, section V: the
//! FILTER policy (one queue in order of arrival; SCHED_FIFO on a core for a slice; then CFS), the slice adapted to the
//! arrivals, functions that do I/O, and the way around the queue under transient overload.
//!
//! The idea: the mean time between arrivals, times the cores, is what each invocation may use if the queue is not to
//! grow. A slice of that length lets the short ones finish without a context switch, and no queue builds up whoever
//! comes. When one does (a burst), who has waited too long at its head goes to the fair class at once.
//!
//! **Parameters**: the cores; N, over how many arrivals the mean goes; the slice until N are known; O, how many slices
//! a task may wait before it goes around. The paper has O = 3.
//!
//! **What differs from the paper.** It polls the processes' states every few milliseconds to see who blocks and whose
//! slice has ended, so both are seen late, and a slice is charged for what it slept. Here both are events, and only CPU
//! time is charged. It looks at the waiting time when a core takes the head of the queue; here a tick comes when
//! the head has waited too long, which amounts to the same: it would have got no core in between.

use std::collections::VecDeque;

use super::{Class, Decision, Event, Policy, UNLIMITED};
use crate::TaskId;
use crate::slots::Slots;

/// The parameters of SFS.
#[derive(Clone, Copy, Debug)]
pub struct SfsConfig {
    /// How many tasks run at once.
    pub cores: u32,
    /// Over how many times between arrivals the mean goes.
    pub window: usize,
    /// The slice until so many are known.
    pub first_slice_ns: u64,
    /// A task that waits longer than so many slices goes to the fair class.
    pub overload: u64,
}

impl SfsConfig {
    /// The paper's, for so many cores.
    pub fn new(cores: u32) -> Self {
        Self { cores, window: 100, first_slice_ns: 20_000_000, overload: 3 }
    }
}

/// The FILTER policy.
#[derive(Clone, Debug)]
pub struct Sfs {
    config: SfsConfig,
    /// The last times between arrivals, and their sum.
    gaps_ns: VecDeque<u64>,
    gaps_sum_ns: u128,
    last_arrival_ns: Option<u64>,
    slice_ns: u64,
    tasks: Slots<State>,
    /// Who waits for a core, in order; an entry whose turn isn't its task's any more is void.
    queue: VecDeque<(TaskId, u64)>,
    next_turn: u64,
}

#[derive(Clone, Debug)]
struct State {
    /// What is left of the slice; 0: the fair class.
    credit_ns: u64,
    /// CPU time when that was counted.
    used_ns: u64,
    /// The place in the queue, and when it was taken, while waiting.
    waits: Option<Waits>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Waits {
    turn: u64,
    since_ns: u64,
}

impl Sfs {
    /// Knows of no arrivals yet.
    pub fn new(config: SfsConfig) -> Self {
        Self {
            slice_ns: config.first_slice_ns.max(1),
            gaps_ns: VecDeque::with_capacity(config.window + 1),
            gaps_sum_ns: 0,
            last_arrival_ns: None,
            tasks: Slots::default(),
            queue: VecDeque::new(),
            next_turn: 0,
            config,
        }
    }

    /// The slice that an arrival gets now.
    pub fn slice_ns(&self) -> u64 {
        self.slice_ns
    }

    fn arrived(&mut self, now_ns: u64) {
        let Some(last_ns) = self.last_arrival_ns.replace(now_ns) else { return };
        let gap_ns = now_ns.saturating_sub(last_ns);
        self.gaps_ns.push_back(gap_ns);
        self.gaps_sum_ns += u128::from(gap_ns);
        if self.gaps_ns.len() > self.config.window {
            self.gaps_sum_ns -= u128::from(self.gaps_ns.pop_front().unwrap_or(0));
        }
        if self.gaps_ns.len() == self.config.window {
            let slice = self.gaps_sum_ns * u128::from(self.config.cores) / self.config.window as u128;
            self.slice_ns = u64::try_from(slice).unwrap_or(UNLIMITED - 1).max(1);
        }
    }

    /// To the end of the queue.
    fn enqueue(&mut self, now_ns: u64, task: TaskId) -> Decision {
        let Some(state) = self.tasks.get_mut(task.0) else { return Decision::fair(task) };
        let turn = self.next_turn;
        self.next_turn += 1;
        state.waits = Some(Waits { turn, since_ns: now_ns });
        self.queue.push_back((task, turn));
        let slice_ns = state.credit_ns;
        Decision { task, class: Class::Fifo, rank: turn, fall: 0, floor: turn, slice_ns, preempt: false }
    }

    /// The first who really waits; what is void before it goes.
    fn head(&mut self) -> Option<(TaskId, Waits)> {
        while let Some(&(task, turn)) = self.queue.front() {
            match self.waits(task).filter(|waits| waits.turn == turn) {
                Some(waits) => return Some((task, waits)),
                None => self.queue.pop_front(),
            };
        }
        None
    }

    fn waits(&self, task: TaskId) -> Option<Waits> {
        self.tasks.get(task.0)?.waits
    }

    fn patience_ns(&self) -> u64 {
        self.slice_ns.saturating_mul(self.config.overload)
    }

    /// Counts what was used since.
    fn charge(&mut self, task: TaskId, used_ns: u64) {
        if let Some(state) = self.tasks.get_mut(task.0) {
            state.credit_ns = state.credit_ns.saturating_sub(used_ns.saturating_sub(state.used_ns));
            state.used_ns = used_ns;
            state.waits = None;
        }
    }
}

impl Policy for Sfs {
    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        match event {
            Event::Arrive { task, .. } => {
                self.arrived(now_ns);
                self.tasks.insert(task.0, State { credit_ns: self.slice_ns, used_ns: 0, waits: None });
                decisions.push(self.enqueue(now_ns, task));
            }
            Event::Start { task } => {
                if let Some(state) = self.tasks.get_mut(task.0) {
                    state.waits = None;
                }
            }
            Event::SliceEnd { task, used_ns } => {
                self.charge(task, used_ns);
                if let Some(state) = self.tasks.get_mut(task.0) {
                    state.credit_ns = 0;
                    decisions.push(Decision::fair(task));
                }
            }
            Event::Block { task, used_ns } => self.charge(task, used_ns),
            Event::Wake { task } => match self.tasks.get(task.0) {
                Some(state) if state.credit_ns > 0 => decisions.push(self.enqueue(now_ns, task)),
                Some(_) => decisions.push(Decision::fair(task)),
                None => {}
            },
            Event::Exit { task, .. } => drop(self.tasks.remove(task.0)),
            Event::Tick => {
                while let Some((task, waits)) = self.head() {
                    if now_ns.saturating_sub(waits.since_ns) <= self.patience_ns() {
                        break;
                    }
                    if let Some(state) = self.tasks.get_mut(task.0) {
                        (state.credit_ns, state.waits) = (0, None);
                    }
                    decisions.push(Decision::fair(task));
                }
            }
        }
        // The head is always one who waits, so that `next_tick_ns` need not search.
        self.head();
    }

    fn next_tick_ns(&self) -> Option<u64> {
        let waits = self.waits(self.queue.front()?.0)?;
        // Patience is passed one nanosecond after it is used up.
        Some(waits.since_ns.saturating_add(self.patience_ns()).saturating_add(1))
    }
}
