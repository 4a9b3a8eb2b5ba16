//! The thread that is every function process's parent.
//!
//! One thread starts all zygotes, and so (`CLONE_PARENT`) gets all their instances as children. That buys:
//!
//! - **The death signal.** `PR_SET_PDEATHSIG` fires when the *thread* that forked ends. This thread lives as long as the
//!   [`Nursery`], so that processes die with spryd and not with some worker.
//! - **Reaping in one place.** Only this thread waits, with `__WNOTHREAD`, so it sees function processes alone
//!   (never a `std::process` child of another thread), nobody else can reap them, and a pid that it knows
//!   can't be reused under it. That is what makes writing a pid to `cgroup.procs` safe.
//! - **Telling true from false.** A zygote is hostile once it has loaded its function: it may send any pidfd. Adopting
//!   checks that the process is this thread's child, isn't known yet, and has the function's user.
//! - **Strays.** A hostile zygote can fork children for spryd that it never reports. They are in its
//!   control group, die with it, and are reaped here as soon as no fork is under way that could have made them.
//!
//! - **Placing ahead.** Moving a process between control groups waits for an RCU grace period, some 7 ms when none
//!   has just been. So it is the zygote that is moved, after each fork, into the group of the *next* instance,
//!   which is then born in its place. No fork is asked for before the zygote is there: what an instance forks before
//!   it has been moved would stay behind, out of its limits and of its death. One that was born elsewhere all the
//!   same (its zygote forked unasked) is moved, and what it left behind dies with the zygote.
//!
//! - **Pid namespaces.** Each zygote has one, for itself and its instances. Its init is a child of this thread as well; it is
//!   killed, and with it whatever is left in there, when nobody holds the zygote or an instance of it any more.
//!
//! Between events the thread sleeps in epoll: on the pidfds of its children, on those of leftovers that it has
//! killed, and on an eventfd for commands.

mod adopt;
mod forks;
mod keeper;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use spry_sched::backend::{Backend, Process};
use tokio::sync::{oneshot, watch};

use super::exit::Exit;
use crate::cgroup::watchdog::Watchdog;
use crate::cgroup::{Controller, FunctionGroup, GroupLimits, Leaf, Tree};
use crate::sandbox::{Ability, PidNamespace, Plan, StepReport};
use crate::sys;
pub(super) use adopt::{AdoptError, Adoption};
use forks::Forks;
use keeper::{COMMANDS, Keeper};

/// A child that is being watched. Dropping it kills the process; the nursery reaps it in any case.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// The same for the scheduler's backend.
    pub(super) process: Arc<Process>,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    /// A zygote's: is it where its next instance is to be born?
    placed: watch::Receiver<bool>,
    /// Where it was born, with its siblings; ends with the last of them.
    pub(super) namespace: Option<Arc<PidNamespace>>,
}

impl Child {
    /// Waits until a zygote is in its next instance's group; for ever, if it is dead.
    pub(super) async fn placed(&self) {
        if self.placed.clone().wait_for(|placed| *placed).await.is_err() {
            std::future::pending().await
        }
    }

    /// The processor's time that it has had.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        self.process.cpu_ns().map(Duration::from_nanos)
    }

    pub(super) fn kill(&self) {
        if let Err(error) = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            tracing::warn!("kill process {}: {error}", self.pid);
        }
    }

    /// Its end, as the nursery told it. If the nursery has ended without (a process that doesn't die), it counts
    /// as killed: the kernel does that at the latest with spryd's own end.
    pub(super) async fn exited_or_lost(&self) -> Exit {
        let mut exit = self.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        told.unwrap_or(Exit::LOST)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            self.kill();
        }
    }
}

/// Who says whose processes go first, once that is known: he hears of each, from its birth to its end.
pub(super) type Steward = Arc<OnceLock<Arc<dyn Backend>>>;

enum Command {
    Spawn(Box<Plan>, Leaf, GroupLimits, oneshot::Sender<io::Result<(Child, StepReport)>>),
    Adopt(Box<Adoption>, oneshot::Sender<Result<Child, AdoptError>>),
    PlaceAhead(i32, Leaf),
    Stop,
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Nursery {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    forks: Arc<Forks>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    watchdog: Option<Arc<Watchdog>>,
    done: watch::Receiver<bool>,
}

/// While it lives, what nobody knows is left alone if this fork may have made it: see [`forks`].
#[derive(Debug)]
pub(super) struct ForkUnderWay {
    forks: Arc<Forks>,
    number: u64,
    wake: Arc<EventFd>,
}

impl Drop for ForkUnderWay {
    fn drop(&mut self) {
        self.forks.end(self.number);
        let _ = self.wake.write(1);
    }
}

impl Nursery {
    /// Starts the thread, which first finds out what the kernel allows.
    pub(super) fn start(tree: Arc<Tree>, steward: Steward) -> io::Result<(Self, Ability)> {
        let (commands, inbox) = mpsc::channel();
        let (done_sender, done) = watch::channel(false);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, COMMANDS))?;
        let watchdog = match tree.has(Controller::Memory) {
            true => None,
            false => Some(Arc::new(Watchdog::start()?)),
        };
        let forks = Arc::<Forks>::default();
        let mut keeper = Keeper {
            epoll,
            wake: wake.clone(),
            inbox,
            tree,
            watchdog: watchdog.clone(),
            steward,
            forks: forks.clone(),
            known: HashMap::new(),
            inits: HashMap::new(),
            leftovers: HashMap::new(),
            next_leftover: 0,
            deferred: Vec::new(),
            stray: None,
        };
        let (tell, told) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("spry-nursery".to_owned()).spawn(move || {
            sys::keep_dead_children();
            let _ = tell.send(Ability::find());
            keeper.run();
            let _ = done_sender.send(true);
        })?;
        let ability = told.recv().map_err(|_| io::Error::other("the nursery thread ended"))??;
        let thread = parking_lot::Mutex::new(Some(thread));
        Ok((Self { commands, wake, forks, thread, watchdog, done }, ability))
    }

    /// Runs a plan. The leaf goes with the process.
    pub(super) async fn spawn(
        &self,
        plan: Plan,
        leaf: Leaf,
        limits: GroupLimits,
    ) -> io::Result<(Child, StepReport)> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Spawn(Box::new(plan), leaf, limits, reply));
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the nursery has ended")))
    }

    /// Takes a process that a zygote presented, if it is what it should be.
    pub(super) async fn adopt(&self, adoption: Adoption) -> Result<Child, AdoptError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Adopt(Box::new(adoption), reply));
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the nursery has ended").into()))
    }

    /// Moves a zygote into the group that its first instance is to be born in.
    pub(super) fn place_ahead(&self, zygote: i32, leaf: Leaf) {
        self.send(Command::PlaceAhead(zygote, leaf));
    }

    /// A zygote of this function's is about to be asked.
    pub(super) fn fork_begins(&self, of: &Arc<FunctionGroup>) -> ForkUnderWay {
        let number = self.forks.begin(of);
        ForkUnderWay { forks: self.forks.clone(), number, wake: self.wake.clone() }
    }

    /// See [`Watchdog::nudge`].
    pub(super) fn nudge(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.nudge();
        }
    }

    /// Kills everything; returns when all is reaped and all control groups are removed.
    pub(super) async fn stop(&self) {
        self.send(Command::Stop);
        let _ = self.done.clone().wait_for(|done| *done).await;
        self.join();
    }

    fn join(&self) {
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the nursery thread panicked");
        }
    }

    fn send(&self, command: Command) {
        // after the end, the command's reply is dropped with it, which is the answer
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        self.send(Command::Stop);
        self.join();
    }
}
