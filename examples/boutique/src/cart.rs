//! Gathers an order's lines: each product once.

use std::collections::HashMap;

use crate::order::Order;

/// Pieces of one product that are sold at once.
const QUANTITY_MAX: u32 = 99;

/// A line that can't be sold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{product}: 1 to {QUANTITY_MAX} can be ordered, not {quantity}")]
pub struct BadQuantity {
    product: String,
    quantity: u64,
}

/// The order with each product once, where it was first named, and with the quantities added up.
pub fn gather(mut order: Order) -> Result<Order, BadQuantity> {
    let mut totals: HashMap<String, u64> = HashMap::new();
    for line in &order.lines {
        *totals.entry(line.product.clone()).or_default() += u64::from(line.quantity);
    }
    let mut lines = Vec::with_capacity(totals.len());
    for mut line in order.lines {
        let Some(quantity) = totals.remove(&line.product) else { continue };
        line.quantity = u32::try_from(quantity).unwrap_or(u32::MAX);
        if !(1..=QUANTITY_MAX).contains(&line.quantity) {
            return Err(BadQuantity { product: line.product, quantity });
        }
        lines.push(line);
    }
    order.lines = lines;
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    fn gathered(items: &[(&str, u32)]) -> Result<Vec<(String, u32)>, BadQuantity> {
        let mut order = prepared();
        let template = order.lines[0].clone();
        let line = |(product, quantity): &(&str, u32)| {
            let mut line = template.clone();
            (line.product, line.quantity) = ((*product).to_owned(), *quantity);
            line
        };
        order.lines = items.iter().map(line).collect();
        Ok(gather(order)?.lines.into_iter().map(|line| (line.product, line.quantity)).collect())
    }

    #[test]
    fn each_product_comes_once() {
        let lines = gathered(&[("b", 3), ("a", 1), ("b", 1)]).unwrap();
        assert_eq!(lines, [("b".to_owned(), 4), ("a".to_owned(), 1)]);
    }

    #[test]
    fn none_and_too_many_are_refused_also_together() {
        let refused = |quantity| Err(BadQuantity { product: "a".into(), quantity });
        assert_eq!(gathered(&[("a", 0)]), refused(0));
        assert_eq!(gathered(&[("a", 60), ("b", 1), ("a", 40)]), refused(100));
        assert_eq!(gathered(&[("a", u32::MAX), ("a", u32::MAX)]), refused(2 * u64::from(u32::MAX)));
        assert_eq!(gathered(&[("a", 99), ("b", 99)]).unwrap().len(), 2);
    }
}
