//! What travels from step to step: the order, and what has been found out about it.

use serde::{Deserialize, Serialize};

use crate::money::Money;

/// An order on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its name.
    pub id: String,
    /// Who ordered.
    pub customer: Customer,
    /// In which the customer pays.
    pub currency: String,
    /// By which; gone when it has been charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
    /// What is ordered.
    pub lines: Vec<Line>,
    /// From `shipping`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipping: Option<Shipping>,
    /// From `checkout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// From `payment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<Payment>,
    /// From `recommendation`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recommendations: Vec<Suggestion>,
    /// From `ad`; nobody but the mail looks into them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ads: Vec<serde_json::Value>,
}

/// Who ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Customer {
    pub id: String,
    pub name: String,
    pub email: String,
    pub address: Address,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Address {
    pub street: String,
    pub city: String,
    pub postcode: String,
    /// Two letters (ISO 3166).
    pub country: String,
}

/// A payment card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Digits, with or without spaces.
    pub number: String,
    /// `2039-04`: good to the end of that month.
    pub expires: String,
    /// On the back.
    pub code: String,
}

/// One product of the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Which.
    pub product: String,
    /// How many.
    pub quantity: u32,
    /// From `catalog`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// From `checkout`: what all of them cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Money>,
}

/// What the catalog knows about a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// For people.
    pub name: String,
    /// Of one; in the shop's currency, then by `currency` in the order's.
    pub price: Money,
    /// Of one.
    pub weight_grams: u32,
    /// Shelves that it is on.
    pub categories: Vec<String>,
}

/// What it costs to send the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipping {
    /// Of which tariff.
    pub zone: String,
    /// Of everything.
    pub weight_grams: u64,
    /// In the order's currency.
    pub cost: Money,
}

/// A product that might please, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Suggestion {
    pub product: String,
    pub name: String,
    pub price: Money,
}

/// What was charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// The charge's name.
    pub transaction: String,
    /// Whose card.
    pub brand: String,
    /// Its number's last four digits.
    pub last_digits: String,
    /// How much.
    pub charged: Money,
}

/// A line that has not been to the catalog, in a place where that must have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing is known of the product {0:?}: `catalog` must come before this step")]
pub struct NotLookedUp(pub String);

impl Line {
    /// What the catalog said.
    pub fn details(&self) -> Result<&Details, NotLookedUp> {
        self.details.as_ref().ok_or_else(|| NotLookedUp(self.product.clone()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The order of `order.json` as `frontend`, `cart`, `catalog` and `currency` make it.
    pub(crate) fn prepared() -> Order {
        let new = serde_json::from_str(include_str!("../order.json")).unwrap();
        let order = crate::frontend::accept(new, "order-1").unwrap();
        let order = crate::catalog::look_up(crate::cart::gather(order).unwrap()).unwrap();
        crate::exchange::convert_prices(order).unwrap()
    }

    #[test]
    fn an_order_survives_its_text() {
        let order = prepared();
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
        assert!(!text.contains("null"), "{text}");
    }
}
