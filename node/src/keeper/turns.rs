//! Who changes what a name stands for waits for whoever does so already.
//!
//! A version is committed and then published, a name is taken off and then deleted from the store, and between the two steps time
//! passes: as long as a call of the old version runs, when that goes for good. Two changes of one name that mingled there would
//! leave the older version serving, or delete what the other one has just stored. Names don't wait for each other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

/// A turn for every name that is being changed.
#[derive(Default)]
pub(super) struct Turns(RefCell<HashMap<String, Weak<Mutex<()>>>>);

impl Turns {
    /// The turn of this name: locked by who changes it, in the order in which they came.
    pub(super) fn of(&self, name: &str) -> Arc<Mutex<()>> {
        let mut turns = self.0.borrow_mut();
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_a_name_and_none_is_kept_that_nobody_has() {
        let turns = Turns::default();
        let (first, second, other) = (turns.of("f"), turns.of("f"), turns.of("g"));
        let held = first.try_lock().expect("nobody has it");
        assert!(second.try_lock().is_err(), "the same name");
        assert!(other.try_lock().is_ok(), "another name");
        drop(held);
        drop(first);
        let held = second.try_lock().expect("it is free again");
        assert!(turns.of("f").try_lock().is_err(), "whoever asks later waits for the same");
        drop(held);
        drop((second, other));
        drop(turns.of("h"));
        assert_eq!(turns.0.borrow().len(), 1, "only the last is there, until somebody asks for another");
    }
}
