//! Puts together what came back from three functions at once, and adds it up.

use serde::{Deserialize, Serialize};

use crate::money::MoneyError;
use crate::order::{NotLookedUp, Order};
use crate::recommendation::Recommendations;

/// What `ad` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ads {
    /// As they are.
    pub ads: Vec<serde_json::Value>,
}

/// The list that comes in: the answers of `shipping`, `recommendation` and `ad`, in this order.
pub type Gathered = (Order, Recommendations, Ads);

/// An order that can't be added up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSum {
    /// Too much, or of two currencies.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// There is no price.
    #[error(transparent)]
    NotLookedUp(#[from] NotLookedUp),
    /// Nobody has said what sending it costs.
    #[error("what it costs to send the order isn't known: `shipping` must come before this step")]
    NoShipping,
}

/// One order again, with what each line costs and the total.
pub fn add_up(
    (mut order, Recommendations { recommendations }, Ads { ads }): Gathered,
) -> Result<Order, BadSum> {
    let mut total = order.shipping.as_ref().ok_or(BadSum::NoShipping)?.cost.clone();
    for line in &mut order.lines {
        let cost = line.details()?.price.times(line.quantity)?;
        total = total.plus(&cost)?;
        line.cost = Some(cost);
    }
    Ok(Order { total: Some(total), recommendations, ads, ..order })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    fn gathered(order: Order) -> Gathered {
        let recommendations = crate::recommendation::recommend(&order).unwrap();
        (order, recommendations, Ads { ads: vec!["an ad".into()] })
    }

    #[test]
    fn the_total_is_that_of_the_lines_and_the_shipping() {
        let order = add_up(gathered(crate::shipping::quote(prepared()).unwrap())).unwrap();
        let costs: Vec<String> =
            order.lines.iter().map(|line| line.cost.as_ref().unwrap().to_string()).collect();
        // Each price is exchanged and rounded before it is multiplied: what the customer sees adds up.
        assert_eq!(costs, ["174.32 EUR", "257.34 EUR", "45.19 EUR", "46.12 EUR", "20.06 EUR"]);
        assert_eq!(order.total.unwrap().to_string(), "572.54 EUR");
        assert_eq!((order.recommendations.len(), order.ads.len()), (5, 1));
    }

    #[test]
    fn the_list_is_the_three_answers_in_their_order() {
        let order = crate::shipping::quote(prepared()).unwrap();
        let (order, recommendations, ads) = gathered(order);
        let text = serde_json::to_string(&(&order, &recommendations, &ads)).unwrap();
        assert_eq!(serde_json::from_str::<Gathered>(&text).unwrap(), (order, recommendations, ads));
    }

    #[test]
    fn without_shipping_there_is_no_total() {
        assert_eq!(add_up(gathered(prepared())), Err(BadSum::NoShipping));
    }
}
