//! What a node could leave on a machine, listed before and after.
//!
//! Processes can't hide: xtask is a subreaper, so every orphan of the node becomes xtask's own child. Of
//! the rest only what is new *and* bears the project's name is counted, since other programs make mounts,
//! cgroups and files at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// For the closing line.
pub(crate) const LOOKED_FOR: &str =
    "processes, mounts, cgroups, network namespaces, BPF pins, shared memory and files";

/// Processes whose parent died may need a moment to see it.
const GRACE: Duration = Duration::from_secs(5);
/// Where named things appear, besides mounts and cgroups.
const PLACES: [&str; 6] = ["/tmp", "/run", "/run/netns", "/run/spry", "/dev/shm", "/sys/fs/bpf"];
/// cgroup hierarchies nest; no node's cgroup lies deeper.
const CGROUP_DEPTH: usize = 8;

/// Everything with a name that is on the machine at one time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Residue {
    things: BTreeSet<String>,
}

impl Residue {
    /// Looks around.
    pub(crate) fn now() -> Self {
        let mut things = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        things.extend(mount_points(&mounts).map(|point| format!("mount {point}")));
        list_cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, &mut things);
        for place in PLACES {
            let entries = fs::read_dir(place).into_iter().flatten().flatten();
            things.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        Self { things }
    }

    /// What is here, wasn't there before, and is the project's.
    fn since(&self, before: &Self) -> Vec<String> {
        let ours = |thing: &&String| thing.contains("spry");
        self.things.difference(&before.things).filter(ours).cloned().collect()
    }
}

/// What is left of a node that has ended; empty when all is well.
pub(crate) fn left_behind(before: &Residue) -> Vec<String> {
    let started = Instant::now();
    while !sys::reap_all() && started.elapsed() < GRACE {
        thread::sleep(Duration::from_millis(5));
    }
    let mut left: Vec<String> = children_of(std::process::id())
        .into_iter()
        .map(|(pid, name)| {
            sys::kill(pid);
            format!("process {pid} ({name})")
        })
        .collect();
    left.extend(Residue::now().since(before));
    left
}

fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4))
}

fn list_cgroups(folder: &Path, depth: usize, things: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("cgroup {}", entry.path().display()));
            list_cgroups(&entry.path(), depth - 1, things);
        }
    }
}

/// Pid and name of every child of `parent`.
fn children_of(parent: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, of) = name_and_parent(&stat)?;
        (of == parent).then(|| (pid, name.to_owned()))
    })
    .collect()
}

/// From `/proc/PID/stat`: `pid (name) state parent …`, where the name may hold anything.
fn name_and_parent(stat: &str) -> Option<(&str, u32)> {
    let (front, back) = stat.rsplit_once(')')?;
    let name = front.split_once('(')?.1;
    Some((name, back.split_whitespace().nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_and_ours_counts() {
        let of = |things: &[&str]| Residue { things: things.iter().map(|t| (*t).to_owned()).collect() };
        let before = of(&["mount /", "cgroup /sys/fs/cgroup/spry-1"]);
        let after = of(&["mount /", "cgroup /sys/fs/cgroup/spry-1", "mount /x", "file /tmp/spry-2"]);
        assert_eq!(after.since(&before), ["file /tmp/spry-2"]);
        assert!(before.since(&after).is_empty());
    }

    #[test]
    fn a_file_that_stays_is_seen() {
        let before = Residue::now();
        let left = tempfile::Builder::new().prefix("spry-residue-").tempfile_in("/tmp").unwrap();
        let name = left.path().display().to_string();
        assert!(Residue::now().since(&before).iter().any(|thing| thing.ends_with(&name)));
    }

    #[test]
    fn processes_are_listed_whatever_their_name() {
        assert_eq!(name_and_parent("12 (a) b (c) S 7 12 12"), Some(("a) b (c", 7)));
        assert_eq!(name_and_parent("nonsense"), None);
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let seen = children_of(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen.iter().any(|(pid, _)| *pid == child.id()), "{seen:?}");
    }

    #[test]
    fn mount_points_are_the_fifth_field() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_points(line).collect::<Vec<_>>(), ["/mnt2"]);
    }
}
