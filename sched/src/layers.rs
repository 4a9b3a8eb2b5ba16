//! Which package layers a node has.
//!
//! A layer is what a process was once it had imported packages; zygotes of several functions begin from it [SOCK: Oakes et al.,
//! USENIX ATC 2018, section 4, has them fork from the process]. It may hold only what *every* function that begins from it imports anyway: importing has side effects, and
//! what a function finds imported must be what it would have imported. So a layer is of use to a function when its modules are a
//! subset of the function's, and the packages that these were imported among a subset of those that the function has, on the same
//! *ground* (interpreter, environment). A module's number stands for its name and the package that it comes from: the same name
//! from another version is another number. What else may speak against it is known once a layer was made, and told (`suits`).
//!
//! The candidates are the functions' own sets and their intersections, of modules and of packages at once: a layer for several
//! is made among the packages that all of them have. They are chosen one by one, the one first that
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
//! (Beginning from one that wasn't takes as long as from the quickest that was.) What saves a function little beyond what it has
//! already ([`SAVING_MORE_MIN`]) isn't for it: else each would get its own layer beside what it shares, for milliseconds.
//! A layer that is there is kept unless another is clearly better ([`KEPT`]): making one costs what it is to save.
//!
//! Pure: no clock, no processes. Who makes the layers, and when, is the caller's concern.

use std::collections::BTreeMap;

use crate::FunctionId;

/// Less isn't worth a layer: a hundredth of a second.
pub const SAVING_NS_MIN: u64 = 10_000_000;
/// Part of a function's start that another layer must save beyond the one that the function has.
const SAVING_MORE_MIN: f64 = 0.1;
/// How much more a layer that is there is worth than one that has to be made.
const KEPT: f64 = 1.25;
/// Candidates of one ground; functions that are alike make few.
const CANDIDATES_MAX: usize = 128;
/// How many of them are functions' own sets: of those for which most could be saved.
const OWN_MAX: usize = 64;

/// What is known of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Which.
    pub function: FunctionId,
    /// Functions share layers only with those that have the same.
    pub ground: u32,
    /// What it imports: sorted, each once.
    pub modules: Vec<u32>,
    /// The packages that it has, whether it imports anything of them or not: sorted, each once.
    pub packages: Vec<u32>,
    /// How long its zygote's start takes without a layer.
    pub start_ns: u64,
    /// Memory that its zygote holds, by itself.
    pub bytes: u64,
    /// How often its zygote is started.
    pub starts_per_hour: f64,
}

/// What makes a layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contents {
    /// See [`Wanted::ground`].
    pub ground: u32,
    /// What it imports: sorted.
    pub modules: Vec<u32>,
    /// What there is to be imported: sorted.
    pub packages: Vec<u32>,
}

/// What is known of a layer that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// It is there still. (What is known of one that has gone keeps plans from going back and forth.)
    pub is_there: bool,
    /// How long a process takes until it has imported the layer's modules.
    pub start_ns: u64,
    /// How long a zygote takes to begin from it; 0: none has.
    pub restore_ns: u64,
    /// Memory that it holds.
    pub bytes: u64,
}

/// A layer that should be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What it is.
    pub contents: Contents,
    /// For whom.
    pub functions: Vec<FunctionId>,
    /// Memory that it holds, or is thought to hold.
    pub bytes: u64,
    /// What it saves, in seconds an hour.
    pub saves: f64,
}

/// The layers that should be there within so many bytes, the most worthy first. `measured` tells what is known of one, `suits`
/// whether a function may use it, as far as that is known.
pub fn plan(
    functions: &[Wanted],
    budget_bytes: u64,
    measured: impl Fn(&Contents) -> Option<Measured>,
    suits: impl Fn(&Contents, FunctionId) -> bool,
) -> Vec<Planned> {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut grounds: BTreeMap<u32, Vec<User<'_>>> = BTreeMap::new();
    for (at, wanted) in functions.iter().enumerate().filter(|(_, function)| !function.modules.is_empty()) {
        grounds.entry(wanted.ground).or_default().push(User { at, wanted });
    }
    let sets = grounds
        .iter()
        .flat_map(|(ground, users)| sets(*ground, users).into_iter().map(move |contents| (users, contents)));
    let sets: Vec<_> = sets.map(|(users, contents)| (users, measured(&contents), contents)).collect();
    let restores = sets.iter().filter_map(|(_, measured, _)| Some((*measured)?.restore_ns));
    let restore_ns = restores.filter(|restore_ns| *restore_ns > 0).min().unwrap_or(0);
    for (users, measured, contents) in sets {
        let measured = measured.map(|measured| match measured.restore_ns {
            0 => Measured { restore_ns, ..measured },
            _ => measured,
        });
        let candidate = Candidate::new(contents, users, measured, restore_ns, &suits);
        candidates.extend(Some(candidate).filter(|candidate| !candidate.savings.is_empty()));
    }
    let mut left = budget_bytes;
    // What the best one that was chosen for a function saves it, in the order of `functions`.
    let mut best: Vec<Option<f64>> = vec![None; functions.len()];
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
        for (user, saving) in &candidate.savings {
            if more(*saving, &best, user) > 0.0 {
                best[user.at] = Some(*saving);
            }
        }
        chosen.push(candidate);
    }
    // Whom each is for is known only now; one that a later one made superfluous goes.
    let planned = chosen.iter().map(|candidate| {
        let users = candidate
            .savings
            .iter()
            .filter(|(user, saving)| best[user.at].is_some_and(|best| best <= *saving));
        Planned {
            contents: candidate.contents.clone(),
            functions: users.clone().map(|(user, _)| user.wanted.function).collect(),
            bytes: candidate.bytes,
            saves: users.map(|(user, saving)| saving * user.wanted.starts_per_hour).sum(),
        }
    });
    planned.filter(|planned| !planned.functions.is_empty()).collect()
}

/// Whether what the first (sorted) has is all among what the second (sorted) has.
pub fn is_part(some: &[u32], all: &[u32]) -> bool {
    // (From the end: who numbers things as they come up has the rare ones there.)
    let mut rest = all.iter().rev();
    some.len() <= all.len() && some.iter().rev().all(|one| rest.find(|other| *other <= one) == Some(one))
}

fn common(some: &[u32], others: &[u32]) -> Vec<u32> {
    let mut others = others.iter().peekable();
    let is_common = |one: &&u32| {
        while others.next_if(|other| other < one).is_some() {}
        others.peek() == Some(one)
    };
    some.iter().filter(is_common).copied().collect()
}

/// What these functions have, and what such have in common.
fn sets(ground: u32, users: &[User<'_>]) -> Vec<Contents> {
    let mut sets: Vec<Contents> = Vec::new();
    let add = |sets: &mut Vec<Contents>, max: usize, set: Contents| {
        if sets.len() < max && !set.modules.is_empty() && !sets.contains(&set) {
            sets.push(set);
        }
    };
    let mut users: Vec<&Wanted> = users.iter().map(|user| user.wanted).collect();
    let worth = |user: &Wanted| user.starts_per_hour * user.start_ns as f64;
    users.sort_by(|one, other| {
        worth(other).total_cmp(&worth(one)).then(one.function.0.cmp(&other.function.0))
    });
    for user in users {
        let (modules, packages) = (user.modules.clone(), user.packages.clone());
        add(&mut sets, OWN_MAX, Contents { ground, modules, packages });
    }
    let mut at = 0;
    while at < sets.len() && sets.len() < CANDIDATES_MAX {
        for other in 0..at {
            if sets.len() == CANDIDATES_MAX {
                break;
            }
            let (one, other) = (&sets[at], &sets[other]);
            let modules = common(&one.modules, &other.modules);
            let packages = common(&one.packages, &other.packages);
            add(&mut sets, CANDIDATES_MAX, Contents { ground, modules, packages });
        }
        at += 1;
    }
    sets
}

/// A function, and where it is among those that the plan is for.
#[derive(Clone, Copy)]
struct User<'a> {
    at: usize,
    wanted: &'a Wanted,
}

struct Candidate<'a> {
    contents: Contents,
    bytes: u64,
    is_there: bool,
    /// Seconds, by function.
    savings: Vec<(User<'a>, f64)>,
}

impl<'a> Candidate<'a> {
    fn new(
        contents: Contents,
        users: &[User<'a>],
        measured: Option<Measured>,
        restore_ns: u64,
        suits: impl Fn(&Contents, FunctionId) -> bool,
    ) -> Self {
        let mut bytes = measured.map_or(0, |measured| measured.bytes);
        let mut savings = Vec::new();
        let modules = &contents.modules;
        let fits = |user: &&Wanted| {
            is_part(modules, &user.modules)
                && is_part(&contents.packages, &user.packages)
                && suits(&contents, user.function)
        };
        for user in users.iter().filter(|user| fits(&user.wanted)) {
            let User { wanted: user, at } = *user;
            let share = modules.len() as f64 / user.modules.len() as f64;
            let saved_ns = match measured {
                Some(measured) => measured.start_ns.min(user.start_ns).saturating_sub(measured.restore_ns),
                None => ((user.start_ns as f64 * share) as u64).saturating_sub(restore_ns),
            };
            if measured.is_none() {
                bytes = bytes.max((user.bytes as f64 * share) as u64);
            }
            if saved_ns >= SAVING_NS_MIN {
                savings.push((User { at, wanted: user }, saved_ns as f64 / 1e9));
            }
        }
        Self {
            contents,
            bytes: bytes.max(1),
            is_there: measured.is_some_and(|measured| measured.is_there),
            savings,
        }
    }

    fn gain(&self, best: &[Option<f64>]) -> f64 {
        let gains =
            self.savings.iter().map(|(user, saving)| user.wanted.starts_per_hour * more(*saving, best, user));
        gains.sum::<f64>() * if self.is_there { KEPT } else { 1.0 }
    }
}

/// What it saves a function beyond what that has; 0 if that is little.
fn more(saving: f64, best: &[Option<f64>], user: &User<'_>) -> f64 {
    let Some(before) = best[user.at] else { return saving };
    let more = saving - before;
    let little = (SAVING_NS_MIN as f64).max(user.wanted.start_ns as f64 * SAVING_MORE_MIN);
    if more * 1e9 >= little { more } else { 0.0 }
}

#[cfg(test)]
mod tests {
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
        assert!(
            planned.iter().all(|planned| planned.functions != [FunctionId(1), FunctionId(2)]),
            "{planned:?}"
        );
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
        let functions =
            [wanted(1, 0, (0..100).chain(500..505), 1.0), wanted(2, 0, (0..100).chain([600]), 1.0)];
        let planned = plan(&functions, 1000 * MIB, |_| None);
        assert_eq!(users(&planned), [vec![1, 2]], "5 ms are little");
        let common = planned[0].contents.clone();
        let of_common =
            Measured { is_there: true, start_ns: 100_000_000, restore_ns: 15_000_000, bytes: 10 * MIB };
        let shared = |contents: &Contents| (*contents == common).then_some(of_common);
        assert_eq!(
            users(&plan(&functions, 1000 * MIB, shared)),
            [vec![1, 2]],
            "nor would its own begin sooner"
        );
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
}
