//! What the shop sells: `data/products.json`, read once, when the function is deployed.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::money::{Decimal, Money};
use crate::order::{Details, Order};

/// The currency of the catalog's prices.
pub const SHOP_CURRENCY: &str = "USD";

/// A product.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// What it is ordered by.
    pub id: String,
    name: String,
    price: Decimal,
    weight_grams: u32,
    /// Shelves that it is on.
    pub categories: Vec<String>,
}

/// All of them, sorted by id.
pub static PRODUCTS: LazyLock<Vec<Product>> = LazyLock::new(|| {
    let mut products: Vec<Product> =
        serde_json::from_str(include_str!("../data/products.json")).expect("the tests read it too");
    products.sort_by(|a, b| a.id.cmp(&b.id));
    products
});

/// The shop doesn't have it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no product {0:?}")]
pub struct NoSuchProduct(String);

impl Product {
    /// What an order is told about it.
    pub fn details(&self) -> Details {
        Details {
            name: self.name.clone(),
            price: Money { currency: SHOP_CURRENCY.to_owned(), amount: self.price },
            weight_grams: self.weight_grams,
            categories: self.categories.clone(),
        }
    }
}

/// The order with details in every line, prices in the shop's currency.
pub fn look_up(mut order: Order) -> Result<Order, NoSuchProduct> {
    for line in &mut order.lines {
        let found = PRODUCTS.binary_search_by(|product| product.id.as_str().cmp(&line.product));
        let index = found.map_err(|_| NoSuchProduct(line.product.clone()))?;
        line.details = Some(PRODUCTS[index].details());
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    #[test]
    fn every_product_is_found_and_has_what_others_rely_on() {
        let mut order = prepared();
        let template = order.lines[0].clone();
        for product in &*PRODUCTS {
            let mut line = template.clone();
            line.product = product.id.clone();
            order.lines = vec![line];
            let found = look_up(order.clone()).expect(&product.id);
            let details = found.lines[0].details().unwrap();
            assert_eq!(details.price.amount.decimals, 2, "{}", product.id);
            assert!(details.weight_grams > 0 && !details.categories.is_empty(), "{}", product.id);
        }
        assert!(PRODUCTS.windows(2).all(|pair| pair[0].id < pair[1].id), "an id comes twice");
    }

    #[test]
    fn an_unknown_product_is_named() {
        let mut order = prepared();
        order.lines[1].product = "tent-2".into();
        assert_eq!(look_up(order), Err(NoSuchProduct("tent-2".into())));
    }
}
