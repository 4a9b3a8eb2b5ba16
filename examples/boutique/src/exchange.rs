//! Currencies: `data/rates.json`, what one euro is worth in each.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::money::{Decimal, Money, MoneyError};
use crate::order::{NotLookedUp, Order};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Currency {
    per_euro: Decimal,
    decimals: u32,
}

static CURRENCIES: LazyLock<HashMap<String, Currency>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/rates.json")).expect("the tests read it too")
});

/// An amount that can't be exchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Not in the table.
    #[error("there is no rate for the currency {0:?}")]
    NoSuchCurrency(String),
    /// It doesn't fit.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// There is no price yet.
    #[error(transparent)]
    NotLookedUp(#[from] NotLookedUp),
}

/// Reads the table, so that no request has to.
pub fn load() {
    LazyLock::force(&CURRENCIES);
}

/// The amount in another currency, rounded to its smallest unit, halves up. In the same currency: as it is.
pub fn exchange(money: &Money, to: &str) -> Result<Money, ExchangeError> {
    let find =
        |name: &str| CURRENCIES.get(name).ok_or_else(|| ExchangeError::NoSuchCurrency(name.to_owned()));
    let (source, target) = (find(&money.currency)?, find(to)?);
    if money.currency == to {
        return Ok(money.clone());
    }
    // All of it as one fraction of whole numbers, rounded once. It fits: 64 bits of amount, at most two times 20 of
    // powers of ten, and 20 of rate.
    let power = |decimals: u32| 10i128.pow(decimals);
    let above = i128::from(money.amount.units)
        * i128::from(target.per_euro.units)
        * power(source.per_euro.decimals)
        * power(target.decimals);
    let below =
        i128::from(source.per_euro.units) * power(target.per_euro.decimals) * power(money.amount.decimals);
    let units = i64::try_from((2 * above + below) / (2 * below)).map_err(|_| MoneyError::TooLarge)?;
    Ok(Money { currency: to.to_owned(), amount: Decimal { units, decimals: target.decimals } })
}

/// The order with every line's price in the order's currency.
pub fn convert_prices(mut order: Order) -> Result<Order, ExchangeError> {
    for line in &mut order.lines {
        let price = exchange(&line.details()?.price, &order.currency)?;
        line.details.as_mut().expect("looked at above").price = price;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::order::tests::prepared;

    fn money(currency: &str, amount: &str) -> Money {
        Money { currency: currency.into(), amount: amount.parse().unwrap() }
    }

    #[test]
    fn rates_are_those_of_the_table() {
        assert_eq!(exchange(&money("EUR", "100.00"), "USD"), Ok(money("USD", "108.42")));
        assert_eq!(exchange(&money("USD", "108.42"), "EUR"), Ok(money("EUR", "100.00")));
        // 189.00 / 1.0842 = 174.3220…; x 163.27 = 28461.556…
        assert_eq!(exchange(&money("USD", "189.00"), "EUR"), Ok(money("EUR", "174.32")));
        assert_eq!(exchange(&money("USD", "189.00"), "JPY"), Ok(money("JPY", "28462")));
        assert_eq!(exchange(&money("EUR", "1.00"), "KWD"), Ok(money("KWD", "0.333")));
    }

    #[test]
    fn halves_go_up() {
        // 0.50 EUR are 0.42657… pounds; 100 EUR are exactly 16327 yen; 0.50 of that is 81.635.
        assert_eq!(exchange(&money("EUR", "0.50"), "GBP"), Ok(money("GBP", "0.43")));
        assert_eq!(exchange(&money("EUR", "50.00"), "JPY"), Ok(money("JPY", "8164")));
    }

    #[test]
    fn what_can_t_be_exchanged_is_said() {
        let unknown = Err(ExchangeError::NoSuchCurrency("XXX".into()));
        assert_eq!(exchange(&money("EUR", "1.00"), "XXX"), unknown);
        assert_eq!(exchange(&money("XXX", "1.00"), "XXX"), unknown);
        let much = money("EUR", "92233720368547758.07");
        assert_eq!(exchange(&much, "KRW"), Err(MoneyError::TooLarge.into()));
        let mut order = prepared();
        order.lines[0].details = None;
        assert_eq!(convert_prices(order), Err(NotLookedUp("TENT-2".into()).into()));
    }

    #[test]
    fn every_rate_is_positive() {
        load();
        assert!(CURRENCIES.values().all(|currency| currency.per_euro.units > 0 && currency.decimals <= 6));
        assert!(CURRENCIES.contains_key(crate::catalog::SHOP_CURRENCY));
    }

    proptest! {
        /// There and back differs by what rounding may do, and by no more.
        #[test]
        fn there_and_back(units in 0..1_000_000_000i64) {
            let before = Money { currency: "USD".into(), amount: Decimal { units, decimals: 2 } };
            for (name, currency) in &*CURRENCIES {
                let there = exchange(&before, name).unwrap();
                prop_assert_eq!(there.amount.decimals, currency.decimals);
                let back = exchange(&there, "USD").unwrap();
                let smallest = Money { currency: name.clone(), amount: Decimal { units: 1, decimals: currency.decimals } };
                let slack = exchange(&smallest, "USD").unwrap().amount.units + 1;
                prop_assert!((back.amount.units - units).abs() <= slack, "{} {} {}", before, there, back);
            }
        }
    }
}
