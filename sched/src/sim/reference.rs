//! Textbook policies, to compare with. They aren't for a node: FIFO and RR serve nobody well, and the offline one knows
//! what nobody can.

use super::Job;
use crate::TaskId;
use crate::policy::{Class, Decision, Event, Policy, UNLIMITED};

/// First come, first served, to the end. Who has blocked goes to the end of the queue.
#[derive(Clone, Debug, Default)]
pub struct Fifo {
    next_turn: u64,
}

/// In turns of a fixed quantum.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    quantum_ns: u64,
    next_turn: u64,
}

/// SRPT that knows every job's CPU time: the least mean turnaround that any policy can have on one core (Schrage 1968),
/// and a good yardstick on more.
#[derive(Clone, Debug)]
pub struct OfflineSrpt {
    rest_ns: Vec<u64>,
    used_ns: Vec<u64>,
}

impl RoundRobin {
    /// With this quantum.
    pub fn new(quantum_ns: u64) -> Self {
        Self { quantum_ns: quantum_ns.max(1), next_turn: 0 }
    }
}

impl OfflineSrpt {
    /// For this trace; the slots of its tasks are its jobs' places, as [`Machine::run`](super::Machine::run) has them.
    pub fn new(trace: &[Job]) -> Self {
        Self { rest_ns: trace.iter().map(Job::cpu_ns).collect(), used_ns: vec![0; trace.len()] }
    }
}

impl Policy for Fifo {
    fn on(&mut self, _now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        if let Some(task) = may_run(event) {
            decisions.push(in_turn(task, &mut self.next_turn, UNLIMITED));
        }
    }
}

impl Policy for RoundRobin {
    fn on(&mut self, _now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        if let Some(task) = may_run(event) {
            decisions.push(in_turn(task, &mut self.next_turn, self.quantum_ns));
        }
    }
}

impl Policy for OfflineSrpt {
    fn on(&mut self, _now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        if let Event::Block { task, used_ns } = event
            && let Some(used) = self.used_ns.get_mut(task.0 as usize)
        {
            *used = used_ns;
        }
        let Some(task) = may_run(event) else { return };
        let place = task.0 as usize;
        let (Some(all_ns), Some(used_ns)) = (self.rest_ns.get(place), self.used_ns.get(place)) else {
            return;
        };
        let rank = all_ns.saturating_sub(*used_ns);
        let (class, slice_ns) = (Class::Fifo, UNLIMITED);
        decisions.push(Decision { task, class, rank, fall: 1, floor: 0, slice_ns, preempt: true });
    }
}

/// Whom an event makes runnable.
fn may_run(event: Event) -> Option<TaskId> {
    match event {
        Event::Arrive { task, .. } | Event::Wake { task } | Event::SliceEnd { task, .. } => Some(task),
        Event::Start { .. } | Event::Block { .. } | Event::Exit { .. } | Event::Tick => None,
    }
}

fn in_turn(task: TaskId, next_turn: &mut u64, slice_ns: u64) -> Decision {
    let rank = *next_turn;
    *next_turn += 1;
    Decision { task, class: Class::Fifo, rank, fall: 0, floor: rank, slice_ns, preempt: false }
}
