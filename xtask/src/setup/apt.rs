//! Debian packages: which ones, why, and how to see that they are there.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::failure::Failure;
use crate::{process, sys};

/// How often a download is tried, and how long between tries: mirrors have bad moments.
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

/// Something that must be on the machine.
pub(crate) struct Need {
    /// How to see it.
    probe: Probe,
    /// What brings it.
    package: &'static str,
    /// What it is for.
    why: &'static str,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// All that spry needs from Debian.
pub(crate) const NEEDS: [Need; 7] = [
    Need { probe: Probe::Program("cc"), package: "gcc", why: "links every Rust program" },
    Need { probe: Probe::File("/usr/include/stdio.h"), package: "libc6-dev", why: "what cc links against" },
    Need { probe: Probe::Program("c++"), package: "g++", why: "compiles libFuzzer and bpf-linker's glue" },
    Need { probe: Probe::File("/usr/bin/python3"), package: "python3", why: "runs Python functions" },
    Need {
        probe: Probe::File("/usr/lib/python3/dist-packages/pip"),
        package: "python3-pip",
        why: "installs the packages that Python functions ask for",
    },
    Need {
        probe: Probe::File("/etc/ssl/certs/ca-certificates.crt"),
        package: "ca-certificates",
        why: "lets cargo and apt trust their servers",
    },
    Need {
        probe: Probe::Program("systemd-analyze"),
        package: "systemd",
        why: "looks the units over that the package installs",
    },
];

/// What `spry-scx` is built with: its program in the kernel, and the libbpf that loads it.
pub(crate) const SCHEDULER_NEEDS: [Need; 4] = [
    Need { probe: Probe::Program("clang-19"), package: "clang-19", why: "compiles the sched_ext scheduler" },
    Need {
        probe: Probe::File("/usr/include/libelf.h"),
        package: "libelf-dev",
        why: "libbpf reads objects with it",
    },
    Need { probe: Probe::File("/usr/include/zlib.h"), package: "zlib1g-dev", why: "libelf's own need" },
    Need { probe: Probe::Program("pkg-config"), package: "pkg-config", why: "finds both" },
];

/// What the disk of a guest with systemd is made with.
pub(crate) const GUEST_NEEDS: [Need; 2] = [
    Need {
        probe: Probe::Program("mmdebstrap"),
        package: "mmdebstrap",
        why: "fills a guest's disk with a Debian",
    },
    Need { probe: Probe::File("/sbin/mke2fs"), package: "e2fsprogs", why: "makes the disk" },
];

/// What programs for arm64 are built with on x86-64.
pub(crate) const CROSS_NEEDS: [Need; 2] = [
    Need {
        probe: Probe::Program("aarch64-linux-gnu-gcc"),
        package: "gcc-aarch64-linux-gnu",
        why: "links programs for arm64",
    },
    Need {
        probe: Probe::File("/usr/aarch64-linux-gnu/include/stdio.h"),
        package: "libc6-dev-arm64-cross",
        why: "what they are linked against",
    },
];

impl Need {
    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => process::find_program(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs what is missing; as a user, fails with the command that root has to run.
pub(crate) fn install_missing(needs: &[Need]) -> Result<(), Failure> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    for need in &missing {
        println!("setup: {} is missing ({})", need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if !sys::is_root() {
        return Err(Failure::NeedsRoot { command: command_for_root(&packages) });
    }
    update()?;
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    retried(install.args(&packages))
}

/// Fetches one package of the machine's own sources to the folder `into`, without installing it.
pub(crate) fn download(package: &str, into: &Path) -> Result<(), Failure> {
    let attempt = || process::run(apt_get(&["download", package]).current_dir(into));
    if attempt().is_ok() {
        return Ok(());
    }
    // The package lists are missing or out of date.
    if !sys::is_root() {
        return Err(Failure::NeedsRoot { command: "sudo apt-get update".into() });
    }
    update()?;
    retried(apt_get(&["download", package]).current_dir(into))
}

fn update() -> Result<(), Failure> {
    retried(&mut apt_get(&["update"]))
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]);
    command.args(["-o", "APT::Sandbox::User=root"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn retried(command: &mut Command) -> Result<(), Failure> {
    for attempt in 1.. {
        match process::run(command) {
            Err(Failure::Ended { .. }) if attempt < TRIES => {
                println!("setup: attempt {attempt} of {TRIES} failed; again in {BETWEEN_TRIES:?}");
                thread::sleep(BETWEEN_TRIES);
            }
            outcome => return outcome,
        }
    }
    unreachable!("the loop returns at its last attempt")
}

fn command_for_root(packages: &[&str]) -> String {
    format!(
        "sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends {}'",
        packages.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_one_command_to_run() {
        let command = command_for_root(&["gcc", "python3"]);
        assert!(command.ends_with("--no-install-recommends gcc python3'"), "{command}");
    }

    #[test]
    fn needs_are_seen() {
        let shell = Need { probe: Probe::Program("sh"), package: "dash", why: "" };
        let none = Need { probe: Probe::File("/no/such/file"), package: "none", why: "" };
        assert!(shell.is_met() && !none.is_met());
    }

    #[test]
    fn a_command_that_ends_well_is_run_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        retried(Command::new("sh").args(["-c", "echo x >> \"$0\""]).arg(&log)).unwrap();
        assert_eq!(std::fs::read_to_string(log).unwrap(), "x\n");
    }
}
