//! ALPS: what SRPT would have done with the recent past gives each function a rank and a slice.
//!
//! **Source**: Fu, Shi, Wang, Chen, Cheng: "ALPS: An Adaptive Learning, Priority OS Scheduler for Serverless Functions",
//! USENIX ATC 2024, and what its published implementation (github.com/fishercht1995/ALPS) does where the paper leaves it
//! open. The frontend replays the recent invocations under SRPT, ranks the functions by the time that each was given at a
//! stretch, makes slices of those times, smooths them, and shrinks them under overload. In the backend the function
//! with the better rank goes first, and invocations of equal rank share by slices.
//!
//! **Parameters**: the cores; the period between two lessons and how many finished invocations one looks at; the
//! weight of a new lesson beside the old (0.7, as in the implementation); how many standard deviations are added
//! to the mean stretch; above which load slices shrink; the slice of an unknown function.
//!
//! **What differs.** Their backend changes CFS, which shares among equal ranks by virtual runtime and keeps a running
//! task for its slice even if a better rank comes. On a stock kernel equal ranks take turns, a slice each, and a
//! better rank takes the core at once. They make a slice of a multiple of the mean stretch less a part of the deviation;
//! a slice that ends just before the invocation does is the worst of all, so here the deviation is added. Unknown functions
//! start with the best rank.

mod replay;

use std::collections::VecDeque;

use super::{Class, Decision, Event, Policy};
use crate::slots::Slots;
use crate::{FunctionId, TaskId};
use replay::{Past, Replay};

/// The parameters of ALPS.
#[derive(Clone, Copy, Debug)]
pub struct AlpsConfig {
    /// How many tasks run at once.
    pub cores: u32,
    /// The time between two lessons.
    pub period_ns: u64,
    /// How many finished invocations a lesson looks at.
    pub window: usize,
    /// The weight of a new slice beside the old one, 0 to 1.
    pub smoothing: f64,
    /// How many standard deviations a slice has above the mean stretch.
    pub deviations: f64,
    /// From this load on slices shrink, in inverse proportion to the load. 1: all cores.
    pub overload: f64,
    /// The slice of an unknown function.
    pub first_slice_ns: u64,
}

impl AlpsConfig {
    /// The defaults, for so many cores.
    pub fn new(cores: u32) -> Self {
        Self {
            cores,
            period_ns: 1_000_000_000,
            window: 500,
            smoothing: 0.7,
            deviations: 1.0,
            overload: 0.9,
            first_slice_ns: 20_000_000,
        }
    }
}

/// No slice is shorter: a switch costs microseconds.
const SLICE_MIN_NS: f64 = 500_000.0;

/// A longer invocation (73 minutes) counts as this long in a lesson.
const USED_MAX_NS: u64 = 1 << 42;

/// Ranks and slices by function, learnt from simulated SRPT.
#[derive(Clone, Debug)]
pub struct Alps {
    config: AlpsConfig,
    tasks: Slots<State>,
    /// The last invocations that have finished.
    past: VecDeque<Past>,
    lessons: Slots<Lesson>,
    /// What is to be shrunk by, 1 for nothing.
    pressure: f64,
    next_lesson_ns: Option<u64>,
    replay: Replay,
}

#[derive(Clone, Copy, Debug)]
struct State {
    function: FunctionId,
    arrived_ns: u64,
    used_ns: u64,
    /// What is left of the slice.
    credit_ns: u64,
}

/// What was learnt about a function.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lesson {
    rank: u32,
    slice_ns: f64,
}

impl Alps {
    /// Has learnt nothing yet.
    pub fn new(config: AlpsConfig) -> Self {
        Self {
            tasks: Slots::default(),
            past: VecDeque::with_capacity(config.window + 1),
            lessons: Slots::default(),
            pressure: 1.0,
            next_lesson_ns: None,
            replay: Replay::default(),
            config,
        }
    }

    fn rank(&self, function: FunctionId) -> u64 {
        self.lessons.get(function.0).map_or(0, |lesson| lesson.rank.into())
    }

    fn slice_ns(&self, function: FunctionId) -> u64 {
        let first = self.config.first_slice_ns as f64;
        let slice = self.lessons.get(function.0).map_or(first, |lesson| lesson.slice_ns);
        (slice / self.pressure).max(SLICE_MIN_NS) as u64
    }

    /// At the end of its rank, with what is left of the slice.
    fn decide(&self, task: TaskId, state: State) -> Decision {
        let rank = self.rank(state.function);
        let slice_ns = state.credit_ns;
        Decision { task, class: Class::Fifo, rank, fall: 0, floor: rank, slice_ns, preempt: true }
    }

    /// A new slice.
    fn renew(&mut self, task: TaskId) {
        let Some(function) = self.tasks.get(task.0).map(|state| state.function) else { return };
        let credit_ns = self.slice_ns(function);
        if let Some(state) = self.tasks.get_mut(task.0) {
            state.credit_ns = credit_ns;
        }
    }

    /// Replays the past and learns from it.
    fn learn(&mut self) {
        self.past
            .make_contiguous()
            .sort_unstable_by_key(|past| (past.arrived_ns, past.function, past.used_ns));
        let stretches = self.replay.run(self.past.as_slices().0, self.config.cores as usize);
        self.pressure = (stretches.load / self.config.overload).max(1.0);
        for (place, stretch) in stretches.by_function.iter().enumerate() {
            let wanted = stretch.mean_ns + self.config.deviations * stretch.deviation_ns;
            let smoothing = self.config.smoothing;
            let slice_ns = match self.lessons.get(stretch.function.0) {
                Some(old) => smoothing * wanted + (1.0 - smoothing) * old.slice_ns,
                None => wanted,
            };
            // Rank 0 is for the unknown.
            self.lessons.insert(stretch.function.0, Lesson { rank: place as u32 + 1, slice_ns });
        }
    }
}

impl Policy for Alps {
    fn forget(&mut self, function: FunctionId) {
        self.lessons.remove(function.0);
        self.past.retain(|past| past.function != function);
    }

    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        match event {
            Event::Arrive { task, function, .. } => {
                let credit_ns = self.slice_ns(function);
                let state = State { function, arrived_ns: now_ns, used_ns: 0, credit_ns };
                self.tasks.insert(task.0, state);
                decisions.push(self.decide(task, state));
            }
            Event::Block { task, used_ns } => {
                let Some(state) = self.tasks.get_mut(task.0) else { return };
                state.credit_ns = state.credit_ns.saturating_sub(used_ns.saturating_sub(state.used_ns));
                state.used_ns = used_ns;
                if state.credit_ns == 0 {
                    self.renew(task);
                }
            }
            Event::Wake { task } => {
                if let Some(&state) = self.tasks.get(task.0) {
                    decisions.push(self.decide(task, state));
                }
            }
            Event::SliceEnd { task, used_ns } => {
                self.renew(task);
                if let Some(state) = self.tasks.get_mut(task.0) {
                    state.used_ns = used_ns;
                    let state = *state;
                    decisions.push(self.decide(task, state));
                }
            }
            Event::Exit { task, used_ns, .. } => {
                let Some(state) = self.tasks.remove(task.0) else { return };
                let State { function, arrived_ns, .. } = state;
                if self.past.len() >= self.config.window {
                    self.past.pop_front();
                }
                let used_ns = used_ns.min(USED_MAX_NS);
                self.past.push_back(Past { arrived_ns, function, used_ns });
                self.next_lesson_ns.get_or_insert(now_ns.saturating_add(self.config.period_ns));
            }
            Event::Tick => {
                if self.next_lesson_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                    self.learn();
                    // The next one once there is something new to learn from.
                    self.next_lesson_ns = None;
                }
            }
            Event::Start { .. } => {}
        }
    }

    fn next_tick_ns(&self) -> Option<u64> {
        self.next_lesson_ns
    }
}
