//! Who is at the front: as many as there are cores, the first of those who could run.

use super::{Engine, GAIN_NS, Key, Order, Place};
use crate::backend::Level;
use crate::policy::{Class, Decision, Event};
use crate::{FunctionId, TaskId};

impl Engine {
    /// Fills the front, then lets those overtake who come before somebody there.
    pub(super) fn settle(&mut self, now_ns: u64, orders: &mut Vec<Order>) {
        // Those of the fair class aren't held back; what they get is the kernel's to say.
        while let Some(&(fair, _, _, id)) = self.waiting.last()
            && fair
        {
            self.admit(now_ns, id, Place::Back, orders);
        }
        loop {
            self.park(now_ns, orders);
            let Some((rank, id)) = self.best_outside(now_ns) else { return };
            let at_front = self.begun.iter().filter(|begun| self.is_at(**begun, Place::Front)).count();
            if at_front >= self.cores {
                let worst = self.begun.iter().copied().filter(|begun| self.is_at(*begun, Place::Front));
                let worst = worst.map(|begun| (self.rank_now(begun, now_ns), begun)).max();
                let preempts = self.tasks.get(id.0).is_some_and(|task| task.decision.preempt);
                let Some((_, worst)) = worst.filter(|(worst_rank, _)| {
                    preempts && (rank == 0 && *worst_rank > 0 || rank.saturating_add(GAIN_NS) < *worst_rank)
                }) else {
                    return;
                };
                self.move_to(now_ns, worst, Place::Back, orders);
            }
            self.move_to(now_ns, id, Place::Front, orders);
        }
    }

    /// The first, by rank, of those who aren't at the front and could be.
    fn best_outside(&self, now_ns: u64) -> Option<(u64, TaskId)> {
        let back = self.begun.iter().copied().filter(|id| self.is_at(*id, Place::Back)).filter_map(|id| {
            let task = self.tasks.get(id.0)?;
            (task.decision.class == Class::Fifo).then(|| (self.rank_now(id, now_ns), task.turn, id))
        });
        let waiting = self.waiting.first().map(|&(_, rank, turn, id)| (rank, turn, id));
        back.chain(waiting).min().map(|(rank, _, id)| (rank, id))
    }

    /// Whether one more of this function may be admitted without knowing of an instance for it.
    fn has_room(&self, function: FunctionId) -> bool {
        let begun = self.begun.iter().filter_map(|id| self.tasks.get(id.0));
        let stalled = begun.filter(|task| task.place == Place::Stalled && task.function == function);
        stalled.count() < self.cores
    }

    /// The first of those who wait is one whose function has room; who came before him is parked.
    fn park(&mut self, now_ns: u64, orders: &mut Vec<Order>) {
        while let Some(&(.., id)) = self.waiting.first()
            && let Some(function) = self.tasks.get(id.0).map(|task| task.function)
            && !self.has_room(function)
        {
            self.waiting.pop_first();
            self.parked.push(id);
            if let Some(task) = self.tasks.get_mut(id.0) {
                task.place = Place::Parked;
            }
            self.policy.on(now_ns, Event::Block { task: id, used_ns: 0 }, &mut self.decisions);
            self.obey_all(now_ns, orders);
        }
    }

    /// One of a function has gone on: if there is room now, the first of those who are parked waits like others. (One for one:
    /// when he goes on, the next.)
    pub(super) fn unpark(&mut self, now_ns: u64, function: FunctionId, orders: &mut Vec<Order>) {
        if !self.has_room(function) {
            return;
        }
        let is_its = |id: TaskId| self.tasks.get(id.0).is_some_and(|task| task.function == function);
        let its = self.parked.iter().copied().enumerate().filter(|(_, id)| is_its(*id));
        let Some((place, id)) = its.min_by_key(|(_, id)| self.key(*id)) else { return };
        self.parked.swap_remove(place);
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.place = Place::Waiting;
        }
        if let Some(key) = self.key(id) {
            self.waiting.insert(key);
        }
        self.tell(now_ns, Event::Wake { task: id }, orders);
    }

    fn move_to(&mut self, now_ns: u64, id: TaskId, place: Place, orders: &mut Vec<Order>) {
        if place == Place::Front {
            self.give_core(id);
        }
        if self.is_at(id, Place::Waiting) {
            return self.admit(now_ns, id, place, orders);
        }
        if let Some(task) = self.tasks.get_mut(id.0) {
            if task.place == Place::Front {
                let ran_ns = now_ns.saturating_sub(task.counted_ns);
                task.count(now_ns, task.used_ns.saturating_add(ran_ns));
            }
            if place == Place::Front {
                // Until now it was kept from running: that it didn't says nothing.
                task.seen_ns = now_ns;
            }
            task.counted_ns = now_ns;
            task.place = place;
        }
        self.align(id, orders);
    }

    fn admit(&mut self, now_ns: u64, id: TaskId, place: Place, orders: &mut Vec<Order>) {
        if let Some(key) = self.key(id) {
            self.waiting.remove(&key);
        }
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.place = place;
            task.counted_ns = now_ns;
            self.begun.push(id);
            orders.push(Order::Admit(id));
        }
    }

    /// One that nobody at the front has: there is one, since it isn't there yet itself. The one that it had before, if that
    /// is free.
    fn give_core(&mut self, id: TaskId) {
        let taken = |core: u16| {
            let others = self.begun.iter().filter_map(|begun| self.tasks.get(begun.0));
            others.into_iter().any(|task| task.place == Place::Front && task.core == core)
        };
        let before = self.tasks.get(id.0).map_or(0, |task| task.core);
        let core = std::iter::once(before).chain(0..).find(|core| !taken(*core)).unwrap_or(before);
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.core = core;
            task.unplaced = self.ranks;
        }
    }

    /// Tells the kernel, if it doesn't know. True: something was to be told.
    pub(super) fn align(&mut self, id: TaskId, orders: &mut Vec<Order>) -> bool {
        let Some(task) = self.tasks.get_mut(id.0) else { return false };
        let level = match task.place {
            Place::Front => Level::Front,
            Place::Back => Level::Back,
            Place::Waiting | Place::Parked | Place::Stalled | Place::Blocked { .. } => return false,
        };
        let news = task.level != level || task.unplaced && level == Level::Front;
        if news {
            task.level = level;
            orders.push(Order::Stand(id, task.stand()));
        }
        news
    }

    fn rank_now(&self, id: TaskId, now_ns: u64) -> u64 {
        let Some(task) = self.tasks.get(id.0) else { return u64::MAX };
        if task.decision.class == Class::Fair {
            return u64::MAX;
        }
        match task.place {
            Place::Front => {
                let now = Decision { rank: task.rank, ..task.decision };
                now.rank_after(now_ns.saturating_sub(task.counted_ns))
            }
            _ => task.rank,
        }
    }

    pub(super) fn is_at(&self, id: TaskId, place: Place) -> bool {
        self.tasks.get(id.0).is_some_and(|task| task.place == place)
    }

    pub(super) fn key(&self, id: TaskId) -> Option<Key> {
        let task = self.tasks.get(id.0)?;
        Some((task.decision.class == Class::Fair, task.rank, task.turn, id))
    }
}
