use std::time::Instant;

use shm_bus::Descriptor;
use spry_sched::backend::{Posix, PosixOptions};

use super::*;
use crate::function::SentAt;
use crate::function::example::function;

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
