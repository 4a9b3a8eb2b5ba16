//! Sizes that a prediction can't tell apart, made equal, so that of those who wait the first to come is the first to go.
//!
//! Of ten functions that all take half a second, one is always thought to take a hair longer. By rank alone its invocations
//! come after those of all the others, for as long as others keep coming: on a real node one function of eight waited for
//! 3.2 s where the rest took 0.8 s, and all that it gained anybody was that hair. So whoever arrives takes the rank of those
//! who are there already, if it is within [`PART`] of his own. (Borders at fixed sizes would only move the harm to the functions on
//! both sides of one.)

use crate::TaskId;
use crate::slots::Slots;

/// Sketches are right within 1/32, and CPU times differ by more than that from run to run.
const PART: u64 = 8;

#[derive(Clone, Copy, Debug)]
struct Class {
    rank: u64,
    members: u32,
}

/// The ranks at which tasks arrived that haven't ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Alike {
    classes: Vec<Class>,
    /// Each open slot's rank on arrival.
    ranks: Slots<u64>,
}

impl Alike {
    /// A task arrives; the rank that it is to have.
    pub(super) fn join(&mut self, task: TaskId, rank: u64) -> u64 {
        self.leave(task);
        let near = self.classes.iter_mut().filter(|class| class.rank.abs_diff(rank) <= class.rank / PART);
        let rank = match near.min_by_key(|class| class.rank.abs_diff(rank)) {
            Some(class) => {
                class.members += 1;
                class.rank
            }
            None => {
                self.classes.push(Class { rank, members: 1 });
                rank
            }
        };
        self.ranks.insert(task.0, rank);
        rank
    }

    /// It has ended.
    pub(super) fn leave(&mut self, task: TaskId) {
        let Some(rank) = self.ranks.remove(task.0) else { return };
        let Some(place) = self.classes.iter().position(|class| class.rank == rank) else { return };
        self.classes[place].members -= 1;
        if self.classes[place].members == 0 {
            self.classes.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_like_somebody_there_takes_his_rank_and_who_isnt_keeps_his_own() {
        let mut alike = Alike::default();
        assert_eq!(alike.join(TaskId(0), 500), 500);
        assert_eq!(alike.join(TaskId(1), 531), 500);
        assert_eq!(alike.join(TaskId(2), 440), 500);
        assert_eq!(alike.join(TaskId(3), 600), 600);
        assert_eq!(alike.join(TaskId(4), 5), 5);
        // Of two, the nearer one.
        assert_eq!(alike.join(TaskId(5), 560), 600);
        assert_eq!(alike.join(TaskId(6), 0), 0);
    }

    #[test]
    fn with_its_last_member_a_rank_is_gone() {
        let mut alike = Alike::default();
        alike.join(TaskId(0), 500);
        alike.join(TaskId(1), 510);
        alike.leave(TaskId(0));
        assert_eq!(alike.join(TaskId(2), 520), 500);
        // A slot that is opened anew was closed before.
        assert_eq!(alike.join(TaskId(1), 7), 7);
        alike.leave(TaskId(2));
        alike.leave(TaskId(2));
        assert_eq!(alike.join(TaskId(3), 520), 520);
        alike.leave(TaskId(3));
        alike.leave(TaskId(1));
        assert!(alike.classes.is_empty());
    }
}
