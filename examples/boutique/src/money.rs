//! Amounts of money: whole numbers of a currency's smallest unit, never floating point.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Currencies have no more decimals than this.
const DECIMALS_MAX: usize = 6;

/// A decimal number without rounding: `"19.90"` is 1990 with two decimals. As JSON, a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Decimal {
    /// In units of the last decimal.
    pub units: i64,
    /// How many decimals there are.
    pub decimals: u32,
}

/// An amount of a currency, as `{"currency":"EUR","amount":"19.90"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// Three letters (ISO 4217).
    pub currency: String,
    /// With as many decimals as the currency has.
    pub amount: Decimal,
}

/// A sum that can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a decimal number.
    #[error("{0:?} is no amount: digits, and at most {DECIMALS_MAX} more after a point")]
    Malformed(String),
    /// Amounts of two currencies, or with different decimals.
    #[error("{0} and {1} can't be added: they must be in one currency first")]
    Mixed(Money, Money),
    /// More money than there is.
    #[error("an amount is too large")]
    TooLarge,
}

impl Money {
    /// `quantity` times as much.
    pub fn times(&self, quantity: u32) -> Result<Self, MoneyError> {
        let units = self.amount.units.checked_mul(i64::from(quantity)).ok_or(MoneyError::TooLarge)?;
        Ok(Self { amount: Decimal { units, ..self.amount }, ..self.clone() })
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency || self.amount.decimals != other.amount.decimals {
            return Err(MoneyError::Mixed(self.clone(), other.clone()));
        }
        let units = self.amount.units.checked_add(other.amount.units).ok_or(MoneyError::TooLarge)?;
        Ok(Self { amount: Decimal { units, ..self.amount }, ..self.clone() })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount, self.currency)
    }
}

impl FromStr for Decimal {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let malformed = || MoneyError::Malformed(text.to_owned());
        let (whole, fraction) = match text.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(malformed()),
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > DECIMALS_MAX {
            return Err(malformed());
        }
        let units = [whole, fraction].concat().parse().map_err(|_| MoneyError::TooLarge)?;
        Ok(Self { units, decimals: fraction.len() as u32 })
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = 10i64.pow(self.decimals);
        match self.decimals {
            0 => write!(f, "{}", self.units),
            decimals => {
                write!(f, "{}.{:0width$}", self.units / scale, self.units % scale, width = decimals as usize)
            }
        }
    }
}

impl TryFrom<String> for Decimal {
    type Error = MoneyError;
    fn try_from(text: String) -> Result<Self, MoneyError> {
        text.parse()
    }
}

impl From<Decimal> for String {
    fn from(decimal: Decimal) -> Self {
        decimal.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn euros(amount: &str) -> Money {
        Money { currency: "EUR".into(), amount: amount.parse().unwrap() }
    }

    #[test]
    fn sums_are_exact() {
        // 0.1 + 0.2, the sum that floating point gets wrong.
        assert_eq!(euros("0.10").plus(&euros("0.20")), Ok(euros("0.30")));
        assert_eq!(euros("12.50").times(4), Ok(euros("50.00")));
        assert_eq!(euros("7.05").to_string(), "7.05 EUR");
    }

    #[test]
    fn what_can_t_be_added_is_said() {
        let yen = Money { currency: "JPY".into(), amount: "100".parse().unwrap() };
        assert!(matches!(euros("1.00").plus(&yen), Err(MoneyError::Mixed(..))));
        let much = euros("92233720368547758.07");
        assert_eq!(much.plus(&euros("0.01")), Err(MoneyError::TooLarge));
        assert_eq!(much.times(2), Err(MoneyError::TooLarge));
    }

    #[test]
    fn an_amount_is_digits_and_a_point() {
        for text in ["", ".", "1.", ".5", "-1.00", "+1", "1,00", "1.0000000", "1.2.3", "1e3", "٣"] {
            assert_eq!(text.parse::<Decimal>(), Err(MoneyError::Malformed(text.into())), "{text:?}");
        }
        assert_eq!("92233720368547758.08".parse::<Decimal>(), Err(MoneyError::TooLarge));
    }

    proptest! {
        #[test]
        fn an_amount_survives_its_text(units in 0..=i64::MAX, decimals in 0..=6u32) {
            let decimal = Decimal { units, decimals };
            prop_assert_eq!(decimal.to_string().parse(), Ok(decimal));
        }
    }
}
