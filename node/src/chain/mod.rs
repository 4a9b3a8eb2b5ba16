//! Chains: functions that call on, with one deadline over all of them.
//!
//! [`spec`] reads a `chain.toml`; [`flatten()`] looks its names up, in functions and other chains; what comes out is
//! a [`plan`]. [`compile`] gives its steps functions and routes of the bus, which makes it a [`served`] chain; each request
//! to it is a [`call`].

mod bucket;
mod call;
mod compile;
mod domain;
mod fields;
mod flatten;
pub mod graph;
mod holdings;
pub mod plan;
mod served;
pub mod spec;
mod split;
mod timeline;
mod trigger;
mod value;

pub use bucket::Bucket;
pub use call::Call;
pub use compile::{CompileError, Compiler};
pub use domain::Domain;
pub use flatten::{Known, flatten};
pub use holdings::{Holdings, Scope};
pub use served::{Chain, FreeRoutes, LentRoute, Route, Stage, Step};
pub use trigger::emitted;
