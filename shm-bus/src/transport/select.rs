//! Which transport: the one that is asked for, or the best that works here.

use std::sync::Arc;

use super::{BusError, Config, Kind, Transport, broker, futex, sockmap};

/// What was chosen, and what was tried before.
pub struct Selected {
    /// The transport, ready.
    pub transport: Arc<dyn Transport>,
    /// The kinds that come before it and why they aren't used, for the log and `spry doctor`.
    pub passed_over: Vec<(Kind, BusError)>,
}

impl std::fmt::Debug for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.transport.kind();
        f.debug_struct("Selected").field("kind", &kind).field("passed_over", &self.passed_over).finish()
    }
}

/// Makes the `preferred` transport or fails; without a preference, the first of sockmap, futex and broker that
/// passes its own test on this kernel with these rights.
pub fn select(preferred: Option<Kind>, config: Config) -> Result<Selected, BusError> {
    if let Some(kind) = preferred {
        return Ok(Selected { transport: make(kind, config)?, passed_over: Vec::new() });
    }
    let mut passed_over = Vec::new();
    for kind in [Kind::Sockmap, Kind::Futex] {
        match make(kind, config) {
            Ok(transport) => return Ok(Selected { transport, passed_over }),
            Err(why) => passed_over.push((kind, why)),
        }
    }
    Ok(Selected { transport: make(Kind::Broker, config)?, passed_over })
}

fn make(kind: Kind, config: Config) -> Result<Arc<dyn Transport>, BusError> {
    match kind {
        Kind::Sockmap => sockmap::transport(config),
        Kind::Futex => futex::transport(config),
        Kind::Broker => broker::transport(config),
    }
}
