//! The query string of a control request.

use std::time::Duration;

use super::Refused;
use crate::manifest::Override;
use crate::units::Period;

/// Names and values in the order in which they were given.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The last value of that name: what comes later wins.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, Refused> {
        let bad = |value: &str| Refused::Parameter {
            name,
            problem: format!("\"{}\" is no whole number", value.escape_debug()),
        };
        self.text(name).map(|value| value.parse().map_err(|_| bad(value))).transpose()
    }

    pub(super) fn period(&self, name: &'static str) -> Result<Option<Duration>, Refused> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<Period>() {
            Ok(period) => Ok(Some(period.as_duration())),
            Err(error) => Err(Refused::Parameter { name, problem: error.to_string() }),
        }
    }

    /// Every `set=KEY=VALUE`.
    pub(super) fn overrides(&self) -> Result<Vec<Override>, Refused> {
        let wanted = self.0.iter().filter(|(name, _)| name == "set");
        let parsed = wanted.map(|(_, value)| value.parse::<Override>());
        parsed.collect::<Result<_, _>>().map_err(|error| Refused::Store(error.into()))
    }
}
