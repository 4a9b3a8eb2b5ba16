//! Which package layers a node has.
//!
//! A layer is what a process was once it had imported packages; zygotes of several functions begin from it [SOCK: Oakes et al.,
//! USENIX ATC 2018, section 4, has them fork from the process]. It may hold only what *every* function that begins from it imports anyway: importing has side effects, and
//! what a function finds imported must be what it would have imported. So a layer is of use to a function when its modules are a
//! subset of the function's, on the same *ground* (interpreter, installed packages, environment).
//!
//! The candidates are the functions' own sets and their intersections. They are chosen one by one, the one first that
//! saves most per byte beside those that were chosen already, as long as the budget lasts:
//!
//! ```text
//! gain(layer) = Σ over functions: starts per hour x (time saved by it - time saved by the best one chosen before)
//! worth       = gain / bytes
//! ```
//!
//! which is the greedy algorithm for a budgeted, submodular benefit [Khuller, Moss, Naor: "The budgeted maximum coverage
//! problem", 1999]; the optimum is NP-hard.
//!
//! What a layer saves and holds is estimated by its share of a function's modules until it has been made, and measured then.
//! A layer that is there is kept unless another is clearly better ([`KEPT`]): making one costs what it is to save.
//!
//! Pure: no clock, no processes. Who makes the layers, and when, is the caller's concern.

use std::collections::BTreeMap;

use crate::FunctionId;

/// Less isn't worth a layer: a hundredth of a second.
pub const SAVING_NS_MIN: u64 = 10_000_000;
/// How much more a layer that is there is worth than one that has to be made.
const KEPT: f64 = 1.25;
/// Candidates of one ground; functions that are alike make few.
const CANDIDATES_MAX: usize = 64;

/// What is known of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Which.
    pub function: FunctionId,
    /// Functions share layers only with those that have the same.
    pub ground: u32,
    /// What it imports: sorted, each once.
    pub modules: Vec<u32>,
    /// How long its zygote's start takes without a layer.
    pub start_ns: u64,
    /// Memory that its zygote holds, by itself.
    pub bytes: u64,
    /// How often its zygote is started.
    pub starts_per_hour: f64,
}

/// What is known of a layer that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How long a process takes until it has imported the layer's modules.
    pub start_ns: u64,
    /// How long a zygote takes to begin from it.
    pub restore_ns: u64,
    /// Memory that it holds.
    pub bytes: u64,
}

/// A layer that should be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// See [`Wanted::ground`].
    pub ground: u32,
    /// What it imports: sorted.
    pub modules: Vec<u32>,
    /// For whom.
    pub functions: Vec<FunctionId>,
    /// Memory that it holds, or is thought to hold.
    pub bytes: u64,
    /// What it saves, in seconds an hour.
    pub saves: f64,
}

/// The layers that should be there within so many bytes, the most worthy first. `measured` tells what is known of one.
pub fn plan(
    functions: &[Wanted],
    budget_bytes: u64,
    measured: impl Fn(u32, &[u32]) -> Option<Measured>,
) -> Vec<Planned> {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut grounds: BTreeMap<u32, Vec<&Wanted>> = BTreeMap::new();
    for function in functions.iter().filter(|function| !function.modules.is_empty()) {
        grounds.entry(function.ground).or_default().push(function);
    }
    for (ground, users) in grounds {
        for modules in sets(&users) {
            let known = measured(ground, &modules);
            let candidate = Candidate::new(ground, modules, &users, known);
            candidates.extend(Some(candidate).filter(|candidate| !candidate.savings.is_empty()));
        }
    }
    let mut left = budget_bytes;
    let mut best: BTreeMap<FunctionId, f64> = BTreeMap::new();
    let mut chosen: Vec<Candidate<'_>> = Vec::new();
    loop {
        candidates.retain(|candidate| candidate.bytes <= left);
        let gains = candidates.iter().map(|candidate| candidate.gain(&best) / candidate.bytes as f64);
        let Some((at, worth)) = gains.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)) else { break };
        if worth <= 0.0 {
            break;
        }
        let candidate = candidates.swap_remove(at);
        left -= candidate.bytes;
        for (function, saving) in &candidate.savings {
            let before = best.entry(function.function).or_default();
            *before = before.max(*saving);
        }
        chosen.push(candidate);
    }
    // Whom each is for is known only now; one that a later one made superfluous goes.
    let planned = chosen.iter().map(|candidate| {
        let users = candidate.savings.iter().filter(|(function, saving)| best[&function.function] <= *saving);
        Planned {
            ground: candidate.ground,
            modules: candidate.modules.clone(),
            functions: users.clone().map(|(function, _)| function.function).collect(),
            bytes: candidate.bytes,
            saves: users.map(|(function, saving)| saving * function.starts_per_hour).sum(),
        }
    });
    planned.filter(|planned| !planned.functions.is_empty()).collect()
}

/// Whether a process with these modules (sorted) can be one of a function with those (sorted).
pub fn is_part(layer: &[u32], function: &[u32]) -> bool {
    let mut rest = function.iter();
    layer.iter().all(|module| rest.any(|other| other == module))
}

/// The sets of these functions, and what sets have in common.
fn sets(users: &[&Wanted]) -> Vec<Vec<u32>> {
    let mut sets: Vec<Vec<u32>> = Vec::new();
    let add = |sets: &mut Vec<Vec<u32>>, set: Vec<u32>| {
        if sets.len() < CANDIDATES_MAX && !set.is_empty() && !sets.contains(&set) {
            sets.push(set);
        }
    };
    for user in users {
        add(&mut sets, user.modules.clone());
    }
    let mut at = 0;
    while at < sets.len() {
        for other in 0..at {
            let common = sets[at].iter().filter(|module| sets[other].binary_search(module).is_ok());
            let common = common.copied().collect();
            add(&mut sets, common);
        }
        at += 1;
    }
    sets
}

struct Candidate<'a> {
    ground: u32,
    modules: Vec<u32>,
    bytes: u64,
    is_there: bool,
    /// Seconds, by function.
    savings: Vec<(&'a Wanted, f64)>,
}

impl<'a> Candidate<'a> {
    fn new(ground: u32, modules: Vec<u32>, users: &[&'a Wanted], measured: Option<Measured>) -> Self {
        let mut bytes = measured.map_or(0, |measured| measured.bytes);
        let mut savings = Vec::new();
        for user in users.iter().filter(|user| is_part(&modules, &user.modules)) {
            let share = modules.len() as f64 / user.modules.len() as f64;
            let saved_ns = match measured {
                Some(measured) => measured.start_ns.min(user.start_ns).saturating_sub(measured.restore_ns),
                None => (user.start_ns as f64 * share) as u64,
            };
            if measured.is_none() {
                bytes = bytes.max((user.bytes as f64 * share) as u64);
            }
            if saved_ns >= SAVING_NS_MIN {
                savings.push((*user, saved_ns as f64 / 1e9));
            }
        }
        Self { ground, modules, bytes: bytes.max(1), is_there: measured.is_some(), savings }
    }

    fn gain(&self, best: &BTreeMap<FunctionId, f64>) -> f64 {
        let gains = self.savings.iter().map(|(user, saving)| {
            let before = best.get(&user.function).copied().unwrap_or(0.0);
            user.starts_per_hour * (saving - before).max(0.0)
        });
        gains.sum::<f64>() * if self.is_there { KEPT } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn wanted(function: u32, ground: u32, modules: impl IntoIterator<Item = u32>, per_hour: f64) -> Wanted {
        let modules: Vec<u32> = modules.into_iter().collect();
        let (start_ns, bytes) = (modules.len() as u64 * 1_000_000, modules.len() as u64 * MIB / 10);
        Wanted { function: FunctionId(function), ground, modules, start_ns, bytes, starts_per_hour: per_hour }
    }

    fn users(planned: &[Planned]) -> Vec<Vec<u32>> {
        planned.iter().map(|planned| planned.functions.iter().map(|function| function.0).collect()).collect()
    }

    #[test]
    fn what_two_have_in_common_is_one_layer() {
        let functions = [wanted(1, 0, (0..100).chain([500]), 1.0), wanted(2, 0, (0..100).chain([501]), 1.0)];
        let planned = plan(&functions, 11 * MIB, |_, _| None);
        assert_eq!(users(&planned), [vec![1, 2]]);
        assert_eq!(planned[0].modules, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn other_grounds_share_nothing_and_the_busier_one_comes_first() {
        let functions = [wanted(1, 0, 0..100, 1.0), wanted(2, 1, 0..100, 5.0)];
        let planned = plan(&functions, 100 * MIB, |_, _| None);
        assert_eq!(users(&planned), [vec![2], vec![1]]);
        assert_eq!(users(&plan(&functions, 15 * MIB, |_, _| None)), [vec![2]]);
        assert!(plan(&functions, 0, |_, _| None).is_empty());
    }

    #[test]
    fn little_is_not_worth_a_layer() {
        assert!(plan(&[wanted(1, 0, 0..9, 100.0)], 100 * MIB, |_, _| None).is_empty());
        assert!(plan(&[wanted(1, 0, 0..100, 0.0)], 100 * MIB, |_, _| None).is_empty());
        let nothing = Measured { start_ns: 12_000_000, restore_ns: 5_000_000, bytes: MIB };
        assert!(plan(&[wanted(1, 0, 0..100, 1.0)], 100 * MIB, |_, _| Some(nothing)).is_empty());
    }

    #[test]
    fn what_is_there_is_kept_unless_another_is_clearly_better() {
        // Two candidates of about the same worth that don't both fit.
        let functions = [wanted(1, 0, 0..100, 1.0), wanted(2, 1, 0..100, 1.1)];
        let there = |ground, _: &[u32]| {
            (ground == 0).then_some(Measured { start_ns: 100_000_000, restore_ns: 0, bytes: 10 * MIB })
        };
        assert_eq!(users(&plan(&functions, 15 * MIB, |_, _| None)), [vec![2]]);
        assert_eq!(users(&plan(&functions, 15 * MIB, there)), [vec![1]]);
    }

    #[test]
    fn a_function_uses_the_one_that_saves_it_most() {
        let functions = [wanted(1, 0, 0..100, 10.0), wanted(2, 0, 0..300, 1.0), wanted(3, 0, 0..100, 1.0)];
        let planned = plan(&functions, 1000 * MIB, |_, _| None);
        assert_eq!(users(&planned), [vec![1, 3], vec![2]]);
    }

    proptest! {
        #[test]
        fn a_plan_fits_and_gives_nobody_what_it_would_not_import(
            given in prop::collection::vec((0u32..3, prop::collection::btree_set(0u32..40, 0..40), 0u32..100), 0..12),
            budget in 0u64..200 * MIB,
        ) {
            let functions: Vec<Wanted> = given.into_iter().enumerate()
                .map(|(at, (ground, modules, rate))| wanted(at as u32, ground, modules, f64::from(rate)))
                .collect();
            let planned = plan(&functions, budget, |_, _| None);
            prop_assert!(planned.iter().map(|planned| planned.bytes).sum::<u64>() <= budget);
            for planned in &planned {
                prop_assert!(planned.modules.is_sorted() && !planned.functions.is_empty());
                for function in &planned.functions {
                    let function = &functions[function.0 as usize];
                    prop_assert_eq!(function.ground, planned.ground);
                    prop_assert!(planned.modules.iter().all(|module| function.modules.contains(module)));
                    prop_assert!(is_part(&planned.modules, &function.modules));
                }
            }
            prop_assert_eq!(&planned, &plan(&functions, budget, |_, _| None));
        }
    }
}
