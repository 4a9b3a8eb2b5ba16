//! The command line of the benchmarks: reads arguments, runs one, prints its table, writes its JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use spry_bench::load::{self, Pace, Plan, Target, Until};
use spry_bench::node::Programs;
use spry_bench::stop::Stop;
use spry_bench::suite::{
    self, SuiteError, chain, chaos, density, http, idle, isolation, later, layers, overload, redeploy, soak,
};
use spry_bench::{floor, keepalive, micro, pingpong, report, sched, sys};

/// Measures spry beside a floor that is measured in the same run.
#[derive(Debug, Parser)]
#[command(name = "spry-bench", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Warm functions against a bare hyper server.
    Http(Suite<http::Options>),
    /// Functions that call on: what a hop costs, and whether every result is right.
    Chain(Suite<chain::Options>),
    /// A process for every request: latency, ceiling, and nothing left of it.
    Isolation(Suite<isolation::Options>),
    /// Many requests in a row: no error, no growth.
    Soak(Suite<soak::Options>),
    /// A function deployed again and again under load: no failed request.
    Redeploy(Suite<redeploy::Options>),
    /// Instances and zygotes killed under load: only their own requests fail.
    Chaos(Suite<chaos::Options>),
    /// What spryd costs while nobody calls.
    Idle(Suite<idle::Options>),
    /// Asynchronous calls against a plain SQLite loop, what records cost, and a restart with many functions.
    Async(Suite<later::Options>),
    /// What idle instances take: one of each language, and a node full of functions.
    Density(Suite<density::Options>),
    /// What it saves that functions' packages are imported once.
    Layers(Suite<layers::Options>),
    /// Ten times as many requests as can be served: goodput, waits, refusals, memory.
    Overload(Suite<overload::Options>),
    /// Scheduling policies on a real node: turnarounds beside eevdf's.
    Sched(Suite<suite::sched::Options>),
    /// Load on any HTTP server, to compare with other generators.
    Load(LoadOptions),
    /// Prints what criterion has measured (`cargo xtask bench ipc` and `fork` use it).
    Micro {
        /// Which benches were run.
        bench: micro::Bench,
        /// Where criterion has left its results.
        folder: PathBuf,
        /// Also writes the rows to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Scheduling policies on a simulated machine: turnarounds beside eevdf's.
    Sim {
        #[command(flatten)]
        options: sched::Options,
        /// Also writes the rows to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Keep-alive policies on a simulated node: cold calls and memory beside ttl's.
    Keepalive {
        #[command(flatten)]
        options: keepalive::Options,
        /// Also writes the rows to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The bare hyper server itself; ends when its standard input does.
    Floor {
        /// How it is built.
        #[arg(long, value_enum, default_value = "multi-thread")]
        shape: floor::Shape,
    },
    /// The other side of the bare bus (`chain` starts it).
    #[command(hide = true)]
    Peer {
        /// How it carries descriptors.
        kind: shm_bus::transport::Kind,
        /// Open descriptors, as the transport wants them.
        #[arg(value_delimiter = ',')]
        fds: Vec<std::os::fd::RawFd>,
    },
}

#[derive(Debug, Args)]
struct Suite<O: Args> {
    #[command(flatten)]
    options: O,
    #[command(flatten)]
    programs: Programs,
    /// Also writes the rows to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit status 1 when a bar is not met.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
struct LoadOptions {
    /// ADDRESS:PORT
    address: std::net::SocketAddr,
    /// The path to get.
    #[arg(default_value = "/function/nop")]
    path: String,
    /// The body that is right.
    #[arg(long, default_value = r#"{"message":"hello, world!"}"#)]
    expect: String,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Open loop, Poisson arrivals: requests per second.
    #[arg(long)]
    rate: Option<f64>,
    /// Open loop, constant gaps instead of Poisson's.
    #[arg(long, requires = "rate")]
    constant: bool,
}

fn main() -> ExitCode {
    // Before anything else is done: what this costs is measured.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == floor::CGI) {
        return ExitCode::from(u8::from(floor::print_nop().is_err()));
    }
    match run(CommandLine::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("spry-bench: {error}");
            ExitCode::from(if error.is_interrupt() { 130 } else { 2 })
        }
    }
}

fn run(command: Command) -> Result<ExitCode, SuiteError> {
    if let Command::Floor { shape } = command {
        return Ok(floor::serve(shape).map(|()| ExitCode::SUCCESS)?);
    }
    if let Command::Micro { bench, folder, json } = command {
        return Ok(print(&micro::rows(bench, &folder)?, json.as_deref()));
    }
    if let Command::Sim { options, json } = command {
        let rows = sched::run(&options)?;
        return Ok(write(&rows, json.as_deref()));
    }
    if let Command::Keepalive { options, json } = command {
        return Ok(print(&keepalive::run(&options), json.as_deref()));
    }
    if let Command::Peer { kind, fds } = command {
        let fds = fds.into_iter().map(sys::inherited).collect::<std::io::Result<_>>();
        let fds = fds.map_err(|error| poll_error("take over a descriptor", error))?;
        return Ok(pingpong::serve(kind, fds).map(|()| ExitCode::SUCCESS)?);
    }
    let stop = Stop::on_signals().map_err(|errno| poll_error("block signals", errno.into()))?;
    match command {
        Command::Http(suite) => {
            let rows = http::run(&suite.options, &suite.programs, &this_program()?, &stop)?;
            Ok(finish(&rows, &suite))
        }
        Command::Chain(suite) => {
            let rows = chain::run(&suite.options, &suite.programs, &this_program()?, &stop)?;
            Ok(finish(&rows, &suite))
        }
        Command::Isolation(suite) => {
            let rows = isolation::run(&suite.options, &suite.programs, &this_program()?, &stop)?;
            Ok(finish(&rows, &suite))
        }
        Command::Soak(suite) => Ok(finish(&soak::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Redeploy(suite) => {
            Ok(finish(&redeploy::run(&suite.options, &suite.programs, &stop)?, &suite))
        }
        Command::Chaos(suite) => Ok(finish(&chaos::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Idle(suite) => Ok(finish(&idle::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Async(suite) => Ok(finish(&later::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Density(suite) => Ok(finish(&density::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Layers(suite) => Ok(finish(&layers::run(&suite.options, &suite.programs, &stop)?, &suite)),
        Command::Overload(suite) => {
            Ok(finish(&overload::run(&suite.options, &suite.programs, &stop)?, &suite))
        }
        Command::Sched(suite) => {
            Ok(finish(&suite::sched::run(&suite.options, &suite.programs, &stop)?, &suite))
        }
        Command::Load(options) => load(&options, &stop),
        Command::Floor { .. }
        | Command::Micro { .. }
        | Command::Sim { .. }
        | Command::Keepalive { .. }
        | Command::Peer { .. } => unreachable!("handled above"),
    }
}

fn this_program() -> Result<PathBuf, SuiteError> {
    std::env::current_exe().map_err(|error| poll_error("find this program", error))
}

fn poll_error(operation: &'static str, source: std::io::Error) -> SuiteError {
    load::LoadError::Poll { operation, source }.into()
}

fn finish<O: Args>(rows: &[report::Row], suite: &Suite<O>) -> ExitCode {
    let printed = print(rows, suite.json.as_deref());
    if printed != ExitCode::SUCCESS {
        return printed;
    }
    let missed = rows.iter().filter(|row| row.met == Some(false)).count();
    if missed > 0 {
        eprintln!("{missed} bar(s) not met");
    }
    ExitCode::from(u8::from(suite.strict && missed > 0))
}

/// The table to standard output, and the rows to a file if that is wanted.
fn print(rows: &[report::Row], json: Option<&Path>) -> ExitCode {
    print!("{}", report::table(rows));
    write(rows, json)
}

fn write(rows: &[report::Row], json: Option<&Path>) -> ExitCode {
    match json.map(|path| (path, report::write_json(path, rows))) {
        Some((path, Err(error))) => {
            eprintln!("spry-bench: write {}: {error}", path.display());
            ExitCode::from(2)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn load(options: &LoadOptions, stop: &Stop) -> Result<ExitCode, SuiteError> {
    let expect = options.expect.as_bytes().into();
    let target = Target::new(options.address, "GET", &options.path, b"", expect);
    let pace = match options.rate {
        None => Pace::Closed,
        Some(per_second) if options.constant => Pace::Constant { per_second },
        Some(per_second) => Pace::Poisson { per_second, seed: 1 },
    };
    let until = Until::Elapsed(Duration::from_secs_f64(options.seconds));
    let plan = Plan { connections: options.connections, pace, until, timeout: Duration::from_secs(10) };
    let outcome = load::run(&target, &plan, stop)?;
    println!(
        "requests    {} in {:.2} s, {:.0}/s",
        outcome.done,
        outcome.elapsed.as_secs_f64(),
        outcome.per_second()
    );
    println!("failures    {}", outcome.failures);
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        println!("{name:<11} {:.1} us", outcome.latency_us(quantile));
    }
    println!("client cpu  {:.2} us/request", outcome.client_cpu_us());
    println!("backlog max {}", outcome.backlog_max);
    println!("starts      {:?}", outcome.starts);
    Ok(ExitCode::from(u8::from(outcome.failures.total() > 0)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_of_each_command_have_names_of_their_own() {
        <super::CommandLine as clap::CommandFactory>::command().debug_assert();
    }
}
