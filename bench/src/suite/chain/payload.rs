//! The same hop with small and large values that are passed on: no byte of them is touched, so it takes as long.
//!
//! From outside that can't be seen: HTTP needs some ten milliseconds for 16 MiB, and fifteen hops a tenth of one. So the
//! chain begins and ends with a function that looks at the clock (`bench/functions/stamp.rs`), once when it has
//! copied its input to where its answer lies, and once when that arrives. A chain with more steps between the two takes
//! longer than one with fewer, by the hops.
//!
//! Taking 16 MiB in and copying it empties the processor's caches of all else, which whoever runs next has to fetch again,
//! whatever he does. So the hops that count are those of values that the first step makes without writing them: as
//! large to all who pass them on, and no cache is emptied before. Values that the client sends are shown beside
//! them, in the first time round and in a second one: a chain that goes through the steps twice without one that goes
//! through them once.

use crate::http1::Client;
use crate::load::{Target, histogram};
use crate::node::{Node, NodeError, Programs};
use crate::process;
use crate::report::{Bar, Row, median};
use crate::stop::Stop;
use crate::suite::{SuiteError, TIMEOUT, process_error};

use super::{BENCH, Code, Options, apply};

/// Steps between the two that look at the clock, each time round.
const BETWEEN: usize = 15;
/// How often the chains go round.
const ROUNDS: [(usize, &str); 3] = [(0, "none"), (1, "once"), (2, "twice")];
/// Values, and what they are called.
const VALUES: [(Value, &str); 5] = [
    (Value::Made(1 << 10), "1 KiB made and passed on, one core"),
    (Value::Made(16 << 20), "16 MiB made and passed on, one core"),
    (Value::Sent(27), "27 B sent and passed on, one core"),
    (Value::Sent(1 << 10), "1 KiB sent and passed on, one core"),
    (Value::Sent(16 << 20), "16 MiB sent and passed on, one core"),
];
/// What those that are made and those that are sent are compared with.
const BASELINES: [usize; 2] = [0, 3];
/// The one with a bar.
const BOUND: usize = 1;
/// Calls of a round, for each chain and size: as many as take about as long as a round of the other parts.
const CALLS: usize = 60;
/// Calls that only warm up.
const FIRST_CALLS: usize = 5;
const PAYLOAD: &str = "17MiB";

/// Where a value of so many bytes comes from.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// The first step says that it is there, and writes none of it.
    Made(usize),
    /// The client sends it, and the first step copies it.
    Sent(usize),
}

impl Value {
    fn baseline(self) -> usize {
        match self {
            Self::Made(_) => BASELINES[0],
            Self::Sent(_) => BASELINES[1],
        }
    }
}

pub(super) fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start_with(programs, "transport = \"sockmap\"\nworkers = 1\n", stop)?;
    let settings = ["limits.payload=17MiB", "limits.memory=192MiB"];
    let (between, ends) = (Code::Pass.names(BETWEEN), Code::Stamp.names(2));
    Code::Pass.deploy(&node, programs, &between, &settings)?;
    Code::Stamp.deploy(&node, programs, &ends, &settings)?;
    for (rounds, name) in ROUNDS {
        let all_rounds = vec![between.as_slice(); rounds].concat();
        let steps = [&ends[..1], &all_rounds, &ends[1..]].concat();
        apply(&node, name, &steps, PAYLOAD)?;
    }

    let requests = VALUES.map(|(value, _)| {
        let (size, query) = match value {
            Value::Made(len) => (0, format!("?make={len}")),
            Value::Sent(len) => (len, String::new()),
        };
        let body: Vec<u8> = (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
        ROUNDS.map(|(_, chain)| {
            let path = format!("/function/{chain}{query}");
            Target::new(node.address, "POST", &path, &body, b"".as_slice().into()).request
        })
    });
    let mut client = Client::connect(node.address, TIMEOUT)?;
    for request in requests.iter().flatten() {
        elapsed_us(&mut client, request, stop)?;
    }
    let cpus = process::allowed_cpus().map_err(process_error("this program"))?;
    let mut hops_us = VALUES.map(|_| Vec::new());
    let mut first_hops_us = VALUES.map(|_| Vec::new());
    for round in 0..options.rounds.max(1) {
        eprintln!("payload, round {} of {}", round + 1, options.rounds);
        let tree = process::tree(node.pid()).map_err(process_error("spryd"))?;
        process::restrict(&tree, &cpus[..1]).map_err(process_error("spryd"))?;
        process::restrict_this_thread(cpus[0]).map_err(process_error("this program"))?;
        let mut order: Vec<usize> = (0..VALUES.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for value in order {
            let [none, once, twice] = &requests[value];
            let none = median_us(&mut client, none, stop)?;
            let once = median_us(&mut client, once, stop)?;
            let twice = median_us(&mut client, twice, stop)?;
            first_hops_us[value].push((once - none) / BETWEEN as f64);
            hops_us[value].push((twice - once) / BETWEEN as f64);
        }
    }
    Ok(report(&hops_us, &first_hops_us))
}

/// The median of what a chain says about itself, in microseconds.
fn median_us(client: &mut Client, request: &[u8], stop: &Stop) -> Result<f64, SuiteError> {
    for _ in 0..FIRST_CALLS {
        elapsed_us(client, request, stop)?;
    }
    let mut values = histogram();
    for _ in 0..CALLS {
        values.saturating_record((elapsed_us(client, request, stop)? * 1000.0) as u64);
    }
    Ok(values.value_at_quantile(0.5) as f64 / 1000.0)
}

/// One call; microseconds from the first step's stamp to the last step's beginning.
fn elapsed_us(client: &mut Client, request: &[u8], stop: &Stop) -> Result<f64, SuiteError> {
    if stop.is_set() {
        return Err(NodeError::Interrupted.into());
    }
    let mut body = Vec::new();
    let head = client.call(request, &mut body)?;
    let text = String::from_utf8_lossy(&body);
    match text.parse::<f64>() {
        Ok(elapsed_ns) if head.status == 200 => Ok(elapsed_ns / 1000.0),
        _ => Err(SuiteError::Answer {
            what: "a chain that times itself".to_owned(),
            found: format!("status {}: {}", head.status, text.chars().take(200).collect::<String>()),
        }),
    }
}

fn report(hops_us: &[Vec<f64>; VALUES.len()], first_hops_us: &[Vec<f64>; VALUES.len()]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (metric, hops_us, counts) in [("hop", hops_us, true), ("hop, first round", first_hops_us, false)] {
        for (index, (value, case)) in VALUES.into_iter().enumerate() {
            let row = Row::new(BENCH, case, metric, median(&hops_us[index]), "us");
            let small = &hops_us[value.baseline()];
            rows.push(if index == value.baseline() {
                row.spread(hops_us[index].iter().copied())
            } else {
                let ratios = hops_us[index].iter().zip(small).map(|(hop, small)| hop / small);
                let row = row.against(median(small)).spread(ratios);
                if counts && index == BOUND { row.must(Bar::RatioAtMost(1.1)) } else { row }
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_values_are_compared_with_small_ones() {
        let again = [vec![4.0], vec![4.2, 4.4, 4.6], vec![4.0], vec![4.0, 5.0, 6.0], vec![5.0, 5.5, 7.0]];
        let first = [vec![4.0], vec![8.0], vec![5.0], vec![10.0], vec![20.0]];
        let rows = report(&again, &first);
        let ratios: Vec<_> = rows.iter().map(|row| (row.ratio, row.met)).collect();
        assert_eq!(
            ratios[..5],
            [(None, None), (Some(1.1), Some(true)), (Some(0.8), None), (None, None), (Some(1.1), None)]
        );
        assert_eq!(
            ratios[5..],
            [(None, None), (Some(2.0), None), (Some(0.5), None), (None, None), (Some(2.0), None)]
        );
    }
}
