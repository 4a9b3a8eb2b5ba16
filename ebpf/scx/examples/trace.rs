//! One trace of short and long jobs, run by real processes under the kernel's fair class and under sched_ext, beside what
//! SRPT that knows the future would make of it: `cargo xtask vm bench`.
//!
//! Made for one CPU whose time is the number of its instructions, where the figures are the same on every machine.
//! Exit status 1: under sched_ext the mean over all jobs is more than `--bar` times offline SRPT's.

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};
use spry_scx::{Scheduler, Task, loader};
use support::{compute, monotonic};

/// Short jobs have less than this.
const LONG: Duration = Duration::from_millis(50);

#[derive(Debug, Parser)]
struct Options {
    /// How many short jobs (5 ms) and long ones (500 ms), in a random order.
    #[arg(long, default_value_t = 32)]
    short: usize,
    #[arg(long, default_value_t = 8)]
    long: usize,
    /// Work that arrives, in CPUs.
    #[arg(long, default_value_t = 0.95)]
    load: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The largest ratio to offline SRPT that is good.
    #[arg(long, default_value_t = 1.05)]
    bar: f64,
}

/// A job: when it comes, and the CPU time that it needs.
#[derive(Clone, Copy, Debug)]
struct Job {
    arrival: Duration,
    size: Duration,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let trace = trace(&options);
    let offline = offline(&trace);
    let fair = run(&trace, None);
    let folder = PathBuf::from(format!("/sys/fs/bpf/spry-scx-trace-{}", std::process::id()));
    let extended = loader::load(&folder).map_err(|error| error.to_string()).and_then(|loaded| {
        let scheduler = Scheduler::open(&folder).map_err(|error| error.to_string())?;
        let turnarounds = run(&trace, Some(&scheduler));
        println!("sched_ext: {:?}", loaded.health().counts);
        Ok(turnarounds)
    });
    let extended = match extended {
        Ok(extended) => extended,
        Err(error) => {
            eprintln!("trace: {error}");
            return ExitCode::from(2);
        }
    };
    println!(
        "{} jobs of 5 ms, {} of 500 ms, load {}, seed {}; turnaround in ms, and as a ratio to eevdf's",
        options.short, options.long, options.load, options.seed
    );
    println!(
        "{:<10} {:<6} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7}",
        "", "", "mean", "p50", "p99", "mean", "p50", "p99"
    );
    for (name, turnarounds) in [("eevdf", &fair), ("sched_ext", &extended), ("offline", &offline)] {
        for class in [Class::Short, Class::Long, Class::All] {
            let own = class.figures(&trace, turnarounds);
            let base = class.figures(&trace, &fair);
            let [mean, p50, p99] = own;
            let ratio = |at: usize| own[at] / base[at];
            println!(
                "{name:<10} {:<6} {mean:>9.2} {p50:>9.2} {p99:>9.2} {:>7.3} {:>7.3} {:>7.3}",
                class.name(),
                ratio(0),
                ratio(1),
                ratio(2)
            );
        }
    }
    let ratio = Class::All.figures(&trace, &extended)[0] / Class::All.figures(&trace, &offline)[0];
    println!("sched_ext to offline SRPT, mean of all jobs: {ratio:.4} (bar {})", options.bar);
    if ratio <= options.bar { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone, Copy)]
enum Class {
    Short,
    Long,
    All,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
            Self::All => "all",
        }
    }

    /// Mean, median and 99th percentile, in milliseconds.
    fn figures(self, trace: &[Job], turnarounds: &[Duration]) -> [f64; 3] {
        let is_in = |job: &Job| match self {
            Self::Short => job.size < LONG,
            Self::Long => job.size >= LONG,
            Self::All => true,
        };
        let mut times: Vec<f64> = trace
            .iter()
            .zip(turnarounds)
            .filter(|(job, _)| is_in(job))
            .map(|(_, time)| time.as_secs_f64() * 1e3)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        [times.iter().sum::<f64>() / times.len() as f64, at(0.5), at(0.99)]
    }
}

/// Jobs in a random order, as a Poisson process.
fn trace(options: &Options) -> Vec<Job> {
    let mut random = Random(options.seed);
    let mut sizes: Vec<Duration> = Vec::new();
    sizes.extend(std::iter::repeat_n(Duration::from_millis(5), options.short));
    sizes.extend(std::iter::repeat_n(Duration::from_millis(500), options.long));
    for last in (1..sizes.len()).rev() {
        sizes.swap(last, (random.next() * (last + 1) as f64) as usize);
    }
    let mean = sizes.iter().sum::<Duration>().as_secs_f64() / sizes.len() as f64 / options.load;
    let mut arrival = Duration::ZERO;
    let next = |size| {
        arrival += Duration::from_secs_f64(-mean * (1.0 - random.next()).ln());
        Job { arrival, size }
    };
    sizes.into_iter().map(next).collect()
}

/// Numbers from 0 to 1 (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Turnarounds under SRPT that knows every size and costs nothing.
fn offline(trace: &[Job]) -> Vec<Duration> {
    let mut left: Vec<Duration> = trace.iter().map(|job| job.size).collect();
    let mut done = vec![Duration::ZERO; trace.len()];
    let (mut now, mut arrived) = (Duration::ZERO, 0);
    loop {
        while arrived < trace.len() && trace[arrived].arrival <= now {
            arrived += 1;
        }
        let shortest = (0..arrived).filter(|job| !left[*job].is_zero()).min_by_key(|job| left[*job]);
        let until = trace.get(arrived).map_or(Duration::MAX, |job| job.arrival);
        match shortest {
            Some(job) => {
                let runs = left[job].min(until.saturating_sub(now));
                now += runs;
                left[job] -= runs;
                if left[job].is_zero() {
                    done[job] = now - trace[job].arrival;
                }
            }
            None if arrived < trace.len() => now = until,
            None => return done,
        }
    }
}

/// A process that waits for its job.
struct Runner {
    pid: Pid,
    go: OwnedFd,
    task: Option<Task>,
}

/// Runs the trace with a process a job; turnarounds.
fn run(trace: &[Job], scheduler: Option<&Scheduler>) -> Vec<Duration> {
    let (results, report) = pipe().expect("a pipe");
    let runners: Vec<Runner> =
        trace.iter().enumerate().map(|(number, job)| runner(number, *job, &report, scheduler)).collect();
    let start = monotonic() + Duration::from_millis(20);
    for (runner, job) in runners.iter().zip(trace) {
        let due = start + job.arrival;
        std::thread::sleep(due.saturating_sub(monotonic()));
        if let Some(task) = &runner.task {
            task.begin(u64::try_from(job.size.as_nanos()).expect("a short job"));
        }
        write(&runner.go, &[1]).expect("the process waits");
    }
    let mut turnarounds = vec![Duration::ZERO; trace.len()];
    for _ in trace {
        let mut line = [0; 16];
        assert_eq!(read(&results, &mut line), Ok(16));
        let (number, end) = line.split_at(8);
        let number = usize::from_ne_bytes(number.try_into().expect("eight bytes"));
        let end = Duration::from_nanos(u64::from_ne_bytes(end.try_into().expect("eight bytes")));
        turnarounds[number] = end - (start + trace[number].arrival);
    }
    for runner in runners {
        drop(runner.task);
        waitpid(runner.pid, None).expect("it has ended");
    }
    turnarounds
}

fn runner(number: usize, job: Job, report: &OwnedFd, scheduler: Option<&Scheduler>) -> Runner {
    let (wait, go) = pipe().expect("a pipe");
    // SAFETY: this process has one thread; the child computes, writes once and ends with _exit.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            if read(&wait, &mut [0]) == Ok(1) {
                compute(job.size);
                let mut line = [0; 16];
                line[..8].copy_from_slice(&number.to_ne_bytes());
                let end = u64::try_from(monotonic().as_nanos()).unwrap_or(0);
                line[8..].copy_from_slice(&end.to_ne_bytes());
                let _told = write(report, &line);
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let task = scheduler.map(|scheduler| {
                // SAFETY: takes numbers, makes a descriptor.
                let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
                let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).expect("a descriptor");
                // SAFETY: just made for us.
                let pidfd = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
                assert!(pidfd.as_raw_fd() >= 0);
                scheduler.claim(child.as_raw(), pidfd, None).expect("a slot")
            });
            Runner { pid: child, go, task }
        }
    }
}
