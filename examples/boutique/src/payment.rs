//! Charges a card, as far as a shop without a bank can: the number's check digit, whose card it is, the date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::money::Money;
use crate::order::{Card, Order, Payment};

/// A month, counted from the beginning of the year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(u64);

/// A charge that isn't made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// Nobody has added up.
    #[error("there is no total to charge: `checkout` must come before this step")]
    NoTotal,
    /// It has been charged already.
    #[error("the order has no card: was it charged before?")]
    NoCard,
    /// The number has a wrong length, a letter, or a wrong check digit.
    #[error("the card's number is wrong")]
    Number,
    /// Of a kind that isn't taken.
    #[error("only cards of Visa and Mastercard are taken")]
    Brand,
    /// Not `2039-04`.
    #[error("a card expires in a month like 2039-04, not {0:?}")]
    Date(String),
    /// Too old.
    #[error("the card has expired in {0}")]
    Expired(String),
    /// Not three digits.
    #[error("the card's code is three digits")]
    Code,
}

impl Month {
    /// The month of a time, in UTC.
    pub fn of(time: SystemTime) -> Self {
        let mut days = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 86_400;
        let (mut year, mut month) = (1970, 0);
        let leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        while days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self(12 * year + month)
    }

    fn parse(text: &str) -> Option<Self> {
        let (year, month) =
            text.split_once('-').filter(|(year, month)| (year.len(), month.len()) == (4, 2))?;
        let number =
            |part: &str| part.bytes().all(|digit| digit.is_ascii_digit()).then(|| part.parse::<u64>().ok());
        let (year, month) = (number(year)??, number(month)??);
        (1..=12).contains(&month).then(|| Self(12 * year + month - 1))
    }
}

/// The order, charged: with what was charged, and without the card.
pub fn charge(mut order: Order, now: Month) -> Result<Order, Declined> {
    let total = order.total.clone().ok_or(Declined::NoTotal)?;
    let card = order.card.take().ok_or(Declined::NoCard)?;
    order.payment = Some(payment(&order.id, &card, total, now)?);
    Ok(order)
}

fn payment(order: &str, card: &Card, charged: Money, now: Month) -> Result<Payment, Declined> {
    let digits: Vec<u8> = card.number.bytes().filter(|byte| !matches!(byte, b' ' | b'-')).collect();
    if !digits.iter().all(u8::is_ascii_digit) || digits.len() != 16 || !has_right_check_digit(&digits) {
        return Err(Declined::Number);
    }
    let brand = match digits.as_slice() {
        [b'4', ..] => "Visa",
        [b'5', b'1'..=b'5', ..] => "Mastercard",
        _ => return Err(Declined::Brand),
    };
    if Month::parse(&card.expires).ok_or_else(|| Declined::Date(card.expires.clone()))? < now {
        return Err(Declined::Expired(card.expires.clone()));
    }
    if card.code.len() != 3 || !card.code.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Declined::Code);
    }
    let last_digits = String::from_utf8_lossy(&digits[12..]).into_owned();
    Ok(Payment { transaction: format!("charge-{order}"), brand: brand.to_owned(), last_digits, charged })
}

/// Luhn's sum, which finds a wrong digit and most neighbours that have changed places.
fn has_right_check_digit(digits: &[u8]) -> bool {
    let doubled = |(place, digit): (usize, &u8)| {
        let value = u32::from(digit - b'0');
        if place % 2 == 1 { value * 2 / 10 + value * 2 % 10 } else { value }
    };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::prepared;

    const NOW: Month = Month(12 * 2026 + 10);

    fn charged(change: impl FnOnce(&mut Card)) -> Result<Payment, Declined> {
        let mut order = prepared();
        order.total = Some(order.lines[0].details().unwrap().price.clone());
        change(order.card.as_mut().unwrap());
        let order = charge(order, NOW)?;
        assert_eq!(order.card, None);
        Ok(order.payment.unwrap())
    }

    #[test]
    fn a_good_card_is_charged_and_forgotten() {
        let payment = charged(|_| {}).unwrap();
        assert_eq!((payment.brand.as_str(), payment.last_digits.as_str()), ("Visa", "1111"));
        assert_eq!(
            (payment.charged.to_string().as_str(), payment.transaction.as_str()),
            ("174.32 EUR", "charge-order-1")
        );
        assert_eq!(charged(|card| card.number = "5555-5555-5555-4444".into()).unwrap().brand, "Mastercard");
        assert!(charged(|card| card.expires = "2026-11".into()).is_ok(), "good to the end of its month");
    }

    #[test]
    fn a_bad_card_is_declined() {
        let number = |number: &str| charged(|card| card.number = number.into());
        for wrong in
            ["", "4111 1111 1111 1112", "1411 1111 1111 1111", "411111111111111x", "4".repeat(15).as_str()]
        {
            assert_eq!(number(wrong), Err(Declined::Number), "{wrong}");
        }
        assert_eq!(number("6011 1111 1111 1117"), Err(Declined::Brand));
        let expires = |date: &str| charged(|card| card.expires = date.into());
        assert_eq!(expires("2026-10"), Err(Declined::Expired("2026-10".into())));
        for wrong in ["", "2039", "2039-13", "2039-00", "04/2039", "+039-04"] {
            assert_eq!(expires(wrong), Err(Declined::Date(wrong.into())));
        }
        for wrong in ["", "12", "1234", "12x"] {
            assert_eq!(charged(|card| card.code = wrong.into()), Err(Declined::Code));
        }
    }

    #[test]
    fn an_order_is_charged_once_and_only_when_added_up() {
        let mut order = prepared();
        assert_eq!(charge(order.clone(), NOW), Err(Declined::NoTotal));
        order.total = Some(order.lines[0].details().unwrap().price.clone());
        let order = charge(order, NOW).unwrap();
        assert_eq!(charge(order, NOW), Err(Declined::NoCard));
    }

    #[test]
    fn months_begin_when_they_do() {
        let month = |seconds| Month::of(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(
            (month(0), month(31 * 86_400 - 1), month(31 * 86_400)),
            (Month(12 * 1970), Month(12 * 1970), Month(12 * 1970 + 1))
        );
        // 2024-02-29T12:00, 2024-03-01, 2026-12-31T23:59:59, 2027-01-01.
        assert_eq!(
            (month(1_709_208_000), month(1_709_251_200)),
            (Month(12 * 2024 + 1), Month(12 * 2024 + 2))
        );
        assert_eq!((month(1_798_761_599), month(1_798_761_600)), (Month(12 * 2026 + 11), Month(12 * 2027)));
    }
}
