//! What the hub knows about each segment, by name: a slot map whose slots count their incarnations.

use super::SegmentName;

/// Why a name leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There never was such a slot.
    #[error("segment {} is unknown", .0.id)]
    Unknown(SegmentName),
    /// The slot belongs to a later segment by now, or to none.
    #[error("segment {} has left its generation {}", .0.id, .0.generation)]
    Stale(SegmentName),
}

/// Values by segment name. A freed slot is used again with the next generation, so an old name never finds the
/// new value; a slot that has run through all its generations is left unused.
#[derive(Debug)]
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    /// Adds a value and names it.
    ///
    /// # Panics
    /// At 2^32 values at once; fds run out long before.
    pub fn insert(&mut self, value: T) -> SegmentName {
        if let Some(id) = self.free.pop() {
            let slot = &mut self.slots[id as usize];
            slot.value = Some(value);
            return SegmentName { id, generation: slot.generation };
        }
        let id = u32::try_from(self.slots.len()).expect("fewer than 2^32 segments");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        SegmentName { id, generation: 0 }
    }

    /// Finds a value by its name, which may come from anybody.
    pub fn get(&self, name: SegmentName) -> Result<&T, NameError> {
        let slot = self.slots.get(name.id as usize).ok_or(NameError::Unknown(name))?;
        match &slot.value {
            Some(value) if slot.generation == name.generation => Ok(value),
            _ if name.generation > slot.generation => Err(NameError::Unknown(name)),
            _ => Err(NameError::Stale(name)),
        }
    }

    /// Takes a value out; its name never finds anything again.
    pub fn remove(&mut self, name: SegmentName) -> Option<T> {
        let slot = self.slots.get_mut(name.id as usize).filter(|slot| slot.generation == name.generation)?;
        let value = slot.value.take()?;
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(name.id);
        }
        Some(value)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.value.is_some()).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_does_not_answer_for_the_old_segment() {
        let mut table = Table::default();
        let old = table.insert("old");
        assert_eq!(table.remove(old), Some("old"));
        let new = table.insert("new");
        assert_eq!(new.id, old.id);
        assert_eq!(table.get(new), Ok(&"new"));
        assert_eq!(table.get(old), Err(NameError::Stale(old)));
        assert_eq!(table.remove(old), None);
        let next = SegmentName { generation: new.generation + 1, ..new };
        assert_eq!(table.get(next), Err(NameError::Unknown(next)));
        let beyond = SegmentName { id: 77, generation: 0 };
        assert_eq!(table.get(beyond), Err(NameError::Unknown(beyond)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_slot_without_generations_left_is_not_used_again() {
        let mut table =
            Table { slots: vec![Slot { generation: u32::MAX, value: Some(1) }], free: Vec::new() };
        let last = SegmentName { id: 0, generation: u32::MAX };
        assert_eq!(table.remove(last), Some(1));
        assert_eq!(table.insert(2).id, 1);
        assert_eq!(table.get(last), Err(NameError::Stale(last)));
    }
}
