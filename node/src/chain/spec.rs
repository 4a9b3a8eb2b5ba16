//! `chain.toml`: a chain as its author writes it, and the checked form.
//!
//! [`raw`] is the file's shape (unknown keys are refused, nearly everything optional); [`ChainSpec`] has every
//! value present and within its bounds, but the functions and chains that it names may not exist:
//! [`flatten`](super::flatten()) looks them up.

pub mod raw;

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::On;
use crate::manifest::Name;
use crate::units::{Period, Size, UnitError};

/// Bytes of a `chain.toml` at most.
pub const FILE_MAX: u64 = 256 * 1024;
/// Function steps of a chain at most, those of chains within it and of triggers included.
pub const STEPS_MAX: usize = 256;
/// Chains one within the other at most, the outermost included.
pub const DEPTH_MAX: usize = 8;
/// Branches of one `parallel` at most.
pub const BRANCHES_MAX: usize = 32;
/// Cases of one `when` at most.
pub const CASES_MAX: usize = 32;
/// Triggers of a chain at most, those of chains within it included.
pub const TRIGGERS_MAX: usize = 16;
/// More attempts of a step at most.
pub const RETRY_MAX: u8 = 10;
/// Elements that a `map` works on at the same time, at most.
pub const AT_ONCE_MAX: usize = 64;
/// Elements that a `map` works on at the same time when its author doesn't say.
pub const AT_ONCE_DEFAULT: usize = 8;
/// Values of one name that a trigger waits for at most. Each takes one of the blocks that its instance may have
/// outstanding (`shm_bus::release::OUTSTANDING_MAX`).
pub const COUNT_MAX: usize = 128;
/// Names that a trigger waits for at most.
pub const SET_MAX: usize = 32;
/// The longest window of a trigger.
pub const WINDOW_MAX: Period = Period::minutes(1);
/// Bytes of the name of an emitted value at most.
pub const VALUE_NAME_MAX: usize = 64;
/// Bytes of a JSON pointer at most.
pub const POINTER_MAX: usize = 256;
/// Bytes of a step's name with its path at most.
pub const PATH_MAX: usize = 128;

/// A chain, checked: every value is present and within its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainSpec {
    /// What it is called by.
    pub name: Name,
    /// For the whole chain.
    pub timeout: Period,
    /// The largest request, response and list.
    pub payload: Size,
    /// At least one.
    pub steps: Vec<StepSpec>,
    /// At most [`TRIGGERS_MAX`].
    pub triggers: Vec<TriggerSpec>,
}

/// One `[[step]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSpec {
    /// Unique in the file. Without: what is called names the step.
    pub name: Option<Name>,
    /// What it does.
    pub does: Does,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Does {
    /// Calls a function.
    Function {
        /// Which.
        function: Name,
        /// More attempts when it fails.
        retry: u8,
        /// The function that is called when it has failed for good.
        on_error: Option<Name>,
    },
    /// Goes through another chain.
    Chain(Name),
    /// Does several things with the same value.
    Parallel(Vec<Name>),
    /// Does something with each element.
    Map {
        /// What.
        with: Name,
        /// Elements at the same time.
        at_once: usize,
    },
    /// Does what the value says.
    When {
        /// In order.
        cases: Vec<CaseSpec>,
        /// If none applies.
        otherwise: Option<Name>,
    },
}

/// One case of a `when`.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseSpec {
    /// A JSON pointer.
    pub field: String,
    /// What must be there: a text, a number, true or false.
    pub equals: serde_json::Value,
    /// A function or a chain.
    pub then: Name,
}

/// One `[[trigger]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TriggerSpec {
    /// When.
    pub on: On,
    /// What is started.
    pub starts: Starts,
}

/// What a trigger starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starts {
    /// A function.
    Function(Name),
    /// A chain.
    Chain(Name),
}

/// Why a text is no chain that can be applied. Its author's to mend, all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The text isn't TOML, has an unknown key, or a value of the wrong kind.
    #[error("{0}")]
    Toml(String),
    /// The text is longer than a chain's can be.
    #[error("the chain's text is {bytes} bytes long; {FILE_MAX} are the most that is read")]
    TooLong {
        /// How long.
        bytes: u64,
    },
    /// A key must be given and wasn't.
    #[error("`{key}` is missing: {hint}")]
    Missing {
        /// Which.
        key: String,
        /// What to write.
        hint: &'static str,
    },
    /// A size or a period can't be read.
    #[error("{key}: {source}")]
    Unit {
        /// Which key.
        key: String,
        /// What is wrong.
        source: UnitError,
    },
    /// A value is outside its bounds.
    #[error("{key} is {value}, but must be {bound}")]
    Bound {
        /// Which key.
        key: String,
        /// What it says.
        value: String,
        /// What is allowed.
        bound: String,
    },
    /// Keys that don't go together, or none of those of which one is needed.
    #[error("{at} {problem}")]
    Shape {
        /// Which step or trigger.
        at: String,
        /// What is wrong.
        problem: String,
    },
    /// A function or a chain that is named isn't there.
    #[error("{at} names \"{name}\", and there is no {wanted} of that name{hint}")]
    Unknown {
        /// Where.
        at: String,
        /// What it names.
        name: Name,
        /// `function`, `chain`, or `function or chain`.
        wanted: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// A chain leads back to itself.
    #[error("the chain leads back to itself: {}", path.join(" -> "))]
    Cycle {
        /// From the chain back to it.
        path: Vec<String>,
    },
    /// Too many chains one within the other.
    #[error("chains lie more than {DEPTH_MAX} deep one within the other: {}", path.join(" -> "))]
    TooDeep {
        /// From the outermost.
        path: Vec<String>,
    },
    /// Too many steps.
    #[error(
        "the chain has more than {STEPS_MAX} steps (those of chains within it and of triggers count as well)"
    )]
    TooManySteps,
    /// Too many triggers.
    #[error("the chain has more than {TRIGGERS_MAX} triggers (those of chains within it count as well)")]
    TooManyTriggers,
    /// A step's name with its path is too long.
    #[error("the step \"{path}\" has a name of {} bytes; {PATH_MAX} are the most: give shorter names", path.len())]
    PathTooLong {
        /// The name with its path.
        path: String,
    },
}

impl ChainSpec {
    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self, ChainError> {
        raw::RawChain::parse(text)?.check()
    }

    /// Every function and chain that it names itself, whichever the name turns out to be.
    pub fn uses(&self) -> BTreeSet<&Name> {
        let mut used = BTreeSet::new();
        for step in &self.steps {
            match &step.does {
                Does::Function { function, on_error, .. } => {
                    used.insert(function);
                    used.extend(on_error);
                }
                Does::Chain(name) | Does::Map { with: name, .. } => {
                    used.insert(name);
                }
                Does::Parallel(branches) => used.extend(branches),
                Does::When { cases, otherwise } => {
                    used.extend(cases.iter().map(|case| &case.then));
                    used.extend(otherwise);
                }
            }
        }
        used.extend(self.triggers.iter().map(|trigger| match &trigger.starts {
            Starts::Function(name) | Starts::Chain(name) => name,
        }));
        used
    }

    /// For the clock.
    pub fn timeout(&self) -> Duration {
        self.timeout.as_duration()
    }
}

#[cfg(test)]
mod tests;
