//! What a policy and its signals cost where there is nothing to decide: a warm function that does nothing, beside `eevdf`.
//!
//! The signals' programs run at every context switch of the machine, so the two nodes can't be there at once: each is started
//! for its turn, and every other round goes in reverse. A machine drifts by more than what is looked for, and from one
//! second to the next it hardly does: so turns are short and many, each is compared with its neighbour, and what counts is the
//! median of these ratios, printed with its confidence interval.
//!
//! The kernel's own account of the programs' time (`crate::bpf`) says, without that noise, how much of it is theirs.

use std::time::Duration;

use crate::bpf::Account;
use crate::load::{self, Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::process;
use crate::report::{Bar, Row, median, median_interval};
use crate::sched::Name;
use crate::stop::Stop;
use crate::suite::compare::{REQUESTS, Runs, Subject, report, rounds};
use crate::suite::{SuiteError, TIMEOUT, deploy_and_warm, process_error};

/// What may be lost.
const BAR: Bar = Bar::AtLeast(0.97);
const CONNECTIONS: [usize; 2] = [1, 32];
const ROUNDS: usize = 40;
const TURN: Duration = Duration::from_millis(700);
/// The signals' programs, as the kernel knows them.
const SIGNALS: [&str; 2] = ["spry_switch", "spry_wakeup"];

/// Measures it for one policy. `quick`: a quarter of the rounds.
pub(super) fn run(
    policy: Name,
    quick: bool,
    programs: &Programs,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let mut order = [Name::Eevdf, policy];
    let mut all: [Vec<Runs>; 2] = CONNECTIONS.map(|_| order.iter().map(|_| Runs::default()).collect());
    let mut subjects = Vec::new();
    let count = if quick { ROUNDS / 4 } else { ROUNDS };
    for round in 0..count {
        eprintln!("nop, round {} of {count}", round + 1);
        for name in order {
            let (_node, subject) = start(name, programs, stop)?;
            let this = [subject];
            for (connections, results) in CONNECTIONS.into_iter().zip(&mut all) {
                let runs = rounds(&this, &plan(connections), 1, stop)?;
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
        rows.extend(report(super::BENCH, &subjects, results, "nop", connections, &|_, _| None));
        let [base, ours] = [&results[0], &results[1]].map(|runs| runs.values(REQUESTS));
        let pairs: Vec<f64> = ours.zip(base).map(|(ours, base)| ours / base).collect();
        let case = format!("{} nop c{connections}", policy.text());
        let row = Row::new(super::BENCH, case, "requests, by pairs", median(&pairs), "of eevdf's");
        rows.push(row.spread(median_interval(&pairs)).must(BAR));
    }
    rows.extend(by_account(policy, programs, stop)?);
    Ok(rows)
}

/// The programs' time by the kernel's account, beside all CPU time of client and servers.
fn by_account(policy: Name, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let account = match Account::open() {
        Ok(account) => account,
        Err(error) => {
            eprintln!("the kernel doesn't count the programs' time: {error}");
            return Ok(Vec::new());
        }
    };
    let (_node, subject) = start(policy, programs, stop)?;
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let servers = || process::tree_cpu(subject.root).map_err(process_error("a server"));
        let runs = || account.runs(&SIGNALS).map_err(SuiteError::Account);
        let (cpu_before, before) = (servers()?, runs()?);
        let outcome = load::run(&subject.target, &plan(connections), stop)?;
        let (cpu, after) = (servers()?.saturating_sub(cpu_before), runs()?);
        let requests = outcome.done.max(1) as f64;
        let per_request = |time: Duration| time.as_secs_f64() * 1e6 / requests;
        let case = format!("{} nop c{connections}", policy.text());
        let row = |metric, value, unit| Row::new(super::BENCH, case.as_str(), metric, value, unit);
        let time_us = per_request(after.time.saturating_sub(before.time));
        let all_us = per_request(cpu) + outcome.client_cpu_us();
        rows.push(row("signals' programs", time_us, "us/request").against(all_us));
        let runs = (after.count - before.count) as f64 / requests;
        rows.push(row("their runs", runs, "1/request"));
    }
    Ok(rows)
}

fn start(name: Name, programs: &Programs, stop: &Stop) -> Result<(Node, Subject), SuiteError> {
    let node = Node::start_with(programs, &super::settings(name, false), stop)?;
    let target = deploy_and_warm(&node, Function::NativeNop, stop)?;
    let (label, root, floor) = (name.text().to_owned(), node.pid(), name == Name::Eevdf);
    Ok((node, Subject { label, target, root, floor }))
}

fn plan(connections: usize) -> Plan {
    Plan { connections, pace: Pace::Closed, until: Until::Elapsed(TURN), timeout: TIMEOUT }
}
