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
use crate::gateway::{Connection, Counted};
use crate::keeper::Keeper;

/// HTTP connections at once; more are closed as they come.
const CONNECTIONS_MAX: usize = 8192;
/// The same for the control socket, which is counted apart: whoever takes all places on the network doesn't take the
/// operator's.
const CONTROL_MAX: usize = 512;
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
    mailboxes: Vec<UnboundedSender<ToWorker>>,
    http: Arc<AtomicUsize>,
    control: Arc<AtomicUsize>,
    next: AtomicUsize,
}

impl Doors {
    pub(super) fn new(mailboxes: Vec<UnboundedSender<ToWorker>>) -> Self {
        Self { mailboxes, http: Arc::default(), control: Arc::default(), next: AtomicUsize::new(0) }
    }

    /// Deals connections out in turn.
    fn hand_over(&self, connection: Connection) {
        let (places, limit, at) = match connection {
            Connection::Tcp(_) => (&self.http, CONNECTIONS_MAX, "http"),
            Connection::Unix(_) => (&self.control, CONTROL_MAX, "the control socket"),
        };
        let Some(counted) = Counted::take(places, limit) else {
            return tracing::warn!(limit, at, "a connection was closed: there are too many");
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.mailboxes.len();
        let _ = self.mailboxes[turn].send(ToWorker::Connection(connection, counted));
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_full_listener_leaves_the_control_socket_its_places() {
        let (mailbox, mut letters) = unbounded_channel();
        let doors = Doors::new(vec![mailbox]);
        let mut held: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| Counted::take(&doors.http, CONNECTIONS_MAX).expect("there is room"))
            .collect();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut come = || {
            let client = std::net::TcpStream::connect(address).expect("connected");
            doors.hand_over(Connection::Tcp(client));
            letters.try_recv().ok()
        };
        assert!(come().is_none(), "all places are taken");
        held.pop();
        let served = come();
        assert!(served.is_some() && come().is_none(), "one was free");
        drop(served);
        assert!(come().is_some(), "and is again");
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        held.push(Counted::take(&doors.http, CONNECTIONS_MAX).expect("there is room"));
        doors.hand_over(Connection::Unix(ours));
        assert!(letters.try_recv().is_ok());
    }
}
