//! The transport through shared memory: two rings per peer, and futexes to sleep on.
//!
//! An endpoint is three fds: the hub's page (the peer reads it), the peer's page (the hub reads it), and a
//! socket on which nothing is ever sent: its end of file tells each side of the other's death, which memory
//! can't.
//!
//! ```text
//!            hub's page                              peer's page
//!   hub ──► │ ring of invocations │ ──► peer ──► │ ring of answers │ ──► hub
//!           peer spins, then FUTEX_WAIT            hub waits with io_uring FUTEX_WAIT
//! ```
//!
//! The hub wakes a peer only if it says that it sleeps; a peer always wakes the hub, which always listens. A
//! peer that writes nonsense into its page makes its ring unusable ([`crate::ring`]), which the hub reports
//! as a fault; so it does when a peer wakes it again and again with nothing to take.

mod endpoint;
#[cfg(feature = "hub")]
mod hub;
mod page;
mod spin;

pub(super) use endpoint::open;
#[cfg(feature = "hub")]
pub use hub::transport;
