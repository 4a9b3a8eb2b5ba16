//! The peer's end of whatever transport the hub has chosen.

use std::os::fd::OwnedFd;

use super::{BusError, Endpoint, Kind};

/// Opens the peer's end, from the fds of [`super::Attachment::endpoint`] in that order.
pub fn open(kind: Kind, fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, BusError> {
    let (_, _) = (kind, fds);
    Err(BusError::Full("endpoint"))
}
