//! Takes what a customer sends: checks it and makes an order of it. Whoever calls is not trusted.

use serde::Deserialize;

use crate::order::{Card, Customer, Line, Order};

/// Lines of an order.
const LINES_MAX: usize = 100;
/// Characters of a text.
const TEXT_MAX: usize = 200;

/// An order as a customer sends it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    customer: Customer,
    currency: String,
    card: Card,
    items: Vec<Item>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    product: String,
    quantity: u32,
}

/// What is wrong with an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    /// A text is empty, too long, or has characters that no text has.
    #[error("{0} must be 1 to {TEXT_MAX} characters of text")]
    Text(&'static str),
    /// No mail can go there.
    #[error("customer.email has no @ between a name and a host")]
    Email,
    /// Nothing, or too much.
    #[error("items must be 1 to {LINES_MAX}, not {0}")]
    Items(usize),
}

/// Makes an order of it; `id` names it.
pub fn accept(new: NewOrder, id: &str) -> Result<Order, BadOrder> {
    let NewOrder { customer, currency, card, items } = new;
    let texts = [
        ("customer.id", &customer.id),
        ("customer.name", &customer.name),
        ("customer.email", &customer.email),
        ("customer.address.street", &customer.address.street),
        ("customer.address.city", &customer.address.city),
        ("customer.address.postcode", &customer.address.postcode),
        ("customer.address.country", &customer.address.country),
        ("currency", &currency),
        ("card.number", &card.number),
        ("card.expires", &card.expires),
        ("card.code", &card.code),
    ];
    let all = texts.into_iter().chain(items.iter().map(|item| ("items.product", &item.product)));
    for (name, text) in all {
        let length = text.chars().count();
        if length == 0 || length > TEXT_MAX || text.chars().any(char::is_control) {
            return Err(BadOrder::Text(name));
        }
    }
    match customer.email.split_once('@') {
        Some((name, host)) if !name.is_empty() && !host.is_empty() && !host.contains('@') => {}
        _ => return Err(BadOrder::Email),
    }
    if items.is_empty() || items.len() > LINES_MAX {
        return Err(BadOrder::Items(items.len()));
    }
    let line = |Item { product, quantity }| Line { product, quantity, details: None, cost: None };
    Ok(Order {
        id: id.to_owned(),
        customer,
        currency,
        card: Some(card),
        lines: items.into_iter().map(line).collect(),
        shipping: None,
        total: None,
        payment: None,
        recommendations: Vec::new(),
        ads: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn accepted(change: impl FnOnce(&mut Value)) -> Result<Order, BadOrder> {
        let mut order: Value = serde_json::from_str(include_str!("../order.json")).unwrap();
        change(&mut order);
        accept(serde_json::from_value(order).expect("the shape is right"), "order-1")
    }

    #[test]
    fn an_order_is_accepted_as_it_is() {
        let order = accepted(|_| {}).unwrap();
        assert_eq!((order.id.as_str(), order.currency.as_str(), order.lines.len()), ("order-1", "EUR", 6));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            accepted(|order| order["customer"]["name"] = json!("")),
            Err(BadOrder::Text("customer.name"))
        );
        let long = "x".repeat(201);
        assert_eq!(accepted(|order| order["card"]["code"] = json!(long)), Err(BadOrder::Text("card.code")));
        let header = "Ada\r\nBcc: everybody@example.org";
        assert_eq!(
            accepted(|order| order["customer"]["name"] = json!(header)),
            Err(BadOrder::Text("customer.name"))
        );
        for email in ["ada", "@example.org", "ada@", "a@b@c"] {
            assert_eq!(
                accepted(|order| order["customer"]["email"] = json!(email)),
                Err(BadOrder::Email),
                "{email}"
            );
        }
        assert_eq!(accepted(|order| order["items"] = json!([])), Err(BadOrder::Items(0)));
        let many = vec![json!({"product": "MUG-B", "quantity": 1}); 101];
        assert_eq!(accepted(|order| order["items"] = json!(many)), Err(BadOrder::Items(101)));
    }
}
