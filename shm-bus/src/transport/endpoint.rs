//! The peer's end of whatever transport the hub has chosen.

use std::os::fd::OwnedFd;

use super::{BusError, Endpoint, Kind, broker, futex, sockmap};

/// Opens the peer's end, from the fds of [`super::Attachment::endpoint`] in that order.
///
/// Nothing is shared with another thread or process afterwards; an endpoint that was opened before a fork
/// belongs to one of the two.
pub fn open(kind: Kind, fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, BusError> {
    match kind {
        Kind::Sockmap => sockmap::open(fds),
        Kind::Futex => futex::open(fds),
        Kind::Broker => broker::open(fds),
    }
}
