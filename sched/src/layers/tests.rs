use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn wanted(function: u32, ground: u32, modules: impl IntoIterator<Item = u32>, per_hour: f64) -> Wanted {
    let modules: Vec<u32> = modules.into_iter().collect();
    let (start_ns, bytes) = (modules.len() as u64 * 1_000_000, modules.len() as u64 * MIB / 10);
    let packages = Vec::new();
    Wanted {
        function: FunctionId(function),
        ground,
        modules,
        packages,
        start_ns,
        bytes,
        starts_per_hour: per_hour,
    }
}

fn plan(
    functions: &[Wanted],
    budget_bytes: u64,
    measured: impl Fn(&Contents) -> Option<Measured>,
) -> Vec<Planned> {
    super::plan(functions, budget_bytes, measured, |_, _| true)
}

fn users(planned: &[Planned]) -> Vec<Vec<u32>> {
    planned.iter().map(|planned| planned.functions.iter().map(|function| function.0).collect()).collect()
}

#[test]
fn what_two_have_in_common_is_one_layer() {
    let functions = [wanted(1, 0, (0..100).chain([500]), 1.0), wanted(2, 0, (0..100).chain([501]), 1.0)];
    let planned = plan(&functions, 11 * MIB, |_| None);
    assert_eq!(users(&planned), [vec![1, 2]]);
    assert_eq!(planned[0].contents.modules, (0..100).collect::<Vec<_>>());
}

#[test]
fn other_grounds_share_nothing_and_the_busier_one_comes_first() {
    let functions = [wanted(1, 0, 0..100, 1.0), wanted(2, 1, 0..100, 5.0)];
    let planned = plan(&functions, 100 * MIB, |_| None);
    assert_eq!(users(&planned), [vec![2], vec![1]]);
    assert_eq!(users(&plan(&functions, 15 * MIB, |_| None)), [vec![2]]);
    assert!(plan(&functions, 0, |_| None).is_empty());
}

#[test]
fn little_is_not_worth_a_layer() {
    assert!(plan(&[wanted(1, 0, 0..9, 100.0)], 100 * MIB, |_| None).is_empty());
    assert!(plan(&[wanted(1, 0, 0..100, 0.0)], 100 * MIB, |_| None).is_empty());
    let nothing = Measured { is_there: true, start_ns: 12_000_000, restore_ns: 5_000_000, bytes: MIB };
    assert!(plan(&[wanted(1, 0, 0..100, 1.0)], 100 * MIB, |_| Some(nothing)).is_empty());
}

#[test]
fn what_is_there_is_kept_unless_another_is_clearly_better() {
    // Two candidates of about the same worth that don't both fit.
    let functions = [wanted(1, 0, 0..100, 1.0), wanted(2, 1, 0..100, 1.1)];
    let there = |contents: &Contents| {
        (contents.ground == 0).then_some(Measured {
            is_there: true,
            start_ns: 100_000_000,
            restore_ns: 0,
            bytes: 10 * MIB,
        })
    };
    assert_eq!(users(&plan(&functions, 15 * MIB, |_| None)), [vec![2]]);
    assert_eq!(users(&plan(&functions, 15 * MIB, there)), [vec![1]]);
}

#[test]
fn a_function_uses_the_one_that_saves_it_most() {
    let functions = [wanted(1, 0, 0..100, 10.0), wanted(2, 0, 0..300, 1.0), wanted(3, 0, 0..100, 1.0)];
    let planned = plan(&functions, 1000 * MIB, |_| None);
    assert_eq!(users(&planned), [vec![1, 3], vec![2]]);
}

/// Functions that have other packages beside one that both have.
fn with_packages() -> [Wanted; 2] {
    let mut functions = [wanted(1, 0, (0..100).chain([500]), 1.0), wanted(2, 0, 0..100, 1.0)];
    functions[0].packages = vec![1, 2];
    functions[1].packages = vec![1, 3];
    functions
}

#[test]
fn what_several_begin_from_is_made_among_the_packages_that_all_have() {
    let planned = plan(&with_packages(), 11 * MIB, |_| None);
    assert_eq!(users(&planned), [vec![1, 2]]);
    assert_eq!(planned[0].contents.packages, [1]);
}

#[test]
fn whom_a_layer_does_not_suit_gets_another() {
    let shared = |contents: &Contents| contents.packages == [1];
    let planned = super::plan(
        &with_packages(),
        100 * MIB,
        |_| None,
        |contents, function| !(shared(contents) && function == FunctionId(2)),
    );
    let own = planned.iter().find(|planned| planned.functions == [FunctionId(2)]).expect("its own");
    assert_eq!(own.contents.packages, [1, 3]);
    assert!(planned.iter().all(|planned| planned.functions != [FunctionId(1), FunctionId(2)]), "{planned:?}");
}

#[test]
fn of_very_many_functions_those_that_start_most_are_thought_of() {
    let functions: Vec<Wanted> = (0..300)
        .map(|at| wanted(at, 0, (0..100).chain([500 + at]), if at >= 298 { 100.0 } else { 0.1 }))
        .collect();
    let planned = plan(&functions, 11 * MIB, |_| None);
    assert_eq!(planned.len(), 1);
    assert_eq!(planned[0].functions.len(), 300, "what the two busiest have in common is in all");
}

/// Two functions that have most in common; what is known of a layer of that, and of one of their own.
#[test]
fn who_shares_a_layer_gets_no_other_for_milliseconds_and_plans_settle() {
    let functions = [wanted(1, 0, (0..100).chain(500..505), 1.0), wanted(2, 0, (0..100).chain([600]), 1.0)];
    let planned = plan(&functions, 1000 * MIB, |_| None);
    assert_eq!(users(&planned), [vec![1, 2]], "5 ms are little");
    let common = planned[0].contents.clone();
    let of_common =
        Measured { is_there: true, start_ns: 100_000_000, restore_ns: 15_000_000, bytes: 10 * MIB };
    let shared = |contents: &Contents| (*contents == common).then_some(of_common);
    assert_eq!(users(&plan(&functions, 1000 * MIB, shared)), [vec![1, 2]], "nor would its own begin sooner");
    // One that promises more, and was less when it was made: it isn't made again and again.
    let mut functions = functions;
    functions[0] = wanted(1, 0, (0..100).chain(500..530), 1.0);
    assert_eq!(users(&plan(&functions, 1000 * MIB, shared)).len(), 2);
    let both = |contents: &Contents| {
        let own = Measured { is_there: false, start_ns: 105_000_000, ..of_common };
        shared(contents).or((contents.modules.len() == 130).then_some(own))
    };
    assert_eq!(users(&plan(&functions, 1000 * MIB, both)), [vec![1, 2]]);
}

/// Two functions that import the same beside different packages. Their processes hold 10 MiB each, layers 30.
#[test]
fn who_imports_the_same_shares_it_though_it_is_heavier_than_thought_and_a_machine_was_busy() {
    let mut functions = with_packages();
    functions[0].modules.pop();
    functions.iter_mut().for_each(|function| function.start_ns = 100_000_000);
    let made = |contents: &Contents, packages: &[u32], start_ns: u64, is_there: bool| {
        let measured = Measured { is_there, start_ns, restore_ns: 0, bytes: 30 * MIB };
        (contents.packages == packages).then_some(measured)
    };
    // The first's own was made before there was the second; then what both have.
    let own = |contents: &Contents| made(contents, &[1, 2], 100_000_000, true);
    assert_eq!(users(&plan(&functions, 1000 * MIB, own)), [vec![1, 2]]);
    let both = |contents: &Contents| {
        made(contents, &[1, 2], 100_000_000, false).or(made(contents, &[1], 100_000_000, true))
    };
    assert_eq!(
        users(&plan(&functions, 1000 * MIB, both)),
        [vec![1, 2]],
        "the second's own would hold as much"
    );
    // All that was measured of the first and of its layer was measured when others had the machine.
    functions[0].start_ns = 200_000_000;
    functions[1].start_ns = 60_000_000;
    let own = |is_there| move |contents: &Contents| made(contents, &[1, 2], 200_000_000, is_there);
    assert_eq!(users(&plan(&functions, 1000 * MIB, own(true))), [vec![1, 2]]);
    let both = |contents: &Contents| own(false)(contents).or(made(contents, &[1], 70_000_000, true));
    assert_eq!(users(&plan(&functions, 1000 * MIB, both)), [vec![1, 2]]);
    // And so if plans had gone astray by then.
    let all = |contents: &Contents| {
        let own = own(true)(contents).or(made(contents, &[1, 3], 90_000_000, true));
        own.or(made(contents, &[1], 70_000_000, false))
    };
    assert_eq!(users(&plan(&functions, 1000 * MIB, all)), [vec![1, 2]]);
}

#[test]
fn what_was_made_tells_how_heavy_others_of_its_ground_are() {
    let functions = [wanted(1, 0, 0..100, 1.0), wanted(2, 0, 200..300, 1.0), wanted(3, 1, 0..100, 1.0)];
    let first = Measured { is_there: true, start_ns: 100_000_000, restore_ns: 0, bytes: 30 * MIB };
    let planned = plan(&functions, 1000 * MIB, |contents| {
        (contents.ground == 0 && contents.modules[0] == 0).then_some(first)
    });
    let bytes = |function: u32| {
        let planned = planned.iter().find(|planned| planned.functions == [FunctionId(function)]);
        planned.expect("its own").bytes / MIB
    };
    assert_eq!((bytes(1), bytes(2), bytes(3)), (30, 30, 10));
}

#[test]
fn parts_and_what_is_common() {
    assert!(is_part(&[], &[]) && is_part(&[1, 3], &[1, 2, 3]) && is_part(&[], &[1]));
    assert!(!is_part(&[1, 4], &[1, 2, 3]) && !is_part(&[0], &[1, 2]) && !is_part(&[1], &[]));
    assert_eq!(common(&[1, 2, 5, 9], &[0, 2, 3, 9, 10]), [2, 9]);
    assert!(common(&[1, 2], &[3]).is_empty() && common(&[3], &[]).is_empty());
}

proptest! {
    #[test]
    fn a_plan_fits_and_gives_nobody_what_it_would_not_import(
        given in prop::collection::vec(
            (0u32..3, prop::collection::btree_set(0u32..40, 0..40), prop::collection::btree_set(0u32..4, 0..4), 0u32..100),
            0..12,
        ),
        refused in prop::collection::btree_set(0u32..12, 0..4),
        budget in 0u64..200 * MIB,
    ) {
        let functions: Vec<Wanted> = given.into_iter().enumerate()
            .map(|(at, (ground, modules, packages, rate))| Wanted {
                packages: packages.into_iter().collect(),
                ..wanted(at as u32, ground, modules, f64::from(rate))
            })
            .collect();
        let suits = |_: &Contents, function: FunctionId| !refused.contains(&function.0);
        let planned = super::plan(&functions, budget, |_| None, suits);
        prop_assert!(planned.iter().map(|planned| planned.bytes).sum::<u64>() <= budget);
        for planned in &planned {
            prop_assert!(planned.contents.modules.is_sorted() && !planned.functions.is_empty());
            for function in &planned.functions {
                prop_assert!(!refused.contains(&function.0));
                let function = &functions[function.0 as usize];
                let Contents { ground, modules, packages } = &planned.contents;
                prop_assert_eq!(function.ground, *ground);
                prop_assert!(modules.iter().all(|module| function.modules.contains(module)));
                prop_assert!(packages.iter().all(|package| function.packages.contains(package)));
                prop_assert!(is_part(modules, &function.modules));
            }
        }
        prop_assert_eq!(&planned, &super::plan(&functions, budget, |_| None, suits));
    }
}
