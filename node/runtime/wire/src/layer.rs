//! Package layers, as spryd and a runtime speak of them.
//!
//! What they are: `layer` in the crate spry-runtime, and docs/decisions/0013.

use serde::{Deserialize, Serialize};

/// Modules of one process at most: what has more is not looked at for layers.
pub const MODULES_MAX: usize = 8192;
/// Bytes of all their names at most, so that they fit into a message.
pub const MODULES_BYTES: usize = 100 * 1024;

/// Bytes of the names of [`Absent`] at most.
pub const ABSENT_BYTES: usize = 16 * 1024;

/// What a layer is to have imported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerWish {
    /// Names of modules, in the order in which somebody imported them.
    pub modules: Vec<String>,
    /// The folders with packages, in the order in which modules are looked for.
    #[serde(default)]
    pub packages: Vec<String>,
}

/// What a zygote has imported beside its function's own modules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imports {
    /// Names of modules, in the order in which they were imported. Empty where there is nothing to tell.
    pub modules: Vec<String>,
}

/// What importing has looked for and not found: with more packages it might have gone another way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Absent {
    /// Names of modules, the first part of them.
    pub modules: Vec<String>,
    /// Names of distributions, as they were asked for.
    pub distributions: Vec<String>,
    /// It has looked at which distributions there are: any other would have been seen.
    pub all: bool,
}

impl Absent {
    /// Says that everything was looked at if there is too much for a message, or what can't be a name.
    pub fn bounded(self) -> Self {
        let mut names = self.modules.iter().chain(&self.distributions);
        let bytes: usize = names.clone().map(|name| name.len() + 3).sum();
        let is_fine = bytes <= ABSENT_BYTES && names.all(|name| !name.chars().any(char::is_control));
        if is_fine { self } else { Self { all: true, ..Self::default() } }
    }
}

/// A layer that was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layer {
    /// What it has imported.
    pub imports: Imports,
    /// What it has not.
    #[serde(default)]
    pub absent: Absent,
    /// Bytes of memory that were written down.
    pub bytes: u64,
}

impl Imports {
    /// Leaves nothing if there is too much for a message.
    pub fn bounded(self) -> Self {
        let bytes: usize = self.modules.iter().map(|name| name.len() + 3).sum();
        if self.modules.len() > MODULES_MAX || bytes > MODULES_BYTES { Self::default() } else { self }
    }

    /// What is left of what a hostile process says: names that can be a module's, each once.
    pub fn checked(self) -> Self {
        let mut seen = std::collections::HashSet::new();
        let is_name = |name: &String| {
            !name.is_empty()
                && name.len() <= 200
                && name.split('.').all(|part| {
                    !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
                })
        };
        let mut modules = self.bounded().modules;
        modules.retain(|name| is_name(name) && seen.insert(name.clone()));
        Self { modules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_or_too_much_is_dropped() {
        let of = |names: &[&str]| Imports { modules: names.iter().map(|name| (*name).to_owned()).collect() };
        let said = of(&["a", "a.b_c", "", "a..b", "../x", "a b", "a", "é"]);
        assert_eq!(said.checked(), of(&["a", "a.b_c", "é"]));
        let many = Imports { modules: (0..=MODULES_MAX).map(|number| format!("m{number}")).collect() };
        assert_eq!(many.checked(), Imports::default());
        assert_eq!(of(&[&"x".repeat(MODULES_BYTES)]).bounded(), Imports::default());
    }

    #[test]
    fn who_has_looked_for_too_much_has_looked_for_everything() {
        let of = |name: &str| Absent {
            modules: vec!["a".to_owned()],
            distributions: vec![name.to_owned()],
            all: false,
        };
        assert_eq!(of("numba").bounded(), of("numba"));
        let everything = Absent { all: true, ..Absent::default() };
        assert_eq!(of(&"x".repeat(ABSENT_BYTES)).bounded(), everything);
        assert_eq!(of("a\u{0}").bounded(), everything);
    }
}
