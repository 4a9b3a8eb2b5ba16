//! A port of the hub: sends to idle peers, receives their answers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use spry_ebpf_common::{Descriptor, PORT_BIT};

use super::{Carrier, Hub, Key};
use crate::ids::{FunctionIndex, InvocationId, PortIndex};
use crate::transport::table::{Claim, Stamp};
use crate::transport::{BusError, Event, Port, Sent};

pub(super) struct HubPort<C: Carrier> {
    hub: Arc<Hub<C>>,
    index: PortIndex,
    heard: Vec<Key>,
}

impl<C: Carrier> HubPort<C> {
    pub(super) fn new(hub: Arc<Hub<C>>, index: PortIndex) -> Self {
        Self { hub, index, heard: Vec::new() }
    }

    fn ear(&self) -> &C::Ear {
        self.hub.ear(self.index).expect("opened before the port was made")
    }
}

impl<C: Carrier> Port for HubPort<C> {
    fn send(&mut self, function: FunctionIndex, descriptor: &Descriptor) -> Result<Sent, BusError> {
        debug_assert!(descriptor.source & PORT_BIT != 0, "a port's descriptor names a port");
        let answer_to = PortIndex((descriptor.source & !PORT_BIT) as u8);
        if self.hub.ear(answer_to).is_none() {
            return Err(BusError::Full("port of that number is open"));
        }
        let stamp = Stamp { port: answer_to, route: descriptor.route, step: descriptor.step };
        let claim = Claim { invocation: InvocationId(descriptor.invocation), stamp };
        let cpu = crate::sys::current_cpu() as usize;
        while let Some(slot) = self.hub.table.candidate(function, Some(cpu)) {
            let Some(mut guard) = self.hub.slot(slot) else { continue };
            let Some(place) = guard.as_mut().filter(|place| !place.mute) else { continue };
            // First of all, so that a failure leaves nothing claimed.
            if let Err(error) = self.hub.listen(place, answer_to) {
                self.hub.table.hint_idle(slot);
                return Err(error);
            }
            if !self.hub.table.claim(slot, claim) {
                continue;
            }
            if let Err(kind) = C::deliver(&mut place.link, descriptor) {
                // It didn't take it, or is dead. The invocation stays its own until it is detached.
                self.hub.accuse(place, kind);
            }
            return Ok(Sent::Delivered);
        }
        Ok(Sent::NoIdlePeer)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        C::ear_fd(self.ear())
    }

    fn receive(&mut self, out: &mut Vec<Event>) -> Result<usize, BusError> {
        let before = out.len();
        let mut heard = std::mem::take(&mut self.heard);
        let listened = C::heard(self.ear(), &mut heard);
        for key in heard.drain(..) {
            self.hub.read(self.index, key, out)?;
        }
        self.heard = heard;
        listened?;
        Ok(out.len() - before)
    }
}
