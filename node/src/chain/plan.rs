//! What a chain comes to when every name in it is looked up: the stages that are run, one after another.
//!
//! A plan never changes once it is made. Chains that are steps of a chain are gone: their
//! stages lie where they were named. What can be routed by the kernel without spryd lies together in a
//! [`Stage::Run`]; every other stage is a point where spryd looks at the value, or gathers several.

use std::time::Duration;

use crate::manifest::Name;

/// Function steps of one [`Stage::Run`] at most: what one route holds.
pub const RUN_MAX: usize = 32;

/// A chain, ready to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it is called by.
    pub name: Name,
    /// From the request's acceptance to the answer, whatever the steps' own limits are.
    pub timeout: Duration,
    /// Bytes of the request's body, of the response's, and of all elements of a list together.
    pub payload_bytes: u64,
    /// The functions that serve in it, each once: those of steps, of triggers and of `on_error`.
    pub functions: Vec<Name>,
    /// In the order in which they run; at least one.
    pub stages: Vec<Stage>,
    /// What is started by values that functions emit, those of the chains within this one included.
    pub triggers: Vec<Trigger>,
}

/// A part of a chain: takes one value, gives one.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// Functions, each called with the result of the one before. 1 to [`RUN_MAX`].
    Run(Vec<Step>),
    /// All branches get the same value; their results become a list in this order. At least one.
    Parallel(Vec<Branch>),
    /// Each element of a list by itself; the results become a list in the order of the elements.
    Map {
        /// What is done with an element.
        each: Vec<Stage>,
        /// Elements that are worked on at the same time, 1 to 64.
        at_once: usize,
        /// For timings and errors; unique in the plan among labels.
        label: String,
    },
    /// The first case that [applies](Case::applies) takes the value.
    When {
        /// In the order in which they are tried; at least one.
        cases: Vec<Case>,
        /// Without a case that applies. Empty: the value passes on unchanged.
        otherwise: Vec<Stage>,
    },
}

/// One branch of a [`Stage::Parallel`].
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// For timings and errors; unique in the plan among labels.
    pub label: String,
    /// What it does.
    pub stages: Vec<Stage>,
}

/// A function that is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// For timings and errors; unique in the plan. Steps of chains within the chain have a path: `thumbs/resize`.
    pub name: String,
    /// Which one: an index into [`Plan::functions`].
    pub function: usize,
    /// How many more times it is tried when it fails, 0 to 10.
    pub retry: u8,
    /// The function whose result takes the place of this one's when it has failed for good.
    pub on_error: Option<usize>,
}

/// A case of a [`Stage::When`].
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// A JSON pointer (RFC 6901) into the value. Empty: the value itself.
    pub pointer: String,
    /// What must be there: a text, a number, or true or false.
    pub equals: serde_json::Value,
    /// What is done then.
    pub then: Vec<Stage>,
}

impl Case {
    /// Whether what was found in the case's field is what the case names. Numbers are compared by what they count: `1`
    /// is `1.0`.
    pub fn applies(&self, found: &serde_json::Value) -> bool {
        match (found.as_number(), self.equals.as_number()) {
            (Some(found), Some(wanted)) => {
                // Whole numbers exactly: two that differ may have the same nearest float.
                let whole = |number: &serde_json::Number| number.as_i128();
                match (whole(found), whole(wanted)) {
                    (Some(found), Some(wanted)) => found == wanted,
                    _ => found.as_f64() == wanted.as_f64(),
                }
            }
            _ => *found == self.equals,
        }
    }
}

/// What is started by emitted values.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// By which.
    pub on: On,
    /// What is started with them. Its result goes nowhere; at least one stage.
    pub run: Vec<Stage>,
    /// For timings and errors; unique in the plan among labels.
    pub label: String,
}

/// When a trigger starts. Names are what functions emit values under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// With each value of this name.
    Every(String),
    /// With the list of each `count` values of this name.
    Count {
        /// The values' name.
        name: String,
        /// How many.
        count: usize,
    },
    /// With the list of one value of each of these names, in this order, once all are there.
    Set(Vec<String>),
    /// With the list of the values of this name that came within a span; the first one begins it.
    Window {
        /// The values' name.
        name: String,
        /// How long.
        span: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_case_applies_when_its_field_is_what_it_says() {
        let case = |equals| Case { pointer: "/any".into(), equals, then: vec![] };
        for (found, equals, applies) in [
            (json!("image"), json!("image"), true),
            (json!("image"), json!("imagE"), false),
            (json!(1), json!(1), true),
            (json!(1), json!(1.0), true),
            (json!(1), json!("1"), false),
            (json!(1), json!(true), false),
            (json!(true), json!(true), true),
            (json!(2.0), json!(2), true),
            (json!(u64::MAX), json!(u64::MAX), true),
            (json!(u64::MAX), json!(u64::MAX - 1), false),
            (json!(u64::MAX), json!(-1), false),
        ] {
            assert_eq!(case(equals.clone()).applies(&found), applies, "{found} {equals}");
        }
    }
}
