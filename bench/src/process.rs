//! What processes use, from /proc: CPU of a whole tree, descriptors, segments.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// One line of the process table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its parent's id.
    pub parent: Pid,
    /// The kernel's name for it.
    pub name: String,
    /// CPU ticks of itself and of its children that it has reaped.
    pub ticks: u64,
    /// It has ended and waits to be reaped.
    pub zombie: bool,
}

/// Reads `/proc/PID/stat`.
pub fn process(pid: Pid) -> io::Result<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(pid, &text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed stat"))
}

fn parse_stat(pid: Pid, text: &str) -> Option<Process> {
    // The name is in parentheses and may contain anything, parentheses and spaces too.
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let fields: Vec<&str> = text.get(close + 2..)?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: Pid::from_raw(fields.get(1)?.parse().ok()?),
        name: text.get(open + 1..close)?.to_owned(),
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
        zombie: *fields.first()? == "Z",
    })
}

/// The process and all its living descendants, the process itself first.
pub fn tree(root: Pid) -> io::Result<Vec<Process>> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while the table is read is no error.
        if let Ok(process) = process(Pid::from_raw(pid)) {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut tree = vec![process(root)?];
    let mut next = 0;
    while next < tree.len() {
        tree.extend(children.remove(&tree[next].pid).unwrap_or_default());
        next += 1;
    }
    Ok(tree)
}

/// CPU of the process, its living descendants and everything that they have reaped, in the kernel's ticks
/// (10 ms as a rule).
pub fn tree_cpu(root: Pid) -> io::Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1) as u64;
    let ticks: u64 = tree(root)?.iter().map(|process| process.ticks).sum();
    Ok(Duration::from_nanos(ticks * (1_000_000_000 / per_second)))
}

/// CPU of the process's living threads, to the nanosecond; for one that does next to nothing.
pub fn threads_cpu(pid: Pid) -> io::Result<Duration> {
    let mut total = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(entry?.path().join("schedstat"))?;
        total += text.split_ascii_whitespace().next().and_then(|run| run.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// Restricts every thread of the processes to the CPUs; what they fork later inherits it.
pub fn restrict(processes: &[Process], cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    for process in processes {
        // A process that has ended meanwhile needs no CPU.
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", process.pid)) else { continue };
        for task in tasks.flatten() {
            if let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) {
                match sched_setaffinity(Pid::from_raw(tid), &set) {
                    Ok(()) | Err(nix::Error::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
    Ok(())
}

/// Restricts the calling thread to a CPU.
pub fn restrict_this_thread(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Restricts the calling thread to these CPUs.
pub fn restrict_this_thread_to(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPUs that the calling thread may use.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// What must not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Holdings {
    /// Open descriptors of the process.
    pub fds: usize,
    /// How many of these are memfds.
    pub memfds: usize,
    /// Mappings of memfds.
    pub memfd_maps: usize,
    /// The process and its descendants.
    pub processes: usize,
}

/// Counts what a process holds.
pub fn holdings(pid: Pid) -> io::Result<Holdings> {
    let mut held = Holdings { fds: 0, memfds: 0, memfd_maps: 0, processes: tree(pid)?.len() };
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        held.fds += 1;
        // A descriptor that is closed meanwhile has no link any more.
        let link = fs::read_link(entry?.path()).unwrap_or_default();
        held.memfds += usize::from(link.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"));
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    held.memfd_maps = maps.lines().filter(|line| line.contains("/memfd:")).count();
    Ok(held)
}

/// Bytes that a process has resident.
pub fn resident(pid: Pid) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096).max(1) as u64;
    pages
        .map(|pages| pages * size)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed statm"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let text = "7 (a) R (b) S 3 1 1 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0";
        let process = parse_stat(Pid::from_raw(7), text).unwrap();
        assert_eq!(
            (process.name.as_str(), process.parent, process.ticks),
            ("a) R (b", Pid::from_raw(3), 100)
        );
        assert!(!process.zombie);
        assert_eq!(parse_stat(Pid::from_raw(7), "7 (x) S 1"), None);
    }

    #[test]
    fn the_tree_has_the_children() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let found = tree(Pid::this()).unwrap();
        assert_eq!(found[0].pid, Pid::this());
        assert!(found.iter().any(|process| process.pid == pid && process.parent == Pid::this()));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(process(pid).is_err());
    }

    #[test]
    fn cpu_is_counted_to_the_nanosecond() {
        let before = threads_cpu(Pid::this()).unwrap();
        let watchdog = std::time::Instant::now();
        while threads_cpu(Pid::this()).unwrap() <= before {
            assert!(watchdog.elapsed() < Duration::from_secs(60), "no CPU is counted");
        }
    }

    #[test]
    fn memfds_are_counted() {
        // Other tests of this process open files too, but no memfds.
        let before = holdings(Pid::this()).unwrap();
        let name = c"spry-bench-test";
        let memfd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        assert_eq!(holdings(Pid::this()).unwrap().memfds, before.memfds + 1);
        assert!(memfd.as_fd().try_clone_to_owned().is_ok());
        drop(memfd);
        assert_eq!(holdings(Pid::this()).unwrap().memfds, before.memfds);
    }
}
