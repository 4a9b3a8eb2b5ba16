//! SFS by hand, from the rules of the paper's section V.

use super::*;

/// Two cores, a window of 4: four gaps of 10 ms make a slice of 20 ms.
fn learnt() -> Sfs {
    let mut sfs = Sfs::new(SfsConfig { window: 4, first_slice_ns: 7 * MS, ..SfsConfig::new(2) });
    for arrival in 0..5 {
        let decision = ask_one(&mut sfs, u64::from(arrival) * 10 * MS, arrive(arrival, 0));
        // The window is full with the fifth arrival.
        assert_eq!(decision.slice_ns, if arrival < 4 { 7 * MS } else { 20 * MS });
        ask(&mut sfs, u64::from(arrival) * 10 * MS, Event::Start { task: TaskId(arrival) });
    }
    (0..5).for_each(|task| drop(ask(&mut sfs, 40 * MS, exit(task, MS))));
    sfs
}

#[test]
fn the_slice_is_the_mean_gap_times_the_cores_and_the_window_slides() {
    let mut sfs = learnt();
    assert_eq!(sfs.slice_ns(), 20 * MS);
    // 10, 10, 10 and 50 ms: a mean of 20.
    assert_eq!(ask_one(&mut sfs, 90 * MS, arrive(0, 0)).slice_ns, 40 * MS);
}

#[test]
fn turns_go_by_arrival_and_nobody_is_disturbed() {
    let mut sfs = learnt();
    let first = ask_one(&mut sfs, 50 * MS, arrive(0, 0));
    let second = ask_one(&mut sfs, 60 * MS, arrive(1, 0));
    assert!(first.rank < second.rank);
    assert!(
        [first, second].iter().all(|d| d.class == Class::Fifo && !d.preempt && d.rank_after(MS) == d.rank)
    );
}

#[test]
fn who_needs_more_than_the_slice_goes_to_the_fair_class_for_good() {
    let mut sfs = learnt();
    ask(&mut sfs, 50 * MS, arrive(0, 0));
    ask(&mut sfs, 50 * MS, Event::Start { task: TaskId(0) });
    let task = TaskId(0);
    assert_eq!(ask_one(&mut sfs, 70 * MS, Event::SliceEnd { task, used_ns: 20 * MS }), Decision::fair(task));
    ask(&mut sfs, 80 * MS, Event::Block { task, used_ns: 21 * MS });
    assert_eq!(ask_one(&mut sfs, 90 * MS, Event::Wake { task }), Decision::fair(task));
}

#[test]
fn who_blocks_keeps_what_is_left_and_goes_to_the_end() {
    let mut sfs = learnt();
    let task = TaskId(0);
    ask(&mut sfs, 50 * MS, arrive(0, 0));
    ask(&mut sfs, 50 * MS, Event::Start { task });
    ask(&mut sfs, 56 * MS, Event::Block { task, used_ns: 6 * MS });
    let other = ask_one(&mut sfs, 57 * MS, arrive(1, 0));
    let woken = ask_one(&mut sfs, 300 * MS, Event::Wake { task });
    // 20 ms less the 6 that it has used, however long it slept.
    assert_eq!((woken.class, woken.slice_ns), (Class::Fifo, 14 * MS));
    assert!(woken.rank > other.rank);
    ask(&mut sfs, 300 * MS, Event::Start { task });
    ask(&mut sfs, 310 * MS, Event::Block { task, used_ns: 16 * MS });
    assert_eq!(ask_one(&mut sfs, 320 * MS, Event::Wake { task }).slice_ns, 4 * MS);
}

#[test]
fn who_waits_for_more_than_three_slices_goes_around() {
    let mut sfs = learnt();
    // Gaps of 10 ms go on, so S stays 20 ms.
    ask(&mut sfs, 50 * MS, arrive(0, 0));
    ask(&mut sfs, 60 * MS, arrive(1, 0));
    assert_eq!(sfs.next_tick_ns(), Some(110 * MS + 1));
    assert_eq!(ask(&mut sfs, 110 * MS, Event::Tick), []);
    assert_eq!(ask(&mut sfs, 110 * MS + 1, Event::Tick), [Decision::fair(TaskId(0))]);
    // The next head's turn to lose patience; unless it gets a core.
    assert_eq!(sfs.next_tick_ns(), Some(120 * MS + 1));
    ask(&mut sfs, 115 * MS, Event::Start { task: TaskId(1) });
    assert_eq!(sfs.next_tick_ns(), None);
    assert_eq!(ask(&mut sfs, 200 * MS, Event::Tick), []);
}

#[test]
fn an_exit_while_waiting_leaves_no_one_to_wait_for() {
    let mut sfs = learnt();
    ask(&mut sfs, 50 * MS, arrive(0, 0));
    ask(&mut sfs, 51 * MS, exit(0, 0));
    assert_eq!(sfs.next_tick_ns(), None);
    // The slot is another's: the old turn is void.
    ask(&mut sfs, 60 * MS, arrive(0, 0));
    assert_eq!(sfs.next_tick_ns(), Some(60 * MS + 3 * sfs.slice_ns() + 1));
}
