use super::*;

fn knows(durations_ms: &[(u32, u64)]) -> Predictor {
    let mut predictor = Predictor::default();
    for &(function, ms) in durations_ms {
        (0..20).for_each(|_| predictor.observe(FunctionId(function), None, ms * MS));
    }
    predictor
}

fn near(got: u64, wanted: u64) -> bool {
    got.abs_diff(wanted) <= wanted / 16
}

#[test]
fn the_one_with_less_left_goes_first_and_asks_again_when_it_was_wrong() {
    let mut srpt = Srpt::new(knows(&[(1, 5), (2, 500)]));
    let short = ask_one(&mut srpt, 0, arrive(1, 1));
    let long = ask_one(&mut srpt, 0, arrive(2, 2));
    assert!(near(short.rank, 5 * MS) && near(long.rank, 500 * MS) && short.preempt);
    // After 496 ms the long one is the shorter one.
    assert!(long.rank_after(496 * MS) < short.rank);
    // A liar: 5 ms were expected, and it still runs.
    let liar = ask_one(&mut srpt, 0, Event::SliceEnd { task: TaskId(1), used_ns: 40 * MS });
    assert_eq!(liar.rank, 40 * MS);
}

#[test]
fn sleep_changes_nothing_and_what_was_used_counts() {
    let mut srpt = Srpt::new(knows(&[(1, 100)]));
    let task = TaskId(0);
    ask(&mut srpt, 0, arrive(0, 1));
    ask(&mut srpt, 30 * MS, Event::Block { task, used_ns: 30 * MS });
    assert!(near(ask_one(&mut srpt, 9_000 * MS, Event::Wake { task }).rank, 70 * MS));
}

#[test]
fn exits_teach() {
    let mut srpt = Srpt::new(Predictor::default());
    ask(&mut srpt, 0, arrive(0, 1));
    ask(&mut srpt, 0, exit(0, 80 * MS));
    assert!(near(ask_one(&mut srpt, 0, arrive(0, 1)).rank, 80 * MS));
}

fn plus(durations_ms: &[(u32, u64)]) -> SrptPlus {
    SrptPlus::new(SrptPlusConfig { stretch: 10, patience_ns: 2_000 * MS }, knows(durations_ms))
}

#[test]
fn a_virtual_deadline_is_arrival_plus_stretched_rest() {
    let mut plus = plus(&[(1, 5), (2, 100)]);
    let long = ask_one(&mut plus, 1_000 * MS, arrive(2, 2));
    assert!(near(long.rank - 1_000 * MS, 1_000 * MS));
    // A short one that comes within 950 ms goes first, a later one doesn't.
    let early = ask_one(&mut plus, 1_850 * MS, arrive(3, 1));
    let late = ask_one(&mut plus, 2_050 * MS, arrive(4, 1));
    assert!(early.rank < long.rank && long.rank < late.rank);
    // It falls ten times as fast as it runs, down to the arrival.
    assert_eq!(long.rank - long.rank_after(MS), 10 * MS);
    assert_eq!(long.rank_after(10_000 * MS), 1_000 * MS);
}

#[test]
fn patience_bounds_the_deadline_and_does_not_fall_too_soon() {
    let mut plus = plus(&[(1, 5_000)]);
    let decision = ask_one(&mut plus, 0, arrive(0, 1));
    assert_eq!((decision.rank, decision.fall), (2_000 * MS, 0));
    // 200 ms before the end the stretched rest is as long as the patience: from there on it falls.
    let until_ns = decision.slice_ns;
    assert!(near(until_ns, 4_800 * MS), "{until_ns}");
    let then = ask_one(&mut plus, 0, Event::SliceEnd { task: TaskId(0), used_ns: until_ns });
    assert!(then.rank <= 2_000 * MS && then.fall == 10, "{then:?}");
}
