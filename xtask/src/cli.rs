//! The command line of `cargo xtask`.

use std::path::PathBuf;

use crate::bench::BenchOptions;
use crate::deb::Contents;
use crate::failure::Failure;
use crate::vm::VmOptions;

/// What `cargo xtask help` prints.
pub(crate) const USAGE: &str = "\
The project's own commands. Usage: cargo xtask COMMAND

  setup                    install what this machine lacks (asks for root only when something is missing)
  demo [--out DIR] [--photo FILE]
                           build, start a node, deploy the examples, call them, show where the time went
  test [ARGS]              every test; with ARGS, `cargo test ARGS` with the same set-up
  ci [STAGE]...            what CI runs: fmt clippy doc deny ebpf test demo bench deb vm (default: all of them)
  bench NAME [--json FILE] a benchmark, in release mode; FILE gets the rows of its table. NAME is one of:
                             ipc       transports, allocator, descriptors beside plain sockets and memcpy
                             fork      instances forked by zygotes beside fork, clone3, vfork and exec
                             http      warm functions beside a bare hyper server
                             chain     hops from function to function beside the bare bus and HTTP calls
                             isolation a process for every request, beside a shared one, the floor and CGI
                             keepalive keep-alive policies on a simulated node
                             soak redeploy chaos idle density layers async overload sched load   (docs/benchmarks.md)
                           further ARGS go to the benchmark: `bench http --help` lists http's
  fuzz [TARGET] [--seconds N]
                           fuzz one target, or all of them (default: 20 s each)
  ebpf [--check]           rebuild the eBPF objects from source; --check: compare them with those checked in
  vm [--kernel 6.16|6.18|7.2|6.18-arm64|6.18-arm64-16k] [--cpus N | --icount] [--memory MIB] [--system] [--file F]... [--env K=V]... [--timeout S] [--] PROGRAM...
                           run a program as root in an emulated machine with that kernel; --file: taken along; --system: in
                           a Debian that systemd has started
  vm test                  what only such a machine can test: the sched_ext scheduler, limits by cgroup v2 and the posix
                           backend; the package under systemd. `vm test service`: that alone
  vm test arm64            the tests on arm64, cross-compiled, on two emulated machines (an hour or more; not part of `vm test`)
  vm bench [--seed N] ...  the scheduler beside the fair class and beside SRPT that knows the future
  deb [--scx]              the Debian package, in target/deb: programs, units, man pages, completions, configuration;
                           --scx: with spry-scx, the sched_ext scheduler
  help                     this text
";

/// A command, its arguments checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Setup,
    Test(Vec<String>),
    Ci(Vec<String>),
    Demo(DemoOptions),
    Bench(BenchOptions),
    Fuzz(FuzzOptions),
    Ebpf { check: bool },
    Vm(VmOptions),
    Deb(Contents),
}

/// Options of `demo`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DemoOptions {
    /// Where the thumbnail is written; `target/demo` unless given.
    pub(crate) out: Option<PathBuf>,
    /// A JPEG of the user's own.
    pub(crate) photo: Option<PathBuf>,
}

/// Options of `fuzz`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FuzzOptions {
    /// One target, or all.
    pub(crate) target: Option<String>,
    /// Time for each target.
    pub(crate) seconds: u32,
}

impl Default for FuzzOptions {
    fn default() -> Self {
        Self { target: None, seconds: 20 }
    }
}

/// Parses what follows `cargo xtask`.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, Failure> {
    let mut args = args.into_iter();
    let Some(name) = args.next() else { return Ok(Command::Help) };
    let rest: Vec<String> = args.collect();
    match name.as_str() {
        "help" | "-h" | "--help" => Ok(Command::Help),
        "setup" => none_left(rest).map(|()| Command::Setup),
        "test" => Ok(Command::Test(rest)),
        "ci" => Ok(Command::Ci(rest)),
        "demo" => demo(rest).map(Command::Demo),
        "bench" => BenchOptions::parse(rest).map(Command::Bench),
        "deb" => match rest.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Ok(Command::Deb(Contents::Node)),
            ["--scx"] => Ok(Command::Deb(Contents::WithScheduler)),
            _ => Err(usage("deb takes only --scx")),
        },
        "fuzz" => fuzz(rest).map(Command::Fuzz),
        "ebpf" => match rest.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Ok(Command::Ebpf { check: false }),
            ["--check"] => Ok(Command::Ebpf { check: true }),
            _ => Err(usage("ebpf takes only --check")),
        },
        "vm" => VmOptions::parse(rest).map(Command::Vm),
        _ => Err(usage(&format!("there is no command `{name}`"))),
    }
}

fn demo(args: Vec<String>) -> Result<DemoOptions, Failure> {
    let mut options = DemoOptions::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--out" => options.out = Some(value(&arg, args.next())?.into()),
            "--photo" => options.photo = Some(value(&arg, args.next())?.into()),
            _ => return Err(usage(&format!("demo does not know `{arg}`"))),
        }
    }
    Ok(options)
}

fn fuzz(args: Vec<String>) -> Result<FuzzOptions, Failure> {
    let mut options = FuzzOptions::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let text = value(&arg, args.next())?;
                let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
                options.seconds = seconds.ok_or_else(|| usage(&format!("--seconds {text}: at least 1")))?;
            }
            _ if options.target.is_none() && !arg.starts_with('-') => options.target = Some(arg),
            _ => return Err(usage(&format!("fuzz does not know `{arg}`"))),
        }
    }
    Ok(options)
}

fn value(name: &str, value: Option<String>) -> Result<String, Failure> {
    value.ok_or_else(|| usage(&format!("{name} needs a value")))
}

fn none_left(rest: Vec<String>) -> Result<(), Failure> {
    if rest.is_empty() { Ok(()) } else { Err(usage(&format!("unexpected: {}", rest.join(" ")))) }
}

fn usage(what: &str) -> Failure {
    Failure::Usage(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, Failure> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn commands_and_their_options() {
        assert_eq!(parsed("").unwrap(), Command::Help);
        assert_eq!(parsed("deb --scx").unwrap(), Command::Deb(Contents::WithScheduler));
        assert_eq!(parsed("ebpf --check").unwrap(), Command::Ebpf { check: true });
        assert_eq!(parsed("test -p shm-bus").unwrap(), Command::Test(vec!["-p".into(), "shm-bus".into()]));
        let options = DemoOptions { out: Some("here".into()), photo: None };
        assert_eq!(parsed("demo --out here").unwrap(), Command::Demo(options));
        let options = FuzzOptions { target: Some("hub".into()), seconds: 5 };
        assert_eq!(parsed("fuzz hub --seconds 5").unwrap(), Command::Fuzz(options));
    }

    #[test]
    fn nonsense_is_bad_usage() {
        for line in [
            "dance",
            "setup now",
            "demo --out",
            "bench",
            "bench dance",
            "fuzz --seconds 0",
            "fuzz a b",
            "ebpf -x",
            "deb x",
        ] {
            let failure = parsed(line).expect_err(line);
            assert_eq!(failure.exit_code(), 64, "{line}: {failure}");
        }
    }

    #[test]
    fn every_command_is_in_the_help() {
        for name in ["setup", "demo", "test", "ci", "bench", "fuzz", "ebpf", "vm", "deb"] {
            assert!(USAGE.contains(&format!("\n  {name} ")), "{name}");
        }
    }
}
