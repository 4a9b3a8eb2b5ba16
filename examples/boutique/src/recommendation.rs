//! What might please, too: products from the shelves that the order is from.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::catalog::PRODUCTS;
use crate::exchange::{ExchangeError, exchange};
use crate::order::{Order, Suggestion};

/// Suggestions that are made.
const SUGGESTIONS_MAX: usize = 5;

/// What `recommendation` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recommendations {
    /// The best first.
    pub recommendations: Vec<Suggestion>,
}

/// Reads the tables, so that no request has to.
pub fn load() {
    std::sync::LazyLock::force(&PRODUCTS);
    crate::exchange::load();
}

/// Products that aren't ordered, those first whose shelves most of the order is from.
pub fn recommend(order: &Order) -> Result<Recommendations, ExchangeError> {
    let ordered: HashSet<&str> = order.lines.iter().map(|line| line.product.as_str()).collect();
    let mut shelves: HashMap<&str, u64> = HashMap::new();
    for line in &order.lines {
        for category in &line.details()?.categories {
            *shelves.entry(category).or_default() += u64::from(line.quantity);
        }
    }
    let mut candidates: Vec<(Reverse<u64>, usize)> = Vec::new();
    for (index, product) in PRODUCTS.iter().enumerate() {
        let score = product.categories.iter().filter_map(|category| shelves.get(category.as_str())).sum();
        if score > 0 && !ordered.contains(product.id.as_str()) {
            candidates.push((Reverse(score), index));
        }
    }
    candidates.sort_unstable();
    let suggestion = |(_, index): &(_, usize)| -> Result<Suggestion, ExchangeError> {
        let product = &PRODUCTS[*index];
        let details = product.details();
        let price = exchange(&details.price, &order.currency)?;
        Ok(Suggestion { product: product.id.clone(), name: details.name, price })
    };
    let recommendations =
        candidates.iter().take(SUGGESTIONS_MAX).map(suggestion).collect::<Result<_, ExchangeError>>()?;
    Ok(Recommendations { recommendations })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    #[test]
    fn it_is_from_the_same_shelves_and_not_ordered_already() {
        load();
        let order = prepared();
        let found = recommend(&order).unwrap().recommendations;
        // Nine of the pieces are for camping or the kitchen or both: the stove is on both shelves.
        assert_eq!((found.len(), found[0].product.as_str()), (5, "STOVE-G"));
        for suggestion in &found {
            assert!(order.lines.iter().all(|line| line.product != suggestion.product), "{suggestion:?}");
            assert_eq!(suggestion.price.currency, "EUR");
        }
    }
}
