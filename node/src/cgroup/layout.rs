//! Which control-group hierarchies there are, and where in them this process is.
//!
//! Three layouts are met in the field: v2 alone, v1 with a hierarchy per controller (or for a few together), and
//! hybrids, where v2 is mounted beside v1 and has the controllers that v1 hasn't. All come out as the same
//! thing: a list of hierarchies, each with the controllers of ours that it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which interface files a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Controllers mounted one by one.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What spry limits by control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Memory, swap included.
    Memory,
    /// CPU time per period.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    fn among<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<Self> {
        Self::ALL
            .into_iter()
            .filter(|controller| names.clone().any(|name| name == controller.name()))
            .collect()
    }
}

/// One hierarchy and this process's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Which kind.
    pub version: Version,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The folder of this process's own group.
    pub own: PathBuf,
    /// Those of ours that can be used below `own`.
    pub controllers: Vec<Controller>,
}

/// The hierarchies that have a controller of ours.
pub fn find() -> io::Result<Vec<Hierarchy>> {
    let mut found =
        parse(&fs::read_to_string("/proc/self/cgroup")?, &fs::read_to_string("/proc/self/mountinfo")?);
    for hierarchy in found.iter_mut().filter(|hierarchy| hierarchy.version == Version::V2) {
        let available = fs::read_to_string(hierarchy.own.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.controllers = Controller::among(available.split_whitespace());
    }
    found.retain(|hierarchy| !hierarchy.controllers.is_empty() && hierarchy.own.is_dir());
    Ok(found)
}

/// The pure part: `/proc/self/cgroup` names the groups, `/proc/self/mountinfo` says where to see them.
/// A v2 hierarchy comes without controllers; its own files name those.
pub fn parse(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (version, controllers) = if number == "0" && names.is_empty() {
            (Version::V2, Vec::new())
        } else {
            (Version::V1, Controller::among(names.split(',')))
        };
        if version == Version::V1 && controllers.is_empty() {
            continue;
        }
        let own_mount = mounts.iter().find(|mount| match version {
            Version::V2 => mount.kind == "cgroup2",
            Version::V1 => {
                mount.kind == "cgroup"
                    && controllers.iter().all(|c| mount.options.split(',').any(|option| option == c.name()))
            }
        });
        let Some((mount, own)) = own_mount.and_then(|mount| Some((mount, mount.folder_of(path)?))) else {
            continue;
        };
        found.push(Hierarchy { version, mount: PathBuf::from(mount.point), own, controllers });
    }
    found
}

/// A line of mountinfo, as far as it matters here.
struct Mount<'a> {
    /// Which folder of the file system is seen at the mount point.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    /// Of the file system: for v1 they name the controllers.
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let mut after = after.split(' ');
        let (root, point) = (before.next()?, before.next()?);
        let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
        Some(Self { root, point, kind, options })
    }

    /// Where the group `path` is to be seen, if this mount shows it.
    fn folder_of(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        Some(if below.as_os_str().is_empty() {
            PathBuf::from(self.point)
        } else {
            Path::new(self.point).join(below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_alone() {
        let mounts = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse("0::/system.slice/spryd.service\n", mounts);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].version, Version::V2);
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/system.slice/spryd.service"));
    }

    #[test]
    fn v1_with_controllers_together_and_a_hybrid_beside_it() {
        let mounts = "\
            33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "5:devices:/\n4:memory:/session/7\n2:cpu,cpuacct:/\n0::/\n";
        let found = parse(groups, mounts);
        let places: Vec<_> =
            found.iter().map(|h| (h.version, h.own.to_str().unwrap(), &h.controllers[..])).collect();
        assert_eq!(
            places,
            [
                (Version::V1, "/sys/fs/cgroup/memory/session/7", &[Controller::Memory][..]),
                (Version::V1, "/sys/fs/cgroup/cpu,cpuacct", &[Controller::Cpu][..]),
                (Version::V2, "/sys/fs/cgroup/unified", &[][..]),
            ]
        );
    }

    #[test]
    fn a_container_sees_its_own_part() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = parse("4:memory:/docker/abc/job\n", mounts);
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/memory/job"));
        assert!(parse("4:memory:/elsewhere\n", mounts).is_empty(), "a group that the mount doesn't show");
    }

    #[test]
    fn nonsense_is_skipped() {
        assert!(parse("garbage\n::\n\n", "garbage\n - \n").is_empty());
    }
}
