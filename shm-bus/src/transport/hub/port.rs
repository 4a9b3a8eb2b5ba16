//! A port of the hub: sends to idle peers, receives their answers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use spry_ebpf_common::Descriptor;

use super::{Carrier, Hub, Key};
use crate::ids::{FunctionIndex, PortIndex};
use crate::transport::table::Stamp;
use crate::transport::{BusError, Event, Port, Prepare, Sent, outgoing};

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
        self.send_prepared(function, descriptor, &mut |_, _| true)
    }

    fn send_prepared(
        &mut self,
        function: FunctionIndex,
        descriptor: &Descriptor,
        prepare: &mut Prepare<'_>,
    ) -> Result<Sent, BusError> {
        let message = outgoing(function, descriptor);
        let stamp = Stamp::of(&message);
        if self.hub.ear(stamp.trail.port).is_none() {
            return Err(BusError::Full("port of that number is open"));
        }
        debug_assert!(
            stamp
                .chain()
                .is_none_or(|route| { self.hub.table.function_at(route, stamp.step) == Some(function) })
        );
        self.hub.deliver(function, stamp, &message, prepare)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        C::ear_fd(self.ear())
    }

    fn receive(&mut self, out: &mut Vec<Event>) -> Result<usize, BusError> {
        let before = out.len();
        let mut heard = std::mem::take(&mut self.heard);
        let mut result = Ok(());
        // Until nobody is left: whoever waits for the port needn't be woken again for those that have been ready before.
        loop {
            let more = C::heard(self.ear(), &mut heard).unwrap_or_else(|error| {
                result = Err(error);
                false
            });
            for key in heard.drain(..) {
                // One that can't be read doesn't keep the others from it.
                result = self.hub.read(self.index, key, out).and(result);
            }
            if !more {
                break;
            }
        }
        self.heard = heard;
        result?;
        Ok(out.len() - before)
    }
}
