//! The same chain of eight steps on every transport, and as eight HTTP calls through the gateway that the client makes
//! one after the other. All side by side, as [`compare`](super::super::compare) does it; the HTTP calls are what the
//! others are compared with.

use std::sync::Arc;

use super::{BENCH, Code, Options, apply, warm};
use crate::load::{Pace, Plan, Target, Until};
use crate::node::{Node, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::suite::compare::{SERVER_CPU, Subject, report, rounds};
use crate::suite::{SuiteError, TIMEOUT};

const STEPS: usize = 8;
const CONNECTIONS: [usize; 2] = [1, 16];
const BODY: &[u8] = crate::floor::NOP_JSON;
/// The first one is the kernel's routing; its node also serves the HTTP calls.
const TRANSPORTS: [&str; 3] = ["sockmap", "futex", "broker"];

pub(super) fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let names = Code::Pass.names(STEPS);
    let mut nodes = Vec::new();
    let mut subjects = Vec::new();
    for transport in TRANSPORTS {
        let node = Node::start_with(programs, &format!("transport = {transport:?}\n"), stop)?;
        Code::Pass.deploy(&node, programs, &names, &[])?;
        apply(&node, "chain", &names, "1MiB")?;
        let target = warm(&node, "chain", BODY, BODY, stop)?;
        subjects.push(Subject { label: transport.to_owned(), target, root: node.pid(), floor: false });
        nodes.push(node);
    }
    let node = &nodes[0];
    for name in &names {
        warm(node, name, BODY, BODY, stop)?;
    }
    let paths: Vec<String> = names.iter().map(|name| format!("/function/{name}")).collect();
    let target = Target::sequence(node.address, paths.iter().map(String::as_str), BODY, &Arc::from(BODY));
    let target = target.expect("a chain has steps");
    subjects.push(Subject { label: format!("{STEPS} HTTP calls"), target, root: node.pid(), floor: true });

    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        eprintln!("a chain of {STEPS}, {connections} connections");
        let until = Until::Elapsed(options.time());
        let plan = Plan { connections, pace: Pace::Closed, until, timeout: TIMEOUT };
        let results = rounds(&subjects, &plan, options.rounds, stop)?;
        let case = format!("chain of {STEPS}");
        rows.extend(report(BENCH, &subjects, &results, &case, connections, &|subject, metric| {
            (subject == TRANSPORTS[0] && metric == SERVER_CPU).then_some(Bar::RatioAtMost(0.333))
        }));
    }
    Ok(rows)
}
