//! What the layers that were made tell of others: of those that import the same, and of all on their ground.

use std::collections::HashMap;

use super::{Contents, Measured, User, estimated_bytes, fits};

/// See the module.
pub(super) struct Learnt<'a> {
    /// By ground and modules.
    same: HashMap<(u32, &'a [u32]), Measured>,
    /// By ground.
    heavier: HashMap<u32, f64>,
    /// How long a zygote takes to begin from the quickest.
    pub(super) restore_ns: u64,
}

impl<'a> Learnt<'a> {
    pub(super) fn of(sets: &'a [(&Vec<User<'_>>, Option<Measured>, Contents)]) -> Self {
        let mut same: HashMap<_, Measured> = HashMap::new();
        let mut held: HashMap<u32, (u64, u64)> = HashMap::new();
        for (users, measured, contents) in sets {
            let Some(measured) = measured else { continue };
            let one = same.entry((contents.ground, &contents.modules[..])).or_insert(*measured);
            one.start_ns = one.start_ns.min(measured.start_ns);
            one.restore_ns = quicker(one.restore_ns, measured.restore_ns);
            one.bytes = one.bytes.max(measured.bytes);
            let (bytes, estimated) = held.entry(contents.ground).or_default();
            *bytes = bytes.saturating_add(measured.bytes);
            let fitting = users.iter().map(|user| user.wanted).filter(|user| fits(contents, user));
            *estimated = estimated.saturating_add(estimated_bytes(contents, fitting));
        }
        let restore_ns = same.values().map(|measured| measured.restore_ns).fold(0, quicker);
        same.values_mut()
            .filter(|measured| measured.restore_ns == 0)
            .for_each(|measured| measured.restore_ns = restore_ns);
        let heavier = held.into_iter().filter(|(_, (_, estimated))| *estimated > 0);
        let heavier =
            heavier.map(|(ground, (bytes, estimated))| (ground, bytes as f64 / estimated as f64)).collect();
        Self { same, heavier, restore_ns }
    }

    /// What is known of these, or of what imports the same.
    pub(super) fn of_same(&self, contents: &Contents) -> Option<Measured> {
        self.same.get(&(contents.ground, &contents.modules[..])).copied()
    }

    /// How much more than estimated layers of this ground hold.
    pub(super) fn heavier(&self, ground: u32) -> f64 {
        self.heavier.get(&ground).copied().unwrap_or(1.0)
    }
}

/// The shorter time of two; 0 is none.
fn quicker(one_ns: u64, other_ns: u64) -> u64 {
    match (one_ns, other_ns) {
        (0, ns) | (ns, 0) => ns,
        (one_ns, other_ns) => one_ns.min(other_ns),
    }
}
