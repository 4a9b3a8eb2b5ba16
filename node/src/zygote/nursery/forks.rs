//! The forks that zygotes have been asked for and haven't answered.
//!
//! What one makes is nobody's until it has been answered: a dead child may be about to be adopted, a live one may have been born in
//! the group of an instance that has died since. So what is found while forks are under way is left alone until those have
//! ended, a group only for those of its own function. What begins later can't have made it. Whoever waited for that too would
//! wait for ever: a hostile zygote answers late, again and again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cgroup::FunctionGroup;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Forks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: u64,
    /// Those under way, and whose they are.
    under_way: BTreeMap<u64, Arc<FunctionGroup>>,
}

/// A point in the order in which forks begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Forks {
    /// One begins; its number is for [`Self::end`].
    pub(super) fn begin(&self, of: &Arc<FunctionGroup>) -> u64 {
        let mut state = self.0.lock();
        let number = state.begun;
        state.begun += 1;
        state.under_way.insert(number, Arc::clone(of));
        number
    }

    pub(super) fn end(&self, number: u64) {
        self.0.lock().under_way.remove(&number);
    }

    /// What has begun so far is before it.
    pub(super) fn now(&self) -> Moment {
        Moment(self.0.lock().begun)
    }

    /// Whether one that began before is still under way, of those whose function `matters`.
    pub(super) fn lasts(&self, before: Moment, matters: impl Fn(&Arc<FunctionGroup>) -> bool) -> bool {
        self.0.lock().under_way.range(..before.0).any(|(_, of)| matters(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Tree;

    #[test]
    fn what_was_there_waits_for_the_forks_that_were_and_for_no_later_one() {
        let tree = Tree::none();
        let [ours, others] = ["ours", "others"].map(|name| tree.function(name).expect("a group"));
        let is_ours = |of: &Arc<FunctionGroup>| Arc::ptr_eq(of, &ours);
        let forks = Forks::default();
        assert!(!forks.lasts(forks.now(), |_| true));
        let [first, foreign] = [&ours, &others].map(|of| forks.begin(of));
        let found = forks.now();
        let later = forks.begin(&ours);
        assert!(forks.lasts(found, is_ours));
        forks.end(first);
        assert!(!forks.lasts(found, is_ours), "the later one is under way");
        assert!(forks.lasts(found, |_| true), "another function's");
        assert!(forks.lasts(forks.now(), is_ours));
        forks.end(foreign);
        assert!(!forks.lasts(found, |_| true));
        forks.end(later);
        assert!(!forks.lasts(forks.now(), |_| true));
    }
}
