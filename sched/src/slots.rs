//! Values by slot number: an array that grows to the highest slot in use and allocates nothing after that.

/// A map from small dense numbers.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T>(Vec<Option<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Slots<T> {
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.0.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.0.get_mut(slot as usize)?.as_mut()
    }

    /// Puts a value there, in the place of whatever was there before.
    pub(crate) fn insert(&mut self, slot: u32, value: T) {
        self.reach(slot);
        self.0[slot as usize] = Some(value);
    }

    pub(crate) fn get_or_insert_with(&mut self, slot: u32, make: impl FnOnce() -> T) -> &mut T {
        self.reach(slot);
        self.0[slot as usize].get_or_insert_with(make)
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        self.0.get_mut(slot as usize)?.take()
    }

    fn reach(&mut self, slot: u32) {
        if self.0.len() <= slot as usize {
            self.0.resize_with(slot as usize + 1, || None);
        }
    }
}
