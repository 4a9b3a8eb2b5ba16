//! From a policy's decisions to who has a core: the node's own dispatch, as pure as the policies.
//!
//! The simulator's machine puts tasks on cores; a node can't. It can keep an invocation back, let it begin, and say of
//! those that have begun which go first ([`Standing`]). So of all that could run, as many as there are cores are at
//! the *front*; whoever else has begun (and was overtaken) is at the *back*, on what the front leaves; and whoever hasn't
//! begun waits in spryd. That is all three decisions in one order: the policy's.
//!
//! ```text
//!             admitted                 sent            overtaken
//!   waiting ───────────► stalled ─────────────► front ◄──────────► back
//!    ▲   ▲  (no instance idle yet)                │ ▲ wakes          │
//!    │   ▼                                blocks  ▼ │                ▼
//! arrive parked                                blocked             over
//! ```
//!
//! - Who blocks leaves his place at the front to the next in order: so more begin the more they block, and never more than
//!   cores that could run. When he wakes he is ranked anew.
//! - Who is admitted and finds no instance (its process is being made) doesn't count among those that run; of one function
//!   at most `cores` are in that state, the rest are parked: out of the order of those who wait, until one of them has gone on. To
//!   the policy both are blocked, so that they hold no turn that they can't use.
//! - An invocation at the front is taken to run from moment to moment; what it has really used is asked for when its
//!   slice should have ended ([`Engine::turn`]). Whoever hasn't come forward by then isn't running: where nobody tells of
//!   blocking, this is how it is found out. Where somebody does, a word can be lost: who is said to be blocked, and uses CPU
//!   time all the same, has woken.
//! - Who comes to the front is given a core that is nobody's else there: the kernel, left alone, puts two of them on one
//!   while somebody at the back has the other.
//! - To be overtaken costs two switches and a moved process, so it has to be worth [`GAIN_NS`] of what is left.
//!
//! Under a policy that bounds starvation the bound holds here too: the credit's holder has rank 0, is admitted at
//! once, and is at the front until its quantum is used.

mod order;

use std::collections::BTreeSet;

use crate::backend::{Level, Standing};
use crate::policy::{Class, Decision, Event, Policy, UNLIMITED};
use crate::slots::Slots;
use crate::{FunctionId, TaskId};

/// Nobody is overtaken by whoever has less of an advantage than this.
pub const GAIN_NS: u64 = 250_000;
/// A slice is over when so little is left of it.
const CRUMB_NS: u64 = 50_000;
/// Between two looks at the same task.
const LOOK_NS: u64 = 1_000_000;
/// Between two looks at those who are thought to be blocked, where nobody tells when they wake,
const BLOCKED_LOOK_NS: u64 = 4_000_000;
/// and where somebody tells, but can lose a word.
const TOLD_LOOK_NS: u64 = 64_000_000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Let it begin. Followed by [`Engine::sent`] or [`Engine::stalled`].
    Admit(TaskId),
    /// Make this true for the process that it runs in.
    Stand(TaskId, Standing),
}

impl Order {
    /// Whom it is about.
    pub fn task(self) -> TaskId {
        match self {
            Self::Admit(task) | Self::Stand(task, _) => task,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    /// It waits, and its function has no room for another.
    Parked,
    Stalled,
    Front,
    Back,
    /// `told`: by an event, so that another tells when it wakes.
    Blocked {
        told: bool,
    },
}

#[derive(Clone, Debug)]
struct Task {
    function: FunctionId,
    place: Place,
    decision: Decision,
    /// As it was at the last count.
    rank: u64,
    slice_left_ns: u64,
    turn: u64,
    /// Counted at `counted_ns`, as if it had run all the time while at the front.
    used_ns: u64,
    counted_ns: u64,
    /// What it had really used when it was last looked at, and when that was.
    seen_used_ns: u64,
    seen_ns: u64,
    /// What the kernel has been told.
    level: Level,
    /// Its core while it is at the front: no other's there.
    core: u16,
    /// The kernel hasn't been told of it.
    unplaced: bool,
    /// It is with an instance, and the kernel hasn't been told.
    begins: bool,
}

impl Place {
    /// It has been admitted.
    fn has_begun(self) -> bool {
        !matches!(self, Self::Waiting | Self::Parked)
    }

    /// When it is thought to be blocked: how long until it is looked at.
    fn blocked_look_ns(self) -> Option<u64> {
        match self {
            Self::Blocked { told: false } => Some(BLOCKED_LOOK_NS),
            Self::Blocked { told: true } => Some(TOLD_LOOK_NS),
            _ => None,
        }
    }
}

type Key = (bool, u64, u64, TaskId);

/// See the module.
pub struct Engine {
    policy: Box<dyn Policy + Send>,
    cores: usize,
    /// Whether every new rank of a task that has begun is an order, and every end.
    ranks: bool,
    tasks: Slots<Task>,
    free: Vec<u32>,
    opened: u32,
    /// Those who wait, in order.
    waiting: BTreeSet<Key>,
    /// Those who wait for room.
    parked: Vec<TaskId>,
    /// Those who have been admitted.
    begun: Vec<TaskId>,
    next_turn: u64,
    decisions: Vec<Decision>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("waiting", &self.waiting.len()).field("begun", &self.begun).finish()
    }
}

impl Engine {
    /// With nobody there. `ranks`: see [`Backend::wants_ranks`](crate::backend::Backend::wants_ranks).
    pub fn new(policy: Box<dyn Policy + Send>, cores: usize, ranks: bool) -> Self {
        Self {
            policy,
            cores: cores.max(1),
            ranks,
            tasks: Slots::default(),
            free: Vec::new(),
            opened: 0,
            waiting: BTreeSet::new(),
            parked: Vec::new(),
            begun: Vec::new(),
            next_turn: 0,
            decisions: Vec::new(),
        }
    }

    /// The backend does it in another way from now on, and has forgotten what it was told: it is told anew of all that have
    /// begun. `ranks`: as for [`Self::new`].
    pub fn tell_anew(&mut self, ranks: bool, orders: &mut Vec<Order>) {
        self.ranks = ranks;
        for id in &self.begun {
            if let Some(task) = self.tasks.get_mut(id.0)
                && task.place != Place::Stalled
            {
                orders.push(Order::Stand(*id, task.stand()));
            }
        }
    }

    /// How many wait to begin.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.parked.len()
    }

    /// How many have begun, and how many of those are at the front.
    pub fn begun(&self) -> (usize, usize) {
        (self.begun.len(), self.begun.iter().filter(|id| self.is_at(**id, Place::Front)).count())
    }

    /// A function's slot is another's now.
    pub fn forget(&mut self, function: FunctionId) {
        self.policy.forget(function);
    }

    /// An invocation has come.
    pub fn arrive(
        &mut self,
        now_ns: u64,
        function: FunctionId,
        size_bytes: Option<u64>,
        orders: &mut Vec<Order>,
    ) -> TaskId {
        let id = TaskId(self.free.pop().unwrap_or_else(|| {
            self.opened += 1;
            self.opened - 1
        }));
        let decision = Decision::fair(id);
        self.tasks.insert(
            id.0,
            Task {
                function,
                place: Place::Waiting,
                decision,
                rank: 0,
                slice_left_ns: UNLIMITED,
                turn: self.next_turn,
                used_ns: 0,
                counted_ns: now_ns,
                seen_used_ns: 0,
                seen_ns: now_ns,
                level: Level::Front,
                core: 0,
                unplaced: false,
                begins: false,
            },
        );
        self.next_turn += 1;
        if let Some(key) = self.key(id) {
            self.waiting.insert(key);
        }
        self.tell(now_ns, Event::Arrive { task: id, function, size_bytes }, orders);
        id
    }

    /// It is with an instance now.
    pub fn sent(&mut self, now_ns: u64, id: TaskId, orders: &mut Vec<Order>) {
        let Some(task) = self.tasks.get_mut(id.0).filter(|task| task.place.has_begun()) else { return };
        let function = task.function;
        (task.counted_ns, task.seen_ns) = (now_ns, now_ns);
        task.begins = true;
        if task.place == Place::Stalled {
            // Its turn is looked at now; the process itself is at the front.
            task.place = Place::Back;
            self.tell(now_ns, Event::Wake { task: id }, orders);
        }
        self.tell(now_ns, Event::Start { task: id }, orders);
        self.unpark(now_ns, function, orders);
        let told = self.align(id, orders);
        if self.ranks
            && !told
            && let Some(task) = self.tasks.get_mut(id.0)
        {
            orders.push(Order::Stand(id, task.stand()));
        }
    }

    /// It was admitted, and there is no instance for it yet; or its instance ended before it began.
    pub fn stalled(&mut self, now_ns: u64, id: TaskId, orders: &mut Vec<Order>) {
        if let Some(task) = self.tasks.get_mut(id.0).filter(|task| task.place.has_begun()) {
            task.place = Place::Stalled;
            task.level = Level::Front;
            // (Whatever was counted: it hasn't begun.)
            (task.used_ns, task.seen_used_ns) = (0, 0);
            self.tell(now_ns, Event::Block { task: id, used_ns: 0 }, orders);
        }
    }

    /// It waits for something else than the CPU.
    pub fn block(&mut self, now_ns: u64, id: TaskId, used_ns: u64, orders: &mut Vec<Order>) {
        self.blocked(now_ns, id, used_ns, true, orders);
    }

    /// It could go on.
    pub fn wake(&mut self, now_ns: u64, id: TaskId, orders: &mut Vec<Order>) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if !matches!(task.place, Place::Blocked { .. }) {
            return;
        }
        task.place = Place::Back;
        task.counted_ns = now_ns;
        self.tell(now_ns, Event::Wake { task: id }, orders);
        self.align(id, orders);
    }

    /// It is over. A process that was at the back (or has a rank that counts) is to be set free: the next request may be given to it
    /// without anybody being asked. (The order for that comes before its slot is free.)
    pub fn exit(&mut self, now_ns: u64, id: TaskId, used_ns: u64, finished: bool, orders: &mut Vec<Order>) {
        let Some(key) = self.key(id) else { return };
        self.waiting.remove(&key);
        self.parked.retain(|parked| *parked != id);
        self.begun.retain(|begun| *begun != id);
        let Some(task) = self.tasks.remove(id.0) else { return };
        if task.level == Level::Back || self.ranks {
            orders.push(Order::Stand(id, Standing::FREE));
        }
        self.tell(now_ns, Event::Exit { task: id, used_ns, finished }, orders);
        self.unpark(now_ns, task.function, orders);
        self.free.push(id.0);
    }

    /// When [`Self::turn`] is due next; `None`: not before something else happens.
    pub fn next_turn_ns(&self) -> Option<u64> {
        let contended = self.waiting.len() + self.begun.len() > self.cores;
        let due = self.begun.iter().filter_map(|id| {
            let task = self.tasks.get(id.0)?;
            let look_ns = match task.place {
                Place::Front if task.decision.class == Class::Fifo && task.slice_left_ns != UNLIMITED => {
                    Some(task.slice_left_ns.max(LOOK_NS))
                }
                place => place.blocked_look_ns().filter(|_| contended),
            };
            Some(task.counted_ns.saturating_add(look_ns?))
        });
        due.chain(self.policy.next_tick_ns()).min()
    }

    /// Time has passed. `used` says what a task's process has used for it so far; `None`: nobody knows.
    pub fn turn(
        &mut self,
        now_ns: u64,
        used: &mut dyn FnMut(TaskId) -> Option<u64>,
        orders: &mut Vec<Order>,
    ) {
        for index in 0..self.begun.len() {
            let Some(&id) = self.begun.get(index) else { break };
            self.look(now_ns, id, used, orders);
        }
        if self.policy.next_tick_ns().is_some_and(|at_ns| at_ns <= now_ns) {
            self.tell(now_ns, Event::Tick, orders);
        }
    }

    fn look(
        &mut self,
        now_ns: u64,
        id: TaskId,
        used: &mut dyn FnMut(TaskId) -> Option<u64>,
        orders: &mut Vec<Order>,
    ) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let since_ns = now_ns.saturating_sub(task.counted_ns);
        match task.place {
            Place::Front if task.slice_left_ns <= since_ns && since_ns >= LOOK_NS / 2 => {
                let used_ns = used(id).unwrap_or(task.used_ns + since_ns);
                let stood_still = task.see(now_ns, used_ns);
                task.count(now_ns, used_ns);
                if task.slice_left_ns <= CRUMB_NS {
                    task.slice_left_ns = task.decision.slice_ns.max(1);
                    self.tell(now_ns, Event::SliceEnd { task: id, used_ns }, orders);
                } else if stood_still {
                    self.blocked(now_ns, id, used_ns, false, orders);
                }
            }
            place if place.blocked_look_ns().is_some_and(|look_ns| since_ns >= look_ns / 2) => {
                task.counted_ns = now_ns;
                let used_ns = used(id).unwrap_or(task.used_ns);
                // A few microseconds are what a process needs that only looks whether something has come.
                if used_ns > task.used_ns + CRUMB_NS {
                    task.see(now_ns, used_ns);
                    task.used_ns = used_ns;
                    self.wake(now_ns, id, orders);
                }
            }
            _ => {}
        }
    }

    fn blocked(&mut self, now_ns: u64, id: TaskId, used_ns: u64, told: bool, orders: &mut Vec<Order>) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        match task.place {
            Place::Front | Place::Back => {}
            Place::Blocked { .. } | Place::Waiting | Place::Parked | Place::Stalled => return,
        }
        task.count(now_ns, used_ns.max(task.used_ns));
        task.place = Place::Blocked { told };
        let used_ns = task.used_ns;
        self.tell(now_ns, Event::Block { task: id, used_ns }, orders);
    }

    fn tell(&mut self, now_ns: u64, event: Event, orders: &mut Vec<Order>) {
        self.policy.on(now_ns, event, &mut self.decisions);
        self.obey_all(now_ns, orders);
        self.settle(now_ns, orders);
    }

    fn obey_all(&mut self, now_ns: u64, orders: &mut Vec<Order>) {
        let mut decisions = std::mem::take(&mut self.decisions);
        for decision in decisions.drain(..) {
            self.obey(now_ns, decision, orders);
        }
        self.decisions = decisions;
    }

    fn obey(&mut self, now_ns: u64, decision: Decision, orders: &mut Vec<Order>) {
        let id = decision.task;
        let Some(before) = self.key(id) else { return };
        let waits = self.waiting.remove(&before);
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if task.place == Place::Front {
            // Counted as having run until now; the next look corrects it.
            let ran_ns = now_ns.saturating_sub(task.counted_ns);
            task.counted_ns = now_ns;
            task.used_ns = task.used_ns.saturating_add(ran_ns);
        }
        task.decision = decision;
        task.rank = decision.rank;
        task.slice_left_ns = if decision.class == Class::Fifo { decision.slice_ns.max(1) } else { UNLIMITED };
        if !waits {
            // (Who waits keeps his place among those of the same rank.)
            task.turn = self.next_turn;
            self.next_turn += 1;
        }
        if task.place == Place::Front && decision.class == Class::Fair {
            task.place = Place::Back;
            self.align(id, orders);
        }
        let Some(task) = self.tasks.get(id.0) else { return };
        let has_begun = matches!(task.place, Place::Front | Place::Back);
        if waits && let Some(key) = self.key(id) {
            self.waiting.insert(key);
        }
        if self.ranks
            && has_begun
            && let Some(task) = self.tasks.get_mut(id.0)
        {
            orders.push(Order::Stand(id, task.stand()));
        }
    }
}

impl Task {
    /// What is to be made true for it now.
    fn stand(&mut self) -> Standing {
        let fair = self.decision.class == Class::Fair;
        let slice_ns = if fair { self.decision.slice_ns } else { UNLIMITED };
        let rank = if fair { Standing::LAST } else { self.rank };
        let core = (std::mem::take(&mut self.unplaced) && self.level == Level::Front).then_some(self.core);
        let begins = std::mem::take(&mut self.begins);
        Standing { level: self.level, rank, fall: self.decision.fall, slice_ns, core, begins }
    }

    /// It has really used so much. True: it hasn't run for most of the time since the last look, so it can't have been able
    /// to.
    fn see(&mut self, now_ns: u64, used_ns: u64) -> bool {
        let ran_ns = used_ns.saturating_sub(self.seen_used_ns);
        let passed_ns = now_ns.saturating_sub(self.seen_ns);
        (self.seen_used_ns, self.seen_ns) = (used_ns, now_ns);
        ran_ns < passed_ns / 8
    }

    /// It has used so much by now.
    fn count(&mut self, now_ns: u64, used_ns: u64) {
        let ran_ns = used_ns.saturating_sub(self.used_ns);
        self.used_ns = used_ns;
        self.counted_ns = now_ns;
        self.rank = Decision { rank: self.rank, ..self.decision }.rank_after(ran_ns);
        if self.slice_left_ns != UNLIMITED {
            self.slice_left_ns = self.slice_left_ns.saturating_sub(ran_ns);
        }
    }
}

#[cfg(test)]
mod tests;
