//! spryd while it runs: connections are dealt out, signals are heeded, systemd is told.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

use super::notify::Notifier;
use super::sockets::Sockets;
use super::{Reload, StartupError, os};
use crate::dispatch::ToWorker;
use crate::gateway::Connection;
use crate::keeper::Keeper;

/// Connections at once; more are closed as they come.
const CONNECTIONS_MAX: usize = 8192;
/// After a failed accept (no descriptors left, mostly) the next is tried this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The signals that spryd heeds. They are caught from its first moment on: before that each of them would just end it.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches them.
    pub(super) fn catch() -> Result<Self, StartupError> {
        let caught = |kind, name| signal(kind).map_err(os(format!("wait for {name}")));
        Ok(Self {
            terminate: caught(SignalKind::terminate(), "SIGTERM")?,
            interrupt: caught(SignalKind::interrupt(), "SIGINT")?,
            hangup: caught(SignalKind::hangup(), "SIGHUP")?,
        })
    }
}

/// The way of connections to the workers.
pub(super) struct Doors {
    pub(super) mailboxes: Vec<UnboundedSender<ToWorker>>,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) next: AtomicUsize,
}

impl Doors {
    /// Deals connections out in turn.
    fn hand_over(&self, connection: Connection) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return tracing::warn!(limit = CONNECTIONS_MAX, "a connection was closed: there are too many");
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.mailboxes.len();
        let _ = self.mailboxes[turn].send(ToWorker::Connection(connection));
    }
}

/// Serves until it is told to stop.
pub(super) async fn live(
    doors: &Doors,
    sockets: &Sockets,
    signals: &mut Signals,
    notifier: &Notifier,
    reload: &mut Reload,
) {
    let (http, control): (_, &UnixListener) = (&sockets.http, &sockets.control);
    loop {
        let accepted = tokio::select! {
            accepted = http.accept() => accepted.and_then(|(stream, _)| stream.into_std()).map(Connection::Tcp),
            accepted = control.accept() => {
                accepted.and_then(|(stream, _)| stream.into_std()).map(Connection::Unix)
            }
            _ = signals.hangup.recv() => {
                notifier.reloading();
                reload.go();
                notifier.ready("serving");
                continue;
            }
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
        };
        match accepted {
            Ok(connection) => doors.hand_over(connection),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells systemd that spryd lives, as often as it wants to hear it: after this thread and every worker has answered. One that
/// hangs is silence, and systemd starts spryd anew.
pub(super) async fn watchdog(keeper: Rc<Keeper>, notifier: Rc<Notifier>) {
    let Some(interval) = notifier.watchdog() else { return };
    loop {
        keeper.roll_call().await;
        notifier.alive();
        tokio::time::sleep(interval / 3).await;
    }
}
