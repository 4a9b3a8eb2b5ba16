//! The kernel's own classes: which of them makes two levels here is tried out, best first.
//!
//! | means | [`Level::Back`] is | [`Level::Front`] is | needs |
//! |---|---|---|---|
//! | [`Means::Realtime`] | the fair class | `SCHED_FIFO`, lowest priority | to be asked for; CAP_SYS_NICE; no group without real-time budget |
//! | [`Means::Group`] | the process's group with `cpu.idle` 1 | 0 | a control group per process (5.15) |
//! | [`Means::Thread`] | `SCHED_IDLE` | the fair class | CAP_SYS_NICE to get back |
//! | [`Means::None`] | nothing | nothing | nothing: the order is spryd's queue's alone |
//!
//! **Why groups come first.** Where every process has a control group for its CPU limit, nice values and the idle class of
//! the processes within mean nothing to those in other groups: the kernel compares the groups. `cpu.idle` is the one
//! switch that acts between them: whoever isn't idle goes before whoever is, at once, also on wake-up. It is written
//! through a descriptor of the group's file, so no pid is involved, and all threads of the process follow.
//!
//! **Why real time isn't the default.** A `SCHED_FIFO` process isn't bound by its group's quota, goes before everything
//! else on the machine, and under cgroup v1 with `CONFIG_RT_GROUP_SCHED` may not be one at all (EPERM: its group's
//! `cpu.rt_runtime_us` is 0, and budgets of groups add up, so that they can't all have one). With no more processes at the
//! front than there are cores, it buys little. Whom no decision is about isn't real-time: nobody would see how long he runs. Where it is asked for and refused, the next means is used from then on,
//! and [`Backend::describe`] says why. The main thread only is made real-time, with `SCHED_RESET_ON_FORK`, so that
//! what it starts isn't.
//!
//! Those at the front have weights and slices (`sched_runtime` of the fair class, 6.12) by their ranks: `share.rs` says why.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use super::share::{Weight, slice_of_rank_ns};
use super::sys::{self, RESET_ON_FORK, SchedAttr};
use super::{Backend, Kind, Level, Process, Standing};
use crate::policy::UNLIMITED;

/// How two levels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Means {
    /// Not at all.
    None,
    /// By each thread's class.
    Thread,
    /// By the process's control group.
    Group,
    /// By the real-time class.
    Realtime,
}

impl Means {
    fn of(raw: u8) -> Self {
        match raw {
            1 => Self::Thread,
            2 => Self::Group,
            3 => Self::Realtime,
            _ => Self::None,
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::None => "dispatch order only",
            Self::Thread => "SCHED_IDLE for those who wait",
            Self::Group => "cpu.idle of control groups for those who wait",
            Self::Realtime => "SCHED_FIFO for those who run",
        }
    }
}

/// What to try.
#[derive(Clone, Copy, Debug, Default)]
pub struct PosixOptions<'a> {
    /// A group folder with the cpu controller, in which processes have groups of their own.
    pub groups: Option<&'a Path>,
    /// Whether the real-time class may be used.
    pub realtime: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Posix {
    means: AtomicU8,
    /// What is used when the real-time class is refused.
    below: Means,
    /// Why a better means isn't used.
    why: OnceLock<String>,
    /// The CPUs that count as the node's cores, in their order.
    cpus: Vec<u16>,
}

impl Posix {
    /// Finds out what can be used here.
    pub fn open(options: PosixOptions<'_>) -> Self {
        let why = OnceLock::new();
        let below = match options.groups.map(try_group) {
            Some(Ok(())) => Means::Group,
            group => {
                if let Some(Err(error)) = group {
                    let _ = why.set(format!("cpu.idle can't be written ({error})"));
                }
                match try_thread() {
                    Ok(()) => Means::Thread,
                    Err(error) => {
                        let _ = why.set(format!("SCHED_IDLE can't be left again ({error})"));
                        Means::None
                    }
                }
            }
        };
        let means = if options.realtime { Means::Realtime } else { below };
        Self { means: AtomicU8::new(means as u8), below, why, cpus: sys::allowed_cpus().unwrap_or_default() }
    }

    /// What is used now.
    pub fn means(&self) -> Means {
        Means::of(self.means.load(Ordering::Relaxed))
    }

    fn by_group(&self, process: &Process, standing: Standing) -> io::Result<()> {
        // A process without a group of its own (its limits aren't held by one) is steered by its class.
        let Some(group) = process.group_files() else { return by_thread(process, standing.level) };
        group.set_level(standing.level)?;
        if standing == Standing::FREE {
            // Nobody may be asked about what it serves next.
            group.set_weight(Weight::USUAL)?;
            ask_slice(process, 0)?;
        } else if standing.level == Level::Front {
            group.set_weight(Weight::of_rank(standing.rank))?;
            ask_slice(process, slice_of_rank_ns(standing.rank))?;
        }
        standing.core.map_or(Ok(()), |core| self.to_core(process, core))
    }

    /// Moves it, and lets it go again at once: what it starts later isn't bound to that core, nor is it.
    fn to_core(&self, process: &Process, core: u16) -> io::Result<()> {
        let Some(cpu) = self.cpus.get(usize::from(core)).filter(|_| self.cpus.len() > 1) else {
            return Ok(());
        };
        while_alive(process, |pid| {
            sys::set_affinity(pid, std::slice::from_ref(cpu))?;
            sys::set_affinity(pid, &self.cpus)
        })
    }

    /// False: the class is refused here, for good.
    fn by_realtime(&self, process: &Process, standing: Standing) -> io::Result<bool> {
        let attr = if standing.level == Level::Front && standing != Standing::FREE {
            SchedAttr {
                policy: libc::SCHED_FIFO as u32,
                priority: 1,
                flags: RESET_ON_FORK,
                ..SchedAttr::default()
            }
        } else {
            SchedAttr { policy: libc::SCHED_OTHER as u32, ..SchedAttr::default() }
        };
        match set(process, attr) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let _ = self.why.set(
                    "SCHED_FIFO is refused: without CAP_SYS_NICE, or in a control group without real-time budget \
                     (cpu.rt_runtime_us)"
                        .into(),
                );
                self.means.store(self.below as u8, Ordering::Relaxed);
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }
}

impl Backend for Posix {
    fn kind(&self) -> Kind {
        Kind::Posix
    }

    fn describe(&self) -> String {
        let how = self.means().in_words();
        match self.why.get() {
            Some(why) => format!("{how}; {why}"),
            None => how.to_owned(),
        }
    }

    fn wants_ranks(&self) -> bool {
        // (In the real-time class it isn't the ranks that count, but that every beginning and every end is told.)
        self.below == Means::Group || self.means() == Means::Realtime
    }

    fn apply(&self, process: &Process, standing: Standing) -> io::Result<()> {
        let level = standing.level;
        match self.means() {
            Means::None => {}
            Means::Thread => by_thread(process, level)?,
            Means::Group => return self.by_group(process, standing),
            Means::Realtime => {
                if !self.by_realtime(process, standing)? {
                    return self.apply(process, standing);
                }
            }
        }
        if standing.slice_ns != UNLIMITED && self.means() != Means::None {
            ask_slice(process, standing.slice_ns)?;
        }
        Ok(())
    }
}

/// The kernel's bounds of a slice that is asked for; 0 is its own.
const SLICE_NS: std::ops::RangeInclusive<u64> = 100_000..=100_000_000;

fn ask_slice(process: &Process, slice_ns: u64) -> io::Result<()> {
    let slice_ns = if slice_ns == 0 { 0 } else { slice_ns.clamp(*SLICE_NS.start(), *SLICE_NS.end()) };
    if !process.changes_slice(slice_ns) {
        return Ok(());
    }
    let mut attr = sys::attr(process.pid())?;
    if attr.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attr.runtime_ns = slice_ns;
    set(process, attr)
}

fn by_thread(process: &Process, level: Level) -> io::Result<()> {
    let policy = if level == Level::Back { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    set(process, SchedAttr { policy: policy as u32, ..SchedAttr::default() })
}

/// The descriptor says whether the pid still is the process's: it is until it has been reaped, and a process that has
/// ended but not been reaped takes no harm. Between the look and the call a reaper may come, so that a pid
/// that was given out anew within that microsecond would be hit; a look afterwards makes that known.
fn while_alive(process: &Process, act: impl FnOnce(i32) -> io::Result<()>) -> io::Result<()> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    if !process.is_alive() {
        return Err(gone());
    }
    act(process.pid())?;
    if process.is_alive() { Ok(()) } else { Err(gone()) }
}

fn set(process: &Process, attr: SchedAttr) -> io::Result<()> {
    while_alive(process, |pid| sys::set_attr(pid, attr))
}

/// Writing what is there already changes nothing, but needs all that a change needs.
fn try_group(folder: &Path) -> io::Result<()> {
    let file = folder.join("cpu.idle");
    let now = std::fs::read(&file)?;
    std::fs::write(&file, now.trim_ascii())
}

/// On a thread that then ends.
fn try_thread() -> io::Result<()> {
    let attempt = std::thread::spawn(|| {
        let class = |policy: i32| SchedAttr { policy: policy as u32, ..SchedAttr::default() };
        sys::set_attr(0, class(libc::SCHED_IDLE))?;
        sys::set_attr(0, class(libc::SCHED_OTHER))
    });
    attempt.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// The calling thread is to run soon after it wakes, though others keep the cores busy: a short slice (6.12) and a
/// lower nice value, as far as that is allowed. For threads that rarely run: one that serves calls interrupts, at each, those who
/// could have gathered more work for it.
pub fn wake_soon() {
    let slice_ns = *SLICE_NS.start();
    for nice in [-10, 0] {
        let attr = SchedAttr {
            policy: libc::SCHED_OTHER as u32,
            nice,
            runtime_ns: slice_ns,
            ..SchedAttr::default()
        };
        if sys::set_attr(0, attr).is_ok() {
            return;
        }
    }
}
