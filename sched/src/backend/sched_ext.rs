//! Ranks in memory that is shared with a scheduler in BPF: what `spry-scx` has loaded (`ebpf/scx`), while it is there.
//!
//! Every process of a function has a slot there, from its birth on: SCHED_EXT is below the fair class, so whoever were left
//! out would go before all that are in. A rank is a store to memory; the kernel keeps the order. The slot holds the
//! process's CPU limit, too, which control groups don't hold in that class.
//!
//! **When it ends** (stopped, killed, thrown out by the kernel) all are in the fair class at once, by the kernel's doing.
//! [`SchedExt::apply`] sees that with one load, and tells [`Posix`] from then on; [`Backend::look`] takes the slots away,
//! and finds the next scheduler's maps when there is one. Nothing waits for it, and nothing fails with it.
//!
//! Whom it has no slot for (there are 4096) stays in the fair class and is steered by [`Posix`].

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spry_scx::{OpenError, Scheduler, Standing as Place, Task};

use super::{Backend, Change, Kind, Posix, Process, Standing};

/// Where `spry-scx` keeps its maps unless told otherwise.
pub const PIN_DIR: &str = spry_scx::PIN_DIR;
/// There when the kernel can have schedulers in BPF.
pub const KERNEL: &str = "/sys/kernel/sched_ext";
/// How often it is looked whether it has ended, or has begun.
const LOOK: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub struct SchedExt {
    folder: PathBuf,
    posix: Posix,
    /// Whether this kernel can.
    able: bool,
    /// For those who only ask whether.
    in_use: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scheduler: Option<Scheduler>,
    /// All that live, by pid, with the cores that they may use.
    processes: HashMap<i32, (Arc<Process>, f64)>,
    fallbacks: u64,
    /// Why it isn't in use, when it isn't.
    why: String,
    /// How the last one ended.
    ended: Option<String>,
    /// Why the last process that has no slot has none.
    refused: Option<String>,
}

impl SchedExt {
    /// With the scheduler whose maps are in `folder`, if there is one now; with `posix` while there is none.
    pub fn open(folder: &Path, posix: Posix) -> Self {
        let able = Path::new(KERNEL).is_dir();
        let why = "the kernel has none (CONFIG_SCHED_CLASS_EXT, Linux 6.12)".to_owned();
        let state = Mutex::new(State { why, ..State::default() });
        let this = Self { folder: folder.to_owned(), posix, able, in_use: AtomicBool::new(false), state };
        let _first = this.look();
        this
    }

    /// Whether there is one now whose maps are in `folder`; if not, why.
    pub fn probe(folder: &Path) -> Result<(), String> {
        Scheduler::open(folder).map(drop).map_err(|error| error.to_string())
    }

    /// Takes it up: all who live get slots.
    fn take_up(&self, state: &mut State, scheduler: Scheduler) -> Change {
        state.refused = None;
        for (process, cpu) in state.processes.values() {
            // As it was set, it would be again after the next fall.
            let _ended = self.posix.apply(process, Standing::FREE);
            if let Err(error) = give_slot(&scheduler, process, *cpu) {
                state.refused = Some(error.to_string());
            }
        }
        state.scheduler = Some(scheduler);
        state.why.clear();
        self.in_use.store(true, Ordering::Relaxed);
        Change::Up
    }

    /// It has ended: the slots mean nothing any more.
    fn give_up(&self, state: &mut State, how: String) -> Change {
        self.in_use.store(false, Ordering::Relaxed);
        state.scheduler = None;
        state.fallbacks += 1;
        state.ended = Some(how.clone());
        state.why = "it is looked for four times a second".to_owned();
        for (process, _) in state.processes.values() {
            drop(process.slot.lock().take());
        }
        Change::Down(how)
    }
}

/// Puts a process into the scheduler's hands. One that has ended needs no slot.
fn give_slot(scheduler: &Scheduler, process: &Process, cpu: f64) -> io::Result<()> {
    match scheduler.claim(process.pid(), Arc::clone(process.pidfd()), Some(cpu)) {
        Ok(task) => {
            stand(&task, Standing::FREE);
            *process.slot.lock() = Some(task);
            Ok(())
        }
        Err(_) if !process.is_alive() => Ok(()),
        Err(error) => Err(error),
    }
}

fn stand(task: &Task, standing: Standing) {
    let place = Place { rank: standing.rank, fall: standing.fall };
    if standing == Standing::SHARED {
        task.share(standing.rank);
    } else if standing.begins {
        task.next(place);
    } else {
        task.stand(place);
    }
}

impl Backend for SchedExt {
    fn kind(&self) -> Kind {
        if self.keeps_order() { Kind::SchedExt } else { Kind::Posix }
    }

    fn describe(&self) -> String {
        let state = self.state.lock();
        let ended = state.ended.as_ref().map(|how| {
            let times =
                if state.fallbacks == 1 { "once".into() } else { format!("{} times", state.fallbacks) };
            format!("left {times}, last because: {how}")
        });
        let (how, rest) = match &state.scheduler {
            Some(_) => {
                let refused =
                    state.refused.as_ref().map(|why| format!("not all processes have a slot: {why}"));
                let how = "ranks in the kernel, by spry-scx".to_owned();
                (how, [ended.map(|ended| format!("it was {ended}")), refused])
            }
            None => {
                let ended = ended.map_or_else(String::new, |ended| format!("{ended}; "));
                (self.posix.describe(), [Some(format!("not sched_ext: {ended}{}", state.why)), None])
            }
        };
        rest.into_iter().flatten().fold(how, |text, more| format!("{text}; {more}"))
    }

    fn wants_ranks(&self) -> bool {
        self.keeps_order() || self.posix.wants_ranks()
    }

    fn keeps_order(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    fn apply(&self, process: &Process, standing: Standing) -> io::Result<()> {
        if let Some(task) = &*process.slot.lock()
            && task.is_running()
        {
            stand(task, standing);
            return Ok(());
        }
        self.posix.apply(process, standing)
    }

    fn adopt(&self, process: &Arc<Process>, cpu: f64) {
        let mut state = self.state.lock();
        if let Some(Err(error)) = state.scheduler.as_ref().map(|scheduler| give_slot(scheduler, process, cpu))
        {
            state.refused = Some(error.to_string());
        }
        state.processes.insert(process.pid(), (Arc::clone(process), cpu));
    }

    fn release(&self, process: &Process) {
        let mut state = self.state.lock();
        state.processes.remove(&process.pid());
        drop(process.slot.lock().take());
    }

    fn look_every(&self) -> Option<Duration> {
        self.able.then_some(LOOK)
    }

    fn look(&self) -> Option<Change> {
        if !self.able {
            return None;
        }
        let mut state = self.state.lock();
        match &state.scheduler {
            Some(scheduler) if scheduler.is_running() => None,
            Some(scheduler) => {
                let how = scheduler.health().to_string();
                Some(self.give_up(&mut state, how))
            }
            None => match Scheduler::open(&self.folder) {
                Ok(scheduler) => Some(self.take_up(&mut state, scheduler)),
                // What is still pinned of the one that was left, or of an earlier one.
                Err(OpenError::Ended(how)) => {
                    state.why = format!("what is pinned in {} has ended ({how})", self.folder.display());
                    None
                }
                Err(error) => {
                    state.why = error.to_string();
                    None
                }
            },
        }
    }

    fn fallbacks(&self) -> u64 {
        self.state.lock().fallbacks
    }
}
