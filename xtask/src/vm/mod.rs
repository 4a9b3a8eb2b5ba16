//! `cargo xtask vm`: a guest whose kernel has what this machine's may lack.
//!
//! sched_ext, cgroup v2 without v1 beside it, real systemd: what is built on them is tested in an emulated machine, on
//! several kernels. A boot takes about three seconds, to a system that systemd has started about ten.

mod guest;
mod initramfs;
mod lane;
mod parts;
mod system;
mod userland;

use std::path::PathBuf;
use std::time::Duration;

use crate::failure::Failure;
use guest::{Clock, Guest};
use parts::Machine;

/// What to do in a guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VmOptions {
    /// Run what only a guest can test.
    Test,
    /// Of that, only what is done with the installed package.
    TestService,
    /// Of that, only what is about the sched_ext scheduler.
    TestScheduler,
    /// Everything, on arm64.
    TestArm64,
    /// The scheduler's trace, with its options.
    Bench(Vec<String>),
    /// Run one command.
    Run(RunOptions),
}

/// Options of one command in a guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RunOptions {
    kernel: String,
    clock: Clock,
    memory_mib: u32,
    /// Where systemd runs.
    system: bool,
    files: Vec<PathBuf>,
    env: Vec<(String, String)>,
    timeout: Duration,
    command: Vec<String>,
}

/// The kernel that is booted unless another is asked for.
const KERNEL: &str = "6.18";

impl VmOptions {
    /// Parses what follows `vm`.
    pub(crate) fn parse(args: Vec<String>) -> Result<Self, Failure> {
        match args.split_first() {
            Some((first, [])) if first == "test" => return Ok(Self::Test),
            Some((first, [only])) if first == "test" && only == "service" => return Ok(Self::TestService),
            Some((first, [only])) if first == "test" && only == "scheduler" => {
                return Ok(Self::TestScheduler);
            }
            Some((first, [only])) if first == "test" && only == "arm64" => return Ok(Self::TestArm64),
            Some((first, rest)) if first == "bench" => return Ok(Self::Bench(rest.to_vec())),
            _ => {}
        }
        let mut options = RunOptions {
            kernel: KERNEL.to_owned(),
            clock: Clock::Host { cpus: 2 },
            memory_mib: 1024,
            system: false,
            files: Vec::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(300),
            command: Vec::new(),
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                options.command.extend(args.by_ref());
                continue;
            }
            if !arg.starts_with('-') {
                options.command.push(arg);
                options.command.extend(args.by_ref());
                continue;
            }
            if arg == "--icount" {
                options.clock = Clock::Instructions;
                continue;
            }
            if arg == "--system" {
                options.system = true;
                continue;
            }
            let value = args.next().ok_or_else(|| Failure::Usage(format!("{arg} needs a value")))?;
            let number = || match value.parse::<u32>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(Failure::Usage(format!("{arg} {value}: a number of at least 1"))),
            };
            match arg.as_str() {
                "--kernel" => options.kernel = value,
                "--cpus" => options.clock = Clock::Host { cpus: number()? },
                "--memory" => options.memory_mib = number()?,
                "--file" => options.files.push(value.into()),
                "--timeout" => options.timeout = Duration::from_secs(number()?.into()),
                "--env" => match value.split_once('=') {
                    Some((name, value)) => options.env.push((name.to_owned(), value.to_owned())),
                    None => return Err(Failure::Usage(format!("--env {value}: NAME=VALUE"))),
                },
                _ => return Err(Failure::Usage(format!("vm does not know `{arg}`"))),
            }
        }
        let kernel = parts::find(&options.kernel)?;
        if options.system && kernel.machine != Machine::X86 {
            return Err(Failure::Usage(format!("--system: there is no disk for {}", kernel.series)));
        }
        if options.command.is_empty() {
            return Err(Failure::Usage("vm needs a command to run in the guest".into()));
        }
        Ok(Self::Run(options))
    }
}

/// Runs what was asked for.
pub(crate) fn run(options: &VmOptions) -> Result<(), Failure> {
    match options {
        VmOptions::Test => lane::test(),
        VmOptions::TestService => lane::test_service(),
        VmOptions::TestScheduler => lane::test_scheduler(),
        VmOptions::TestArm64 => lane::test_arm64(),
        VmOptions::Bench(args) => lane::bench(args),
        VmOptions::Run(options) => command(options),
    }
}

/// One command; a program of this machine is taken along, one that isn't here is busybox's.
fn command(options: &RunOptions) -> Result<(), Failure> {
    let mut guest = Guest::new(parts::find(&options.kernel)?);
    guest.clock = options.clock;
    guest.memory_mib = options.memory_mib;
    guest.env = options.env.clone();
    guest.timeout = options.timeout;
    let absolute =
        |file: &PathBuf| std::path::absolute(file).map_err(|source| Failure::io("find", file, source));
    guest.files = options.files.iter().map(absolute).collect::<Result<_, _>>()?;
    let mut command = options.command.clone();
    if command[0].contains('/') {
        let program = absolute(&PathBuf::from(&command[0]))?;
        command[0] = program.display().to_string();
        if program.is_file() {
            guest.files.push(program);
        }
    }
    if options.system {
        guest.system = Some(system::Disk::new()?);
    }
    match guest.run(&command, &mut |line| println!("{line}"))? {
        0 => Ok(()),
        status => {
            let found = format!("`{}` ended with exit status {status}", command.join(" "));
            Err(Failure::Expectation { what: "vm: run a command", found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<VmOptions, Failure> {
        VmOptions::parse(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn a_command_and_its_own_options() {
        assert_eq!(parsed("test").expect("it"), VmOptions::Test);
        assert_eq!(parsed("test service").expect("it"), VmOptions::TestService);
        assert_eq!(parsed("test scheduler").expect("it"), VmOptions::TestScheduler);
        assert_eq!(parsed("test arm64").expect("it"), VmOptions::TestArm64);
        assert_eq!(
            parsed("bench --seed 2").expect("it"),
            VmOptions::Bench(vec!["--seed".into(), "2".into()])
        );
        let run = |line| match parsed(line).expect(line) {
            VmOptions::Run(options) => options,
            other => panic!("{line}: {other:?}"),
        };
        let options = run("--kernel 7.2 --cpus 3 --env A=b -- ./x --cpus 9");
        assert_eq!((options.kernel.as_str(), options.clock), ("7.2", Clock::Host { cpus: 3 }));
        assert_eq!(options.command, ["./x", "--cpus", "9"]);
        assert!(run("--system true").system);
        let options = run("--icount uname -r");
        assert_eq!(
            (options.clock, &*options.command),
            (Clock::Instructions, &["uname".into(), "-r".into()][..])
        );
    }

    #[test]
    fn nonsense_is_bad_usage() {
        for line in [
            "",
            "--kernel 5.4 x",
            "--kernel 6.18-arm64 --system x",
            "--cpus 0 x",
            "--env x y",
            "--dance 1 x",
            "--timeout",
            "--memory many x",
        ] {
            assert_eq!(parsed(line).expect_err(line).exit_code(), 64, "{line}");
        }
    }
}
