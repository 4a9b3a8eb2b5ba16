//! What each policy promises, and what all do.

use proptest::prelude::*;

use super::*;

const MINUTE_NS: u64 = 60 * SECOND_NS;

fn profile(start_ns: u64, bytes: u64) -> Profile {
    let cost = Cost { start_ns, bytes };
    Profile { standard_ns: 10 * MINUTE_NS, package: None, costs: [cost; 3] }
}

fn one(gap_ns: Option<u64>) -> Arrivals {
    Arrivals { count: 1, gap_ns }
}

/// A policy that has seen function 0 called at these gaps.
fn after(mut policy: Box<dyn KeepAlive>, gaps_ns: &[u64]) -> (Box<dyn KeepAlive>, u64) {
    policy.learn(FunctionId(0), profile(SECOND_NS, 1 << 27));
    policy.arrived(FunctionId(0), one(None), 0);
    let mut now_ns = 0;
    for gap_ns in gaps_ns {
        now_ns += gap_ns;
        policy.arrived(FunctionId(0), one(Some(*gap_ns)), now_ns);
    }
    (policy, now_ns)
}

#[test]
fn names_are_read_as_written() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.name()), Some(kind));
        assert_eq!(kind.policy().name(), kind.name());
    }
    assert_eq!(Kind::parse("lru"), None);
}

#[test]
fn a_window_has_three_phases() {
    let window = Window { from_ns: 5, until_ns: 9 };
    let phases: Vec<_> = [0, 4, 5, 8, 9, u64::MAX].map(|idle_ns| window.phase(idle_ns)).into();
    use Phase::{After, Before, Within};
    assert_eq!(phases, [Before, Before, Within, Within, After, After]);
    assert_eq!(window.next_change_ns(0), Some(5));
    assert_eq!(window.next_change_ns(5), Some(9));
    assert_eq!(window.next_change_ns(9), None);
    assert_eq!(Window::ALWAYS.next_change_ns(u64::MAX - 1), None);
}

#[test]
fn ttl_lets_layers_go_one_at_a_time() {
    let (ttl, now_ns) = after(Box::<Ttl>::default(), &[MINUTE_NS]);
    let until = Layer::ALL.map(|layer| ttl.window(FunctionId(0), layer, now_ns).until_ns / MINUTE_NS);
    assert_eq!(until, [30, 20, 10]);
}

#[test]
fn greedy_dual_lets_the_least_saving_per_byte_go_first() {
    let mut policy = GreedyDual::default();
    // slow and small; the same and large; fast and small
    let profiles = [profile(100, 10), profile(100, 1000), profile(1, 10)];
    for (function, profile) in (0..).zip(profiles) {
        policy.learn(FunctionId(function), profile);
        policy.arrived(FunctionId(function), one(None), 0);
    }
    let worth = |function| policy.worth(FunctionId(function), Layer::Instance, 0, 0);
    assert!(worth(0) > worth(1) && worth(0) > worth(2));
    assert!((worth(1), worth(2)) == (0.1, 0.1));
}

#[test]
fn greedy_dual_forgets_how_popular_something_was() {
    let mut policy = GreedyDual::default();
    for function in [0, 1] {
        policy.learn(FunctionId(function), profile(100, 1));
    }
    policy.arrived(FunctionId(0), Arrivals { count: 1000, gap_ns: None }, 0);
    // Others come, are used a little, and are pushed out: the clock passes the popular one by.
    for round in 0..2000 {
        policy.arrived(FunctionId(1), one(None), round);
        policy.evicted(FunctionId(1), Layer::Instance);
        policy.evicted(FunctionId(1), Layer::Zygote);
    }
    policy.arrived(FunctionId(1), one(None), 9999);
    let worth = |function| policy.worth(FunctionId(function), Layer::Instance, 0, 9999);
    assert!(worth(1) > worth(0), "{} {}", worth(1), worth(0));
}

#[test]
fn greedy_dual_holds_a_function_as_dear_without_its_layer() {
    let mut policy = GreedyDual::default();
    policy.learn(FunctionId(0), Profile { package: Some(7), ..profile(100, 1) });
    policy.arrived(FunctionId(0), Arrivals { count: 5, gap_ns: None }, 0);
    let before = policy.worth(FunctionId(0), Layer::Zygote, 0, 0);
    policy.evicted(FunctionId(0), Layer::Package);
    assert_eq!(policy.worth(FunctionId(0), Layer::Zygote, 0, 0).to_bits(), before.to_bits());
    policy.evicted(FunctionId(0), Layer::Zygote);
    assert!(policy.worth(FunctionId(0), Layer::Zygote, 0, 0) < before);
}

#[test]
fn the_histogram_waits_for_a_timer() {
    let (policy, now_ns) = after(Box::<Histogram>::default(), &[30 * MINUTE_NS; 20]);
    let window = policy.window(FunctionId(0), Layer::Instance, now_ns);
    assert_eq!((window.from_ns / MINUTE_NS, window.until_ns / MINUTE_NS), (27, 34));
    assert_eq!(policy.window(FunctionId(0), Layer::Zygote, now_ns), window);
}

#[test]
fn the_histogram_keeps_what_is_called_all_the_time() {
    let (policy, now_ns) = after(Box::<Histogram>::default(), &[SECOND_NS; 20]);
    let window = policy.window(FunctionId(0), Layer::Instance, now_ns);
    assert_eq!((window.from_ns, window.until_ns), (0, 66 * SECOND_NS));
}

#[test]
fn the_histogram_says_nothing_when_it_knows_nothing() {
    let flat: Vec<u64> = (0..240).map(|minute| minute * MINUTE_NS).collect();
    let beyond = [5 * 60 * MINUTE_NS; 20];
    for gaps in [&[MINUTE_NS; 3][..], &flat, &beyond] {
        let (policy, now_ns) = after(Box::<Histogram>::default(), gaps);
        let window = policy.window(FunctionId(0), Layer::Instance, now_ns);
        assert_eq!(window, Window::lasting(10 * MINUTE_NS), "{} gaps", gaps.len());
    }
}

#[test]
fn the_histogram_follows_a_function_whose_habits_change() {
    let mut gaps = vec![SECOND_NS; 20_000];
    gaps.extend(std::iter::repeat_n(20 * MINUTE_NS, 80_000));
    let (policy, now_ns) = after(Box::<Histogram>::default(), &gaps);
    assert_eq!(policy.window(FunctionId(0), Layer::Instance, now_ns).from_ns, 18 * MINUTE_NS);
}

#[test]
fn layers_are_kept_until_they_break_even() {
    let config = LayeredConfig { gb_s_per_s: 100.0, ..LayeredConfig::default() };
    let mut policy = Layered::new(config);
    // Rare: once a day. A second to make a gigabyte is worth 100 s of keeping it.
    policy.learn(FunctionId(0), profile(SECOND_NS, 1_000_000_000));
    for day in 0..4 {
        policy.arrived(FunctionId(0), one(None), day * 24 * 60 * MINUTE_NS);
    }
    let window = policy.window(FunctionId(0), Layer::Zygote, 4 * 24 * 60 * MINUTE_NS);
    assert_eq!(window.until_ns / SECOND_NS, 100);
    // Often: every second. By 4.6 s the next call has come in 99 of 100 cases.
    policy.learn(FunctionId(1), profile(SECOND_NS, 1_000_000_000));
    for second in 0..20 {
        policy.arrived(FunctionId(1), one(None), second * SECOND_NS);
    }
    let window = policy.window(FunctionId(1), Layer::Zygote, 20 * SECOND_NS);
    assert_eq!(window.until_ns / SECOND_NS, 4);
}

#[test]
fn a_layer_that_many_share_is_worth_what_all_save_by_it() {
    let mut policy = Layered::default();
    let shared = Profile { package: Some(7), ..profile(SECOND_NS, 1 << 27) };
    let now_ns = 40 * MINUTE_NS;
    let mut worths = Vec::new();
    for function in 0..4 {
        policy.learn(FunctionId(function), shared);
        for call in 0..4 {
            policy.arrived(FunctionId(function), one(None), call * 10 * MINUTE_NS);
        }
        worths.push(policy.worth(FunctionId(0), Layer::Package, now_ns, now_ns));
    }
    assert!(worths.windows(2).all(|two| two[1] > two[0]), "{worths:?}");
    for function in 1..4 {
        policy.forget(FunctionId(function));
    }
    assert_eq!(policy.worth(FunctionId(0), Layer::Package, now_ns, now_ns), worths[0]);
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let cost = || (0..10 * SECOND_NS, 0u64..1 << 34).prop_map(|(start_ns, bytes)| Cost { start_ns, bytes });
    let costs = [cost(), cost(), cost()];
    (0..MINUTE_NS * 60, prop::option::of(0u32..3), costs).prop_map(|(standard_ns, package, costs)| Profile {
        standard_ns,
        package,
        costs,
    })
}

#[derive(Clone, Debug)]
enum Happening {
    Learn(u32, Profile),
    Arrive(u32, Arrivals, u64),
    Evict(u32, Layer),
    Forget(u32),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let function = || 0u32..4;
    let layer = prop::sample::select(&Layer::ALL);
    let gap_ns = prop::option::of(prop_oneof![0..10 * SECOND_NS, 0..300 * MINUTE_NS, Just(u64::MAX)]);
    let arrivals = (0u64..1000, gap_ns).prop_map(|(count, gap_ns)| Arrivals { count, gap_ns });
    prop_oneof![
        1 => (function(), any_profile()).prop_map(|(function, profile)| Happening::Learn(function, profile)),
        6 => (function(), arrivals, 0..600 * MINUTE_NS).prop_map(|(f, arrivals, step)| Happening::Arrive(f, arrivals, step)),
        2 => (function(), layer).prop_map(|(function, layer)| Happening::Evict(function, layer)),
        1 => function().prop_map(Happening::Forget),
    ]
}

proptest! {
    /// Whatever happens in whatever order: windows have their ends in order, worths can be compared.
    #[test]
    fn every_policy_answers_sensibly(happenings in prop::collection::vec(any_happening(), 0..120)) {
        for kind in Kind::ALL {
            let mut policy = kind.policy();
            let mut now_ns = 0;
            let mut known = std::collections::HashSet::new();
            for happening in &happenings {
                match *happening {
                    Happening::Learn(function, profile) => {
                        policy.learn(FunctionId(function), profile);
                        known.insert(function);
                    }
                    Happening::Arrive(function, arrivals, step_ns) => {
                        now_ns += step_ns;
                        policy.arrived(FunctionId(function), arrivals, now_ns);
                    }
                    Happening::Evict(function, layer) => policy.evicted(FunctionId(function), layer),
                    Happening::Forget(function) => {
                        policy.forget(FunctionId(function));
                        known.remove(&function);
                    }
                }
                for function in 0..4 {
                    for layer in Layer::ALL {
                        let window = policy.window(FunctionId(function), layer, now_ns);
                        prop_assert!(window.from_ns <= window.until_ns, "{kind:?} {window:?}");
                        if !known.contains(&function) {
                            prop_assert_eq!(window, Window::lasting(0), "{:?} keeps what it doesn't know", kind);
                        }
                        let worth = policy.worth(FunctionId(function), layer, now_ns / 2, now_ns);
                        prop_assert!(worth.is_finite(), "{kind:?} {worth}");
                    }
                }
            }
        }
    }

    /// The same history, the same answers.
    #[test]
    fn every_policy_is_a_function_of_its_history(happenings in prop::collection::vec(any_happening(), 0..60)) {
        for kind in Kind::ALL {
            let run = || {
                let mut policy = kind.policy();
                let mut now_ns = 0;
                let mut seen = Vec::new();
                for happening in &happenings {
                    match *happening {
                        Happening::Learn(function, profile) => policy.learn(FunctionId(function), profile),
                        Happening::Arrive(function, arrivals, step_ns) => {
                            now_ns += step_ns;
                            policy.arrived(FunctionId(function), arrivals, now_ns);
                        }
                        Happening::Evict(function, layer) => policy.evicted(FunctionId(function), layer),
                        Happening::Forget(function) => policy.forget(FunctionId(function)),
                    }
                    for function in 0..4 {
                        for layer in Layer::ALL {
                            let window = policy.window(FunctionId(function), layer, now_ns);
                            let worth = policy.worth(FunctionId(function), layer, 0, now_ns);
                            seen.push((window.from_ns, window.until_ns, worth.to_bits()));
                        }
                    }
                }
                seen
            };
            prop_assert_eq!(run(), run(), "{:?}", kind);
        }
    }

    /// greedy-dual: its clock never goes back, and what is used again is worth no less than before.
    #[test]
    fn the_greedy_clock_only_rises(happenings in prop::collection::vec(any_happening(), 0..120)) {
        let mut policy = GreedyDual::default();
        let mut now_ns = 0;
        for happening in &happenings {
            let before = policy.clock();
            match *happening {
                Happening::Learn(function, profile) => policy.learn(FunctionId(function), profile),
                Happening::Arrive(function, arrivals, step_ns) => {
                    now_ns += step_ns;
                    let worth = policy.worth(FunctionId(function), Layer::Zygote, 0, now_ns);
                    policy.arrived(FunctionId(function), arrivals, now_ns);
                    prop_assert!(policy.worth(FunctionId(function), Layer::Zygote, 0, now_ns) >= worth);
                }
                Happening::Evict(function, layer) => policy.evicted(FunctionId(function), layer),
                Happening::Forget(function) => policy.forget(FunctionId(function)),
            }
            prop_assert!(policy.clock() >= before);
        }
    }

    /// histogram: a gap like those that it was made from falls within the window that it gives.
    #[test]
    fn the_histogram_is_warm_for_what_it_has_seen(gap_ns in 0..235 * MINUTE_NS, times in 10usize..100) {
        let (policy, now_ns) = after(Box::<Histogram>::default(), &vec![gap_ns; times]);
        let window = policy.window(FunctionId(0), Layer::Instance, now_ns);
        prop_assert_eq!(window.phase(gap_ns), Phase::Within, "{:?}", window);
    }

    /// layered: more calls never make it keep a layer longer than it takes to break even, nor less worth.
    #[test]
    fn a_layer_is_never_kept_beyond_break_even(
        calls in prop::collection::vec(1u64..100 * MINUTE_NS, 1..30), profile in any_profile(),
    ) {
        let config = LayeredConfig::default();
        let mut policy = Layered::new(config);
        policy.learn(FunctionId(0), profile);
        let mut now_ns = 0;
        for gap_ns in calls {
            now_ns += gap_ns;
            policy.arrived(FunctionId(0), one(Some(gap_ns)), now_ns);
            for layer in Layer::ALL {
                let cost = profile.cost(layer);
                let until_s = policy.window(FunctionId(0), layer, now_ns).until_ns as f64 / 1e9;
                let spent_gb_s = until_s * cost.bytes as f64 / 1e9;
                prop_assert!(spent_gb_s <= config.gb_s_per_s * cost.start_ns as f64 / 1e9 + 1e-6);
            }
        }
    }
}
