//! What all threads of spryd share about one instance: its outbox, its output, and how to end it.
//!
//! The process itself (its reaping, its control socket) is the keeper's; see [`crate::keeper`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use shm_bus::Descriptor;
use shm_bus::begun;
use shm_bus::ids::{InvocationId, PeerId};
use shm_bus::release::{OUTSTANDING_MAX, ReleaseWriter};
use shm_bus::segment::{Reader, SegmentName};
use shm_bus::transport::FaultKind;
use spry_sched::backend::Process;
use spry_sched::signals::Tracked;

use crate::gateway::Shelf;
use crate::stat;
use crate::sys::{self, CpuSet};
use crate::zygote::rewind::Gate;

mod output;

pub use output::{Output, Taken};

/// What an instance's process has used for a call, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time since its answer before.
    pub cpu_ns: Option<u64>,
    /// For how long it could run and had no core; 0 where nobody notes it.
    pub wait_ns: u64,
    /// The most memory that it has had, shared pages included; looked at now and then.
    pub memory_bytes: Option<u64>,
}

impl Used {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { cpu_ns: None, wait_ns: 0, memory_bytes: None };
}

/// An instance's memory is looked at when it first answers, and then this often at most: that costs ten times as much as
/// its CPU time.
const MEMORY_EVERY_MS: u64 = 250;

/// Why spryd ended an instance, when it did. The first reason counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// This invocation's time ran out.
    TimedOut(InvocationId),
    /// It broke the bus protocol.
    Fault(FaultKind),
    /// It was idle, and isn't needed any more.
    Retired,
    /// It has served its only request, and its answer has been taken in.
    Used,
    /// Its function ends, whatever it does.
    Ended,
}

/// An instance's home when it has none.
const NOWHERE: u32 = u32::MAX;
/// Answers in a row to a worker elsewhere, after which an instance moves to that worker's core. Enough that two workers
/// who share one instance don't toss it about.
const MOVE_AFTER: u32 = 16;

/// Blocks of one outbox that chains keep where they lie. The rest is for runs under way, whose answers are counted when they
/// have ended.
const KEPT_BLOCKS_MAX: u32 = OUTSTANDING_MAX / 4;

/// One instance, as the workers know it.
#[derive(Debug)]
pub struct Instance {
    /// Its name on the bus.
    pub peer: PeerId,
    /// Its process.
    pub pid: i32,
    /// Where its answers lie.
    pub outbox: Arc<Reader>,
    /// How descriptors name the outbox.
    pub outbox_name: SegmentName,
    /// How they name its inbox, if that is its own.
    pub own_inbox: Option<SegmentName>,
    /// Tells it which answers have left.
    pub release: ReleaseWriter,
    /// When somebody first wanted it, and whether its zygote had to be started.
    pub requested_at: Instant,
    /// Whether the function's zygote was started for it.
    pub cold: bool,
    /// When it could first be used.
    pub ready_at: Instant,
    /// The same for the scheduler's backend.
    pub process: Arc<Process>,
    /// The invocation whose standing the process has in the scheduler's backend; 0: none's.
    stands_for: AtomicU64,
    /// If it is rewound after each answer: where it waits.
    pub gate: Option<Arc<Gate>>,
    pidfd: Arc<OwnedFd>,
    /// What the kernel's scheduler notes of it; `None`: nobody notes, or it has ended.
    tracked: ArcSwapOption<Tracked>,
    /// The process's CPU time and its wait for cores when it last answered, in nanoseconds.
    cpu_taken_ns: AtomicU64,
    wait_taken_ns: AtomicU64,
    cpus: CpuSet,
    /// The CPU that it is bound to, or [`NOWHERE`].
    home: AtomicU32,
    /// See [`Self::set_preempting`].
    preempts: AtomicBool,
    /// Answers in a row that a worker on another CPU got.
    strangers: AtomicU32,
    doom: OnceLock<(Doom, Instant)>,
    ended: AtomicBool,
    served: AtomicU64,
    used_unix_ms: AtomicU64,
    memory_bytes: AtomicU64,
    memory_looked_unix_ms: AtomicU64,
    /// What it writes to its standard output and error.
    pub output: Output,
    kept_blocks: AtomicU32,
    /// Room for answers that wait to be sent.
    pub unsent: Arc<Shelf>,
}

/// What an instance is made of.
#[derive(Debug)]
pub struct Parts {
    /// See [`Instance::peer`].
    pub peer: PeerId,
    /// See [`Instance::pid`].
    pub pid: i32,
    /// Its process.
    pub pidfd: Arc<OwnedFd>,
    /// See [`Instance::process`].
    pub process: Arc<Process>,
    /// What the kernel's scheduler notes of it, where that is to be had.
    pub tracked: Option<Tracked>,
    /// See [`Instance::outbox`].
    pub outbox: Arc<Reader>,
    /// See [`Instance::outbox_name`].
    pub outbox_name: SegmentName,
    /// See [`Instance::own_inbox`].
    pub own_inbox: Option<SegmentName>,
    /// See [`Instance::release`].
    pub release: ReleaseWriter,
    /// See [`Instance::requested_at`].
    pub requested_at: Instant,
    /// See [`Instance::cold`].
    pub cold: bool,
    /// The read ends of its standard output and error, non-blocking.
    pub stdout: OwnedFd,
    /// See `stdout`.
    pub stderr: OwnedFd,
    /// Where it may run while it isn't bound to a CPU.
    pub cpus: CpuSet,
    /// Bytes of output kept per invocation.
    pub output_max: usize,
    /// See [`Instance::gate`].
    pub gate: Option<Arc<Gate>>,
    /// It may have begun a request already.
    pub ahead: bool,
}

impl Instance {
    /// Puts the parts together; it is ready now.
    pub fn new(parts: Parts) -> Arc<Self> {
        let process = parts.process;
        // What is tracked counts from now on, the process's clock from its birth.
        let clock_ns = if parts.tracked.is_none() && !parts.ahead { process.cpu_ns() } else { None };
        let gate = parts.gate.clone();
        let unsent = Shelf::new(parts.outbox.len() / 2);
        let instance = Arc::new(Self {
            peer: parts.peer,
            pid: parts.pid,
            outbox: parts.outbox,
            outbox_name: parts.outbox_name,
            own_inbox: parts.own_inbox,
            release: parts.release,
            requested_at: parts.requested_at,
            cold: parts.cold,
            ready_at: Instant::now(),
            process,
            stands_for: AtomicU64::new(0),
            pidfd: parts.pidfd,
            tracked: ArcSwapOption::from_pointee(parts.tracked),
            cpu_taken_ns: AtomicU64::new(clock_ns.unwrap_or(0)),
            wait_taken_ns: AtomicU64::new(0),
            cpus: parts.cpus,
            home: AtomicU32::new(NOWHERE),
            preempts: AtomicBool::new(true),
            strangers: AtomicU32::new(0),
            doom: OnceLock::new(),
            ended: AtomicBool::new(false),
            served: AtomicU64::new(0),
            used_unix_ms: AtomicU64::new(crate::activation::unix_ms()),
            memory_bytes: AtomicU64::new(0),
            memory_looked_unix_ms: AtomicU64::new(0),
            kept_blocks: AtomicU32::new(0),
            unsent,
            output: Output::new([parts.stdout, parts.stderr], parts.output_max),
            gate: parts.gate,
        });
        if let Some(gate) = gate {
            gate.set_instance(&instance);
        }
        instance
    }

    /// Ends the process at once. Whoever reaps it learns the (first) reason from [`Self::doom`].
    pub fn kill(&self, doom: Doom) {
        let _ = self.doom.set((doom, Instant::now()));
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Why spryd ended it, if it did.
    pub fn doom(&self) -> Option<Doom> {
        self.doom.get().map(|(doom, _)| *doom)
    }

    /// How long ago spryd ended it, if it did.
    pub fn doomed_for(&self) -> Option<std::time::Duration> {
        self.doom.get().map(|(_, at)| at.elapsed())
    }

    /// Whether its end has begun, whoever brought it about.
    pub fn is_ending(&self) -> bool {
        self.has_ended() || stat::is_ending(self.pid)
    }

    /// Whether it was reaped.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// It was reaped: its pid may name another process from now on.
    pub fn mark_ended(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.tracked.store(None);
    }

    /// The CPU time that its process has used since it last answered, in nanoseconds. `None`: it has ended.
    pub fn cpu_since_answer_ns(&self) -> Option<u64> {
        if self.has_ended() {
            return None; // the pid may be another's
        }
        let now_ns = match &*self.tracked.load() {
            Some(tracked) => tracked.times().cpu_ns,
            None => self.process.cpu_ns()?,
        };
        Some(now_ns.saturating_sub(self.cpu_taken_ns.load(Ordering::Relaxed)))
    }

    /// Its process stands for this invocation from now on.
    pub fn stand_for(&self, invocation: InvocationId) {
        self.stands_for.store(invocation.0, Ordering::Relaxed);
    }

    /// It does so no more. False: it stands for another one by now.
    pub fn stop_standing_for(&self, invocation: InvocationId) -> bool {
        self.stands_for.compare_exchange(invocation.0, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether it stands for any.
    pub fn stands_for_any(&self) -> bool {
        self.stands_for.load(Ordering::Relaxed) != 0
    }

    /// Tells of its blocking and waking from now on, under this name, if that is to be had.
    pub fn watch(&self, invocation: InvocationId) {
        if let Some(tracked) = &*self.tracked.load() {
            tracked.watch(invocation.0);
        }
    }

    /// Tells no more under this name; under another's, which it may have by now, it does.
    pub fn unwatch(&self, invocation: InvocationId) {
        if let Some(tracked) = &*self.tracked.load() {
            tracked.unwatch(invocation.0);
        }
    }

    /// Whether it is known to wait for something else than a core.
    pub fn is_blocked(&self) -> bool {
        self.tracked.load().as_ref().is_some_and(|tracked| tracked.is_blocked())
    }

    /// Binds it to one CPU, or lets it run wherever spryd may. Only on the thread that reaps it (the pid must still be its own).
    pub fn bind_to(&self, cpu: Option<usize>) {
        if self.ended.load(Ordering::SeqCst) {
            return;
        }
        self.home.store(cpu.map_or(NOWHERE, |cpu| cpu as u32), Ordering::Relaxed);
        let cpus = cpu.and_then(CpuSet::only).unwrap_or(self.cpus);
        if let Err(error) = sys::set_affinity(self.pid, &cpus) {
            tracing::debug!(pid = self.pid, %error, "an instance could not be placed");
        }
    }

    /// Whether it interrupts whoever runs on its core when it is woken. Only on the thread that reaps it.
    pub fn set_preempting(&self, preempts: bool) {
        if self.has_ended() || self.preempts.swap(preempts, Ordering::Relaxed) == preempts {
            return;
        }
        if let Err(error) = sys::set_preempting(self.pid, preempts) {
            tracing::debug!(pid = self.pid, %error, "an instance's scheduling class could not be set");
        }
    }

    /// Whether it is bound to a CPU.
    pub fn has_home(&self) -> bool {
        self.home.load(Ordering::Relaxed) != NOWHERE
    }

    /// A worker on `cpu` got an answer from it. True when it should move there: it has served that worker for a while,
    /// and each of those calls woke another core twice.
    pub fn served_from(&self, cpu: usize) -> bool {
        let home = self.home.load(Ordering::Relaxed);
        if home == NOWHERE || home == cpu as u32 {
            self.strangers.store(0, Ordering::Relaxed);
            return false;
        }
        let moves = self.strangers.fetch_add(1, Ordering::Relaxed) + 1 >= MOVE_AFTER;
        if moves {
            self.strangers.store(0, Ordering::Relaxed);
        }
        moves
    }

    /// Counts an answer; returns how many there were before.
    pub fn answered(&self, now_unix_ms: u64) -> u64 {
        self.used_unix_ms.store(now_unix_ms, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed)
    }

    /// It has answered: what it has used for that. (What its process does after an answer counts for the next.)
    pub fn take_used(&self) -> Used {
        let Some(cpu_ns) = self.cpu_since_answer_ns() else { return Used::UNKNOWN };
        self.cpu_taken_ns.fetch_add(cpu_ns, Ordering::Relaxed);
        let wait_ns = self.tracked.load().as_ref().map_or(0, |tracked| {
            let wait_ns = tracked.times().wait_ns;
            wait_ns.saturating_sub(self.wait_taken_ns.swap(wait_ns, Ordering::Relaxed))
        });
        let now_unix_ms = self.used_unix_ms();
        let looked = self.memory_looked_unix_ms.load(Ordering::Relaxed);
        if now_unix_ms.saturating_sub(looked) >= MEMORY_EVERY_MS || looked > now_unix_ms {
            self.memory_looked_unix_ms.store(now_unix_ms, Ordering::Relaxed);
            if let Some(bytes) = memory_peak(self.pid) {
                self.memory_bytes.store(bytes, Ordering::Relaxed);
            }
        }
        let memory_bytes = Some(self.memory_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0);
        Used { cpu_ns: Some(cpu_ns), wait_ns, memory_bytes }
    }

    /// When it last answered, or was made.
    pub fn used_unix_ms(&self) -> u64 {
        self.used_unix_ms.load(Ordering::Relaxed)
    }

    /// Answers so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Whether it says that it began this invocation. It may lie; that hurts its own function only.
    pub fn has_begun(&self, invocation: InvocationId) -> bool {
        self.begun() == Some(invocation)
    }

    /// The invocation that it says it began last.
    pub fn begun(&self) -> Option<InvocationId> {
        begun::read(&self.outbox)
    }

    /// Gives an answer's block back to the instance, unread.
    pub fn discard(&self, answer: &Descriptor) {
        if (answer.segment, answer.generation) == (self.outbox_name.id, self.outbox_name.generation) {
            self.release.post(answer.offset);
        }
    }

    /// A chain keeps a block of the outbox, until [`Self::give_back`].
    pub fn keep_block(&self) {
        self.kept_blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// A chain keeps the block at `offset` no longer: the instance may use it again.
    pub fn give_back(&self, offset: u32) {
        self.uncount_block();
        self.release.post(offset);
    }

    /// A chain has counted a block that it keeps twice.
    pub fn uncount_block(&self) {
        self.kept_blocks.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether chains keep so many blocks of the outbox that the instance may soon have none for its next answer.
    pub fn is_short_of_blocks(&self) -> bool {
        self.kept_blocks.load(Ordering::Relaxed) >= KEPT_BLOCKS_MAX
    }
}

/// `VmHWM` of a process.
fn memory_peak(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
