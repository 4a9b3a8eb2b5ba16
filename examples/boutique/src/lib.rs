//! A small shop, cut into ten functions in the way of Online Boutique, the shop that papers about service chains
//! measure with. One order goes through them, and each adds what it knows:
//!
//! ```text
//! frontend ─► cart ─► catalog ─► currency ─┬─► shipping ───────┬─► checkout ─► payment ─► email
//!                                          ├─► recommendation ─┤
//!                                          └─► ad ─────────────┘
//! ```
//!
//! What the native ones do lies here, a module each, without any knowledge of being a function; `ad` and `email` are
//! Python. Amounts are exact ([`money`]): the sums of a confirmation are those that its lines say.

pub mod cart;
pub mod catalog;
pub mod checkout;
pub mod exchange;
pub mod frontend;
pub mod money;
pub mod order;
pub mod payment;
pub mod recommendation;
pub mod shipping;
mod step;

pub use step::step;
