//! Whether so much is under way in a chain that its functions had better not interrupt one another.
//!
//! A function that is woken interrupts whoever runs on its core, as the kernel has it. With a single run under way that is
//! right: the one that woke it has nothing more to do. With many, the one that woke it has further messages waiting, and a
//! process that is not interrupted serves them one after the other without a switch. But one that never interrupts waits for
//! a whole slice of whoever else computes on its core: so only while there are many, whose time that hardly adds to.
//!
//! The decision follows an exponentially weighted mean of how many are under way when one ends.

/// A crowd from this mean on, for each core.
pub const MANY_PER_CORE: u32 = 3;
/// No crowd any more below this mean, for each core, times two.
pub const FEW_PER_CORE_TWICE: u32 = 3;
/// One observation weighs 1/32.
const WEIGHT_SHIFT: u32 = 5;
/// The mean is kept in this fraction of one.
const UNIT: u32 = 1 << 8;

/// What is known of one chain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crowd {
    mean: u32,
    is_crowd: bool,
}

impl Crowd {
    /// One has ended, of so many that were under way; returns whether there is a crowd when that has changed.
    pub fn observe(&mut self, under_way: u32, cores: u32) -> Option<bool> {
        let now = under_way.min(1 << 16) * UNIT;
        self.mean = self.mean - (self.mean >> WEIGHT_SHIFT) + (now >> WEIGHT_SHIFT);
        let cores = cores.clamp(1, 1 << 10) * UNIT;
        let is_crowd = if self.is_crowd {
            self.mean * 2 >= FEW_PER_CORE_TWICE * cores
        } else {
            self.mean >= MANY_PER_CORE * cores
        };
        let changed = is_crowd != self.is_crowd;
        self.is_crowd = is_crowd;
        changed.then_some(is_crowd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(crowd: &mut Crowd, under_way: u32, times: usize) -> Vec<bool> {
        (0..times).filter_map(|_| crowd.observe(under_way, 2)).collect()
    }

    #[test]
    fn many_are_a_crowd_until_they_are_few() {
        let mut crowd = Crowd::default();
        assert_eq!(changes(&mut crowd, 1, 1000), []);
        assert_eq!(changes(&mut crowd, 16, 100), [true]);
        assert_eq!(changes(&mut crowd, 1, 100), [false]);
    }

    #[test]
    fn between_the_thresholds_nothing_changes() {
        let (mut few, mut many) = (Crowd::default(), Crowd::default());
        assert_eq!(changes(&mut many, 16, 1000), [true]);
        assert_eq!((changes(&mut few, 5, 1000), changes(&mut many, 5, 1000)), (vec![], vec![]));
    }

    #[test]
    fn a_moment_of_many_is_no_crowd() {
        let mut crowd = Crowd::default();
        for _ in 0..100 {
            assert_eq!(changes(&mut crowd, 16, 5), []);
            assert_eq!(changes(&mut crowd, 1, 40), []);
        }
    }

    #[test]
    fn no_number_is_too_large() {
        let mut crowd = Crowd::default();
        assert_eq!((0..1000).filter_map(|_| crowd.observe(u32::MAX, u32::MAX)).collect::<Vec<_>>(), [true]);
    }
}
