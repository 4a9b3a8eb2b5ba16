//! `overload`: ten times as many requests as a function can serve. What is admitted must be served as many a second as at
//! the peak, and wait no longer than the queue's limit allows; what is refused must be told when to come back; and spryd must not grow.
//!
//! The function sleeps for 20 ms, so that its capacity (`scale.max` instances) is not that of the CPUs, which the load generator
//! shares. Arrivals are Poisson's and don't wait for answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{SuiteError, TIMEOUT, deploy_and_warm, process_error};
use crate::load::{self, Failure, LoadError, Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::process;
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "overload";
/// How many requests there are for each that can be served.
const TIMES: f64 = 10.0;
/// What the function takes.
const NAP: Duration = Duration::from_millis(20);
/// Answers of either kind that are looked at for their headers.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds of overload.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Instances: what the capacity is made of.
    #[arg(long, default_value_t = 8)]
    pub instances: u32,
    /// Requests that may wait.
    #[arg(long, default_value_t = 64)]
    pub queue: u32,
    /// Five seconds instead.
    #[arg(long)]
    pub quick: bool,
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let Options { instances, queue, .. } = *options;
    let seconds = if options.quick { 5.0 } else { options.seconds };
    let settings =
        format!("[queue]\nper_function = {queue}\n[defaults.scale]\nmin = {instances}\nmax = {instances}\n");
    let node = Node::start_with(programs, &settings, stop)?;
    let target = deploy_and_warm(&node, Function::PythonNap, stop)?;
    // Twice as many connections as instances: the peak, with nobody refused.
    let peak_time = Duration::from_secs_f64((seconds / 4.0).clamp(3.0, 10.0));
    let peak_plan = Plan {
        connections: 2 * instances as usize,
        pace: Pace::Closed,
        until: Until::Elapsed(peak_time),
        timeout: TIMEOUT,
    };
    let peak = load::run(&target, &peak_plan, stop)?;
    let before = resident(&node)?;
    let plan = Plan {
        // Enough that each request that is due finds one: those that wait in the node, and some for those it refuses.
        connections: (queue + instances) as usize + 256,
        pace: Pace::Poisson { per_second: TIMES * peak.per_second(), seed: 1 },
        until: Until::Elapsed(Duration::from_secs_f64(seconds)),
        timeout: TIMEOUT,
    };
    let over = AtomicBool::new(false);
    let (outcome, seen, during) = std::thread::scope(|scope| {
        let looks = scope.spawn(|| look(node.address, &over));
        let sizes = scope.spawn(|| watch(&node, &over));
        let outcome = load::run(&target, &plan, stop);
        over.store(true, Ordering::Relaxed);
        let seen = looks.join().expect("looking does not panic");
        let during = sizes.join().expect("watching does not panic");
        (outcome, seen, during)
    });
    let outcome = outcome?;
    if stop.is_set() {
        return Err(LoadError::Interrupted.into());
    }
    let refused = outcome.failures.of(Failure::Status(429)) + outcome.failures.of(Failure::Status(503));
    let others = outcome.failures.total() - refused;
    eprintln!(
        "peak {:.0}/s; overload: {} served, failures: {}",
        peak.per_second(),
        outcome.done,
        outcome.failures
    );
    // Who is last in a full queue waits for all of it, each time for the slowest of `instances`, and is then served.
    let longest = NAP.as_secs_f64() * 1e3 * (f64::from(queue) / f64::from(instances) + 1.0);
    let after = load::run(&target, &peak_plan, stop)?;
    let case = format!("{TIMES:.0}x");
    let row = |metric, value, unit| Row::new(BENCH, case.clone(), metric, value, unit);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        row("goodput", outcome.per_second(), "requests/s")
            .against(peak.per_second())
            .must(Bar::RatioAtLeast(0.9)),
        row("p99 of what is served", outcome.latency_us(0.99) / 1e3, "ms")
            .against(longest)
            .must(Bar::RatioAtMost(1.5)),
        row("refused", refused as f64, "requests").must(Bar::AtLeast(1.0)),
        row("refusals looked at", seen.refused as f64, "requests").must(Bar::AtLeast(1.0)),
        row("of these without Retry-After", (seen.refused - seen.with_time) as f64, "requests")
            .must(Bar::AtMost(0.0)),
        row("other failures", (others + seen.others) as f64, "requests").must(Bar::AtMost(0.0)),
        row("spryd's resident memory", mib(during.max(before)), "MiB")
            .against(mib(before))
            .must(Bar::RatioAtMost(2.0)),
        row("served afterwards", after.per_second(), "requests/s")
            .against(peak.per_second())
            .must(Bar::RatioAtLeast(0.9)),
        row("failures afterwards", after.failures.total() as f64, "requests").must(Bar::AtMost(0.0)),
    ])
}

/// What a caller among the others saw.
#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    with_time: u64,
    others: u64,
}

/// Makes a request now and then, and looks at the whole answer.
fn look(address: SocketAddr, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        match answer(address) {
            Ok((429 | 503, has_time)) => {
                seen.refused += 1;
                seen.with_time += u64::from(has_time);
            }
            Ok((200, _)) => {}
            Ok(_) | Err(_) => seen.others += 1,
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    seen
}

/// An answer's status, and whether it says when to come back.
fn answer(address: SocketAddr) -> std::io::Result<(u16, bool)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let path = format!("/function/{}", Function::PythonNap.name());
    write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let mut has_time = false;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        let value = header.strip_prefix("retry-after:").map(str::trim);
        has_time |= value.is_some_and(|value| value.parse::<u32>().is_ok_and(|seconds| seconds > 0));
    }
    reader.read_to_end(&mut Vec::new())?;
    Ok((status, has_time))
}

/// The most that spryd has resident until it is over.
fn watch(node: &Node, over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(resident(node).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    most
}

fn resident(node: &Node) -> Result<u64, SuiteError> {
    process::resident(node.pid()).map_err(process_error("spryd"))
}
