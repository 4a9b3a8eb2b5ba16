//! What one call of a chain keeps from being used again: blocks of outboxes and of the inbox, and the outboxes of the
//! dead. All of it goes back when the call has ended, however it has ended, and its result has left for the client.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use shm_bus::segment::SegmentName;
use spry_wire::frame::Place;

use super::domain::{Domain, Pin};
use crate::dispatch::{Visit, place_of_hop};
use crate::inbox::Block;
use crate::instance::Instance;

/// See the module.
#[derive(Debug)]
pub struct Holdings {
    blocks: Vec<Block>,
    /// By outbox and offset: a value that comes back to its writer, who passes it on, is still one block. Weak: with an
    /// instance that is dead and gone, its blocks are.
    answers: HashMap<(SegmentName, u32), Weak<Instance>>,
    _pin: Pin,
}

impl Holdings {
    /// Nothing yet, but from now on no outbox of the domain goes.
    pub fn new(domain: &Arc<Domain>) -> Self {
        Self { blocks: Vec::new(), answers: HashMap::new(), _pin: domain.pin() }
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
            self.answers.insert((outbox, place.offset), Arc::downgrade(instance));
        }
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        for ((_, offset), instance) in &self.answers {
            if let Some(instance) = instance.upgrade() {
                instance.release.post(*offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use shm_bus::ids::PeerId;
    use shm_bus::release::{ReleaseReader, ReleaseWriter};
    use shm_bus::segment::{Reader, create, page_len};
    use spry_sched::backend::Process;

    use super::*;
    use crate::inbox::{Inbox, NodeBytes, Readers};
    use crate::instance::Parts;
    use crate::manifest::Isolation;

    const OUTBOX: SegmentName = SegmentName { id: 7, generation: 1 };

    /// This process as an instance, with an outbox of its own.
    fn instance() -> Arc<Instance> {
        let pid = std::process::id() as i32;
        let pidfd = Arc::new(crate::sys::pidfd_open(pid).expect("a descriptor of oneself"));
        let outbox = create("spry-test", page_len()).expect("a segment");
        let pipe = || -> OwnedFd { nix::unistd::pipe().expect("a pipe").0 };
        Instance::new(Parts {
            peer: PeerId { slot: 3, generation: 1 },
            pid,
            process: Arc::new(Process::new(pid, Arc::clone(&pidfd), None)),
            pidfd,
            tracked: None,
            outbox: Arc::new(Reader::map(outbox, page_len()).expect("mapped")),
            outbox_name: OUTBOX,
            own_inbox: None,
            release: ReleaseWriter::create("spry-test").expect("a page"),
            requested_at: Instant::now(),
            cold: false,
            stdout: pipe(),
            stderr: pipe(),
            cpus: crate::sys::CpuSet::mine().expect("the CPUs of this process"),
            output_max: 0,
            gate: None,
            ahead: false,
        })
    }

    #[test]
    fn a_block_that_comes_through_its_own_instance_again_goes_back_once() {
        let inbox = SegmentName { id: 1, generation: 1 };
        let inbox =
            Inbox::new("f", inbox, 1 << 10, NodeBytes::new(1 << 20), Readers::Instances(Isolation::Instance))
                .expect("an inbox");
        let mut holdings = Holdings::new(&Domain::new(inbox));
        let instance = instance();
        let mut reader = ReleaseReader::map(instance.release.fd()).expect("mapped");
        let at = |offset| Place { segment: OUTBOX.id, generation: OUTBOX.generation, offset, length: 10 };
        let others = Place { segment: 8, ..at(64) };
        for place in [at(64), others, at(64), at(128), at(64)] {
            holdings.keep_answer(&instance, place);
        }
        assert_eq!(reader.drain(|_| panic!("nothing goes back before the call has ended")), 0);
        drop(holdings);
        let mut back = Vec::new();
        reader.drain(|offset| back.push(offset));
        back.sort_unstable();
        assert_eq!(back, [64, 128]);
    }
}
