//! Answers that their clients have not taken yet.
//!
//! A large answer is sent from where its function has written it: its block is in use until the client has taken the last of it. Clients
//! that take nothing would have a function's whole outbox, and nobody else a large answer. So:
//!
//! - Half of an outbox ([`Shelf`]) is for them, or one answer that is larger. Beyond, an answer is copied, and its block is free at once. Copies, and answers in
//!   outboxes that nothing else is written to, take memory while no more than half of `queue.memory` is in use.
//! - Where there is no room for another, it stays where it is, and as long as it does, connections are ended that hold as much: of
//!   clients that have not taken [`PACE`] bytes for [`PATIENCE`], those first that have waited longest. One that is alone keeps nobody
//!   from anything, and isn't ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::answer::{COPY_MAX, copied};
use crate::inbox::{Held, NodeBytes};

/// Who has not taken [`PACE`] bytes for this long is slow. With [`LOOK`], less than a function waits for room (a second): it gets some in
/// time.
const PATIENCE: Duration = Duration::from_millis(500);
/// See there: 64 KiB a second.
const PACE: u64 = 32 << 10;
/// Between two looks while there is no room.
const LOOK: Duration = Duration::from_millis(100);

/// Room in an outbox for answers that wait to be sent.
#[derive(Debug)]
pub struct Shelf {
    used: AtomicU64,
    most: u64,
}

impl Shelf {
    /// For so many bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most })
    }

    fn take(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // (Otherwise it is given back with the room.)
        let room = Room::Shelf(Arc::clone(self), bytes);
        (used <= self.most || used == bytes).then_some(room)
    }
}

/// Where an answer that waits is counted.
#[derive(Debug)]
enum Room {
    Shelf(Arc<Shelf>, u64),
    Memory {
        _held: Held,
    },
    /// There was none.
    Beyond(Arc<Unsent>, u64),
}

impl Drop for Room {
    fn drop(&mut self) {
        let (count, bytes) = match self {
            Self::Shelf(shelf, bytes) => (&shelf.used, bytes),
            Self::Beyond(unsent, bytes) => (&unsent.beyond, bytes),
            Self::Memory { .. } => return,
        };
        count.fetch_sub(*bytes, Ordering::Relaxed);
    }
}

/// A connection, as one that takes answers.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// Large answers are on their way to it.
    is_owed: AtomicBool,
    debt: Mutex<Debt>,
    end: Notify,
}

#[derive(Debug, Default)]
struct Debt {
    /// Bytes of the answers that are on their way, until each is through.
    owed: u64,
    /// Taken since `since`, less than [`PACE`].
    taken: u64,
    since: Option<Instant>,
    is_ended: bool,
}

impl Client {
    /// It has taken so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        if self.is_owed.load(Ordering::Relaxed) {
            self.debt.lock().take(bytes as u64, Instant::now());
        }
    }

    /// Resolves when somebody else needs the room.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}

impl Debt {
    fn take(&mut self, bytes: u64, now: Instant) {
        self.taken += bytes;
        if self.taken >= PACE {
            (self.taken, self.since) = (0, Some(now));
        }
    }
}

/// All of a node.
#[derive(Debug)]
pub struct Unsent {
    memory: Arc<NodeBytes>,
    /// Those who are owed something, by their addresses. Locked before a client's debt.
    clients: Mutex<HashMap<usize, Arc<Client>>>,
    /// Bytes for which there was no room.
    beyond: AtomicU64,
    /// Somebody looks after that.
    is_relieved: AtomicBool,
}

impl Unsent {
    /// With copies in this memory, beside requests.
    pub fn new(memory: Arc<NodeBytes>) -> Arc<Self> {
        let (clients, beyond, is_relieved) = Default::default();
        Arc::new(Self { memory, clients, beyond, is_relieved })
    }

    /// Where requests that arrive count, and answers beyond the outboxes.
    pub(super) fn memory(&self) -> &Arc<NodeBytes> {
        &self.memory
    }

    /// An answer's body, on its way to a client. `shelf`: of the outbox that it lies in, if others are written there.
    pub(super) fn send(
        self: &Arc<Self>,
        client: &Arc<Client>,
        body: Bytes,
        shelf: Option<&Arc<Shelf>>,
    ) -> Bytes {
        if body.len() <= COPY_MAX {
            return body;
        }
        let len = body.len() as u64;
        let lease = Lease::new(self, client, len, Instant::now());
        let (bytes, room) = match shelf.and_then(|shelf| shelf.take(len)) {
            Some(room) => (body, room),
            None => match (Held::of_half(&self.memory, len), shelf) {
                (Some(held), Some(_)) => (Bytes::from(copied(&body)), Room::Memory { _held: held }),
                (Some(held), None) => (body, Room::Memory { _held: held }),
                (None, _) => {
                    self.beyond.fetch_add(len, Ordering::Relaxed);
                    (body, Room::Beyond(Arc::clone(self), len))
                }
            },
        };
        Bytes::from_owner(Sending { bytes, _lease: lease, _room: room })
    }

    /// Whether there is too little room and nobody looks after that. Who asks does, by [`Self::relieve`].
    pub(super) fn wants_relief(&self) -> bool {
        self.beyond.load(Ordering::Relaxed) > 0 && !self.is_relieved.swap(true, Ordering::Relaxed)
    }

    /// Ends slow connections until there is room.
    pub(super) async fn relieve(self: Arc<Self>) {
        loop {
            while self.beyond.load(Ordering::Relaxed) > 0 {
                self.end_slow(self.beyond.load(Ordering::Relaxed), Instant::now());
                tokio::time::sleep(LOOK).await;
            }
            self.is_relieved.store(false, Ordering::Relaxed);
            if !self.wants_relief() {
                return;
            }
        }
    }

    /// Ends the connections of slow clients that hold so many bytes, if there are any.
    fn end_slow(&self, bytes: u64, now: Instant) {
        let clients = self.clients.lock();
        if clients.len() < 2 {
            return;
        }
        let slow = clients.values().filter_map(|client| {
            let debt = client.debt.lock();
            let since = debt.since.filter(|_| !debt.is_ended)?;
            (now.saturating_duration_since(since) >= PATIENCE).then_some((since, debt.owed, client))
        });
        let mut slow: Vec<_> = slow.collect();
        slow.sort_unstable_by_key(|(since, ..)| *since);
        let (mut ended, mut freed) = (0, 0);
        for (_, owed, client) in slow {
            if freed >= bytes {
                break;
            }
            (ended, freed) = (ended + 1, freed + owed);
            client.debt.lock().is_ended = true;
            client.end.notify_one();
        }
        if ended > 0 {
            tracing::info!(
                ended,
                bytes = freed,
                "connections are ended: their clients don't take their answers, and others need the room"
            );
        }
    }
}

/// An answer that a client is owed.
#[derive(Debug)]
struct Lease {
    unsent: Arc<Unsent>,
    client: Arc<Client>,
    bytes: u64,
}

impl Lease {
    fn new(unsent: &Arc<Unsent>, client: &Arc<Client>, bytes: u64, now: Instant) -> Self {
        let mut clients = unsent.clients.lock();
        let mut debt = client.debt.lock();
        if debt.owed == 0 {
            (debt.taken, debt.since) = (0, Some(now));
            client.is_owed.store(true, Ordering::Relaxed);
            clients.insert(Arc::as_ptr(client).addr(), Arc::clone(client));
        }
        debt.owed += bytes;
        drop(debt);
        Self { unsent: Arc::clone(unsent), client: Arc::clone(client), bytes }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut clients = self.unsent.clients.lock();
        let mut debt = self.client.debt.lock();
        debt.owed -= self.bytes;
        if debt.owed == 0 {
            self.client.is_owed.store(false, Ordering::Relaxed);
            clients.remove(&Arc::as_ptr(&self.client).addr());
        }
    }
}

/// A body with what is kept for it.
struct Sending {
    bytes: Bytes,
    _lease: Lease,
    _room: Room,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;

    fn is_ended(client: &Client) -> bool {
        client.debt.lock().is_ended
    }

    fn wait(client: &Client, for_: Duration) {
        let mut debt = client.debt.lock();
        debt.since = debt.since.and_then(|since| since.checked_sub(for_));
    }

    #[test]
    fn half_an_outbox_then_memory_then_the_slowest() {
        let memory = NodeBytes::new(4 * LEN as u64);
        let (unsent, shelf) = (Unsent::new(Arc::clone(&memory)), Shelf::new(2 * LEN as u64));
        let body = || Bytes::from(vec![7; LEN]);
        let clients: Vec<Arc<Client>> = (0..5).map(|_| Arc::default()).collect();
        let send = |client: &Arc<Client>| {
            let body = body();
            let (at, sent) = (body.as_ptr(), unsent.send(client, body, Some(&shelf)));
            assert_eq!(sent, vec![7; LEN]);
            (sent.as_ptr() == at, sent)
        };
        let mut sent: Vec<_> = clients[..4].iter().map(send).collect();
        let stays: Vec<bool> = sent.iter().map(|(stays, _)| *stays).collect();
        assert_eq!(stays, [true, true, false, false], "two in the outbox, two copies");
        assert_eq!(memory.used(), 2 * LEN as u64, "half of the memory");
        assert!(!unsent.wants_relief());
        // No room is left, and nobody is slow.
        sent.push(send(&clients[4]));
        assert!(sent[4].0 && unsent.wants_relief() && !unsent.wants_relief());
        let relieve = || unsent.end_slow(unsent.beyond.load(Ordering::Relaxed), Instant::now());
        relieve();
        assert!(!clients.iter().any(|client| is_ended(client)));
        // The second has waited longest, the third takes something now and then.
        wait(&clients[1], 3 * PATIENCE);
        wait(&clients[2], 4 * PATIENCE);
        clients[2].took(PACE as usize);
        wait(&clients[3], 2 * PATIENCE);
        relieve();
        let ended: Vec<bool> = clients.iter().map(|client| is_ended(client)).collect();
        assert_eq!(ended, [false, true, false, false, false], "as much as is needed");
        drop(sent);
        assert_eq!((memory.used(), shelf.used.load(Ordering::Relaxed)), (0, 0));
        assert!(unsent.clients.lock().is_empty() && unsent.beyond.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn who_is_alone_has_all_the_time() {
        let (unsent, client) = (Unsent::new(NodeBytes::new(LEN as u64)), Arc::default());
        let shelf = Shelf::new(LEN as u64 / 2);
        let first = unsent.send(&client, Bytes::from(vec![7; LEN]), Some(&shelf));
        assert!(!unsent.wants_relief(), "one answer has room on any shelf");
        let second = unsent.send(&client, Bytes::from(vec![7; LEN]), Some(&shelf));
        assert!(unsent.wants_relief());
        wait(&client, 100 * PATIENCE);
        unsent.end_slow(LEN as u64, Instant::now());
        assert!(!is_ended(&client));
        let other = Arc::default();
        let third = unsent.send(&other, Bytes::from(vec![7; LEN]), None);
        unsent.end_slow(LEN as u64, Instant::now());
        assert!(is_ended(&client) && !is_ended(&other));
        drop((first, second, third));
    }

    #[test]
    fn what_is_written_once_counts_as_memory_and_small_answers_as_nothing() {
        let memory = NodeBytes::new(2 * LEN as u64);
        let (unsent, client) = (Unsent::new(Arc::clone(&memory)), Arc::default());
        let small = unsent.send(&client, Bytes::from(vec![7; COPY_MAX]), None);
        assert_eq!((memory.used(), unsent.clients.lock().len()), (0, 0));
        let body = Bytes::from(vec![7; LEN]);
        let (at, sent) = (body.as_ptr(), unsent.send(&client, body, None));
        assert!(sent.as_ptr() == at, "no copy");
        assert_eq!(memory.used(), LEN as u64);
        let over = unsent.send(&client, Bytes::from(vec![7; LEN]), None);
        assert_eq!((memory.used(), over.len()), (LEN as u64, LEN));
        drop((small, sent, over));
        assert_eq!(memory.used(), 0);
    }
}
