//! A chain's bucket: values that its functions have emitted and that wait for others, until a trigger takes them.
//!
//! Triggers on data instead of on calls are Pheromone's idea (Yu et al., NSDI '23, section 3.2: its primitives `Immediate`,
//! `ByBatchSize`, `BySet` and `ByTime` are `every`, `count`, `set` and `window` here). The bucket decides, nothing else:
//! values in, what is to be started out.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::plan::On;

/// Values of one name that wait for one trigger at most; more are dropped, and counted.
const VALUES_MAX: usize = super::spec::COUNT_MAX;

/// What the triggers of one chain have gathered. `V` is a value with whatever keeps it.
#[derive(Debug)]
pub struct Bucket<V = super::trigger::Emitted> {
    /// By trigger, as in the plan.
    waiting: Vec<Gathered<V>>,
    count: usize,
}

#[derive(Debug)]
struct Gathered<V> {
    by_name: HashMap<String, VecDeque<V>>,
    /// When the window that is open now closes.
    closes: Option<Instant>,
}

/// A trigger that fires.
#[derive(Debug, PartialEq, Eq)]
pub struct Fired<V> {
    /// Which, as in the plan.
    pub trigger: usize,
    /// What it is given, with names, in order.
    pub values: Vec<(String, V)>,
}

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Added<V> {
    /// These start now.
    pub fired: Vec<Fired<V>>,
    /// These close a window later: look again then ([`Bucket::close`]).
    pub windows: Vec<(usize, Instant)>,
    /// No trigger wanted it, or the bucket was full.
    pub dropped: bool,
}

impl<V: Clone> Bucket<V> {
    /// An empty bucket for so many triggers.
    pub fn new(triggers: usize) -> Self {
        let empty = || Gathered { by_name: HashMap::new(), closes: None };
        Self { waiting: std::iter::repeat_with(empty).take(triggers).collect(), count: 0 }
    }

    /// Values that wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A value was emitted under `name`.
    pub fn add<'a>(
        &mut self,
        triggers: impl Iterator<Item = &'a On>,
        name: &str,
        value: &V,
        now: Instant,
    ) -> Added<V> {
        let mut added = Added { fired: Vec::new(), windows: Vec::new(), dropped: true };
        for (index, on) in triggers.enumerate() {
            if !wants(on, name) {
                continue;
            }
            if let On::Every(_) = on {
                added.dropped = false;
                added.fired.push(Fired { trigger: index, values: vec![(name.to_owned(), value.clone())] });
                continue;
            }
            let gathered = &mut self.waiting[index];
            let waiting = gathered.by_name.entry(name.to_owned()).or_default();
            if waiting.len() >= VALUES_MAX {
                continue;
            }
            added.dropped = false;
            waiting.push_back(value.clone());
            self.count += 1;
            if let On::Window { span, .. } = on
                && gathered.closes.is_none()
            {
                let closes = now + *span;
                gathered.closes = Some(closes);
                added.windows.push((index, closes));
            }
            if let Some(values) = self.complete(index, on) {
                added.fired.push(Fired { trigger: index, values });
            }
        }
        added
    }

    /// Changes every value that waits; those of which `change` says false go. Returns how many went.
    pub fn retain(&mut self, mut change: impl FnMut(&mut V) -> bool) -> usize {
        let before = self.count;
        for waiting in self.waiting.iter_mut().flat_map(|gathered| gathered.by_name.values_mut()) {
            let len = waiting.len();
            waiting.retain_mut(&mut change);
            self.count -= len - waiting.len();
        }
        before - self.count
    }

    /// A window's time is over: what it has gathered.
    pub fn close(&mut self, trigger: usize) -> Option<Fired<V>> {
        let gathered = &mut self.waiting[trigger];
        gathered.closes.take()?;
        let mut values = Vec::new();
        for (name, waiting) in gathered.by_name.drain() {
            values.extend(waiting.into_iter().map(|value| (name.clone(), value)));
        }
        self.count -= values.len();
        (!values.is_empty()).then_some(Fired { trigger, values })
    }

    /// What a trigger has been waiting for, if all of it is there.
    fn complete(&mut self, index: usize, on: &On) -> Option<Vec<(String, V)>> {
        let by_name = &mut self.waiting[index].by_name;
        let values: Vec<(String, V)> = match on {
            On::Count { name, count } if by_name.get(name)?.len() >= *count => {
                let waiting = by_name.get_mut(name)?;
                waiting.drain(..*count).map(|value| (name.clone(), value)).collect()
            }
            On::Set(names)
                if names.iter().all(|name| by_name.get(name).is_some_and(|waiting| !waiting.is_empty())) =>
            {
                let first = |name: &String| Some((name.clone(), by_name.get_mut(name)?.pop_front()?));
                names.iter().filter_map(first).collect()
            }
            _ => return None,
        };
        self.count -= values.len();
        Some(values)
    }
}

fn wants(on: &On, emitted: &str) -> bool {
    match on {
        On::Every(name) | On::Count { name, .. } | On::Window { name, .. } => name == emitted,
        On::Set(names) => names.iter().any(|name| name == emitted),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn add(bucket: &mut Bucket<u32>, on: &[On], name: &str, value: u32) -> Added<u32> {
        bucket.add(on.iter(), name, &value, Instant::now())
    }

    fn fired(trigger: usize, values: &[(&str, u32)]) -> Vec<Fired<u32>> {
        vec![Fired {
            trigger,
            values: values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        }]
    }

    #[test]
    fn every_value_starts_one() {
        let (on, mut bucket) = ([On::Every("a".into())], Bucket::new(1));
        assert_eq!(add(&mut bucket, &on, "a", 1).fired, fired(0, &[("a", 1)]));
        assert!(add(&mut bucket, &on, "b", 2).dropped && bucket.is_empty());
    }

    #[test]
    fn a_count_starts_one_for_so_many() {
        let (on, mut bucket) = ([On::Count { name: "a".into(), count: 2 }], Bucket::new(1));
        assert_eq!(add(&mut bucket, &on, "a", 1).fired, []);
        assert_eq!(add(&mut bucket, &on, "a", 2).fired, fired(0, &[("a", 1), ("a", 2)]));
        assert_eq!(add(&mut bucket, &on, "a", 3).fired, []);
        assert_eq!(bucket.len(), 1);
    }

    #[test]
    fn a_set_takes_the_oldest_of_each() {
        let (on, mut bucket) = ([On::Set(vec!["a".into(), "b".into()])], Bucket::new(1));
        assert_eq!(add(&mut bucket, &on, "b", 1).fired, []);
        assert_eq!(add(&mut bucket, &on, "b", 2).fired, []);
        assert_eq!(add(&mut bucket, &on, "a", 3).fired, fired(0, &[("a", 3), ("b", 1)]));
        assert_eq!(add(&mut bucket, &on, "a", 4).fired, fired(0, &[("a", 4), ("b", 2)]));
        assert!(bucket.is_empty());
    }

    #[test]
    fn a_window_opens_with_its_first_value_and_closes_once() {
        let on = [On::Window { name: "a".into(), span: Duration::from_millis(10) }];
        let mut bucket = Bucket::new(1);
        assert_eq!(add(&mut bucket, &on, "a", 1).windows.len(), 1);
        assert_eq!(add(&mut bucket, &on, "a", 2).windows, []);
        assert_eq!(bucket.close(0), fired(0, &[("a", 1), ("a", 2)]).pop());
        assert_eq!(bucket.close(0), None);
        assert_eq!(add(&mut bucket, &on, "a", 3).windows.len(), 1, "the next one");
    }

    #[test]
    fn values_can_be_changed_and_taken_out_while_they_wait() {
        let (on, mut bucket) = ([On::Set(vec!["a".into(), "b".into()])], Bucket::new(1));
        for value in 0..4 {
            add(&mut bucket, &on, "a", value);
        }
        let even = |value: &mut u32| {
            *value += 10;
            value.is_multiple_of(4)
        };
        assert_eq!((bucket.retain(even), bucket.len()), (3, 1));
        assert_eq!(add(&mut bucket, &on, "b", 7).fired, fired(0, &[("a", 12), ("b", 7)]));
        assert!(bucket.is_empty());
    }

    #[test]
    fn a_full_bucket_drops_and_says_so() {
        let (on, mut bucket) = ([On::Set(vec!["a".into(), "b".into()])], Bucket::new(1));
        for value in 0..VALUES_MAX {
            assert!(!add(&mut bucket, &on, "a", value as u32).dropped);
        }
        assert!(add(&mut bucket, &on, "a", 0).dropped);
        assert_eq!(bucket.len(), VALUES_MAX);
        assert_eq!(add(&mut bucket, &on, "b", 7).fired, fired(0, &[("a", 0), ("b", 7)]), "not stuck");
    }
}
