//! Package layers, as spryd and a runtime speak of them.
//!
//! What they are: `layer` in the crate spry-runtime, and docs/decisions/0013.

use serde::{Deserialize, Serialize};

use crate::control::MESSAGE_MAX;

/// Modules of one process at most: what has more is not looked at for layers.
pub const MODULES_MAX: usize = 8192;
/// Bytes of all their names at most, as they are written into a message.
pub const MODULES_BYTES: usize = 100 * 1024;

/// Bytes of the names of [`Absent`] at most, as they are written.
pub const ABSENT_BYTES: usize = 16 * 1024;

/// Bytes of a message beside names.
const AROUND: usize = 1024;

const _: () =
    assert!(MODULES_BYTES + ABSENT_BYTES + AROUND <= MESSAGE_MAX, "a layer is told of in one message");

/// What a layer is to have imported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerWish {
    /// Names of modules, in the order in which somebody imported them.
    pub modules: Vec<String>,
    /// The folders with packages, in the order in which modules are looked for.
    #[serde(default)]
    pub packages: Vec<String>,
}

impl LayerWish {
    /// Whether it fits into a message.
    pub fn fits(&self) -> bool {
        written(self.modules.iter().chain(&self.packages)) <= MESSAGE_MAX - AROUND
    }
}

/// Bytes that names take in a message, at most.
fn written<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    let escaped = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    // (With quotes around and a comma behind.)
    names.map(|name| 3 + name.bytes().map(escaped).sum::<usize>()).sum()
}

/// What a zygote has imported beside its function's own modules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imports {
    /// Names of modules, in the order in which they were imported. Empty where there is nothing to tell.
    pub modules: Vec<String>,
    /// It looks for modules in more folders than it was given: what it finds there isn't known.
    #[serde(default)]
    pub elsewhere: bool,
}

/// What importing has looked for and nothing is imported of: with more packages it might have gone another way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Absent {
    /// Names of modules, the first part of them.
    pub modules: Vec<String>,
    /// Names of distributions, as they were asked for.
    pub distributions: Vec<String>,
    /// It has looked at which distributions there are: any other would have been seen.
    pub all: bool,
    /// It has gone through the folders that modules are looked for in: any other module would have been seen.
    #[serde(default)]
    pub walked: bool,
}

impl Absent {
    /// Says that everything was looked at if there is too much for a message, or what can't be a name.
    pub fn bounded(self) -> Self {
        let mut names = self.modules.iter().chain(&self.distributions);
        let is_fine =
            written(names.clone()) <= ABSENT_BYTES && names.all(|name| !name.chars().any(char::is_control));
        if is_fine { self } else { Self { all: true, walked: true, ..Self::default() } }
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
        let is_fine = self.modules.len() <= MODULES_MAX && written(self.modules.iter()) <= MODULES_BYTES;
        if is_fine { self } else { Self::default() }
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
        let Self { mut modules, elsewhere } = self.bounded();
        modules.retain(|name| is_name(name) && seen.insert(name.clone()));
        Self { modules, elsewhere }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FromZygote, ToZygote};

    #[test]
    fn what_is_no_name_or_too_much_is_dropped() {
        let of = |names: &[&str]| Imports {
            modules: names.iter().map(|name| (*name).to_owned()).collect(),
            elsewhere: true,
        };
        let said = of(&["a", "a.b_c", "", "a..b", "../x", "a b", "a", "é"]);
        assert_eq!(said.checked(), of(&["a", "a.b_c", "é"]));
        let many = (0..=MODULES_MAX).map(|number| format!("m{number}")).collect();
        let many = Imports { modules: many, elsewhere: false };
        assert_eq!(many.checked(), Imports::default());
        assert_eq!(of(&[&"x".repeat(MODULES_BYTES)]).bounded(), Imports::default());
    }

    #[test]
    fn who_has_looked_for_too_much_has_looked_for_everything() {
        let of = |name: &str| Absent {
            modules: vec!["a".to_owned()],
            distributions: vec![name.to_owned()],
            all: false,
            walked: false,
        };
        assert_eq!(of("numba").bounded(), of("numba"));
        let everything = Absent { all: true, walked: true, ..Absent::default() };
        assert_eq!(of(&"x".repeat(ABSENT_BYTES)).bounded(), everything);
        assert_eq!(of("a\u{0}").bounded(), everything);
    }

    /// As much of each kind of character as is let through.
    #[test]
    fn what_is_bounded_fits_into_a_message() {
        let fits = |message: &[u8]| message.len() <= MESSAGE_MAX;
        for piece in ["a", "\"", "\\", "\u{1}", "\n", "é", "\u{7f}"] {
            for len in [1, 100, 20_000] {
                let name = piece.repeat(len);
                let names = |bytes: usize| vec![name.clone(); bytes / written([name.clone()].iter())];
                let imports = Imports { modules: names(MODULES_BYTES), elsewhere: true };
                let absent = Absent {
                    distributions: names(ABSENT_BYTES),
                    all: true,
                    walked: true,
                    ..Absent::default()
                };
                let layer = Layer { imports: imports.bounded(), absent: absent.bounded(), bytes: u64::MAX };
                let text = serde_json::to_vec(&FromZygote::Layer(layer)).expect("JSON");
                assert!(fits(&text), "{} bytes of {len} times {piece:?}", text.len());
                let mut wish = LayerWish { modules: names(MODULES_BYTES), packages: Vec::new() };
                while wish.fits() {
                    assert!(fits(&serde_json::to_vec(&ToZygote::MakeLayer(wish.clone())).expect("JSON")));
                    wish.packages.extend(vec![name.clone(); 1 + 4000 / len]);
                }
            }
        }
    }
}
