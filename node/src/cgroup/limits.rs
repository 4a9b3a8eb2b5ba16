//! Limits as the interface files of each kind of hierarchy want them. Pure: files and values out, nothing written.

use super::layout::{Controller, Version};

/// What one process group may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupLimits {
    /// Memory, in bytes; swap is not allowed on top.
    pub memory_bytes: u64,
    /// CPUs' worth of time, e.g. 0.5.
    pub cpu: f64,
    /// Processes and threads.
    pub processes: u32,
}

/// A value for an interface file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file's name.
    pub file: &'static str,
    /// What to write.
    pub value: String,
    /// The limit doesn't hold without it; other files may be missing (swap accounting is a boot option).
    pub required: bool,
}

/// Length of a CPU quota's period. Short ones cost more and throttle more evenly; this is the kernel's default.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no quota below this.
const QUOTA_US_MIN: u64 = 1_000;

/// The settings for one controller.
pub fn settings(version: Version, controller: Controller, limits: &GroupLimits) -> Vec<Setting> {
    let need = |file, value| Setting { file, value, required: true };
    let wish = |file, value| Setting { file, value, required: false };
    let memory = limits.memory_bytes.to_string();
    let quota = ((limits.cpu * PERIOD_US as f64) as u64).max(QUOTA_US_MIN);
    match (version, controller) {
        (Version::V1, Controller::Memory) => vec![
            // Memory and swap together is never below memory alone: a group that is used again has limits already, and
            // this comes before when they rise, after when they fall. The other time it is refused, or changes nothing.
            wish("memory.memsw.limit_in_bytes", memory.clone()),
            need("memory.limit_in_bytes", memory.clone()),
            wish("memory.memsw.limit_in_bytes", memory),
            wish("memory.swappiness", "0".to_owned()),
        ],
        (Version::V2, Controller::Memory) => vec![
            need("memory.max", memory),
            wish("memory.swap.max", "0".to_owned()),
            wish("memory.oom.group", "1".to_owned()),
        ],
        (Version::V1, Controller::Cpu) => vec![
            need("cpu.cfs_period_us", PERIOD_US.to_string()),
            need("cpu.cfs_quota_us", quota.to_string()),
        ],
        (Version::V2, Controller::Cpu) => vec![need("cpu.max", format!("{quota} {PERIOD_US}"))],
        (_, Controller::Pids) => vec![need("pids.max", limits.processes.to_string())],
    }
}

/// Where it is said whether all in a group end when one runs out of memory (1, as in [`settings`], or 0); `None`: never.
pub fn common_end_file(version: Version) -> Option<&'static str> {
    match version {
        Version::V1 => None,
        Version::V2 => Some("memory.oom.group"),
    }
}

/// Where the number of OOM kills is, as the line `oom_kill N`.
pub fn oom_kills_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    }
}

/// Where the memory in use is, in bytes.
pub fn memory_usage_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    }
}

/// The number in the line `oom_kill N`.
pub fn oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GroupLimits = GroupLimits { memory_bytes: 128 << 20, cpu: 0.25, processes: 7 };

    #[test]
    fn the_quota_is_a_share_of_the_period() {
        assert_eq!(settings(Version::V2, Controller::Cpu, &LIMITS)[0].value, "25000 100000");
        let tiny = GroupLimits { cpu: 0.000_1, ..LIMITS };
        assert_eq!(settings(Version::V1, Controller::Cpu, &tiny)[1].value, "1000", "the kernel's minimum");
        let many = GroupLimits { cpu: 2.5, ..LIMITS };
        assert_eq!(settings(Version::V2, Controller::Cpu, &many)[0].value, "250000 100000");
    }

    #[test]
    fn oom_kills_are_read_from_either_file() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 12\noom 4\noom_kill 2\noom_group_kill 1\n"), Some(2));
        assert_eq!(oom_kills("oom 4\n"), None);
    }
}
