//! The kinds of transports, and what goes wrong with them.

use std::fmt;
use std::str::FromStr;

/// Which implementation; also what a peer must be told to open its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// sk_msg redirect.
    Sockmap,
    /// Shared-memory rings and futexes.
    Futex,
    /// Unix sockets through the hub.
    Broker,
}

impl Kind {
    /// Its name in settings and control messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sockmap => "sockmap",
            Self::Futex => "futex",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such transport.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no transport {0:?} (there are sockmap, futex and broker)")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        let found = [Self::Sockmap, Self::Futex, Self::Broker].into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// What went wrong on the bus, at which operation.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    Os {
        /// What was being done, e.g. `"connect bus socket"`.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel program could not be loaded or attached.
    #[error("load the bus program: {0}")]
    Program(String),
    /// All of a function's slots, or all ports, are taken.
    #[error("no free {0}")]
    Full(&'static str),
    /// A page that the two sides share can't be made or mapped.
    #[error("a bus page: {0}")]
    Segment(#[from] crate::segment::SegmentError),
    /// The hub has broken the protocol of the ring, or the peer has used its end out of turn.
    #[error("the bus ring: {0}")]
    Ring(#[from] crate::ring::RingError),
    /// The fds aren't those of an endpoint.
    #[error("{fds} fds are no endpoint of the {kind} transport")]
    Endpoint {
        /// Which transport.
        kind: Kind,
        /// How many fds there were.
        fds: usize,
    },
    /// A chain's route can't be set.
    #[error("route {route}: {why}")]
    Route {
        /// Its number.
        route: u16,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel lacks what this transport needs.
    #[error("the {kind} transport is not available: {why}")]
    Unavailable {
        /// Which one.
        kind: Kind,
        /// Why, in words for `spry doctor`.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names() {
        for kind in [Kind::Sockmap, Kind::Futex, Kind::Broker] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("pigeon".parse::<Kind>().is_err());
    }
}
