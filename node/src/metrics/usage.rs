//! What processes that run use now, as `/proc` says.

use std::time::Duration;

use crate::function::Function;
use crate::stat::Stat;

/// CPU time and memory of one process or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory. Pages that processes share count for each.
    pub resident_bytes: u64,
}

impl Usage {
    /// Of the process with this pid; nothing, when it has ended.
    pub fn of_process(pid: i32) -> Self {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        Self { cpu: cpu(pid).unwrap_or_default(), resident_bytes: resident_in(&statm).unwrap_or(0) }
    }

    /// Of a function's instances.
    pub fn of_instances(function: &Function) -> Self {
        let mut sum = Self::default();
        for instance in function.instances().filter(|instance| !instance.has_ended()) {
            let one = Self::of_process(instance.pid);
            // Its pid may have been given to another process while it was read.
            if !instance.has_ended() {
                sum.cpu += one.cpu;
                sum.resident_bytes += one.resident_bytes;
            }
        }
        sum
    }
}

fn cpu(pid: i32) -> Option<Duration> {
    let ticks = Stat::of(pid)?.cpu_ticks()?;
    Some(Duration::from_nanos(ticks.checked_mul(1_000_000_000 / ticks_per_second())?))
}

fn resident_in(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(page_size())
}

fn ticks_per_second() -> u64 {
    system(nix::unistd::SysconfVar::CLK_TCK, 100)
}

fn page_size() -> u64 {
    system(nix::unistd::SysconfVar::PAGE_SIZE, 4096)
}

fn system(what: nix::unistd::SysconfVar, default: u64) -> u64 {
    let found = nix::unistd::sysconf(what).ok().flatten();
    found.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

/// Descriptors of this process: how many are open, and how many may be.
pub(super) fn descriptors() -> (u64, u64) {
    // (One is the folder that is being read.)
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    (open as u64, limit.map_or(0, |(soft, _)| soft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_in_bytes() {
        assert_eq!(resident_in("100 25 3 0 0 0 0"), Some(25 * page_size()));
        assert_eq!(resident_in(""), None);
    }

    #[test]
    fn this_process_uses_memory_and_one_that_is_not_there_uses_nothing() {
        assert!(Usage::of_process(std::process::id() as i32).resident_bytes > 0);
        assert_eq!(Usage::of_process(i32::MAX), Usage::default());
    }
}
