//! What the policies that predict know of each open slot.

use super::Event;
use crate::predict::Predictor;
use crate::slots::Slots;
use crate::{FunctionId, TaskId};

/// An invocation under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) function: FunctionId,
    pub(super) size_bytes: Option<u64>,
    pub(super) arrived_ns: u64,
    pub(super) used_ns: u64,
}

/// The open slots, and what was learnt from the closed ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) predictor: Predictor,
    tasks: Slots<Task>,
}

impl Known {
    pub(super) fn new(predictor: Predictor) -> Self {
        Self { predictor, tasks: Slots::default() }
    }

    pub(super) fn get(&self, task: TaskId) -> Option<Task> {
        self.tasks.get(task.0).copied()
    }

    /// Takes an event in; returns whom a decision is due about.
    pub(super) fn take(&mut self, now_ns: u64, event: Event) -> Option<(TaskId, Task)> {
        match event {
            Event::Arrive { task, function, size_bytes } => {
                let opened = Task { function, size_bytes, arrived_ns: now_ns, used_ns: 0 };
                self.tasks.insert(task.0, opened);
                Some((task, opened))
            }
            Event::SliceEnd { task, used_ns } => {
                let open = self.tasks.get_mut(task.0)?;
                open.used_ns = used_ns;
                Some((task, *open))
            }
            Event::Block { task, used_ns } => {
                self.tasks.get_mut(task.0)?.used_ns = used_ns;
                None
            }
            Event::Wake { task } => Some((task, *self.tasks.get(task.0)?)),
            Event::Exit { task, used_ns, finished } => {
                let closed = self.tasks.remove(task.0)?;
                if finished {
                    self.predictor.observe(closed.function, closed.size_bytes, used_ns);
                } else {
                    self.predictor.observe_cut(closed.function, closed.size_bytes, used_ns);
                }
                None
            }
            Event::Start { .. } | Event::Tick => None,
        }
    }
}
