//! The shape of `chain.toml` as written, and the way from there to a checked [`ChainSpec`].

use std::collections::BTreeSet;
use std::fmt::Display;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::plan::On;
use super::{
    AT_ONCE_DEFAULT, AT_ONCE_MAX, BRANCHES_MAX, CASES_MAX, COUNT_MAX, CaseSpec, ChainError, ChainSpec, Does,
    FILE_MAX, POINTER_MAX, RETRY_MAX, SET_MAX, STEPS_MAX, Starts, StepSpec, TRIGGERS_MAX, TriggerSpec,
    VALUE_NAME_MAX, WINDOW_MAX,
};
use crate::manifest::raw::Quantity;
use crate::manifest::{Name, NameError};
use crate::units::{Period, Size};

/// `chain.toml` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawChain {
    /// The chain's name.
    pub name: Option<String>,
    /// A period.
    pub timeout: Option<Quantity>,
    /// A size.
    pub payload: Option<Quantity>,
    /// `[[step]]`, in order.
    pub step: Vec<RawStep>,
    /// `[[trigger]]`, in any order.
    pub trigger: Vec<RawTrigger>,
}

/// `[[step]]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawStep {
    /// For timings and errors.
    pub name: Option<String>,
    /// Calls a function.
    pub function: Option<String>,
    /// Goes through a chain.
    pub chain: Option<String>,
    /// Does several things with the same value.
    pub parallel: Option<Vec<String>>,
    /// Does something with each element.
    pub map: Option<String>,
    /// Does what the value says.
    pub when: Option<Vec<RawCase>>,
    /// With `function`: more attempts.
    pub retry: Option<i64>,
    /// With `function`: what is called when it has failed.
    pub on_error: Option<String>,
    /// With `map`: how many elements at the same time.
    pub at_once: Option<i64>,
    /// With `when`: what else.
    pub otherwise: Option<String>,
}

/// A case of `when` as written.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCase {
    /// A JSON pointer.
    pub field: String,
    /// What must be there.
    #[schemars(with = "serde_json::Value")]
    pub equals: toml::Value,
    /// A function or a chain.
    pub then: String,
}

/// `[[trigger]]` as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTrigger {
    /// What is started.
    pub function: Option<String>,
    /// What is started.
    pub chain: Option<String>,
    /// When.
    pub on: Option<RawOn>,
}

/// `on` of a trigger as written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawOn {
    /// The values' name.
    pub every: Option<String>,
    /// How many values.
    pub count: Option<i64>,
    /// The values' names.
    pub set: Option<Vec<String>>,
    /// A period.
    pub window: Option<Quantity>,
    /// With `count` and `window`: the values' name.
    pub of: Option<String>,
}

impl RawChain {
    /// Reads the text; checks no values.
    pub fn parse(text: &str) -> Result<Self, ChainError> {
        let bytes = text.len() as u64;
        if bytes > FILE_MAX {
            return Err(ChainError::TooLong { bytes });
        }
        toml::from_str(text).map_err(|error| ChainError::Toml(error.to_string().trim_end().to_owned()))
    }

    /// Checks every value; what is silent gets its default.
    pub fn check(self) -> Result<ChainSpec, ChainError> {
        let missing = |key: &str, hint| ChainError::Missing { key: key.into(), hint };
        let name = name_of(self.name.ok_or_else(|| missing("name", "write name = \"my-chain\""))?, "name")?;
        let timeout = period(self.timeout, "timeout")?.unwrap_or(Period::seconds(30));
        between("timeout", timeout, Period::millis(1), Period::minutes(24 * 60))?;
        let payload = size(self.payload, "payload")?.unwrap_or(Size::mib(6));
        between("payload", payload, Size::kib(1), Size::gib(1))?;
        if self.step.is_empty() {
            return Err(missing("step", "a chain has at least one [[step]]"));
        }
        if self.step.len() > STEPS_MAX {
            return Err(ChainError::TooManySteps);
        }
        if self.trigger.len() > TRIGGERS_MAX {
            return Err(ChainError::TooManyTriggers);
        }
        let mut taken = BTreeSet::new();
        let mut steps = Vec::with_capacity(self.step.len());
        for (index, raw) in self.step.into_iter().enumerate() {
            let at = format!("step {}", index + 1);
            let step = raw.check(&at)?;
            if let Some(name) = &step.name
                && !taken.insert(name.clone())
            {
                let problem = format!("is named \"{name}\", as an earlier step is");
                return Err(ChainError::Shape { at, problem });
            }
            steps.push(step);
        }
        let triggers = self.trigger.into_iter().enumerate();
        let triggers = triggers.map(|(index, raw)| raw.check(&format!("trigger {}", index + 1)));
        Ok(ChainSpec { name, timeout, payload, steps, triggers: triggers.collect::<Result<_, _>>()? })
    }
}

impl RawStep {
    fn check(self, at: &str) -> Result<StepSpec, ChainError> {
        let key = |name: &str| format!("{at}: {name}");
        let shape = |problem: &str| ChainError::Shape { at: at.into(), problem: problem.into() };
        let does = [
            ("function", self.function.is_some()),
            ("chain", self.chain.is_some()),
            ("parallel", self.parallel.is_some()),
            ("map", self.map.is_some()),
            ("when", self.when.is_some()),
        ];
        let given: Vec<&str> = does.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        let kind = match given.as_slice() {
            [] => return Err(shape("says nothing to do: write one of function, chain, parallel, map, when")),
            [kind] => *kind,
            several => return Err(shape(&format!("has {}, but can have only one", several.join(" and ")))),
        };
        for (option, given, goes_with) in [
            ("retry", self.retry.is_some(), "function"),
            ("on_error", self.on_error.is_some(), "function"),
            ("at_once", self.at_once.is_some(), "map"),
            ("otherwise", self.otherwise.is_some(), "when"),
        ] {
            if given && kind != goes_with {
                return Err(shape(&format!(
                    "has {option}, which goes with {goes_with} only, not with {kind}"
                )));
            }
        }
        let optional = |text: Option<String>, name| text.map(|text| name_of(text, key(name))).transpose();
        let name = optional(self.name, "name")?;
        let does = if let Some(function) = self.function {
            let retry = count(self.retry, key("retry"), 0, usize::from(RETRY_MAX))?;
            Does::Function {
                function: name_of(function, key("function"))?,
                retry: retry.unwrap_or(0) as u8,
                on_error: optional(self.on_error, "on_error")?,
            }
        } else if let Some(chain) = self.chain {
            Does::Chain(name_of(chain, key("chain"))?)
        } else if let Some(branches) = self.parallel {
            many(branches.len(), key("parallel"), "branches", BRANCHES_MAX)?;
            let branches = branches.into_iter().map(|branch| name_of(branch, key("parallel")));
            Does::Parallel(branches.collect::<Result<_, _>>()?)
        } else if let Some(with) = self.map {
            let at_once = count(self.at_once, key("at_once"), 1, AT_ONCE_MAX)?;
            Does::Map { with: name_of(with, key("map"))?, at_once: at_once.unwrap_or(AT_ONCE_DEFAULT) }
        } else {
            let cases = self.when.unwrap_or_default();
            many(cases.len(), key("when"), "cases", CASES_MAX)?;
            let cases = cases.into_iter().enumerate();
            let cases = cases.map(|(index, case)| case.check(&format!("{at}: case {} of when", index + 1)));
            Does::When {
                cases: cases.collect::<Result<_, _>>()?,
                otherwise: optional(self.otherwise, "otherwise")?,
            }
        };
        Ok(StepSpec { name, does })
    }
}

impl RawCase {
    fn check(self, at: &str) -> Result<CaseSpec, ChainError> {
        let key = |name: &str| format!("{at}: {name}");
        let bad = |bound: String| ChainError::Bound {
            key: key("field"),
            value: format!("{:?}", self.field),
            bound,
        };
        if self.field.len() > POINTER_MAX {
            return Err(bad(format!("at most {POINTER_MAX} bytes")));
        }
        // RFC 6901: every part begins with a slash, and a tilde is followed by 0 or 1.
        let escapes = self.field.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if !escapes || !(self.field.is_empty() || self.field.starts_with('/')) {
            return Err(bad("a JSON pointer, such as \"/kind\" or \"/items/0\"".into()));
        }
        let equals = match self.equals {
            toml::Value::String(text) => text.into(),
            toml::Value::Integer(number) => number.into(),
            toml::Value::Boolean(truth) => truth.into(),
            toml::Value::Float(number) if number.is_finite() => number.into(),
            other => {
                let bound = "a text, a number, true or false".into();
                return Err(ChainError::Bound { key: key("equals"), value: other.to_string(), bound });
            }
        };
        Ok(CaseSpec { equals, then: name_of(self.then, key("then"))?, field: self.field })
    }
}

impl RawTrigger {
    fn check(self, at: &str) -> Result<TriggerSpec, ChainError> {
        let key = |name: &str| format!("{at}: {name}");
        let starts = match (self.function, self.chain) {
            (Some(function), None) => Starts::Function(name_of(function, key("function"))?),
            (None, Some(chain)) => Starts::Chain(name_of(chain, key("chain"))?),
            (given, _) => {
                let problem = match given {
                    None => "starts nothing: write one of function, chain",
                    Some(_) => "has function and chain, but can have only one",
                };
                return Err(ChainError::Shape { at: at.into(), problem: problem.into() });
            }
        };
        let missing = || ChainError::Missing { key: key("on"), hint: "write on = { every = \"value\" }" };
        Ok(TriggerSpec { on: self.on.ok_or_else(missing)?.check(at)?, starts })
    }
}

impl RawOn {
    fn check(self, at: &str) -> Result<On, ChainError> {
        let key = |name: &str| format!("{at}: on.{name}");
        let shape = |problem: &str| ChainError::Shape { at: format!("{at}: on"), problem: problem.into() };
        let of = |of: Option<String>| {
            let name = of.ok_or_else(|| shape("needs `of`: the name of the values that it looks at"))?;
            value_name(name, key("of"))
        };
        let without = |of: &Option<String>, kind: &str| match of {
            None => Ok(()),
            Some(_) => Err(shape(&format!("has of, which goes with count and window only, not with {kind}"))),
        };
        match (self.every, self.count, self.set, self.window) {
            (Some(name), None, None, None) => {
                without(&self.of, "every")?;
                Ok(On::Every(value_name(name, key("every"))?))
            }
            (None, Some(number), None, None) => {
                let count = count(Some(number), key("count"), 1, COUNT_MAX)?.unwrap_or(1);
                Ok(On::Count { name: of(self.of)?, count })
            }
            (None, None, Some(names), None) => {
                without(&self.of, "set")?;
                many(names.len(), key("set"), "names", SET_MAX)?;
                let mut checked = Vec::with_capacity(names.len());
                for name in names {
                    let name = value_name(name, key("set"))?;
                    if checked.contains(&name) {
                        return Err(shape(&format!("names \"{name}\" twice")));
                    }
                    checked.push(name);
                }
                Ok(On::Set(checked))
            }
            (None, None, None, Some(span)) => {
                let span = period(Some(span), key("window"))?.unwrap_or_default();
                between(key("window"), span, Period::millis(1), WINDOW_MAX)?;
                Ok(On::Window { name: of(self.of)?, span: span.as_duration() })
            }
            _ => Err(shape("must have exactly one of every, count, set, window")),
        }
    }
}

fn name_of(text: String, key: impl Into<String>) -> Result<Name, ChainError> {
    Name::try_from(text).map_err(|NameError(text)| ChainError::Bound {
        key: key.into(),
        value: format!("{text:?}"),
        bound: "1 to 63 small letters, digits and hyphens, not a hyphen first".into(),
    })
}

/// The name of an emitted value.
fn value_name(text: String, key: String) -> Result<String, ChainError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if (1..=VALUE_NAME_MAX).contains(&text.len()) && text.bytes().all(good) {
        return Ok(text);
    }
    let bound = format!("1 to {VALUE_NAME_MAX} small letters, digits, hyphens and underscores");
    Err(ChainError::Bound { key, value: format!("{text:?}"), bound })
}

fn size(written: Option<Quantity>, key: &str) -> Result<Option<Size>, ChainError> {
    let text = match written {
        None => return Ok(None),
        Some(Quantity::Text(text)) => text,
        Some(Quantity::Number(number)) => number.to_string(),
    };
    text.parse().map(Some).map_err(|source| ChainError::Unit { key: key.into(), source })
}

fn period(written: Option<Quantity>, key: impl Into<String>) -> Result<Option<Period>, ChainError> {
    let text = match written {
        None => return Ok(None),
        Some(Quantity::Text(text)) => text,
        Some(Quantity::Number(number)) => number.to_string(),
    };
    text.parse().map(Some).map_err(|source| ChainError::Unit { key: key.into(), source })
}

fn count(written: Option<i64>, key: String, least: usize, most: usize) -> Result<Option<usize>, ChainError> {
    let Some(number) = written else { return Ok(None) };
    match usize::try_from(number) {
        Ok(fits) if (least..=most).contains(&fits) => Ok(Some(fits)),
        _ => Err(ChainError::Bound {
            key,
            value: number.to_string(),
            bound: format!("between {least} and {most}"),
        }),
    }
}

fn many(len: usize, key: String, what: &str, most: usize) -> Result<(), ChainError> {
    if (1..=most).contains(&len) {
        return Ok(());
    }
    Err(ChainError::Bound { key, value: format!("{len} {what}"), bound: format!("1 to {most}") })
}

fn between<T: PartialOrd + Display>(
    key: impl Into<String>,
    value: T,
    least: T,
    most: T,
) -> Result<(), ChainError> {
    if value >= least && value <= most {
        return Ok(());
    }
    let bound = format!("between {least} and {most}");
    Err(ChainError::Bound { key: key.into(), value: value.to_string(), bound })
}
