//! spryd's side: processes get slots, slots get standings, and somebody looks whether the scheduler is still there.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::sys::{self, Values};
use crate::{ACCOUNTS, HEALTH, MARKS, STANDINGS, folder, layout};

/// Why the scheduler can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It isn't loaded, or somewhere else.
    #[error("open {}: {source}; is spry-scx running?", path.display())]
    Open {
        /// The pinned map.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else than root could have put it there.
    #[error("{what}: the maps there aren't trusted")]
    Untrusted {
        /// What is wrong with which folder.
        what: String,
    },
    /// Another program's maps, or another version's.
    #[error("{} is not a map of this version of spry-scx: {what}", path.display())]
    Mismatch {
        /// The pinned map.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// It was there and has ended.
    #[error("the scheduler has ended: {0}")]
    Ended(Health),
}

/// What a process is to be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The smallest goes first: with `fall` 1, the CPU time that is left, in nanoseconds.
    pub rank: u64,
    /// By how much the rank falls for each nanosecond of CPU.
    pub fall: u32,
}

/// The largest rank there is: the kernel compares ranks by their difference, as a signed number.
pub const RANK_MAX: u64 = 1 << 62;

/// How the scheduler is, and what it did so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// It schedules. Else it has ended, and the other fields say why.
    pub running: bool,
    /// The kernel's `scx_exit_kind`: 64 to 1023 somebody ended it, 1024 and above it failed.
    pub exit_kind: u32,
    /// The kernel's word for that.
    pub reason: String,
    /// What it added.
    pub message: String,
    /// Counted since it was loaded: who became ready, took a CPU, was overdue, over his quota, or not run for 5 s.
    pub counts: Counts,
}

/// What the scheduler counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that became ready.
    pub enqueued: u64,
    /// Tasks that took somebody's CPU.
    pub preempted: u64,
    /// Tasks that had waited for longer than promised.
    pub overdue: u64,
    /// Tasks whose quota was used up.
    pub spent: u64,
    /// Tasks that hadn't run for five seconds.
    pub revived: u64,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.running {
            return write!(f, "scheduling");
        }
        match self.exit_kind {
            0 => write!(f, "not begun")?,
            64 => write!(f, "spry-scx ended")?,
            _ => write!(f, "{}", self.reason)?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message.trim_end()) }
    }
}

/// The scheduler that `spry-scx` has loaded.
#[derive(Clone, Debug)]
pub struct Scheduler(Arc<Maps>);

#[derive(Debug)]
struct Maps {
    marks: OwnedFd,
    standings: Values<layout::Standing>,
    accounts: Values<layout::Account>,
    health: Values<layout::Health>,
    free: Mutex<Slots>,
}

/// Slots that nobody has: those given back, and all from `unused` on.
#[derive(Debug, Default)]
struct Slots {
    returned: Vec<u32>,
    unused: u32,
}

impl Scheduler {
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        match folder::check(folder) {
            Ok(None) => {}
            Ok(Some(what)) => return Err(OpenError::Untrusted { what }),
            Err(source) => return Err(OpenError::Open { path: folder.to_owned(), source }),
        }
        let map = |name: &str| {
            let path = folder.join(name);
            sys::open(&path).map_err(|source| OpenError::Open { path, source })
        };
        let differs = |name: &str| {
            let path = folder.join(name);
            move |error: io::Error| OpenError::Mismatch { path, what: error.to_string() }
        };
        let marks = map(MARKS)?;
        sys::require_marks(marks.as_fd()).map_err(differs(MARKS))?;
        let health =
            Values::<layout::Health>::map(map(HEALTH)?.as_fd(), 1, false).map_err(differs(HEALTH))?;
        let slots = layout::SLOTS;
        let standings = Values::map(map(STANDINGS)?.as_fd(), slots, true).map_err(differs(STANDINGS))?;
        let accounts = Values::map(map(ACCOUNTS)?.as_fd(), slots, false).map_err(differs(ACCOUNTS))?;
        let maps = Maps { marks, standings, accounts, health, free: Mutex::default() };
        let scheduler = Self(Arc::new(maps));
        // SYNC(health): the kernel's side writes `state` last.
        let health = scheduler.health();
        let version = scheduler.0.health().version.load(Ordering::Acquire);
        if version != layout::VERSION {
            let what = format!("it has version {version}, this program {}", layout::VERSION);
            return Err(OpenError::Mismatch { path: folder.join(HEALTH), what });
        }
        if !health.running {
            return Err(OpenError::Ended(health));
        }
        Ok(scheduler)
    }

    /// Gives a child of this process a slot and puts it into SCHED_EXT. `cpu`: the cores that it may use at most, for
    /// `cpu.max` doesn't reach that class. It must not have been reaped.
    pub fn claim(&self, pid: i32, pidfd: Arc<OwnedFd>, cpu: Option<f64>) -> io::Result<Task> {
        let slot =
            self.0.take_slot().ok_or_else(|| io::Error::other("all slots of the scheduler are taken"))?;
        let task = Task { scheduler: self.clone(), pid, pidfd, slot };
        let standing = task.standing();
        standing.quota_ns.store(cpu.map_or(0, quota_ns), Ordering::Relaxed);
        standing.claim.fetch_add(1, Ordering::Relaxed);
        standing.call.fetch_add(1, Ordering::Relaxed);
        task.stand(Standing::default());
        sys::mark(self.0.marks.as_fd(), task.pidfd.as_fd(), slot)?;
        sys::set_class(pid, true)?;
        Ok(task)
    }

    /// How it is. No system call.
    pub fn health(&self) -> Health {
        let health = self.0.health();
        // SYNC(health): the kernel's side writes `state` after the reason.
        let state = health.state.load(Ordering::Acquire);
        let get = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        Health {
            running: state == 1,
            exit_kind: health.exit_kind.load(Ordering::Relaxed),
            reason: text(&health.reason),
            message: text(&health.message),
            counts: Counts {
                enqueued: get(&health.enqueued),
                preempted: get(&health.preempted),
                overdue: get(&health.overdue),
                spent: get(&health.spent),
                revived: get(&health.revived),
            },
        }
    }

    /// Whether it schedules. One load.
    pub fn is_running(&self) -> bool {
        self.0.health().state.load(Ordering::Acquire) == 1
    }
}

impl Maps {
    fn health(&self) -> &layout::Health {
        self.health.get(0).expect("an array has at least one value: Values::map checked")
    }

    fn take_slot(&self) -> Option<u32> {
        let mut free = self.free.lock();
        if let Some(slot) = free.returned.pop() {
            return Some(slot);
        }
        let slot = free.unused;
        self.standings.get(slot).and(self.accounts.get(slot))?;
        free.unused += 1;
        Some(slot)
    }
}

/// The CPU time in a period of 100 ms.
fn quota_ns(cores: f64) -> u64 {
    // At least 1 ms, as the kernel's own quotas.
    (cores.clamp(0.01, 1024.0) * 100e6) as u64
}

fn text(bytes: &[AtomicU8]) -> String {
    let bytes: Vec<u8> =
        bytes.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process that the scheduler knows. Dropped: it is forgotten, and back in the fair class if it still lives.
#[derive(Debug)]
pub struct Task {
    scheduler: Scheduler,
    pid: i32,
    pidfd: Arc<OwnedFd>,
    slot: u32,
}

impl Task {
    /// From now on it stands so. No system call; a task that waits already is moved when it is queued next.
    pub fn stand(&self, standing: Standing) {
        self.write(standing, 0);
    }

    /// The next call begins and stands so: it is due anew.
    pub fn next(&self, standing: Standing) {
        self.standing().call.fetch_add(1, Ordering::Relaxed);
        self.write(standing, 0);
    }

    /// The next call begins: `ns` of CPU time are predicted for it.
    pub fn begin(&self, ns: u64) {
        self.next(Standing { rank: ns, fall: 1 });
    }

    /// Nobody says when its calls begin: it shares this rank, in turns, with whoever has it, and is due anew whenever it
    /// has slept.
    pub fn share(&self, rank: u64) {
        self.write(Standing { rank, fall: 0 }, layout::UNORDERED);
    }

    /// Whether the scheduler that it was given to still schedules. One load.
    pub fn is_running(&self) -> bool {
        self.scheduler.is_running()
    }

    fn write(&self, Standing { rank, fall }: Standing, flags: u64) {
        let standing = self.standing();
        standing.flags.store(flags, Ordering::Relaxed);
        standing.rank.store(rank.min(RANK_MAX), Ordering::Relaxed);
        standing.fall.store(fall, Ordering::Relaxed);
        // SYNC(standing): what the scheduler reads under this epoch is at least this.
        standing.epoch.fetch_add(1, Ordering::Release);
    }

    /// The CPU time that it, its threads and its children have had in this class, up to their last turn, in nanoseconds.
    /// Its slot's, so take differences.
    pub fn cpu_ns(&self) -> u64 {
        self.scheduler.0.accounts.get(self.slot).map_or(0, |account| account.cpu_ns.load(Ordering::Relaxed))
    }

    /// Whether it is still in SCHED_EXT.
    pub fn is_claimed(&self) -> io::Result<bool> {
        sys::is_extensible(self.pid)
    }

    fn standing(&self) -> &layout::Standing {
        self.scheduler.0.standings.get(self.slot).expect("take_slot gives out slots that are there")
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // Errors mean that it has ended, which is as good. The mark says whether the pid is still this process's: it can
        // be deleted only as long as the process hasn't been reaped.
        if sys::unmark(self.scheduler.0.marks.as_fd(), self.pidfd()).is_ok() {
            let _ended = sys::set_class(self.pid, false);
        }
        self.scheduler.0.free.lock().returned.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_scheduler_the_error_says_what_to_look_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Scheduler::open(&folder.path().join("not-there")).expect_err("there is no map");
        assert!(error.to_string().ends_with("is spry-scx running?"), "{error}");
        let error = Scheduler::open(folder.path()).expect_err("somewhere else");
        assert!(matches!(error, OpenError::Untrusted { .. }), "{error}");
    }

    #[test]
    fn an_end_is_told_in_words() {
        let mut health = Health {
            running: true,
            exit_kind: 0,
            reason: String::new(),
            message: String::new(),
            counts: Counts::default(),
        };
        assert_eq!(health.to_string(), "scheduling");
        health.running = false;
        health.exit_kind = 64;
        assert_eq!(health.to_string(), "spry-scx ended");
        (health.exit_kind, health.reason) = (1026, "runnable task stall".to_owned());
        health.message = "x[1] failed to run for 30.1s".to_owned();
        assert_eq!(health.to_string(), "runnable task stall (x[1] failed to run for 30.1s)");
    }

    #[test]
    fn quotas_are_of_a_period() {
        assert_eq!(quota_ns(1.0), 100_000_000);
        assert_eq!(quota_ns(0.000_1), 1_000_000);
    }
}
