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
//! (Beginning from one that wasn't takes as long as from the quickest that was, and what it holds is as much more than the estimate
//! as with those of its ground that were.) What imports the same modules is known as well, whatever packages there are beside; the
//! shortest time counts, for what else a machine does only makes it longer: otherwise two functions that import the same, one measured on
//! a busy machine, would get a layer each. What saves a function little beyond what it has
//! already ([`SAVING_MORE_MIN`]) isn't for it: else each would get its own layer beside what it shares, for milliseconds.
//! A layer that is there is kept unless another is clearly better ([`KEPT`]): making one costs what it is to save.
//!
//! Pure: no clock, no processes. Who makes the layers, and when, is the caller's concern.

use std::collections::BTreeMap;

use crate::FunctionId;

mod learnt;

use learnt::Learnt;

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
    let learnt = Learnt::of(&sets);
    for (users, measured, contents) in &sets {
        let is_there = measured.is_some_and(|measured| measured.is_there);
        let candidate = Candidate::new(contents, users, is_there, &learnt, &suits);
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

fn share(contents: &Contents, of: &Wanted) -> f64 {
    contents.modules.len() as f64 / of.modules.len() as f64
}

fn fits(contents: &Contents, user: &Wanted) -> bool {
    is_part(&contents.modules, &user.modules) && is_part(&contents.packages, &user.packages)
}

/// The share of those that import all of it, `users`.
fn estimated_bytes<'a>(contents: &Contents, users: impl Iterator<Item = &'a Wanted>) -> u64 {
    users.map(|user| (user.bytes as f64 * share(contents, user)) as u64).max().unwrap_or(0)
}

/// A function, and where it is among those that the plan is for.
#[derive(Clone, Copy)]
struct User<'a> {
    at: usize,
    wanted: &'a Wanted,
}

struct Candidate<'a> {
    contents: &'a Contents,
    bytes: u64,
    is_there: bool,
    /// Seconds, by function.
    savings: Vec<(User<'a>, f64)>,
}

impl<'a> Candidate<'a> {
    fn new(
        contents: &'a Contents,
        users: &[User<'a>],
        is_there: bool,
        learnt: &Learnt<'_>,
        suits: impl Fn(&Contents, FunctionId) -> bool,
    ) -> Self {
        let measured = learnt.of_same(contents);
        let users: Vec<User<'a>> = users
            .iter()
            .filter(|user| fits(contents, user.wanted) && suits(contents, user.wanted.function))
            .copied()
            .collect();
        let bytes = measured.map_or_else(
            || {
                let estimated = estimated_bytes(contents, users.iter().map(|user| user.wanted));
                (estimated as f64 * learnt.heavier(contents.ground)) as u64
            },
            |measured| measured.bytes,
        );
        let saved_ns = |user: &Wanted| match measured {
            Some(measured) => measured.start_ns.min(user.start_ns).saturating_sub(measured.restore_ns),
            None => ((user.start_ns as f64 * share(contents, user)) as u64).saturating_sub(learnt.restore_ns),
        };
        let savings = users.into_iter().map(|user| (user, saved_ns(user.wanted)));
        let savings = savings.filter(|(_, saved_ns)| *saved_ns >= SAVING_NS_MIN);
        Self {
            contents,
            bytes: bytes.max(1),
            is_there,
            savings: savings.map(|(user, saved_ns)| (user, saved_ns as f64 / 1e9)).collect(),
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
mod tests;
