//! `async`: what it costs that nothing is lost.
//!
//! - **accept**: asynchronous calls that are accepted a second, each on disk before its answer; beside it a plain loop on
//!   the same file system that commits one row at a time to SQLite with the same settings.
//! - **records**: a warm nop with and without records of calls, two nodes side by side.
//! - **restart**: from the start of spryd to its first answer, with many functions deployed and with one.

use std::time::{Duration, Instant};

use super::compare::{REQUESTS, Subject, report, rounds};
use super::{SuiteError, TIMEOUT, warm};
use crate::http1;
use crate::load::{self, Pace, Plan, Target, Until};
use crate::node::{Function, Node, NodeError, Programs};
use crate::report::{Bar, Row, median};
use crate::stop::Stop;

const BENCH: &str = "async";

/// What to measure, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of connections that submit.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    pub connections: Vec<usize>,
    /// Seconds per server and round.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Bytes of a call's body.
    #[arg(long, default_value_t = 256)]
    pub body: usize,
    /// Functions that are deployed before the restart.
    #[arg(long, default_value_t = 200)]
    pub functions: usize,
    /// Only this part: accept, records or restart.
    #[arg(long)]
    pub only: Option<String>,
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let wanted = |part: &str| options.only.as_ref().is_none_or(|only| part.contains(only.as_str()));
    let mut rows = Vec::new();
    if wanted("accept") {
        rows.extend(accept(options, programs, stop)?);
    }
    if wanted("records") {
        rows.extend(records(options, programs, stop)?);
    }
    if wanted("restart") {
        rows.extend(restart(options, programs, stop)?);
    }
    if rows.is_empty() { Err(SuiteError::NoCase(options.only.clone().unwrap_or_default())) } else { Ok(rows) }
}

/// Calls that are put off, so that what is measured is their acceptance and not their run; and calls that run at once.
fn accept(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start_with(programs, "[async]\ncalls = 10000000\nbytes = \"64GiB\"\n", stop)?;
    node.deploy(Function::NativeNop, "nop")?;
    let body = vec![b'x'; options.body];
    let until = Until::Elapsed(Duration::from_secs_f64(options.seconds));
    let mut rows = Vec::new();
    for (case, header) in [("accepted, put off", "X-Delay: 1d\r\n"), ("accepted and run", "")] {
        for &connections in &options.connections {
            let mut target =
                Target::new(node.address, "POST", "/async-function/nop", &body, b"".as_slice().into());
            target.status = 202;
            target.request = with_header(&target.request, header).into();
            let plan = Plan { connections, pace: Pace::Closed, until, timeout: TIMEOUT };
            let (mut calls, mut loops, mut latency) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds.max(1) {
                loops.push(plain_loop(node.folder(), &body, options.seconds).map_err(SuiteError::Sqlite)?);
                let outcome = load::run(&target, &plan, stop)?;
                if outcome.failures.total() > 0 {
                    let (what, found) = (case.to_owned(), outcome.failures.to_string());
                    return Err(SuiteError::Answer { what, found });
                }
                calls.push(outcome.per_second());
                latency.push(outcome.latency_us(0.99));
            }
            let name = format!("{case}, {connections} connections");
            let ratios: Vec<f64> = calls.iter().zip(&loops).map(|(call, one)| call / one).collect();
            let row = Row::new(BENCH, name.clone(), "calls", median(&calls), "1/s")
                .against(median(&loops))
                .spread(ratios);
            // Alone, a call is a flush and a request; many share their flushes.
            let bar = if connections >= 32 { row.must(Bar::RatioAtLeast(1.0)) } else { row };
            rows.push(bar);
            rows.push(Row::new(BENCH, name, "p99", median(&latency), "us"));
        }
    }
    Ok(rows)
}

fn with_header(request: &[u8], header: &str) -> Vec<u8> {
    let at = request.windows(2).position(|pair| pair == b"\r\n").map_or(0, |at| at + 2);
    [&request[..at], header.as_bytes(), &request[at..]].concat()
}

/// Rows a second, each committed by itself, with the settings of `calls.db`.
fn plain_loop(folder: &std::path::Path, body: &[u8], seconds: f64) -> rusqlite::Result<f64> {
    let path = folder.join("plain.db");
    let _ = std::fs::remove_file(&path);
    let connection = rusqlite::Connection::open(&path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "CREATE TABLE calls (seq INTEGER PRIMARY KEY, function TEXT, at INTEGER, body BLOB) STRICT",
    )?;
    let mut statement =
        connection.prepare("INSERT INTO calls (function, at, body) VALUES ('nop', ?1, ?2)")?;
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed().as_secs_f64() < seconds {
        statement.execute(rusqlite::params![count, body])?;
        count += 1;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Two nodes, alike but for the records.
fn records(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let off = Node::start_with(programs, "[activations]\ncount = 0\n", stop)?;
    let on = Node::start_with(programs, "", stop)?;
    let mut subjects = Vec::new();
    for (node, label, floor) in [(&off, "records off", true), (&on, "records on", false)] {
        node.deploy(Function::NativeNop, Function::NativeNop.name())?;
        let target = warm(node, Function::NativeNop, b"", stop)?;
        subjects.push(Subject { label: label.to_owned(), target, root: node.pid(), floor });
    }
    let until = Until::Elapsed(Duration::from_secs_f64(options.seconds));
    let connections = 32;
    let plan = Plan { connections, pace: Pace::Closed, until, timeout: TIMEOUT };
    let results = rounds(&subjects, &plan, options.rounds, stop)?;
    let bar = |label: &str, metric| {
        (label == "records on" && metric == REQUESTS).then_some(Bar::RatioAtLeast(0.95))
    };
    Ok(report(BENCH, &subjects, &results, "nop", connections, &bar))
}

/// The first answer after a restart, with many functions and with one.
fn restart(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let mut medians = Vec::new();
    for count in [1, options.functions.max(2)] {
        let mut node = Node::start_with(programs, "", stop)?;
        for index in 0..count {
            node.deploy(Function::NativeNop, &format!("nop-{index}"))?;
        }
        let request = Target::new(node.address, "GET", "/function/nop-0", b"", b"".as_slice().into()).request;
        let mut times = Vec::new();
        for _ in 0..options.rounds.max(1) {
            let begun = Instant::now();
            node.crash_and_restart()?;
            let answered = loop {
                if stop.is_set() {
                    return Err(NodeError::Interrupted.into());
                }
                // Until it listens, a connection is refused; from then on, the first answer counts.
                match http1::call(node.address, &request, TIMEOUT) {
                    Ok((head, _)) if head.status == 200 => break begun.elapsed(),
                    Ok((head, body)) => {
                        let found = format!("status {}: {}", head.status, String::from_utf8_lossy(&body));
                        return Err(SuiteError::Answer { what: "the first call".into(), found });
                    }
                    Err(_) if begun.elapsed() < TIMEOUT => std::thread::sleep(Duration::from_micros(200)),
                    Err(error) => return Err(error.into()),
                }
            };
            times.push(answered.as_secs_f64() * 1e3);
        }
        medians.push(median(&times));
    }
    let case = format!("restart with {} functions", options.functions);
    Ok(vec![
        Row::new(BENCH, case, "first answer after", medians[1], "ms")
            .against(medians[0])
            .must(Bar::RatioAtMost(2.0)),
    ])
}
