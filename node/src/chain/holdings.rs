//! What one call of a chain keeps from being used again: blocks of outboxes and of the inbox, and the outboxes of the
//! dead. All of it goes back when the call has ended, however it has ended, and its result has left for the client.

use std::sync::{Arc, Weak};

use spry_wire::frame::Place;

use super::domain::{Domain, Pin};
use crate::dispatch::{Visit, place_of_hop};
use crate::inbox::Block;
use crate::instance::Instance;

/// See the module.
#[derive(Debug)]
pub struct Holdings {
    blocks: Vec<Block>,
    /// Weak: with an instance that is dead and gone, its blocks are.
    answers: Vec<(Weak<Instance>, u32)>,
    _pin: Pin,
}

impl Holdings {
    /// Nothing yet, but from now on no outbox of the domain goes.
    pub fn new(domain: &Arc<Domain>) -> Self {
        Self { blocks: Vec::new(), answers: Vec::new(), _pin: domain.pin() }
    }

    /// Keeps a block of the inbox.
    pub fn keep(&mut self, block: Block) {
        self.blocks.push(block);
    }

    /// Keeps what the steps of a run have answered with.
    pub fn collect(&mut self, visits: &[Visit]) {
        for visit in visits {
            if let Some((instance, _)) = &visit.by {
                self.keep_answer(instance, place_of_hop(&visit.hop));
            }
        }
    }

    /// Keeps a block, if it lies in this instance's outbox. (What it only passed on is another's.)
    pub fn keep_answer(&mut self, instance: &Arc<Instance>, place: Place) {
        let outbox = instance.outbox_name;
        if (place.segment, place.generation) == (outbox.id, outbox.generation) {
            self.answers.push((Arc::downgrade(instance), place.offset));
        }
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        for (instance, offset) in &self.answers {
            if let Some(instance) = instance.upgrade() {
                instance.release.post(*offset);
            }
        }
    }
}
