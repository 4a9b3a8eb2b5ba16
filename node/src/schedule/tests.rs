use std::path::PathBuf;
use std::time::Instant;

use shm_bus::Descriptor;
use shm_bus::ids::FunctionIndex;
use shm_bus::segment::SegmentName;
use spry_sched::backend::{Posix, PosixOptions};

use super::*;
use crate::activation::History;
use crate::function::{Counts, SentAt};
use crate::inbox::{Inbox, NodeBytes};
use crate::manifest::{Defaults, Isolation, Manifest};
use crate::records::Recorder;
use crate::store::StoredFunction;

fn function(index: u16) -> Arc<Function> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("main.py"), "def main(params): return params").expect("a file");
    let manifest = Manifest::of_folder(folder.path(), Some("held"), &[], &Defaults::default());
    let stored = StoredFunction {
        manifest: manifest.expect("a manifest"),
        version: 1,
        sha256: String::new(),
        slot: 0,
        uid: 0,
        code: PathBuf::new(),
        bytes: 0,
        deployed_unix_ms: 0,
        code_sha256: String::new(),
        used_unix_ms: 0,
    };
    let name = SegmentName { id: 1, generation: 1 };
    let inbox = Inbox::new("held", name, 1024, NodeBytes::new(1024), Isolation::Instance).expect("an inbox");
    let history = Arc::new(Mutex::new(History::new("held", Recorder::off())));
    Function::new(FunctionIndex(index), stored, inbox, history, Arc::new(Counts::default()), None)
}

/// As [`Scheduler::submit`], with nobody to send what is admitted.
fn arrive(scheduler: &Scheduler, function: &Arc<Function>, id: u64) -> TaskId {
    let descriptor = Descriptor { invocation: id, ..Descriptor::default() };
    let queued = Queued { descriptor, sent: SentAt::new(Instant::now()) };
    function.usage.opened();
    scheduler.inner.lock().open(monotonic_ns(), function, queued)
}

#[test]
fn whoever_gets_the_slot_of_one_that_was_taken_out_stays() {
    let posix = Arc::new(Posix::open(PosixOptions::default()));
    let scheduler = Scheduler::new(PolicyChoice::Srpt, posix, 1).expect("a timer").expect("a policy");
    let (ends, stays) = (function(0), function(1));
    // The first is let in, the second is to be let in when the first is taken out.
    let slots = [1, 2].map(|id| arrive(&scheduler, &ends, id));
    let taken = scheduler.take_held(&ends);
    assert_eq!((taken.len(), ends.usage.held(), ends.usage.is_scheduled()), (2, 0, false));
    let next = arrive(&scheduler, &stays, 3);
    assert!(slots.contains(&next), "slots are used again");
    let mut inner = scheduler.inner.lock();
    assert_eq!(inner.orders, [Order::Admit(next)]);
    inner.clear_closed();
    assert!(inner.entries.get(&next).is_some_and(|entry| entry.waiting.is_some() && entry.id.0 == 3));
    assert_eq!((inner.entries.len(), inner.tasks.len(), inner.engine.begun()), (1, 1, (1, 1)));
}
