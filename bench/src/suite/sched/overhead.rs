//! What a policy and its signals cost where there is nothing to decide: a warm function that does nothing, beside `eevdf`.
//!
//! The signals' programs run at every context switch of the machine, so the two nodes can't be there at once: each is started
//! for its turn, and every other round goes in reverse.

use std::time::Duration;

use crate::load::{Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::report::{Bar, Row};
use crate::sched::Name;
use crate::stop::Stop;
use crate::suite::compare::{REQUESTS, Runs, Subject, report, rounds};
use crate::suite::{SuiteError, TIMEOUT, deploy_and_warm};

/// What may be lost.
const BAR: Bar = Bar::RatioAtLeast(0.97);
const CONNECTIONS: [usize; 2] = [1, 32];
const ROUNDS: usize = 8;
const TURN: Duration = Duration::from_millis(1500);

/// Measures it for one policy. `quick`: half as many rounds.
pub(super) fn run(
    policy: Name,
    quick: bool,
    programs: &Programs,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let mut order = [Name::Eevdf, policy];
    let mut all: [Vec<Runs>; 2] = CONNECTIONS.map(|_| order.iter().map(|_| Runs::default()).collect());
    let mut subjects = Vec::new();
    for round in 0..if quick { ROUNDS / 2 } else { ROUNDS } {
        for name in order {
            eprintln!("nop, round {}: {}", round + 1, name.text());
            let node = Node::start_with(programs, &super::settings(name, false), stop)?;
            let target = deploy_and_warm(&node, Function::NativeNop, stop)?;
            let subject = Subject {
                label: name.text().to_owned(),
                target,
                root: node.pid(),
                floor: name == Name::Eevdf,
            };
            let this = [subject];
            for (connections, results) in CONNECTIONS.into_iter().zip(&mut all) {
                let plan =
                    Plan { connections, pace: Pace::Closed, until: Until::Elapsed(TURN), timeout: TIMEOUT };
                let runs = rounds(&this, &plan, 1, stop)?;
                let place = usize::from(name != Name::Eevdf);
                runs.into_iter().for_each(|runs| results[place].add(runs));
            }
            if round == 0 {
                subjects.extend(this);
            }
        }
        order.reverse();
    }
    let mut rows = Vec::new();
    for (connections, results) in CONNECTIONS.into_iter().zip(&all) {
        let bar = |label: &str, metric| (label == policy.text() && metric == REQUESTS).then_some(BAR);
        rows.extend(report(super::BENCH, &subjects, results, "nop", connections, &bar));
    }
    Ok(rows)
}
