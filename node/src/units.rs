//! Sizes and periods as people write them in configuration: `"128MiB"`, `"30s"`.
//!
//! Both are exact: a whole number and a unit, no fractions, no sums. What is printed reads back as the same
//! value. The errors here say what is wrong with the text; whoever knows the key adds it (see
//! [`crate::manifest::ManifestError`], [`crate::config::ConfigError`]).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units of size, largest first within each family; the binary ones are preferred for printing.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of time in milliseconds, largest first.
const PERIOD_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is no [`Size`] or [`Period`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It doesn't start with a whole number.
    #[error("\"{text}\" does not start with a whole number (write it like {example})")]
    Number {
        /// What was written.
        text: String,
        /// How it could look.
        example: &'static str,
    },
    /// The unit is missing or not one that is known.
    #[error("\"{text}\" has {} (write one of {known})", unit_words(.unit))]
    Unit {
        /// What was written.
        text: String,
        /// The part after the number.
        unit: String,
        /// The units there are.
        known: &'static str,
    },
    /// It doesn't fit.
    #[error("\"{text}\" is more than can be counted")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

fn unit_words(unit: &str) -> String {
    if unit.is_empty() { "no unit".into() } else { format!("the unknown unit \"{unit}\"") }
}

/// A number of bytes. `"128MiB"` (1024 based), `"6MB"` (1000 based), `"512B"`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(u64);

impl Size {
    /// This many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    /// This many times 1024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }
    /// This many times 1024 x 1024 bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
    /// This many times 1024 x 1024 x 1024 bytes.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
    /// The number of bytes as an index; saturates where a `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
    /// For tables, rounded to one digit after the point: `1.4 GiB`.
    pub fn rounded(self) -> String {
        let unit = SIZE_UNITS[..4].iter().find(|(_, factor)| self.0 >= *factor);
        match unit {
            Some((name, factor)) if self.0.is_multiple_of(*factor) => format!("{} {name}", self.0 / factor),
            Some((name, factor)) => format!("{:.1} {name}", self.0 as f64 / *factor as f64),
            None => format!("{} B", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let known = "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB";
        parse(text, "\"128MiB\"", known, &SIZE_UNITS, Some(1)).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZE_UNITS, "B")
    }
}

/// A length of time, in milliseconds: `"250ms"`, `"30s"`, `"10m"`, `"2h"`, `"1d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Period(u64);

impl Period {
    /// This many milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(ms)
    }
    /// This many seconds.
    pub const fn seconds(s: u64) -> Self {
        Self(s * 1_000)
    }
    /// This many minutes.
    pub const fn minutes(m: u64) -> Self {
        Self(m * 60_000)
    }
    /// The number of milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
    /// For the clock.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Period {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, "\"30s\"", "ms, s, m, h, d", &PERIOD_UNITS, None).map(Self)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &PERIOD_UNITS, "s")
    }
}

/// `bare`: what a number without a unit is multiplied with, where that is allowed.
fn parse(
    text: &str,
    example: &'static str,
    known: &'static str,
    units: &[(&str, u64)],
    bare: Option<u64>,
) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    let end = trimmed.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = (&trimmed[..end], trimmed[end..].trim_start());
    if digits.is_empty() {
        return Err(UnitError::Number { text: text.into(), example });
    }
    let factor = match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None => bare.filter(|_| unit.is_empty()).ok_or_else(|| UnitError::Unit {
            text: text.into(),
            unit: unit.into(),
            known,
        })?,
    };
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| UnitError::TooLarge { text: text.into() })
}

fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    if value == 0 {
        return write!(f, "0{zero}");
    }
    let exact = units.iter().find(|(_, factor)| value.is_multiple_of(*factor));
    let (name, factor) = exact.expect("the smallest unit is 1 and divides everything");
    write!(f, "{}{name}", value / factor)
}

macro_rules! as_text {
    ($type:ty, $expecting:literal $(, $integer:ident)?) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    $(
                        fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                            Ok(<$type>::$integer(number))
                        }
                        fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                            let number = u64::try_from(number).map_err(|_| {
                                E::invalid_value(de::Unexpected::Signed(number), &self)
                            })?;
                            Ok(<$type>::$integer(number))
                        }
                    )?
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}
as_text!(Size, "a size such as \"128MiB\" or a number of bytes", bytes);
as_text!(Period, "a period such as \"30s\" or \"250ms\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_people_mean_them() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("128MiB", 128 << 20),
            ("6MB", 6_000_000),
            ("1 GiB", 1 << 30),
            (" 10kB ", 10_000),
            ("16TiB", 16 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size::bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = |text: &str| text.parse::<Size>().expect_err(text).to_string();
        assert_eq!(
            said("128mb"),
            "\"128mb\" has the unknown unit \"mb\" (write one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB)"
        );
        assert_eq!(said("-1"), "\"-1\" does not start with a whole number (write it like \"128MiB\")");
        assert_eq!(said("99999999999TiB"), "\"99999999999TiB\" is more than can be counted");
        assert!(said("1.5GiB").contains("unknown unit \".5GiB\""));
        assert_eq!(
            "30".parse::<Period>().expect_err("no unit").to_string(),
            "\"30\" has no unit (write one of ms, s, m, h, d)"
        );
    }

    #[test]
    fn printing_takes_the_largest_unit_that_is_exact() {
        assert_eq!(Size::mib(128).to_string(), "128MiB");
        assert_eq!(Size::bytes(6_000_000).to_string(), "6MB");
        assert_eq!(Size::bytes(1_025).to_string(), "1025B");
        assert_eq!(Period::seconds(90).to_string(), "90s");
        assert_eq!(Period::minutes(60).to_string(), "1h");
        assert_eq!(Period::millis(0).to_string(), "0s");
        assert_eq!(Size::bytes(1_500 << 20).rounded(), "1.5 GiB");
        assert_eq!(Size::mib(64).rounded(), "64 MiB");
        assert_eq!(Size::bytes(12).rounded(), "12 B");
    }

    #[test]
    fn numbers_are_bytes_but_never_periods() {
        #[derive(Deserialize)]
        struct S {
            size: Size,
        }
        #[derive(Debug, Deserialize)]
        struct P {
            #[expect(dead_code, reason = "only its refusal is looked at")]
            period: Period,
        }
        assert_eq!(toml::from_str::<S>("size = 4096").expect("bytes").size, Size::kib(4));
        assert!(toml::from_str::<S>("size = -1").is_err());
        assert!(
            toml::from_str::<P>("period = 30").expect_err("no unit").to_string().contains("a period such as")
        );
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes: u64) {
            prop_assert_eq!(Size::bytes(bytes).to_string().parse(), Ok(Size::bytes(bytes)));
        }
        #[test]
        fn periods_round_trip(ms: u64) {
            prop_assert_eq!(Period::millis(ms).to_string().parse(), Ok(Period::millis(ms)));
        }
        #[test]
        fn round_numbers_round_trip(count in 1u64..10_000, unit in 0usize..9) {
            let size = Size::bytes(count * SIZE_UNITS[unit].1);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Period>();
        }
    }
}
