use super::*;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const F: FunctionId = FunctionId(3);

fn after(durations: impl IntoIterator<Item = u64>) -> Predictor {
    let mut predictor = Predictor::default();
    durations.into_iter().for_each(|ns| predictor.observe(F, None, ns));
    predictor
}

fn near(got: u64, wanted: u64) -> bool {
    got.abs_diff(wanted) <= wanted / 20
}

#[test]
fn an_unknown_function_starts_short_and_is_believed_less_and_less() {
    let predictor = Predictor::default();
    let rest = |used| predictor.mean_rest_ns(F, None, used);
    assert_eq!([rest(0), rest(MS / 2), rest(4 * MS), rest(900 * MS)], [MS, MS, 4 * MS, 900 * MS]);
    assert_eq!(predictor.gittins(F, None, 0), Gittins { index_ns: MS, quantum_ns: MS });
    assert_eq!(predictor.quantile_rest_ns(F, None, 7 * MS, 0.9), 7 * MS);
}

#[test]
fn one_invocation_is_enough_to_be_known() {
    let predictor = after([80 * MS]);
    assert!(near(predictor.mean_rest_ns(F, None, 0), 80 * MS));
    assert!(near(predictor.mean_rest_ns(F, None, 40 * MS), 40 * MS));
}

#[test]
fn who_outlasts_his_past_is_believed_for_a_moment_and_then_unknown_again() {
    let predictor = after([5 * MS; 1000]);
    assert!(near(predictor.mean_rest_ns(F, None, 0), 5 * MS));
    // A little over: it ends soon. Far over: it has lied.
    let index_ns = |used_ns| predictor.gittins(F, None, used_ns).index_ns;
    assert!(index_ns(5_300_000) < MS, "{}", index_ns(5_300_000));
    assert!((MS / 2..MS).contains(&predictor.mean_rest_ns(F, None, 6 * MS)));
    assert!(near(index_ns(100 * MS), 95 * MS), "{}", index_ns(100 * MS));
}

#[test]
fn an_index_is_worth_a_try_when_most_are_short() {
    // The example of the module's essay.
    let predictor = after((0..1000).map(|call| if call % 10 == 0 { 1000 * MS } else { MS }));
    let first = predictor.gittins(F, None, 0);
    assert!(first.index_ns.abs_diff(11 * MS / 10) < MS / 8, "{first:?}");
    assert!(near(first.quantum_ns, MS), "{first:?}");
    assert!(near(predictor.mean_rest_ns(F, None, 0), 100 * MS));
    let then = predictor.gittins(F, None, 2 * MS);
    assert!(near(then.index_ns, 1000 * MS) && near(then.quantum_ns, 1000 * MS), "{then:?}");
}

#[test]
fn a_changed_function_is_known_again_soon() {
    let mut predictor = after([5 * MS; 1000]);
    (0..5 * HALF_LIFE).for_each(|_| predictor.observe(F, None, 500 * MS));
    assert!(predictor.mean_rest_ns(F, None, 0) > 450 * MS);
    predictor.forget(F);
    assert_eq!(predictor.mean_rest_ns(F, None, 0), SHORT_NS);
}

#[test]
fn a_cut_invocation_teaches_only_that_it_was_long() {
    let mut predictor = after([50 * MS; 10]);
    let before = predictor.mean_rest_ns(F, None, 0);
    predictor.observe_cut(F, None, MS);
    assert_eq!(predictor.mean_rest_ns(F, None, 0), before);
    predictor.observe_cut(F, None, 5000 * MS);
    assert!(predictor.mean_rest_ns(F, None, 0) > 2 * before);
}

#[test]
fn the_size_of_a_request_splits_a_function() {
    let mut predictor = Predictor::default();
    for _ in 0..100 {
        predictor.observe(F, Some(100), MS);
        predictor.observe(F, Some(1 << 20), 400 * MS);
    }
    assert!(near(predictor.mean_rest_ns(F, Some(200), 0), MS));
    assert!(near(predictor.mean_rest_ns(F, Some(1 << 20), 0), 400 * MS));
    // A class without a history of its own, and no size at all: the function as a whole.
    let whole = predictor.mean_rest_ns(F, None, 0);
    assert!((150 * MS..250 * MS).contains(&whole));
    assert_eq!(predictor.mean_rest_ns(F, Some(10_000), 0), whole);
}

#[test]
fn classes_go_by_factors_of_four() {
    let bytes = [0, 255, 256, 1023, 1024, 4096, 1 << 20, 1 << 22, u64::MAX];
    assert_eq!(bytes.map(class), [0, 0, 1, 1, 2, 3, 7, 8, 8]);
}

proptest! {
    /// The index is never worse than the mean (one may always run to the end), and the quantum never empty.
    #[test]
    fn the_index_is_at_most_the_mean(
        durations in prop::collection::vec(1u64..10_000_000_000, 0..60), used in 0u64..12_000_000_000,
    ) {
        let predictor = after(durations);
        let gittins = predictor.gittins(F, None, used);
        prop_assert!(gittins.index_ns <= predictor.mean_rest_ns(F, None, used) + 1);
        prop_assert!(gittins.quantum_ns >= 1);
    }

    #[test]
    fn nothing_is_too_odd_to_be_answered(
        durations in prop::collection::vec(any::<u64>(), 0..20), used in any::<u64>(), size in any::<u64>(),
    ) {
        let mut predictor = Predictor::default();
        durations.iter().for_each(|&ns| predictor.observe(F, Some(size), ns));
        prop_assert!(predictor.mean_rest_ns(F, Some(size), used) >= 1);
        prop_assert!(predictor.gittins(F, Some(size), used).index_ns >= 1);
        prop_assert!(predictor.quantile_rest_ns(F, None, used, f64::NAN) >= 1);
    }
}
