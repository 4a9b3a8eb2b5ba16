//! A trace run on a node in real time: every invocation is sent when it is due, whatever became of those before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use spry_sched::sim::{Job, Outcome, Run};

use crate::http1::Client;
use crate::load::Target;
use crate::stop::Stop;
use crate::suite::SuiteError;

/// Invocations under way at once, at most: each has a thread and a connection.
const AT_ONCE: usize = 1024;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks whether the user wants the run to end.
const LOOK: Duration = Duration::from_millis(50);

/// What one invocation came to.
struct Done {
    place: usize,
    finish_ns: u64,
    runs: Vec<Run>,
}

/// Runs it; turnarounds are from when an invocation was due. Runs are as the functions saw them.
pub(super) fn run(address: SocketAddr, trace: &[Job], stop: &Stop) -> Result<Outcome, SuiteError> {
    let (hand, jobs) = mpsc::channel::<usize>();
    let jobs = Mutex::new(jobs);
    let (tell, told) = mpsc::channel::<Result<Done, SuiteError>>();
    let (begin, begin_ns) = (Instant::now(), monotonic_ns());
    let free = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let pace = scope.spawn({
            let (free, jobs, tell) = (&free, &jobs, tell.clone());
            move || {
                spry_sched::backend::wake_soon();
                let mut threads = 0;
                for (place, job) in trace.iter().enumerate() {
                    if !wait_until(begin + Duration::from_nanos(job.arrival_ns), stop) {
                        return;
                    }
                    if free.load(Ordering::SeqCst) == 0 && threads < AT_ONCE {
                        threads += 1;
                        let tell = tell.clone();
                        scope.spawn(move || send_all(address, trace, begin_ns, begin, free, jobs, &tell));
                    } else {
                        free.fetch_sub(1, Ordering::SeqCst);
                    }
                    let _ = hand.send(place);
                }
            }
        });
        drop(tell);
        let mut outcome = Outcome { finish_ns: vec![0; trace.len()], ..Outcome::default() };
        let mut failed = None;
        for done in told {
            match done {
                Ok(done) => {
                    outcome.finish_ns[done.place] = done.finish_ns.max(trace[done.place].arrival_ns);
                    outcome.switches += done.runs.len() as u64;
                    outcome.runs.extend(done.runs);
                }
                Err(error) => {
                    stop.set();
                    failed = failed.or(Some(error));
                }
            }
        }
        let _ = pace.join();
        match failed {
            Some(error) => Err(error),
            None if outcome.finish_ns.contains(&0) => Err(crate::load::LoadError::Interrupted.into()),
            None => Ok(outcome),
        }
    })
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// False: the user wants the run to end.
fn wait_until(at: Instant, stop: &Stop) -> bool {
    loop {
        if stop.is_set() {
            return false;
        }
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

/// A thread with a connection: sends one after the other, until there are no more.
fn send_all(
    address: SocketAddr,
    trace: &[Job],
    begin_ns: u64,
    begin: Instant,
    free: &AtomicUsize,
    jobs: &Mutex<mpsc::Receiver<usize>>,
    tell: &mpsc::Sender<Result<Done, SuiteError>>,
) {
    spry_sched::backend::wake_soon();
    let mut client = None;
    loop {
        let next = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(place) = next else { return };
        let done = send(&mut client, address, &trace[place]).map(|body| Done {
            place,
            finish_ns: begin.elapsed().as_nanos() as u64,
            runs: runs(place, &body, begin_ns),
        });
        let failed = done.is_err();
        if tell.send(done).is_err() || failed {
            return;
        }
        free.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the function is asked to do: microseconds of CPU time and of sleep by turns.
pub(super) fn request_body(job: &Job) -> Vec<u8> {
    let parts: Vec<String> = job.bursts_ns.iter().map(|ns| (ns / 1000).max(1).to_string()).collect();
    parts.join(",").into_bytes()
}

fn send(client: &mut Option<Client>, address: SocketAddr, job: &Job) -> Result<Vec<u8>, SuiteError> {
    let path = format!("/function/{}", super::function_name(job.function.0));
    let request = Target::new(address, "POST", &path, &request_body(job), b"".as_slice().into()).request;
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(address, PATIENCE)?),
    };
    let mut body = Vec::new();
    let head = client.call(&request, &mut body)?;
    if head.status == 200 {
        return Ok(body);
    }
    let found = format!("status {}: {}", head.status, String::from_utf8_lossy(&body));
    Err(SuiteError::Answer { what: path, found })
}

/// What a function says about when it ran. (What can't be read isn't shown; nothing is decided by it.)
fn runs(place: usize, body: &[u8], begin_ns: u64) -> Vec<Run> {
    let text = String::from_utf8_lossy(body);
    let run = |line: &str| {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (core, from, to) = (next()?, next()?, next()?);
        Some(Run {
            core: core as u32,
            job: place as u32,
            from_ns: from.saturating_sub(begin_ns),
            to_ns: to.saturating_sub(begin_ns),
        })
    };
    text.lines().filter_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_function_says_is_read_and_nonsense_is_left_out() {
        let runs = runs(3, b"1 1500 2500\nnonsense\n0 3000 3100\n", 1000);
        let (first, second) = (
            Run { core: 1, job: 3, from_ns: 500, to_ns: 1500 },
            Run { core: 0, job: 3, from_ns: 2000, to_ns: 2100 },
        );
        assert_eq!(runs, [first, second]);
    }
}
