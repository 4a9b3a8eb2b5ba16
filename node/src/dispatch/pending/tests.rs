//! How long an entry stays, and what it names with it.

use super::*;
use crate::function::example;

/// One invocation of the function, whose time runs out at `deadline`.
fn with_one(function: &Arc<Function>, deadline: Instant) -> (Slab, InvocationId) {
    let mut slab = Slab::new(PortIndex(2), 1);
    let block = function.inbox().allocate(100).expect("room");
    let job = Job::Function { function: function.enter().expect("it serves"), block };
    let request = Request { call_id: CallId::new(1, 2), deadline, job };
    let id =
        slab.insert(Pending::new(request, Descriptor::default(), None)).map_err(|_| "full").expect("room");
    (slab, id)
}

fn timed_out() -> Outcome {
    Outcome::Refused(Refusal::TimedOut(Duration::from_secs(1)))
}

/// Whether the request still lies where its descriptor says.
fn is_kept(function: &Function) -> bool {
    assert_eq!(function.users() == 1, function.inbox().in_use_bytes() > 0);
    function.users() == 1
}

#[test]
fn what_is_out_of_time_in_somebodys_hands_stays_until_they_let_go_of_it() {
    let (function, now) = (example::function(0), Instant::now());
    let (mut slab, id) = with_one(&function, now);
    assert_eq!(slab.due(now).0, [id]);
    slab.get(id).expect("there").leave_in_hands(now);
    assert!(slab.finish(id, timed_out()).is_some(), "whoever waits is told at once");
    assert_eq!(slab.due(now).0, [id], "and whoever has it is looked for, though nobody has read the outcome");
    let ended = slab.take(id).expect("it has ended");
    assert!(matches!(ended.outcome, Outcome::Refused(Refusal::TimedOut(_))) && ended.block.is_none());
    assert!(slab.take(id).is_none());
    assert!(is_kept(&function) && slab.due(now).0 == [id] && slab.again(id).is_none());
    // Another look: it is still there.
    assert!(slab.finish(id, timed_out()).is_none());
    assert!(is_kept(&function));
    slab.get(id).expect("there").let_go();
    assert!(slab.finish(id, timed_out()).is_none());
    assert!(!is_kept(&function) && slab.get(id).is_none());
}

#[test]
fn so_it_does_when_nobody_waits_for_it() {
    let (function, now) = (example::function(0), Instant::now());
    for told_before in [false, true] {
        let (mut slab, id) = with_one(&function, now);
        if told_before {
            slab.get(id).expect("there").leave_in_hands(now);
            assert!(slab.finish(id, timed_out()).is_some());
        }
        assert!(!slab.get(id).expect("there").abandon(), "somebody has it");
        slab.get(id).expect("there").leave_in_hands(now);
        assert!(slab.finish(id, timed_out()).is_none());
        assert!(is_kept(&function) && slab.due(now).0 == [id]);
        slab.get(id).expect("there").let_go();
        assert!(slab.finish(id, timed_out()).is_none());
        assert!(!is_kept(&function) && slab.get(id).is_none());
    }
}

#[test]
fn what_ends_otherwise_goes_with_its_waiter() {
    let (function, now) = (example::function(0), Instant::now());
    let (mut slab, id) = with_one(&function, now);
    assert!(slab.finish(id, Outcome::Refused(Refusal::Cancelled)).is_some());
    assert_eq!(slab.due(now), (Vec::new(), None));
    let ended = slab.take(id).expect("it has ended");
    assert!(ended.block.is_some(), "the answer may lie in it");
    drop(ended);
    assert!(slab.get(id).is_none() && function.inbox().in_use_bytes() == 0);
}
