//! The free blocks of one size: a set of numbers whose lowest is taken first.
//!
//! Mostly there are none or a few, and every allocation in an idle segment walks through all sizes, so the
//! few live in a sorted vector that keeps its memory (highest first, so that the lowest is popped off
//! the end). When they become many they move to a tree, so that no pattern of sizes makes a step slow.
//!
//! A new segment has one free block of most sizes, and many never have more: one needs no memory of its own. (A new
//! process that makes its allocator would take a page fault for most pieces of memory otherwise.)

use std::collections::BTreeSet;

/// More than this, and they move to the tree.
const FEW_MAX: usize = 128;
/// Fewer than this, and they move back.
const MANY_MIN: usize = 16;

#[derive(Debug)]
pub(super) enum FreeList {
    One(Option<u32>),
    /// Sorted, highest first.
    Few(Vec<u32>),
    Many(BTreeSet<u32>),
}

impl FreeList {
    pub(super) const fn new() -> Self {
        Self::One(None)
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::One(one) => one.is_none(),
            Self::Few(list) => list.is_empty(),
            Self::Many(tree) => tree.is_empty(),
        }
    }

    pub(super) fn insert(&mut self, unit: u32) {
        match self {
            Self::One(one @ None) => *one = Some(unit),
            Self::One(Some(other)) => *self = Self::Few(vec![unit.max(*other), unit.min(*other)]),
            Self::Few(list) => {
                let at = list.partition_point(|other| *other > unit);
                list.insert(at, unit);
                if list.len() > FEW_MAX {
                    *self = Self::Many(list.iter().copied().collect());
                }
            }
            Self::Many(tree) => {
                tree.insert(unit);
            }
        }
    }

    /// Removes `unit`; false when it isn't there.
    pub(super) fn remove(&mut self, unit: u32) -> bool {
        match self {
            Self::One(one) => one.take_if(|one| *one == unit).is_some(),
            Self::Few(list) => {
                let at = list.partition_point(|other| *other > unit);
                let found = list.get(at) == Some(&unit);
                if found {
                    list.remove(at);
                }
                found
            }
            Self::Many(tree) => {
                let found = tree.remove(&unit);
                self.settle();
                found
            }
        }
    }

    pub(super) fn pop_lowest(&mut self) -> Option<u32> {
        match self {
            Self::One(one) => one.take(),
            Self::Few(list) => list.pop(),
            Self::Many(tree) => {
                let unit = tree.pop_first();
                self.settle();
                unit
            }
        }
    }

    fn settle(&mut self) {
        if let Self::Many(tree) = self
            && tree.len() < MANY_MIN
        {
            *self = Self::Few(tree.iter().rev().copied().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in vec((0u32..400, 0u8..8), 0..1500)) {
            let (mut list, mut model) = (FreeList::new(), BTreeSet::new());
            for (unit, step) in steps {
                match step {
                    0..5 if !model.contains(&unit) => {
                        list.insert(unit);
                        model.insert(unit);
                    }
                    5 => prop_assert_eq!(list.pop_lowest(), model.pop_first()),
                    _ => prop_assert_eq!(list.remove(unit), model.remove(&unit)),
                }
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
        }
    }
}
