//! What it costs to send an order: by zone and weight, `data/zones.json`, prices in the shop's currency.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::catalog::SHOP_CURRENCY;
use crate::exchange::{ExchangeError, exchange};
use crate::money::{Decimal, Money, MoneyError};
use crate::order::{NotLookedUp, Order, Shipping};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Zone {
    countries: Vec<String>,
    base: Decimal,
    per_kilogram: Decimal,
}

static ZONES: LazyLock<BTreeMap<String, Zone>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/zones.json")).expect("the tests read it too")
});

/// An order that can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDelivery {
    /// In no zone.
    #[error("nothing is sent to the country {0:?}")]
    Country(String),
    /// What it weighs isn't known.
    #[error(transparent)]
    NotLookedUp(#[from] NotLookedUp),
    /// The price can't be exchanged.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The price is too large.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// Reads the tables, so that no request has to.
pub fn load() {
    LazyLock::force(&ZONES);
    crate::exchange::load();
}

/// The order with what it costs to send it, in its own currency. A begun kilogram counts as a whole one.
pub fn quote(mut order: Order) -> Result<Order, NoDelivery> {
    let country = &order.customer.address.country;
    let zone = ZONES.iter().find(|(_, zone)| zone.countries.contains(country));
    let (name, zone) = zone.ok_or_else(|| NoDelivery::Country(country.clone()))?;
    let mut weight_grams = 0u64;
    for line in &order.lines {
        weight_grams += u64::from(line.details()?.weight_grams) * u64::from(line.quantity);
    }
    let kilograms = u32::try_from(weight_grams.div_ceil(1000)).map_err(|_| MoneyError::TooLarge)?;
    let price = |amount| Money { currency: SHOP_CURRENCY.to_owned(), amount };
    let cost = price(zone.base).plus(&price(zone.per_kilogram).times(kilograms)?)?;
    let cost = exchange(&cost, &order.currency)?;
    order.shipping = Some(Shipping { zone: name.clone(), weight_grams, cost });
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    #[test]
    fn it_is_by_zone_and_begun_kilogram() {
        // 1900 + 2 x 1150 + 130 + 4 x 390 + 62 = 5952 g: six kilograms; 9.50 + 6 x 3.75 = 32.00 USD = 29.51 EUR.
        let shipping = quote(prepared()).unwrap().shipping.unwrap();
        assert_eq!((shipping.zone.as_str(), shipping.weight_grams), ("europe", 5952));
        assert_eq!(shipping.cost.to_string(), "29.51 EUR");
        let mut order = prepared();
        (order.currency, order.customer.address.country) = ("USD".into(), "US".into());
        order.lines.truncate(1);
        assert_eq!(quote(order).unwrap().shipping.unwrap().cost.to_string(), "7.30 USD");
    }

    #[test]
    fn where_nothing_is_sent_is_said() {
        let mut order = prepared();
        order.customer.address.country = "AQ".into();
        assert_eq!(quote(order), Err(NoDelivery::Country("AQ".into())));
    }

    #[test]
    fn no_country_is_in_two_zones() {
        load();
        let mut all: Vec<&String> = ZONES.values().flat_map(|zone| &zone.countries).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
