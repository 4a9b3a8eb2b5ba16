//! The cores, the two queues and the clock.

mod dispatch;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::fair::{Queue, Share};
use super::{BadTrace, Job, check};
use crate::TaskId;
use crate::policy::{Class, Decision, Event, Policy, UNLIMITED};

/// A machine to run traces on.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// How many cores.
    pub cores: usize,
    /// What it costs to put another task on a core than it ran last.
    pub switch_ns: u64,
    /// The fair class's slice, where the policy asks for no other.
    pub fair_slice_ns: u64,
    /// Whether [`Outcome::runs`] is wanted.
    pub record: bool,
}

/// So long a slice can be asked of the fair class: the kernel's own limit.
const FAIR_SLICE_MAX_NS: u64 = 100_000_000;

impl Machine {
    /// Linux' slice of about 3 ms and free context switches.
    pub fn new(cores: usize) -> Self {
        Self { cores: cores.max(1), switch_ns: 0, fair_slice_ns: 3_000_000, record: false }
    }

    /// Runs a trace to its end. Jobs have their places in the trace as slots.
    pub fn run(&self, trace: &[Job], policy: &mut dyn Policy) -> Result<Outcome, BadTrace> {
        check(trace)?;
        let mut world = World::new(*self, trace);
        while world.unfinished > 0 {
            world.step(policy);
        }
        Ok(world.outcome)
    }
}

/// What came of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When each job was done.
    pub finish_ns: Vec<u64>,
    /// How often a core went to another task.
    pub switches: u64,
    /// How many moments of simulated time there were at which something happened.
    pub moments: u64,
    /// Who ran when, if that was wanted; in order of ending.
    pub runs: Vec<Run>,
}

/// A job on a core without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub core: u32,
    /// Who: its place in the trace.
    pub job: u32,
    /// From when.
    pub from_ns: u64,
    /// Until when.
    pub to_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// Not there yet, blocked, or gone.
    Away,
    /// It could run and is on no queue yet.
    Ready,
    Queued,
    On(usize),
}

#[derive(Clone, Debug)]
struct Task {
    at: At,
    decision: Decision,
    /// As it is after what it has run.
    rank: u64,
    slice_left_ns: u64,
    used_ns: u64,
    /// Which burst, and what is left of it.
    burst: usize,
    left_ns: u64,
    /// Entries on queues hold while they have this.
    stamp: u32,
    share: Share,
    in_fair: bool,
    done: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Core {
    task: Option<usize>,
    last: Option<usize>,
    /// Since when what runs has run, and up to when that has been counted.
    began_ns: u64,
    counted_ns: u64,
    /// The place of its last entry in the record.
    recorded: Option<usize>,
}

struct World<'a> {
    machine: Machine,
    trace: &'a [Job],
    now_ns: u64,
    next_arrival: usize,
    unfinished: usize,
    tasks: Vec<Task>,
    cores: Vec<Core>,
    /// By rank, then in the order in which they came to the queue.
    fifo: BinaryHeap<Reverse<(u64, u64, usize, u32)>>,
    next_turn: u64,
    fair: Queue,
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    ready: Vec<usize>,
    decisions: Vec<Decision>,
    last_tick_ns: Option<u64>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    fn new(machine: Machine, trace: &'a [Job]) -> Self {
        let task = |(place, job): (usize, &Job)| Task {
            at: At::Away,
            decision: Decision::fair(TaskId(place as u32)),
            rank: 0,
            slice_left_ns: UNLIMITED,
            used_ns: 0,
            burst: 0,
            left_ns: job.bursts_ns[0],
            stamp: 0,
            share: Share::default(),
            in_fair: false,
            done: false,
        };
        Self {
            machine,
            trace,
            now_ns: 0,
            next_arrival: 0,
            unfinished: trace.len(),
            tasks: trace.iter().enumerate().map(task).collect(),
            cores: vec![Core::default(); machine.cores.max(1)],
            fifo: BinaryHeap::new(),
            next_turn: 0,
            fair: Queue::default(),
            wakes: BinaryHeap::new(),
            ready: Vec::new(),
            decisions: Vec::new(),
            last_tick_ns: None,
            outcome: Outcome { finish_ns: vec![0; trace.len()], ..Outcome::default() },
        }
    }

    /// To the next moment at which something happens, and all that happens then. Of what happens at once, cores come
    /// first, then those that wake, those that arrive, and the policy's tick.
    fn step(&mut self, policy: &mut dyn Policy) {
        let tick_ns = self.tick_ns(policy);
        let Some(next_ns) = self.next_moment(tick_ns) else {
            unreachable!("unfinished jobs are on a core, on a queue with a busy core, asleep, or to arrive");
        };
        self.outcome.moments += 1;
        self.now_ns = next_ns;
        self.count();
        self.cores_due(policy);
        while let Some(&Reverse((at_ns, task))) = self.wakes.peek()
            && at_ns <= self.now_ns
        {
            self.wakes.pop();
            self.make_ready(task);
            self.tell(policy, Event::Wake { task: TaskId(task as u32) });
        }
        while let Some(job) = self.trace.get(self.next_arrival)
            && job.arrival_ns <= self.now_ns
        {
            let place = self.next_arrival;
            self.next_arrival += 1;
            self.make_ready(place);
            let task = TaskId(place as u32);
            let (function, size_bytes) = (job.function, job.size_bytes);
            self.tell(policy, Event::Arrive { task, function, size_bytes });
        }
        if tick_ns.is_some_and(|at_ns| at_ns <= self.now_ns) {
            self.last_tick_ns = Some(self.now_ns);
            self.tell(policy, Event::Tick);
        }
        self.place_ready();
        self.dispatch(policy);
    }

    /// Ticks asked for in the past come now, but time must go on between two.
    fn tick_ns(&self, policy: &dyn Policy) -> Option<u64> {
        let earliest_ns = self.last_tick_ns.map_or(self.now_ns, |last_ns| self.now_ns.max(last_ns + 1));
        policy.next_tick_ns().map(|at_ns| at_ns.max(earliest_ns))
    }

    fn next_moment(&self, tick_ns: Option<u64>) -> Option<u64> {
        let arrival_ns = self.trace.get(self.next_arrival).map(|job| job.arrival_ns);
        let wake_ns = self.wakes.peek().map(|&Reverse((at_ns, _))| at_ns);
        let core_ns = self.cores.iter().filter_map(|core| {
            let task = &self.tasks[core.task?];
            Some(core.counted_ns.saturating_add(task.left_ns.min(task.slice_left_ns)))
        });
        core_ns.chain(arrival_ns).chain(wake_ns).chain(tick_ns).min()
    }

    /// Counts what has run until now.
    fn count(&mut self) {
        for core in &mut self.cores {
            let Some(task) = core.task else { continue };
            let ran_ns = self.now_ns.saturating_sub(core.counted_ns);
            if ran_ns == 0 {
                continue;
            }
            core.counted_ns = self.now_ns;
            let task = &mut self.tasks[task];
            task.used_ns += ran_ns;
            task.left_ns -= ran_ns;
            if task.slice_left_ns != UNLIMITED {
                task.slice_left_ns -= ran_ns;
            }
            task.rank = Decision { rank: task.rank, ..task.decision }.rank_after(ran_ns);
            if task.in_fair {
                self.fair.ran(&mut task.share, ran_ns);
            }
        }
    }

    /// Bursts and slices that are over.
    fn cores_due(&mut self, policy: &mut dyn Policy) {
        for core in 0..self.cores.len() {
            let Some(place) = self.cores[core].task else { continue };
            let id = TaskId(place as u32);
            let Task { left_ns, slice_left_ns, used_ns, in_fair, .. } = self.tasks[place];
            if left_ns == 0 {
                self.take_off(core);
                self.leave_fair(place);
                let task = &mut self.tasks[place];
                task.at = At::Away;
                let bursts = &self.trace[place].bursts_ns;
                match (bursts.get(task.burst + 1), bursts.get(task.burst + 2)) {
                    (Some(io_ns), Some(&cpu_ns)) => {
                        task.burst += 2;
                        task.left_ns = cpu_ns;
                        self.wakes.push(Reverse((self.now_ns + io_ns, place)));
                        self.tell(policy, Event::Block { task: id, used_ns });
                    }
                    _ => {
                        task.done = true;
                        self.outcome.finish_ns[place] = self.now_ns;
                        self.unfinished -= 1;
                        self.tell(policy, Event::Exit { task: id, used_ns, finished: true });
                    }
                }
            } else if slice_left_ns == 0 {
                self.take_off(core);
                self.ready.push(place);
                if !in_fair {
                    // Should the policy have nothing to say, all stays as it was.
                    self.tasks[place].slice_left_ns = self.tasks[place].decision.slice_ns.max(1);
                    self.tell(policy, Event::SliceEnd { task: id, used_ns });
                }
            }
        }
    }

    fn tell(&mut self, policy: &mut dyn Policy, event: Event) {
        policy.on(self.now_ns, event, &mut self.decisions);
        while let Some(decision) = self.decisions.pop() {
            self.obey(decision);
        }
    }

    fn obey(&mut self, decision: Decision) {
        let place = decision.task.0 as usize;
        let Some(task) = self.tasks.get_mut(place).filter(|task| !task.done) else { return };
        let class_changes = task.in_fair != (decision.class == Class::Fair);
        task.decision = decision;
        task.rank = decision.rank;
        if decision.class == Class::Fifo {
            task.slice_left_ns = decision.slice_ns.max(1);
        }
        match task.at {
            At::Queued => self.make_ready(place),
            At::On(core) if class_changes => {
                self.take_off(core);
                self.ready.push(place);
            }
            At::On(_) | At::Ready | At::Away => {}
        }
    }

    fn make_ready(&mut self, place: usize) {
        let task = &mut self.tasks[place];
        task.at = At::Ready;
        task.stamp += 1;
        self.ready.push(place);
    }

    /// Puts those who could run on their queues.
    fn place_ready(&mut self) {
        for index in 0..self.ready.len() {
            let place = self.ready[index];
            if self.tasks[place].at == At::Ready {
                self.enqueue(place);
            }
        }
        self.ready.clear();
    }

    fn enqueue(&mut self, place: usize) {
        let slice_ns = self.fair_slice_ns(place);
        if self.tasks[place].decision.class == Class::Fifo {
            self.leave_fair(place);
        }
        let task = &mut self.tasks[place];
        task.at = At::Queued;
        task.stamp += 1;
        match task.decision.class {
            Class::Fifo => {
                self.fifo.push(Reverse((task.rank, self.next_turn, place, task.stamp)));
                self.next_turn += 1;
            }
            Class::Fair => {
                if !task.in_fair {
                    task.in_fair = true;
                    self.fair.join(&mut task.share, slice_ns);
                }
                task.slice_left_ns = self.fair.slice_left_ns(&mut task.share, slice_ns);
                self.fair.wait(place as u32, &task.share, task.stamp);
            }
        }
    }

    fn leave_fair(&mut self, place: usize) {
        let slice_ns = self.fair_slice_ns(place);
        let task = &mut self.tasks[place];
        if std::mem::take(&mut task.in_fair) {
            self.fair.leave(&mut task.share, slice_ns);
        }
    }

    fn fair_slice_ns(&self, place: usize) -> u64 {
        match self.tasks[place].decision.slice_ns {
            UNLIMITED => self.machine.fair_slice_ns.clamp(1, FAIR_SLICE_MAX_NS),
            asked_ns => asked_ns.clamp(1, FAIR_SLICE_MAX_NS),
        }
    }
}
