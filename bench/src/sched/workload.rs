//! Traces made from a seed, after published measurements of functions as a service.
//!
//! - `fib` is FaaSBench, the workload of SFS (Fu et al., SC 2022): fib(n) for n from 20 to 35, how often each n comes and
//!   how long it takes taken from the trace and the table that the authors published with their code (github.com/ds2-lab/SFS,
//!   `SFS-standalone/test1`: 10,083 invocations; `optimal.txt`). They made it after the durations of Azure's functions.
//! - `azure` draws the functions' own durations from the distribution that was fitted to all functions of Azure in two
//!   weeks of 2019: log-normal, ln seconds with mean -0.38 and deviation 2.36 (Shahrad et al.: "Serverless in the Wild",
//!   USENIX ATC 2020, section 3.4). It has the paper's quantiles: a fifth of the functions below 0.1 s, half below 1 s, 96 %
//!   below 60 s. Cut off at 1 ms and 60 s. Functions are called as unevenly as there (Zipf), and a function's
//!   invocations vary around its own (log-normal, deviation 0.25): both are our choice.
//! - `huawei` draws them from the mean execution times of functions, by the minute, in region 2 of Huawei's public cloud (Joosen et al.: "Serverless
//!   Cold Starts and Where to Find Them", EuroSys 2025, figure 3b, read off the curve: half below 30 ms, a quarter below 2 ms, a tenth over a
//!   second), straight lines over the logarithm between these points. Cut off at half a minute; called and varied as `azure`'s are.
//! - `bimodal` is four of 5 ms and one of 500 ms, each of the two by as many functions as asked for; `lottery` is the same in one function, so that nothing
//!   but the time that it has run tells them apart.

use std::fmt;

use clap::ValueEnum;
use spry_sched::FunctionId;
use spry_sched::sim::Job;

use crate::random::SplitMix64;

/// A kind of trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// 80 % of 5 ms, 20 % of 500 ms.
    Bimodal,
    /// The same in one function.
    Lottery,
    /// FaaSBench: fib(n).
    Fib,
    /// Durations as in Azure.
    Azure,
    /// Durations as in Huawei's public cloud.
    Huawei,
}

/// How invocations come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// Independently.
    Poisson,
    /// Poisson at two rates by turns: for an eighth of the time four times the mean rate, some 100 at a time.
    Bursty,
}

/// A trace to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of which kind.
    pub workload: Workload,
    /// How it comes.
    pub arrivals: Arrivals,
    /// CPU time asked for, in parts of what the cores have; exact for the trace as a whole.
    pub load: f64,
    /// Whether every other function sleeps.
    pub io: bool,
    /// How many functions share the short ones of `bimodal`, and how many the long ones.
    pub functions: u32,
    /// How many invocations.
    pub jobs: usize,
    /// All CPU times are multiplied by this.
    pub scale: f64,
    /// For so many cores.
    pub cores: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let io = if self.io { " io" } else { "" };
        let arrivals = match self.arrivals {
            Arrivals::Poisson => "",
            Arrivals::Bursty => " bursty",
        };
        let kind = self.workload.to_possible_value();
        let kind = kind.as_ref().map_or("", |value| value.get_name());
        write!(f, "{kind}{io}{arrivals} load {:.2}", self.load)
    }
}

/// How often fib(n) comes in 10,083 invocations, and how many milliseconds it takes, from n = 20.
const FIB: [(u32, u32); 16] = [
    (641, 13),
    (611, 14),
    (626, 15),
    (612, 18),
    (594, 23),
    (640, 30),
    (606, 42),
    (563, 60),
    (503, 90),
    (774, 140),
    (2234, 220),
    (131, 346),
    (0, 555),
    (0, 886),
    (779, 1425),
    (769, 2344),
];

/// How many functions there are in `azure` and `huawei`, and how much their invocations vary: the deviation of the logarithm.
const FUNCTIONS: usize = 200;
const WITHIN: f64 = 0.25;

const AZURE_LN_MEAN: f64 = -0.38;
const AZURE_LN_DEVIATION: f64 = 2.36;
const AZURE_RANGE_MS: (f64, f64) = (1.0, 60_000.0);

/// Such a part of the functions has at most so many milliseconds.
const HUAWEI: [(f64, f64); 10] = [
    (0.01, 0.38),
    (0.05, 0.90),
    (0.10, 1.13),
    (0.25, 1.60),
    (0.50, 29.5),
    (0.75, 214.0),
    (0.90, 1040.0),
    (0.95, 2080.0),
    (0.99, 14_600.0),
    (0.995, 29_600.0),
];

/// Bursts: so many times the mean rate, for this part of the time, for so many mean gaps at a time.
const BURST_RATE: f64 = 4.0;
const BURST_PART: f64 = 0.125;
const BURST_GAPS: f64 = 25.0;

/// Gives function and milliseconds of one invocation after the other.
type Draws = Box<dyn FnMut(&mut SplitMix64) -> (u32, f64)>;

impl Workload {
    /// Below how many milliseconds of CPU time an invocation counts as short: where the distribution has its gap, or
    /// (Azure, Huawei) at the median that the paper gives.
    pub fn short_below_ms(self) -> f64 {
        match self {
            Self::Bimodal | Self::Lottery => 50.0,
            Self::Fib | Self::Azure => 1000.0,
            Self::Huawei => 30.0,
        }
    }

    /// What its times are multiplied by unless somebody says otherwise, so that a run of minutes has enough invocations: in the
    /// published ones a few of half a minute and more take most of the time.
    pub fn usual_scale(self) -> f64 {
        match self {
            Self::Bimodal | Self::Lottery | Self::Fib => 1.0,
            Self::Azure => 0.02,
            Self::Huawei => 0.05,
        }
    }

    fn draws(self, functions: u32, random: &mut SplitMix64) -> Draws {
        match self {
            Self::Bimodal => Box::new(move |random| {
                let (kind, ms) = if random.unit() < 0.8 { (0, 5.0) } else { (1, 500.0) };
                let among = if functions > 1 { random.below(functions as usize) as u32 } else { 0 };
                (kind * functions.max(1) + among, ms)
            }),
            Self::Lottery => Box::new(|random| (0, if random.unit() < 0.8 { 5.0 } else { 500.0 })),
            Self::Fib => {
                let pick = weighted(FIB.iter().map(|&(count, _)| f64::from(count)));
                Box::new(move |random| {
                    let place = pick(random.unit());
                    (place as u32, f64::from(FIB[place].1))
                })
            }
            Self::Azure => {
                let own_ms =
                    |random: &mut SplitMix64| log_normal(random, AZURE_LN_MEAN, AZURE_LN_DEVIATION) * 1000.0;
                of_functions(own_ms, AZURE_RANGE_MS, random)
            }
            Self::Huawei => {
                let own_ms = |random: &mut SplitMix64| between(&HUAWEI, random.unit());
                of_functions(own_ms, (HUAWEI[0].1, HUAWEI[HUAWEI.len() - 1].1), random)
            }
        }
    }
}

/// Functions that each have a time of their own, which their invocations vary around, called by Zipf's law.
fn of_functions(
    own_ms: impl Fn(&mut SplitMix64) -> f64,
    (low, high): (f64, f64),
    random: &mut SplitMix64,
) -> Draws {
    let own_ms: Vec<f64> = (0..FUNCTIONS).map(|_| own_ms(random)).collect();
    let pick = weighted((1..=FUNCTIONS).map(|rank| 1.0 / rank as f64));
    Box::new(move |random| {
        let place = pick(random.unit());
        (place as u32, (own_ms[place] * log_normal(random, 0.0, WITHIN)).clamp(low, high))
    })
}

/// The value at this part of a distribution of which such points are known: straight over its logarithm between them, and that of the
/// outermost beyond.
fn between(points: &[(f64, f64)], part: f64) -> f64 {
    let above = points.partition_point(|(at, _)| *at < part);
    match (above.checked_sub(1).and_then(|below| points.get(below)), points.get(above)) {
        (Some((from, low)), Some((to, high))) => {
            (low.ln() + (high.ln() - low.ln()) * (part - from) / (to - from)).exp()
        }
        (Some((_, value)), None) | (None, Some((_, value))) => *value,
        (None, None) => f64::NAN,
    }
}

impl Plan {
    /// Makes it. The same plan makes the same trace.
    pub fn trace(&self) -> Vec<Job> {
        let mut random = SplitMix64::new(self.seed);
        let mut draw = self.workload.draws(self.functions, &mut random);
        let mut trace: Vec<Job> = (0..self.jobs)
            .map(|_| {
                let (function, ms) = draw(&mut random);
                let cpu_ns = ((ms * self.scale * 1e6) as u64).max(1);
                let sleeps = self.io && function % 2 == 0;
                let bursts_ns = if sleeps { with_sleeps(cpu_ns, &mut random) } else { vec![cpu_ns] };
                Job { arrival_ns: 0, function: FunctionId(function), size_bytes: None, bursts_ns }
            })
            .collect();
        let asked_ns: f64 = trace.iter().map(|job| job.cpu_ns() as f64).sum();
        let span_ns = asked_ns / (self.load * self.cores as f64);
        let times = self.arrivals.times(self.jobs, &mut random);
        // The last one arrives when so much time has passed as makes the load.
        let unit_ns = span_ns / times.last().copied().unwrap_or(1.0);
        for (job, time) in trace.iter_mut().zip(times) {
            job.arrival_ns = (time * unit_ns) as u64;
        }
        trace
    }
}

impl Arrivals {
    /// When each of `count` comes; the mean gap is about 1.
    fn times(self, count: usize, random: &mut SplitMix64) -> Vec<f64> {
        let mut now = 0.0;
        match self {
            Self::Poisson => (0..count)
                .map(|_| {
                    now += random.exponential(1.0);
                    now
                })
                .collect(),
            Self::Bursty => {
                let quiet_rate = (1.0 - BURST_PART * BURST_RATE) / (1.0 - BURST_PART);
                let quiet_gaps = BURST_GAPS * (1.0 - BURST_PART) / BURST_PART;
                let (mut burst, mut until) = (false, random.exponential(quiet_gaps));
                let mut times = Vec::with_capacity(count);
                while times.len() < count {
                    let gap = random.exponential(if burst { BURST_RATE.recip() } else { quiet_rate.recip() });
                    if now + gap < until {
                        now += gap;
                        times.push(now);
                    } else {
                        // What is left of an exponential gap is another one, at the new rate.
                        now = until;
                        burst = !burst;
                        until += random.exponential(if burst { BURST_GAPS } else { quiet_gaps });
                    }
                }
                times
            }
        }
    }
}

/// CPU time in two to four parts, between them sleeps of about as long each, at least 1 ms and at most 1 s.
fn with_sleeps(cpu_ns: u64, random: &mut SplitMix64) -> Vec<u64> {
    let parts = (2 + random.below(3) as u64).min(cpu_ns);
    let mut bursts = Vec::with_capacity(2 * parts as usize);
    for part in 0..parts {
        if part > 0 {
            let sleep_ns = random.exponential((cpu_ns / parts) as f64);
            bursts.push((sleep_ns as u64).clamp(1_000_000, 1_000_000_000));
        }
        bursts.push(cpu_ns * (part + 1) / parts - cpu_ns * part / parts);
    }
    bursts
}

/// Which place a number in [0, 1) falls on when places are as wide as their weights.
fn weighted(weights: impl Iterator<Item = f64>) -> impl Fn(f64) -> usize {
    let ends: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    move |unit| {
        let at = unit * ends.last().copied().unwrap_or(0.0);
        ends.partition_point(|&end| end <= at).min(ends.len() - 1)
    }
}

/// By Box and Muller.
fn log_normal(random: &mut SplitMix64, ln_mean: f64, ln_deviation: f64) -> f64 {
    let radius = (2.0 * random.exponential(1.0)).sqrt();
    let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
    (ln_mean + ln_deviation * normal).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spry_sched::sim;

    fn plan(workload: Workload) -> Plan {
        let (arrivals, io) = (Arrivals::Poisson, false);
        Plan { workload, arrivals, load: 0.8, io, functions: 1, jobs: 20_000, scale: 1.0, cores: 2, seed: 7 }
    }

    fn share(trace: &[Job], below_ms: f64) -> f64 {
        let below = trace.iter().filter(|job| (job.cpu_ns() as f64) < below_ms * 1e6).count();
        below as f64 / trace.len() as f64
    }

    #[test]
    fn every_plan_makes_a_good_trace_of_the_load_that_was_asked_for() {
        for workload in [Workload::Bimodal, Workload::Lottery, Workload::Fib, Workload::Azure] {
            for (arrivals, io) in [(Arrivals::Poisson, false), (Arrivals::Bursty, true)] {
                let plan = Plan { arrivals, io, ..plan(workload) };
                let trace = plan.trace();
                assert_eq!(sim::check(&trace), Ok(()));
                let asked: u64 = trace.iter().map(Job::cpu_ns).sum();
                let had = trace.last().unwrap().arrival_ns * 2;
                assert!((asked as f64 / had as f64 - 0.8).abs() < 1e-6, "{plan}");
                assert_eq!(trace.iter().any(|job| job.io_ns() > 0), io);
                assert_eq!(trace, plan.trace());
            }
        }
    }

    #[test]
    fn bimodal_is_four_to_one_by_as_many_functions_as_asked_for() {
        for functions in [1, 8] {
            let trace = Plan { functions, ..plan(Workload::Bimodal) }.trace();
            assert!((share(&trace, 6.0) - 0.8).abs() < 0.01);
            let seen: std::collections::BTreeSet<_> = trace.iter().map(|job| job.function).collect();
            assert_eq!(seen.len(), 2 * functions as usize);
            assert!(trace.iter().all(|job| (job.function.0 < functions) == (job.cpu_ns() < 6_000_000)));
        }
    }

    #[test]
    fn fib_has_the_published_shares() {
        let trace = plan(Workload::Fib).trace();
        // n <= 26: 4330 of 10083; n <= 31: 8535.
        assert!((share(&trace, 50.0) - 0.429).abs() < 0.01);
        assert!((share(&trace, 1000.0) - 0.846).abs() < 0.01);
    }

    #[test]
    fn azure_s_functions_have_the_published_quantiles() {
        let mut random = SplitMix64::new(3);
        let draws: Vec<f64> =
            (0..50_000).map(|_| log_normal(&mut random, AZURE_LN_MEAN, AZURE_LN_DEVIATION)).collect();
        let below = |seconds: f64| draws.iter().filter(|&&draw| draw < seconds).count() as f64 / 50_000.0;
        assert!((below(0.1) - 0.20).abs() < 0.02, "{}", below(0.1));
        assert!((0.50..0.60).contains(&below(1.0)), "{}", below(1.0));
        assert!((below(60.0) - 0.96).abs() < 0.02, "{}", below(60.0));
    }

    #[test]
    fn huawei_s_functions_have_the_published_quantiles() {
        let mut random = SplitMix64::new(3);
        let draws: Vec<f64> = (0..50_000).map(|_| between(&HUAWEI, random.unit())).collect();
        for (part, ms) in HUAWEI {
            let below = draws.iter().filter(|&&draw| draw <= ms).count() as f64 / 50_000.0;
            // (The outermost take all that is beyond.)
            assert!((below - part).abs() < 0.01, "{below} at {ms}");
        }
        assert_eq!((between(&HUAWEI, 0.0), between(&HUAWEI, 1.0)), (0.38, 29_600.0));
        assert!((between(&HUAWEI, 0.625) - (29.5f64 * 214.0).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn bursts_are_bursts() {
        let spread = |arrivals: Arrivals| {
            let times = arrivals.times(100_000, &mut SplitMix64::new(5));
            // Arrivals in windows of ten mean gaps: the variance over the mean is 1 for Poisson.
            let mut counts = vec![0.0f64; times.last().unwrap().ceil() as usize / 10 + 1];
            times.iter().for_each(|&time| counts[time as usize / 10] += 1.0);
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64 / mean
        };
        assert!((0.9..1.1).contains(&spread(Arrivals::Poisson)));
        assert!(spread(Arrivals::Bursty) > 5.0);
    }
}
