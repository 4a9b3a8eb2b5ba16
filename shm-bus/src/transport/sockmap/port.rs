//! A gateway port: P in the socket map, and P', its real peer, where what nobody takes ends up.
//!
//! The program runs within the send and notes in the port's entry whether it put the message into a
//! slot (`claims`). So when the send returns, the sender knows:
//!
//! | send says | `claims` | meaning |
//! |---|---|---|
//! | sent | one more | an instance has it, or `detach` has returned its invocation |
//! | sent | the same | nobody was idle; the bytes are on their way to P', to be thrown away |
//! | an error | the same | the program didn't place it; nothing was sent |
//! | an error | one more | the instance's socket died after the program chose it: take the invocation out of the slot and try again, unless `detach` was faster |
//!
//! Who has claimed a slot by itself ([`Port::send_prepared`]) is told the same way whether the message got there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use spry_ebpf_common::{DESCRIPTOR_LEN, Descriptor, SLOTS_PER_FUNCTION, flags};

use super::hub::Inner;
use super::sys::PortCell;
use crate::ids::{FunctionIndex, InvocationId, PortIndex};
use crate::transport::table::{Claim, Stamp};
use crate::transport::{BusError, Event, Port, Prepare, Sent, from_bytes, outgoing, to_bytes};

/// Descriptors that one read takes at most.
const BATCH: usize = 64;

/// One of the hub's ends of the sockmap transport.
pub(super) struct SockmapPort {
    inner: Arc<Inner>,
    index: PortIndex,
    /// P.
    socket: OwnedFd,
    /// P'.
    bounced: OwnedFd,
    /// Bytes of a descriptor that isn't whole yet. (The kernel queues whole ones; TCP doesn't promise it.)
    begun: Vec<u8>,
}

impl SockmapPort {
    /// Opens port `index`, unless it is open.
    pub(super) fn open(inner: Arc<Inner>, index: PortIndex) -> Result<Self, BusError> {
        let number = u32::from(index.0);
        if number >= inner.ports {
            return Err(BusError::Full("port"));
        }
        let connection = inner.connect(number)?;
        let cell = &inner.arrays().ports[usize::from(index.0)];
        // The entry's connection says that the port is open; 0 is nobody's.
        cell.connection
            .compare_exchange(0, connection.ports, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| BusError::Full("port of that number"))?;
        if let Err(error) = inner.insert(number, &connection.named) {
            cell.connection.store(0, Ordering::Release);
            return Err(error);
        }
        let (socket, bounced) = (connection.named, connection.other);
        Ok(Self { inner, index, socket, bounced, begun: Vec::new() })
    }

    fn cell(&self) -> &PortCell {
        &self.inner.arrays().ports[usize::from(self.index.0)]
    }

    /// Throws away what has arrived at P'. What is still on its way is thrown away the next time.
    fn discard_bounced(&self) {
        let mut bytes = [0; BATCH * DESCRIPTOR_LEN];
        while recv(self.bounced.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)
            .is_ok_and(|count| count == bytes.len())
        {}
    }

    /// After a send that failed although the program had found a slot: takes the invocation out of it.
    /// False: `detach` has it.
    fn take_back(&self, invocation: u64) -> bool {
        // The instance can't have got it, and so can't have answered; only `detach` changes the state too.
        // HELD: out of service, until whoever notices the dead socket detaches the peer.
        self.inner.table.put_back(self.cell().slot.load(Ordering::Relaxed), InvocationId(invocation))
    }

    /// Sends a message once. Whether the program put it where it should go, and what the kernel said.
    fn send_once(&self, bytes: &[u8]) -> (bool, Result<usize, Errno>) {
        let claims = self.cell().claims.load(Ordering::Relaxed);
        loop {
            let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            let placed = self.cell().claims.load(Ordering::Relaxed) != claims;
            if placed || sent != Err(Errno::EINTR) {
                return (placed, sent);
            }
        }
    }
}

impl Port for SockmapPort {
    fn send(&mut self, function: FunctionIndex, descriptor: &Descriptor) -> Result<Sent, BusError> {
        let bytes = to_bytes(&outgoing(function, descriptor));
        // Each turn but the last takes one slot out of service.
        for _ in 0..=SLOTS_PER_FUNCTION {
            if !self.inner.arrays().has_idle(function) {
                return Ok(Sent::NoIdlePeer);
            }
            match self.send_once(&bytes) {
                (true, Ok(_)) => return Ok(Sent::Delivered),
                // (The errors: P' is full of what was bounced, or memory is short.)
                (false, Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    self.discard_bounced();
                    return Ok(Sent::NoIdlePeer);
                }
                (false, Err(errno)) => return Err(os("send on a bus port")(errno)),
                (true, Err(_)) if self.take_back(descriptor.invocation) => {}
                (true, Err(_)) => return Ok(Sent::Delivered),
            }
        }
        Ok(Sent::NoIdlePeer)
    }

    fn send_prepared(
        &mut self,
        function: FunctionIndex,
        descriptor: &Descriptor,
        prepare: &mut Prepare<'_>,
    ) -> Result<Sent, BusError> {
        let sent = Descriptor { step: 0, flags: 0, ..outgoing(function, descriptor) };
        let claim = Claim { invocation: InvocationId(sent.invocation), stamp: Stamp::of(&sent) };
        debug_assert!(claim.stamp.chain().is_none(), "a chain's step is claimed where its route is known");
        let table = &self.inner.table;
        let cpu = crate::sys::current_cpu() as usize;
        // Each turn but the last takes one slot out of service.
        while let Some(slot) = table.candidate(function, Some(cpu)) {
            let Some(_stays) = self.inner.prepare(slot) else { continue };
            if !table.claim(slot, claim) {
                continue;
            }
            let (peer, mut message) = (table.peer_in(slot), sent);
            let mut short = false;
            if prepare(peer, &mut message) {
                (message.step, message.flags) = ((slot % SLOTS_PER_FUNCTION) as u8, flags::CLAIMED);
                match self.send_once(&to_bytes(&message)) {
                    (true, Ok(_)) => return Ok(Sent::Delivered),
                    // Its socket is gone.
                    (true, Err(_)) => {}
                    (false, Ok(_)) => self.discard_bounced(),
                    // (As in `send`.)
                    (false, Err(_)) => short = true,
                }
            }
            if !table.put_back(slot, claim.invocation) {
                return Ok(Sent::Delivered);
            }
            if short {
                self.discard_bounced();
                table.admit(peer);
                return Ok(Sent::NoIdlePeer);
            }
        }
        Ok(Sent::NoIdlePeer)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&mut self, out: &mut Vec<Event>) -> Result<usize, BusError> {
        let before = out.len();
        let mut bytes = [0; BATCH * DESCRIPTOR_LEN];
        loop {
            let count = match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(os("receive on a bus port")(Errno::ECONNRESET)),
                Ok(count) => count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(os("receive on a bus port")(errno)),
            };
            let mut rest = &bytes[..count];
            if !self.begun.is_empty() {
                let (head, tail) = rest.split_at(rest.len().min(DESCRIPTOR_LEN - self.begun.len()));
                self.begun.extend_from_slice(head);
                rest = tail;
                if let Ok(whole) = self.begun.as_slice().try_into() {
                    out.extend(Event::of(from_bytes(whole)));
                    self.begun.clear();
                }
            }
            let mut whole = rest.chunks_exact(DESCRIPTOR_LEN);
            out.extend(whole.by_ref().filter_map(|bytes| {
                Event::of(from_bytes(bytes.try_into().expect("a chunk is exactly a descriptor")))
            }));
            self.begun.extend_from_slice(whole.remainder());
            if count < bytes.len() {
                break;
            }
        }
        Ok(out.len() - before)
    }
}

impl Drop for SockmapPort {
    fn drop(&mut self) {
        self.inner.remove(u32::from(self.index.0));
        self.cell().connection.store(0, Ordering::Release);
    }
}

fn os(operation: &'static str) -> impl Fn(Errno) -> BusError {
    move |errno| BusError::Os { operation, source: errno.into() }
}
