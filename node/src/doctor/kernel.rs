//! What the kernel has: memory, BPF, io_uring, schedulers.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use io_uring::{IoUring, Probe, opcode};
use memfd::{FileSeal, MemfdOptions};
use shm_bus::transport::{self, BusError, Kind};
use spry_sched::backend::{Backend as _, Means, PIN_DIR, Posix, PosixOptions, SchedExt};

use super::{Check, check, error, no, required, yes};

/// Linux, and which.
pub(super) fn version() -> Check {
    let outcome = match nix::sys::utsname::uname() {
        Ok(name) => {
            let release = name.release().to_string_lossy().into_owned();
            let machine = name.machine().to_string_lossy().into_owned();
            match at_least(&release, (5, 15)) {
                true => yes(format!("Linux {release}, {machine}")),
                false => error(format!("Linux {release} is older than 5.15, the oldest that is supported")),
            }
        }
        Err(errno) => error(errno.desc()),
    };
    required("kernel", outcome)
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

/// Seals a memfd for good, and sees whether it holds.
pub(super) fn memfd_seals() -> Check {
    let outcome = match try_seals() {
        Ok(true) => yes("sealed against writers, resizing and unsealing"),
        Ok(false) => error("a sealed memfd could still be written"),
        Err(problem) => error(problem),
    };
    required("memfd seals", outcome)
}

fn try_seals() -> Result<bool, String> {
    let memfd = MemfdOptions::default().allow_sealing(true).create("spry-doctor");
    let memfd = memfd.map_err(|error| format!("memfd_create: {error}"))?;
    memfd.as_file().set_len(4096).map_err(|error| format!("size a memfd: {error}"))?;
    let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealFutureWrite, FileSeal::SealSeal];
    memfd.add_seals(&seals).map_err(|error| format!("seal a memfd: {error}"))?;
    let refused = |result: io::Result<()>| result.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM));
    let written = refused(memfd.as_file().write_at(b"x", 0).map(|_| ()));
    let grown = refused(memfd.as_file().set_len(8192));
    let unsealed = memfd.add_seal(FileSeal::SealWrite).is_err();
    Ok(written && grown && unsealed)
}

/// Huge pages on demand, which an unfrozen zygote's heap profits from.
pub(super) fn huge_pages() -> Check {
    let instead = "pages of the usual size";
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let outcome = match fs::read_to_string(path) {
        Ok(text) if text.contains("[never]") => {
            no("switched off (transparent_hugepage/enabled: never)", instead)
        }
        Ok(text) => {
            let chosen = text.split(['[', ']']).nth(1).unwrap_or("?");
            yes(format!("transparent, {chosen}; {}", huge_page_size()))
        }
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => no("not in this kernel", instead),
        Err(problem) => error(format!("read {path}: {problem}")),
    };
    check("huge pages", outcome)
}

fn huge_page_size() -> String {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap_or_default();
    match text.trim().parse() {
        Ok(bytes) => crate::units::Size::bytes(bytes).rounded(),
        Err(_) => "size unknown".into(),
    }
}

/// The kernel's own types, which tell programs where fields lie.
pub(super) fn btf() -> Check {
    let outcome = match aya::Btf::from_sys_fs() {
        Ok(_) => yes("/sys/kernel/btf/vmlinux"),
        Err(_) if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() => no(
            "the kernel was built without CONFIG_DEBUG_INFO_BTF",
            "the futex transport; no kernel-side signals",
        ),
        Err(problem) => error(problem.to_string()),
    };
    check("BTF", outcome)
}

/// The right to load programs of the kind that the bus uses.
pub(super) fn bpf() -> Check {
    let instead = "the futex or the broker transport";
    let outcome = match aya::sys::is_program_supported(ProgramType::SkMsg) {
        Ok(true) => yes("sk_msg programs load"),
        Ok(false) => no("the kernel has no sk_msg programs (CONFIG_BPF_STREAM_PARSER)", instead),
        Err(problem) => match errno_of(&problem) {
            Some(libc::EPERM) => {
                no("not permitted: it takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", instead)
            }
            Some(libc::ENOSYS) => no("the kernel has no bpf()", instead),
            _ => error(problem.to_string()),
        },
    };
    check("BPF", outcome)
}

/// The kernel's answer behind an error of a library.
fn errno_of(problem: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(problem);
    while let Some(this) = cause {
        if let Some(errno) = this.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(errno);
        }
        cause = this.source();
    }
    None
}

/// Each way to carry descriptors, made for a moment with its own self-test; the bus takes the first that works.
pub(super) fn transports() -> Vec<Check> {
    let tried = |kind, instead: &str| match transport::select(Some(kind), transport::Config::default()) {
        Ok(_) => yes(""),
        Err(BusError::Unavailable { why, .. }) => no(why, instead),
        Err(problem) => error(problem.to_string()),
    };
    vec![
        check("sockmap transport", tried(Kind::Sockmap, "the futex transport")),
        check("futex transport", tried(Kind::Futex, "the broker transport")),
        required("broker transport", tried(Kind::Broker, "nothing: it is the last resort")),
    ]
}

/// Waiting for futexes without a thread for each.
pub(super) fn futex_by_io_uring() -> Check {
    let instead = "a waiting thread for the futex transport, or another transport";
    let outcome = match IoUring::new(2) {
        Ok(ring) => {
            let mut probe = Probe::new();
            match ring.submitter().register_probe(&mut probe) {
                Ok(()) if probe.is_supported(opcode::FutexWait::CODE) => yes("FUTEX_WAIT"),
                Ok(()) => no("io_uring is there, FUTEX_WAIT is not (Linux 6.7)", instead),
                Err(problem) => error(format!("io_uring_register: {problem}")),
            }
        }
        Err(problem) => match problem.raw_os_error() {
            Some(libc::EPERM) => no("not permitted (kernel.io_uring_disabled, or a seccomp filter)", instead),
            Some(libc::ENOSYS) => no("not in this kernel", instead),
            _ => error(format!("io_uring_setup: {problem}")),
        },
    };
    check("io_uring futex wait", outcome)
}

/// Schedulers as BPF programs.
pub(super) fn sched_ext() -> Check {
    let instead = "the kernel's fair class, steered by sched_setattr";
    let outcome = match fs::read_to_string("/sys/kernel/sched_ext/state") {
        // That nobody has loaded one is no lack of the kernel's.
        Ok(state) => match SchedExt::probe(Path::new(PIN_DIR)) {
            Ok(()) => yes("spry-scx schedules"),
            Err(why) => yes(format!("now {}; spry-scx doesn't schedule: {why}", state.trim())),
        },
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
            no("the kernel was built without CONFIG_SCHED_CLASS_EXT (Linux 6.12)", instead)
        }
        Err(problem) if problem.kind() == io::ErrorKind::PermissionDenied => no("not permitted", instead),
        Err(problem) => error(format!("read /sys/kernel/sched_ext/state: {problem}")),
    };
    check("sched_ext", outcome)
}

/// What processes do, told by the kernel's scheduler.
pub(super) fn signals() -> Check {
    let outcome = match spry_sched::signals::Signals::load() {
        Ok(_) => yes("BPF at context switches"),
        Err(error) => no(error.to_string(), "processes' CPU clocks, and looking twice"),
    };
    check("scheduler signals", outcome)
}

/// Whose processes go first, by the kernel's own classes.
pub(super) fn levels() -> Check {
    let tree = crate::cgroup::layout::find().unwrap_or_default();
    let has_cpu = |hierarchy: &&crate::cgroup::Hierarchy| {
        hierarchy.controllers.contains(&crate::cgroup::Controller::Cpu)
    };
    let groups = tree.iter().find(has_cpu).map(|hierarchy| probe_group(&hierarchy.own));
    let options = PosixOptions { groups: groups.as_ref().map(|group| group.0.as_path()), realtime: false };
    let posix = Posix::open(options);
    let outcome = match posix.means() {
        Means::None => no(posix.describe(), "the order in which requests begin"),
        _ => yes(posix.describe()),
    };
    check("scheduler levels", outcome)
}

/// A control group for the moment, beside those that spryd would make.
fn probe_group(own: &Path) -> ProbeGroup {
    let group = own.join(format!("spry-probe-levels-{}", std::process::id()));
    let _ = fs::create_dir(&group);
    ProbeGroup(group)
}

struct ProbeGroup(PathBuf);

impl Drop for ProbeGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert!(at_least("6.18.5", (5, 15)));
        assert!(at_least("5.15.0-rc1+", (5, 15)));
        assert!(!at_least("5.4.0-generic", (5, 15)));
        assert!(!at_least("unknown", (5, 15)));
    }
}
