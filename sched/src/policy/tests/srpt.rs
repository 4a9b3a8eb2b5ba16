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
    assert!(near(liar.rank, 35 * MS), "{liar:?}");
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

/// Overdue after ten times the size or 2 s; a tenth of a core, 20 ms at a time.
fn plus(durations_ms: &[(u32, u64)]) -> SrptPlus {
    let config = SrptPlusConfig { stretch: 10, patience_ns: 2_000 * MS, ..SrptPlusConfig::default() };
    SrptPlus::new(config, knows(durations_ms))
}

/// A task of 100 ms that arrived at 0 and has just become overdue; when that is.
fn overdue() -> (SrptPlus, u64) {
    let mut plus = plus(&[(1, 5), (2, 100)]);
    let decision = ask_one(&mut plus, 0, arrive(0, 2));
    assert!(near(decision.rank, 100 * MS) && decision.fall == 1);
    let at_ns = plus.next_tick_ns().expect("a due date");
    assert!(near(at_ns, 1_000 * MS));
    assert_eq!(ask(&mut plus, at_ns - 1, Event::Tick), []);
    (plus, at_ns)
}

#[test]
fn the_overdue_one_goes_before_everybody_for_a_quantum_a_period() {
    let (mut plus, at_ns) = overdue();
    let task = TaskId(0);
    let first = ask(&mut plus, at_ns, Event::Tick)[0];
    assert_eq!((first.task, first.rank, first.slice_ns, first.preempt), (task, 0, 20 * MS, true));
    assert!(ask_one(&mut plus, at_ns + MS, arrive(1, 1)).rank > 0);
    // After the quantum it is one among others again, until the period is over.
    let then = ask_one(&mut plus, at_ns + 20 * MS, Event::SliceEnd { task, used_ns: 20 * MS });
    assert!(near(then.rank, 80 * MS));
    assert_eq!(plus.next_tick_ns(), Some(at_ns + 200 * MS));
    assert_eq!(ask(&mut plus, at_ns + 200 * MS, Event::Tick)[0].rank, 0);
}

#[test]
fn what_is_left_of_a_quantum_goes_to_the_next_one() {
    let (mut plus, at_ns) = overdue();
    ask(&mut plus, 10 * MS, arrive(1, 2));
    ask(&mut plus, at_ns + 10 * MS, Event::Tick);
    let next = ask(&mut plus, at_ns + 15 * MS, exit(0, 100 * MS));
    assert_eq!((next[0].task, next[0].rank, next[0].slice_ns), (TaskId(1), 0, 15 * MS));
    // And what he leaves stays for the one after him; nobody is overdue.
    assert_eq!(ask(&mut plus, at_ns + 20 * MS, Event::Block { task: TaskId(1), used_ns: 5 * MS }), []);
    assert_eq!(plus.next_tick_ns(), None);
    let woken = ask_one(&mut plus, at_ns + 30 * MS, Event::Wake { task: TaskId(1) });
    assert_eq!((woken.rank, woken.slice_ns), (0, 10 * MS));
}

#[test]
fn who_was_due_earlier_takes_the_credit_when_he_wakes() {
    let (mut plus, at_ns) = overdue();
    ask(&mut plus, 10 * MS, arrive(1, 2));
    ask(&mut plus, 20 * MS, Event::Block { task: TaskId(0), used_ns: 0 });
    assert_eq!(ask(&mut plus, at_ns + 20 * MS, Event::Tick)[0].task, TaskId(1));
    let both = ask(&mut plus, at_ns + 25 * MS, Event::Wake { task: TaskId(0) });
    let of = |task| both.iter().filter(|decision| decision.task == TaskId(task)).collect::<Vec<_>>();
    assert_eq!((of(0).len(), of(0)[0].rank, of(0)[0].slice_ns), (1, 0, 15 * MS));
    assert_eq!(of(1).len(), 1);
    assert!(near(of(1)[0].rank, 100 * MS));
}

#[test]
fn patience_bounds_the_due_date_and_a_liar_s_is_put_off() {
    let mut plus = plus(&[(1, 5), (2, 5_000)]);
    ask(&mut plus, 100 * MS, arrive(0, 2));
    assert_eq!(plus.due_ns(TaskId(0)), Some(2_100 * MS));
    ask(&mut plus, 100 * MS, arrive(1, 1));
    assert!(near(plus.due_ns(TaskId(1)).unwrap(), 150 * MS));
    // 5 ms were expected; it has used 40, and is thought to need as much as that is over.
    ask(&mut plus, 140 * MS, Event::SliceEnd { task: TaskId(1), used_ns: 40 * MS });
    assert!(near(plus.due_ns(TaskId(1)).unwrap(), 850 * MS), "{:?}", plus.due_ns(TaskId(1)));
    ask(&mut plus, 150 * MS, exit(1, 41 * MS));
    assert_eq!(plus.due_ns(TaskId(1)), None);
}

#[test]
fn a_due_date_is_never_brought_forward() {
    let (mut plus, at_ns) = overdue();
    let due_ns = plus.due_ns(TaskId(0));
    ask(&mut plus, 10 * MS, Event::Block { task: TaskId(0), used_ns: MS });
    // Meanwhile the function turns out to be a short one.
    for _ in 0..1000 {
        ask(&mut plus, 20 * MS, arrive(1, 2));
        ask(&mut plus, 20 * MS, exit(1, 5 * MS));
    }
    let woken = ask_one(&mut plus, 30 * MS, Event::Wake { task: TaskId(0) });
    assert!(woken.rank < 10 * MS);
    assert_eq!((plus.due_ns(TaskId(0)), plus.next_tick_ns()), (due_ns, Some(at_ns)));
}
