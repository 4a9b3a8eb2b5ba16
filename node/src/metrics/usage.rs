//! What processes that run use now, as `/proc` says.

use std::time::Duration;

use crate::function::Function;

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
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        Self { cpu: cpu_in(&stat).unwrap_or_default(), resident_bytes: resident_in(&statm).unwrap_or(0) }
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

/// The 14th and 15th field, of which the second may hold anything: what follows its last parenthesis counts.
fn cpu_in(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_nanos(user.checked_add(system)?.checked_mul(1_000_000_000 / ticks_per_second())?))
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
    fn a_name_with_parentheses_and_spaces_hides_nothing() {
        let stat =
            "7 (a) b) R 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 50 18446744073709551615";
        let ticks = 1_000_000_000 / ticks_per_second();
        assert_eq!(cpu_in(stat), Some(Duration::from_nanos(300 * ticks)));
        assert_eq!(cpu_in("nothing"), None);
        assert_eq!(resident_in("100 25 3 0 0 0 0"), Some(25 * page_size()));
        assert_eq!(resident_in(""), None);
    }

    #[test]
    fn this_process_uses_memory_and_one_that_is_not_there_uses_nothing() {
        assert!(Usage::of_process(std::process::id() as i32).resident_bytes > 0);
        assert_eq!(Usage::of_process(i32::MAX), Usage::default());
    }
}
