//! Who made a process or a thread without serving requests: the zygote does, and what functions start; a new instance must not, or
//! something that shares its memory could be there from one request to the next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Processes that are remembered: those of births that are under way are far fewer.
const MAX: usize = 4096;

/// More than the timeouts of a birth allow it to take: what was before is of none that is under way.
const BIRTH_MAX: Duration = Duration::from_secs(60);

/// When each of them did so last.
#[derive(Debug, Default)]
pub(super) struct Parents(Mutex<HashMap<i32, Instant>>);

impl Parents {
    pub(super) fn note(&self, pid: i32, now: Instant) {
        let mut parents = self.0.lock();
        if parents.len() >= MAX {
            parents.retain(|_, at| now.saturating_duration_since(*at) < BIRTH_MAX);
        }
        if parents.len() < MAX {
            parents.insert(pid, now);
        }
    }

    /// Whether this process, which was asked for then, is one, for all that is known: if there were too many, it is.
    pub(super) fn has(&self, pid: i32, asked_for: Instant) -> bool {
        let parents = self.0.lock();
        parents.len() >= MAX || parents.get(&pid).is_some_and(|at| *at >= asked_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_made_one_since_it_was_asked_for_is_a_parent() {
        let (parents, start) = (Parents::default(), Instant::now());
        let later = start + Duration::from_secs(1);
        parents.note(7, start);
        assert!(parents.has(7, start));
        assert!(!parents.has(7, later), "another process had that number");
        assert!(!parents.has(8, start));
        parents.note(7, later);
        assert!(parents.has(7, later));
    }

    #[test]
    fn too_many_are_forgotten_when_their_time_is_over_and_until_then_everybody_is_one() {
        let (parents, start) = (Parents::default(), Instant::now());
        (0..MAX as i32).for_each(|pid| parents.note(pid, start));
        parents.note(-1, start + BIRTH_MAX / 2);
        assert!(parents.has(-1, start) && parents.has(-2, start), "it can't be told");
        let later = start + BIRTH_MAX;
        parents.note(-1, later);
        assert!(parents.has(-1, later) && !parents.has(-2, later) && !parents.has(1, start));
    }
}
