//! Who gets which core, and whom it is taken from.

use std::cmp::Reverse;

use super::{At, Queue, Run, World};
use crate::TaskId;
use crate::policy::{Event, Policy};

impl World<'_> {
    /// Gives cores to those who come first, until nothing changes.
    pub(super) fn dispatch(&mut self, policy: &mut dyn Policy) {
        while let Some((core, place)) = self.next_placement() {
            self.put_on(core, place);
            self.tell(policy, Event::Start { task: TaskId(place as u32) });
            self.place_ready();
        }
    }

    /// Who is to have which core next. Whoever has it goes back to the queue.
    fn next_placement(&mut self) -> Option<(usize, usize)> {
        if let Some(place) = self.fifo_head() {
            let core = self.idle_core(place).or_else(|| {
                let core = self.core_to_take(place)?;
                let aside = self.take_off(core)?;
                self.enqueue(aside);
                Some(core)
            });
            if let Some(core) = core {
                // Whoever was pushed aside comes after it: the head is the same.
                self.fifo.pop();
                return Some((core, place));
            }
            return None;
        }
        if !self.cores.iter().any(|core| core.task.is_none()) {
            return None;
        }
        let tasks = &self.tasks;
        let waits = |task: u32, stamp| {
            let task = &tasks[task as usize];
            task.at == At::Queued && task.in_fair && task.stamp == stamp
        };
        let place = self.fair.pick(|task| tasks[task as usize].share, waits)? as usize;
        Some((self.idle_core(place)?, place))
    }

    /// The first of the rank queue; entries that no longer hold go.
    fn fifo_head(&mut self) -> Option<usize> {
        while let Some(&Reverse((_, _, place, stamp))) = self.fifo.peek() {
            let task = &self.tasks[place];
            if task.at == At::Queued && task.stamp == stamp {
                return Some(place);
            }
            self.fifo.pop();
        }
        None
    }

    /// An idle core, best the one where the task ran last.
    fn idle_core(&self, place: usize) -> Option<usize> {
        let idle = |core: &usize| self.cores[*core].task.is_none();
        let cores = 0..self.cores.len();
        cores.clone().filter(idle).find(|&core| self.cores[core].last == Some(place)).or_else(|| {
            let mut idle = cores.filter(idle);
            idle.next()
        })
    }

    /// The core that the head of the rank queue may take from another.
    fn core_to_take(&self, place: usize) -> Option<usize> {
        let running = |core: usize| self.cores[core].task.map(|task| (core, &self.tasks[task]));
        let cores = || (0..self.cores.len()).filter_map(running);
        let fair = cores().filter(|(_, task)| task.in_fair);
        if let Some((core, _)) = fair.max_by_key(|(_, task)| Queue::deadline(&task.share)) {
            return Some(core);
        }
        let task = &self.tasks[place];
        let last = cores().max_by_key(|(_, running)| running.rank).filter(|_| task.decision.preempt);
        last.filter(|(_, running)| running.rank > task.rank).map(|(core, _)| core)
    }

    fn put_on(&mut self, core: usize, place: usize) {
        let slot = &mut self.cores[core];
        let switches = slot.last != Some(place);
        self.outcome.switches += u64::from(switches);
        slot.task = Some(place);
        slot.last = Some(place);
        slot.began_ns = self.now_ns + if switches { self.machine.switch_ns } else { 0 };
        slot.counted_ns = slot.began_ns;
        self.tasks[place].at = At::On(core);
    }

    pub(super) fn take_off(&mut self, core: usize) -> Option<usize> {
        let slot = &mut self.cores[core];
        let place = slot.task.take()?;
        self.tasks[place].at = At::Ready;
        if self.machine.record && slot.began_ns < self.now_ns {
            let run =
                Run { core: core as u32, job: place as u32, from_ns: slot.began_ns, to_ns: self.now_ns };
            let before = slot.recorded.map(|index| &mut self.outcome.runs[index]);
            match before.filter(|before| before.job == run.job && before.to_ns == run.from_ns) {
                Some(before) => before.to_ns = run.to_ns,
                None => {
                    slot.recorded = Some(self.outcome.runs.len());
                    self.outcome.runs.push(run);
                }
            }
        }
        Some(place)
    }
}
