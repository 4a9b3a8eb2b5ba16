use super::*;

/// One core: function 1 takes 2 ms at every 10th ms, function 2 took 50 ms at the start.
fn taught() -> Alps {
    let mut alps = Alps::new(AlpsConfig { smoothing: 0.5, ..AlpsConfig::new(1) });
    ask(&mut alps, 0, arrive(9, 2));
    for call in 0..10u64 {
        ask(&mut alps, call * 10 * MS + MS, arrive(1, 1));
        ask(&mut alps, call * 10 * MS + 3 * MS, exit(1, 2 * MS));
    }
    ask(&mut alps, 100 * MS, exit(9, 50 * MS));
    let at_ns = alps.next_tick_ns().expect("there is something to learn from");
    ask(&mut alps, at_ns, Event::Tick);
    assert_eq!(alps.next_tick_ns(), None);
    alps
}

#[test]
fn functions_rank_by_their_stretches_under_srpt_and_the_unknown_goes_first() {
    let mut alps = taught();
    let decisions = [1, 2, 3].map(|function| ask_one(&mut alps, 2_000 * MS, arrive(function, function)));
    assert_eq!(decisions.map(|d| d.rank), [1, 2, 0]);
    assert!(decisions.iter().all(|d| d.class == Class::Fifo && d.preempt));
    assert_eq!(decisions[0].slice_ns, 2 * MS);
    assert_eq!(decisions[2].slice_ns, 20 * MS);
    // Pushed aside at 1, 11 … 51 ms, but no more at 61, when it has 1 ms left: stretches of 1, five times 8, and 9 ms.
    let mean = 50.0 / 7.0;
    let off = |ms: f64| (ms - mean).powi(2);
    let deviation = ((off(1.0) + 5.0 * off(8.0) + off(9.0)) / 7.0).sqrt();
    assert_eq!(decisions[1].slice_ns, ((mean + deviation) * 1e6) as u64);
}

#[test]
fn what_is_left_of_a_slice_outlasts_a_sleep_and_then_equals_take_turns() {
    let mut alps = taught();
    let task = TaskId(5);
    let first = ask_one(&mut alps, 2_000 * MS, arrive(5, 1));
    ask(&mut alps, 2_001 * MS, Event::Block { task, used_ns: MS });
    assert_eq!(ask_one(&mut alps, 2_050 * MS, Event::Wake { task }).slice_ns, MS);
    // A new slice, at the end of the same rank.
    assert_eq!(ask_one(&mut alps, 2_051 * MS, Event::SliceEnd { task, used_ns: 2 * MS }), first);
    ask(&mut alps, 2_060 * MS, Event::Block { task, used_ns: 4 * MS });
    assert_eq!(ask_one(&mut alps, 2_070 * MS, Event::Wake { task }), first);
}

#[test]
fn of_a_function_that_has_ended_the_next_in_its_place_inherits_nothing() {
    let mut alps = taught();
    alps.forget(FunctionId(2));
    let first = ask_one(&mut alps, 2_000 * MS, arrive(3, 3));
    let next = ask_one(&mut alps, 2_000 * MS, arrive(2, 2));
    assert_eq!((next.rank, next.slice_ns), (first.rank, first.slice_ns));
    // Nor from what is still to be learnt from.
    ask(&mut alps, 2_001 * MS, exit(3, MS));
    ask(&mut alps, 9_000 * MS, Event::Tick);
    assert_eq!(ask_one(&mut alps, 9_000 * MS, arrive(4, 2)).rank, 0);
    assert_ne!(ask_one(&mut alps, 9_000 * MS, arrive(5, 1)).rank, 0);
}

#[test]
fn lessons_are_smoothed() {
    let mut alps = taught();
    for call in 0..500u64 {
        ask(&mut alps, 3_000 * MS + call * 10 * MS, arrive(1, 1));
        ask(&mut alps, 3_004 * MS + call * 10 * MS, exit(1, 4 * MS));
    }
    ask(&mut alps, 9_000 * MS, Event::Tick);
    // Half of what was (2 ms), half of what is now (4 ms).
    assert_eq!(ask_one(&mut alps, 9_000 * MS, arrive(1, 1)).slice_ns, 3 * MS);
}

#[test]
fn overload_shrinks_slices() {
    let mut alps = Alps::new(AlpsConfig { window: 1000, ..AlpsConfig::new(1) });
    // 100 invocations of 18 ms, one every 10 ms: a load of 1.8 on one core, twice 0.9.
    for call in 0..101u32 {
        ask(&mut alps, u64::from(call) * 10 * MS, arrive(call, 1));
    }
    (0..101).for_each(|call| drop(ask(&mut alps, 2_000 * MS, exit(call, 18 * MS))));
    ask(&mut alps, 3_000 * MS, Event::Tick);
    let slice_ns = ask_one(&mut alps, 3_000 * MS, arrive(0, 1)).slice_ns;
    // All were equal, so each ran at one stretch; the last arrival's own 18 ms are in the load as well.
    let expect = 18.0 * MS as f64 / (1.818 / 0.9);
    assert!((slice_ns as f64 - expect).abs() < expect / 20.0, "{slice_ns} {expect}");
}
