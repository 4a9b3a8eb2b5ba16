//! Uses as much CPU time as its request says, and sleeps in between: `CPU,SLEEP,CPU,…` in microseconds.
//!
//! The work is fib(n), as in FaaSBench; how much of it is done is by the thread's own CPU clock, so that an invocation asks
//! for the same CPU time whatever runs beside it. It answers with where and when it ran, as it saw it: a line
//! `CORE FROM TO` (nanoseconds of the monotonic clock) for each stretch without a gap.

use std::fmt::Write as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use spry_fn::{Error, Request, Response};

/// A longer time between two looks is a gap: others ran.
const GAP_NS: u64 = 300_000;
/// Work between two looks: some microseconds.
const CHUNK: u32 = 16;
/// Stretches that are told, at most.
const TOLD: usize = 2000;

fn now_ns(clock: ClockId) -> Result<u64, Error> {
    let now = clock_gettime(clock)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn fib(n: u32) -> u64 {
    if n < 2 { u64::from(n) } else { fib(n - 1) + fib(n - 2) }
}

fn burn(request: Request<'_>) -> Result<Response<'_>, Error> {
    let text = std::str::from_utf8(request.body())?;
    let mut stretches: Vec<(usize, u64, u64)> = Vec::new();
    for (place, part) in text.split(',').enumerate() {
        let us: u64 = part.trim().parse()?;
        if place % 2 == 1 {
            std::thread::sleep(Duration::from_micros(us));
            continue;
        }
        let until_ns = now_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)? + us * 1000;
        let mut from_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
        let mut last_ns = from_ns;
        let mut core = nix::sched::sched_getcpu().unwrap_or(0);
        loop {
            std::hint::black_box(fib(std::hint::black_box(CHUNK)));
            let at_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
            let over = now_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)? >= until_ns;
            if at_ns - last_ns > GAP_NS {
                stretches.push((core, from_ns, last_ns));
                from_ns = at_ns;
                core = nix::sched::sched_getcpu().unwrap_or(0);
            }
            last_ns = at_ns;
            if over {
                break;
            }
        }
        stretches.push((core, from_ns, last_ns));
    }
    let mut told = String::new();
    for (core, from_ns, to_ns) in stretches.iter().take(TOLD) {
        writeln!(told, "{core} {from_ns} {to_ns}")?;
    }
    Ok(Response::text(told))
}

spry_fn::handler!(burn);
