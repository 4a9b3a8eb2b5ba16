//! Which call runs next: fair over functions, bounded for each, in the order of arrival within one. No clock, no disk:
//! instants come in, calls come out.
//!
//! Every function has a *lane*. Lanes that have something to run and room to run it stand in a ring and are served in
//! turn, so a function with ten thousand calls waiting gets no more turns than one with two, and a slow one holds its own
//! lane up and no other. A lane at its limit leaves the ring and comes back when one of its calls ends.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::call::Call;
use crate::gateway::call_id::CallId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: HashMap<Arc<str>, Lane>,
    ring: VecDeque<Arc<str>>,
    delayed: BTreeMap<(Instant, u64), Call>,
    places: HashMap<CallId, Place>,
    in_flight: usize,
}

#[derive(Debug, Default)]
struct Lane {
    ready: BTreeMap<u64, Call>,
    in_flight: usize,
    in_ring: bool,
}

/// Where a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In its function's lane, under this number.
    Ready(Arc<str>, u64),
    /// Waiting for its time, under this number.
    Delayed(Instant, u64),
    /// Running.
    Running(Arc<str>),
}

impl Queue {
    /// Takes a call in; it runs when it is due and its turn comes.
    pub(super) fn insert(&mut self, call: Call, now: Instant) {
        if call.due > now {
            self.places.insert(call.id, Place::Delayed(call.due, call.seq));
            self.delayed.insert((call.due, call.seq), call);
            return;
        }
        let name = Arc::clone(&call.function);
        self.places.insert(call.id, Place::Ready(Arc::clone(&name), call.seq));
        self.lanes.entry(Arc::clone(&name)).or_default().ready.insert(call.seq, call);
        self.enter_ring(name);
    }

    fn enter_ring(&mut self, name: Arc<str>) {
        let Some(lane) = self.lanes.get_mut(&name) else { return };
        if lane.ready.is_empty() && lane.in_flight == 0 {
            self.lanes.remove(&name);
        } else if !lane.in_ring && !lane.ready.is_empty() {
            lane.in_ring = true;
            self.ring.push_back(name);
        }
    }

    /// The next call to run, if one is due and there is room: at most `most` run in all, and of a function at most what
    /// `limit_of` says.
    pub(super) fn next(
        &mut self,
        now: Instant,
        most: usize,
        limit_of: &dyn Fn(&str) -> usize,
    ) -> Option<Call> {
        self.wake(now);
        while self.in_flight < most {
            let name = self.ring.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            lane.in_ring = false;
            if lane.in_flight >= limit_of(&name).max(1) {
                continue; // back in the ring when one of them ends
            }
            let Some((_, call)) = lane.ready.pop_first() else {
                self.enter_ring(name);
                continue;
            };
            lane.in_flight += 1;
            self.in_flight += 1;
            self.places.insert(call.id, Place::Running(Arc::clone(&name)));
            self.enter_ring(name);
            return Some(call);
        }
        None
    }

    fn wake(&mut self, now: Instant) {
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                return;
            }
            let call = first.remove();
            self.insert(call, now);
        }
    }

    /// When the next delayed call is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// A call that was running isn't any more. False: it wasn't running.
    pub(super) fn ended(&mut self, id: CallId) -> bool {
        let Some(Place::Running(name)) = self.places.get(&id).cloned() else { return false };
        self.places.remove(&id);
        self.in_flight -= 1;
        if let Some(lane) = self.lanes.get_mut(&name) {
            lane.in_flight -= 1;
        }
        self.enter_ring(name);
        true
    }

    /// Takes a call that isn't running out.
    pub(super) fn withdraw(&mut self, id: CallId) -> Option<Call> {
        match self.places.get(&id)? {
            Place::Running(_) => None,
            Place::Delayed(due, seq) => {
                let call = self.delayed.remove(&(*due, *seq));
                self.places.remove(&id);
                call
            }
            Place::Ready(name, seq) => {
                let (name, seq) = (Arc::clone(name), *seq);
                self.places.remove(&id);
                let call = self.lanes.get_mut(&name)?.ready.remove(&seq);
                let lane = self.lanes.get(&name)?;
                if lane.ready.is_empty() && lane.in_flight == 0 && !lane.in_ring {
                    self.lanes.remove(&name);
                }
                call
            }
        }
    }

    /// A call that isn't running.
    pub(super) fn waiting_call(&self, id: CallId) -> Option<&Call> {
        match self.places.get(&id)? {
            Place::Ready(name, seq) => self.lanes.get(name)?.ready.get(seq),
            Place::Delayed(due, seq) => self.delayed.get(&(*due, *seq)),
            Place::Running(_) => None,
        }
    }

    /// Where a call is.
    pub(super) fn place(&self, id: CallId) -> Option<&Place> {
        self.places.get(&id)
    }

    /// How many are running.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many wait: for their turn, and for their time.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.places.len() - self.in_flight - self.delayed.len(), self.delayed.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::calls::call::Head;
    use proptest::prelude::*;

    fn call(n: u64, function: &str, due: Instant) -> Call {
        Call {
            id: CallId::new(0, n),
            seq: n,
            function: function.into(),
            head: Arc::new(Head {
                method: http::Method::POST,
                rest: String::new(),
                headers: Default::default(),
            }),
            body: None,
            body_len: 0,
            callback: None,
            accepted_unix_ms: 0,
            ripe_at: due,
            due,
            failures: 0,
            refusals: 0,
        }
    }

    #[test]
    fn functions_take_turns_and_a_full_lane_holds_up_no_other() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for n in 0..10 {
            queue.insert(call(n, "slow", now), now);
        }
        queue.insert(call(10, "quick", now), now);
        queue.insert(call(11, "quick", now), now);
        let started = |queue: &mut Queue| queue.next(now, 100, &|_| 2).map(|call| call.seq);
        let order: Vec<_> = std::iter::from_fn(|| started(&mut queue)).collect();
        assert_eq!(order, [0, 10, 1, 11]);
        assert!(queue.ended(CallId::new(0, 1)));
        assert_eq!(queue.next(now, 100, &|_| 2).map(|call| call.seq), Some(2));
        assert!(queue.next(now, 100, &|_| 2).is_none());
    }

    #[test]
    fn the_delayed_run_when_they_are_due_and_not_before() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(5);
        queue.insert(call(1, "f", later), now);
        assert!(queue.next(now, 9, &|_| 9).is_none());
        assert_eq!(queue.next_due(), Some(later));
        assert_eq!(queue.next(later, 9, &|_| 9).map(|call| call.seq), Some(1));
        assert_eq!(queue.next_due(), None);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Insert(u8, u8),
        Next,
        End(u8),
        Withdraw(u8),
        Pass(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0u8..4, 0u8..20).prop_map(|(function, delay)| Act::Insert(function, delay)),
            Just(Act::Next),
            any::<u8>().prop_map(Act::End),
            any::<u8>().prop_map(Act::Withdraw),
            (0u8..10).prop_map(Act::Pass),
        ]
    }

    proptest! {
        /// Against a list: nothing is lost, nothing runs twice, early, over a limit, or after it was withdrawn; and
        /// whatever could run does.
        #[test]
        fn it_agrees_with_a_list(acts in proptest::collection::vec(act(), 1..200)) {
            const LIMIT: usize = 2;
            let start = Instant::now();
            let (mut queue, mut now, mut next_seq) = (Queue::default(), start, 0u64);
            let mut waiting: Vec<Call> = Vec::new();
            let mut running: Vec<Call> = Vec::new();
            for act in acts {
                match act {
                    Act::Insert(function, delay) => {
                        let due = now + Duration::from_secs(delay.saturating_sub(10).into());
                        let call = call(next_seq, &function.to_string(), due);
                        next_seq += 1;
                        waiting.push(call.clone());
                        queue.insert(call, now);
                    }
                    Act::Next => {
                        let of = |name: &str, running: &[Call]| running.iter().filter(|call| &*call.function == name).count();
                        let could = running.len() < 5 && waiting.iter().any(|call| {
                            call.due <= now && of(&call.function, &running) < LIMIT
                        });
                        let next = queue.next(now, 5, &|_| LIMIT);
                        prop_assert_eq!(next.is_some(), could);
                        if let Some(call) = next {
                            prop_assert!(call.due <= now);
                            let at = waiting.iter().position(|known| known.id == call.id);
                            prop_assert!(at.is_some(), "it ran twice, or after its withdrawal");
                            // The oldest of its function that is due.
                            let first = waiting.iter().filter(|known| known.function == call.function && known.due <= now).map(|known| known.seq).min();
                            prop_assert_eq!(first, Some(call.seq));
                            running.push(waiting.remove(at.unwrap()));
                            prop_assert!(of(&call.function, &running) <= LIMIT);
                        }
                    }
                    Act::End(which) if !running.is_empty() => {
                        let call = running.remove(usize::from(which) % running.len());
                        prop_assert!(queue.ended(call.id));
                        prop_assert!(!queue.ended(call.id));
                    }
                    Act::Withdraw(which) if !waiting.is_empty() => {
                        let call = waiting.remove(usize::from(which) % waiting.len());
                        prop_assert_eq!(queue.withdraw(call.id).map(|call| call.seq), Some(call.seq));
                        prop_assert!(queue.withdraw(call.id).is_none());
                    }
                    Act::Pass(seconds) => now += Duration::from_secs(seconds.into()),
                    Act::End(_) | Act::Withdraw(_) => {}
                }
                let (ready, delayed) = queue.waiting();
                prop_assert_eq!((ready + delayed, queue.in_flight()), (waiting.len(), running.len()));
            }
        }
    }
}
