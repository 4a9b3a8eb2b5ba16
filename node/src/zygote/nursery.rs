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
//!   control group, die with it, and are reaped here as soon as no fork is under way.
//!
//! - **Placing ahead.** Moving a process between control groups waits for an RCU grace period, some 7 ms when none
//!   has just been. So it is the zygote that is moved, after each fork, into the group of the *next* instance,
//!   which is then born in its place. No fork is asked for before the zygote is there: what an instance forks before
//!   it has been moved would stay behind, out of its limits and of its death. One that was born elsewhere all the
//!   same (its zygote forked unasked) is moved, and what it left behind dies with the zygote.
//!
//! Between events the thread sleeps in epoll: on the pidfds of its children, on those of leftovers that it has
//! killed, and on an eventfd for commands.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{oneshot, watch};

use super::exit::Exit;
use crate::cgroup::watchdog::Watchdog;
use crate::cgroup::{CgroupError, Controller, Leaf, Tree};
use crate::sandbox::{self, Ability, Plan, StepReport};
use crate::sys::{self, Which};

/// Epoll data of the eventfd; pids and leftovers have smaller numbers.
const COMMANDS: u64 = u64::MAX;
/// Set in the epoll data of a leftover's pidfd.
const LEFTOVER: u64 = 1 << 40;
/// How long the end waits for killed processes.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A child that is being watched. Dropping it kills the process; the nursery reaps it in any case.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: Arc<OwnedFd>,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    /// A zygote's: is it where its next instance is to be born?
    placed: watch::Receiver<bool>,
}

impl Child {
    /// Waits until a zygote is in its next instance's group; for ever, if it is dead.
    pub(super) async fn placed(&self) {
        if self.placed.clone().wait_for(|placed| *placed).await.is_err() {
            std::future::pending().await
        }
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

/// Why a process that a zygote presented isn't taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdoptError {
    #[error("what it sent is not a process descriptor")]
    NotAPidfd,
    #[error("process {0} is not a child of spryd")]
    NotAChild(i32),
    #[error("process {0} is known already")]
    Known(i32),
    #[error("process {pid} belongs to user {uid}")]
    OtherUser { pid: i32, uid: u32 },
    #[error("it said process {said}, and sent the descriptor of process {is}")]
    OtherPid { said: i32, is: i32 },
    /// It was, and has been reaped as a stray: nobody's fault.
    #[error("the process ended before it was known")]
    Gone,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("look at the new process: {0}")]
    Os(#[from] io::Error),
}

/// What a zygote said about a new process, and what must hold.
#[derive(Debug)]
pub(super) struct Adoption {
    pub(super) pidfd: OwnedFd,
    pub(super) pid: i32,
    pub(super) uid: Option<u32>,
    /// Who forked it.
    pub(super) zygote: i32,
    /// For the new process, unless it was born in one: then the zygote goes there, ahead of its next fork.
    pub(super) leaf: Leaf,
    pub(super) memory_bytes: u64,
}

enum Command {
    Spawn(Box<Plan>, Leaf, u64, oneshot::Sender<io::Result<(Child, StepReport)>>),
    Adopt(Box<Adoption>, oneshot::Sender<Result<Child, AdoptError>>),
    PlaceAhead(i32, Leaf),
    Stop,
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Nursery {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    forks_under_way: Arc<AtomicUsize>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    watchdog: Option<Arc<Watchdog>>,
    done: watch::Receiver<bool>,
}

/// While it lives, what nobody knows is left alone: a dead child may be about to be adopted, a live one may have been
/// born in the group of an instance that has died since.
#[derive(Debug)]
pub(super) struct ForkUnderWay {
    count: Arc<AtomicUsize>,
    wake: Arc<EventFd>,
}

impl Drop for ForkUnderWay {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.wake.write(1);
        }
    }
}

impl Nursery {
    /// Starts the thread, which first finds out what the kernel allows.
    pub(super) fn start(tree: Arc<Tree>) -> io::Result<(Self, Ability)> {
        let (commands, inbox) = mpsc::channel();
        let (done_sender, done) = watch::channel(false);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, COMMANDS))?;
        let watchdog = match tree.has(Controller::Memory) {
            true => None,
            false => Some(Arc::new(Watchdog::start()?)),
        };
        let forks_under_way = Arc::new(AtomicUsize::new(0));
        let mut keeper = Keeper {
            epoll,
            wake: wake.clone(),
            inbox,
            tree,
            watchdog: watchdog.clone(),
            forks_under_way: forks_under_way.clone(),
            known: HashMap::new(),
            leftovers: HashMap::new(),
            next_leftover: 0,
            deferred: Vec::new(),
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
        Ok((Self { commands, wake, forks_under_way, thread, watchdog, done }, ability))
    }

    /// Runs a plan. The leaf goes with the process.
    pub(super) async fn spawn(
        &self,
        plan: Plan,
        leaf: Leaf,
        memory_bytes: u64,
    ) -> io::Result<(Child, StepReport)> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Spawn(Box::new(plan), leaf, memory_bytes, reply));
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

    pub(super) fn fork_begins(&self) -> ForkUnderWay {
        self.forks_under_way.fetch_add(1, Ordering::AcqRel);
        ForkUnderWay { count: self.forks_under_way.clone(), wake: self.wake.clone() }
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

#[derive(Debug)]
struct Known {
    pidfd: Arc<OwnedFd>,
    exit: watch::Sender<Option<Exit>>,
    leaf: Leaf,
    /// A zygote's: where it waits for its next fork.
    ahead: Option<Leaf>,
    /// Is it there?
    placed: watch::Sender<bool>,
}

/// Processes that were killed to empty a leaf.
#[derive(Debug)]
struct Leftover {
    leaf: Leaf,
    pidfds: Vec<OwnedFd>,
}

/// The thread's own state.
struct Keeper {
    epoll: Epoll,
    wake: Arc<EventFd>,
    inbox: mpsc::Receiver<Command>,
    tree: Arc<Tree>,
    watchdog: Option<Arc<Watchdog>>,
    forks_under_way: Arc<AtomicUsize>,
    known: HashMap<i32, Known>,
    leftovers: HashMap<u64, Leftover>,
    next_leftover: u64,
    /// Leaves to retire when no fork is under way.
    deferred: Vec<Leaf>,
}

impl Keeper {
    fn run(&mut self) {
        loop {
            self.wait_and_reap(EpollTimeout::NONE);
            loop {
                match self.inbox.try_recv() {
                    Ok(Command::Spawn(plan, leaf, memory_bytes, reply)) => {
                        let _ = reply.send(self.spawn(&plan, leaf, memory_bytes));
                    }
                    Ok(Command::Adopt(adoption, reply)) => {
                        let zygote = adoption.zygote;
                        let (result, spare) = self.adopt(*adoption);
                        let _ = reply.send(result);
                        // before anything is reaped: what is in a dead instance's group is killed
                        self.place_ahead(zygote, spare);
                    }
                    Ok(Command::PlaceAhead(zygote, leaf)) => self.place_ahead(zygote, Some(leaf)),
                    Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return self.stop(),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.tree.retry_removals();
        }
    }

    fn wait_and_reap(&mut self, timeout: EpollTimeout) {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => {
                tracing::error!("wait for children: {error}");
                std::thread::sleep(Duration::from_millis(10)); // can't happen; if it does, don't spin
                0
            }
        };
        for event in &events[..count] {
            match event.data() {
                COMMANDS => drop(self.wake.read()),
                token if token & LEFTOVER != 0 => self.leftover_died(token),
                pid => self.reap(pid as i32),
            }
        }
        if self.forks_under_way.load(Ordering::Acquire) == 0 {
            self.reap_strays();
            for leaf in std::mem::take(&mut self.deferred) {
                self.retire(leaf);
            }
        }
    }

    fn spawn(&mut self, plan: &Plan, leaf: Leaf, memory_bytes: u64) -> io::Result<(Child, StepReport)> {
        let spawned = sandbox::spawn(plan)?;
        let child = self.know(spawned.pid, spawned.pidfd, leaf, memory_bytes)?;
        Ok((child, spawned.report))
    }

    fn know(&mut self, pid: i32, pidfd: OwnedFd, leaf: Leaf, memory_bytes: u64) -> io::Result<Child> {
        let pidfd = Arc::new(pidfd);
        let (sender, exit) = watch::channel(None);
        let (told, placed) = watch::channel(false);
        self.epoll.add(&*pidfd, EpollEvent::new(EpollFlags::EPOLLIN, pid as u64))?;
        if let Some(watchdog) = &self.watchdog {
            watchdog.watch(pid, pidfd.clone(), memory_bytes);
        }
        self.known.insert(pid, Known { pidfd: pidfd.clone(), exit: sender, leaf, ahead: None, placed: told });
        Ok(Child { pid, pidfd, exit, placed })
    }

    /// The child, or why not; and the leaf that was brought along, if it isn't the child's.
    fn adopt(&mut self, adoption: Adoption) -> (Result<Child, AdoptError>, Option<Leaf>) {
        let pid = match self.identify(&adoption.pidfd) {
            Ok(pid) => pid,
            Err(error) => return (Err(error), Some(adoption.leaf)),
        };
        // From here on it is our child and stays unreaped, so its pid names it. What is wrong with it is its end.
        let ours = match sys::pidfd_open(pid) {
            Ok(ours) => ours,
            Err(error) => return (Err(error.into()), Some(adoption.leaf)),
        };
        let zygote = self.known.get_mut(&adoption.zygote);
        let born_in = zygote.and_then(|zygote| {
            let leaf = zygote.ahead.take_if(|leaf| leaf.holds(pid))?;
            zygote.placed.send_replace(false); // before anyone is told of this instance, and asks for another
            Some(leaf)
        });
        let (leaf, spare) = match born_in {
            Some(leaf) => (leaf, Some(adoption.leaf)),
            None => (adoption.leaf, None),
        };
        let checked = self.check(pid, adoption.pid, adoption.uid, &leaf);
        match self.know(pid, ours, leaf, adoption.memory_bytes) {
            Ok(child) => (checked.map(|()| child), spare),
            Err(error) => (Err(error.into()), spare),
        }
    }

    /// Which process a zygote means: a child of this thread that isn't known yet.
    fn identify(&self, theirs: &OwnedFd) -> Result<i32, AdoptError> {
        let is_child = sys::wait(Which::Child(theirs.as_fd()), false);
        if is_child == Err(Errno::EBADF) {
            return Err(AdoptError::NotAPidfd);
        }
        let pid = pid_of(theirs)?;
        match is_child {
            Ok(_) if pid > 0 => {}
            Err(Errno::ECHILD) if pid == -1 => return Err(AdoptError::Gone),
            Ok(_) | Err(Errno::ECHILD) => return Err(AdoptError::NotAChild(pid)),
            Err(errno) => return Err(AdoptError::Os(errno.into())),
        }
        if self.known.contains_key(&pid) { Err(AdoptError::Known(pid)) } else { Ok(pid) }
    }

    /// Moves a zygote to where its next instance is to be born. If that fails it must not stay in an instance's
    /// group, which dies with the instance: such a zygote ends.
    fn place_ahead(&mut self, zygote: i32, spare: Option<Leaf>) {
        let (Some(leaf), Some(known)) = (spare, self.known.get_mut(&zygote)) else { return };
        if known.ahead.is_some() {
            return; // it wasn't the zygote's place that was used up; the leaf isn't needed
        }
        if let Err(error) = leaf.place(zygote) {
            tracing::warn!("place zygote {zygote} for its next fork: {error}");
            let _ = sys::pidfd_signal(known.pidfd.as_fd(), libc::SIGKILL);
        } else {
            known.placed.send_replace(true);
        }
        known.ahead = Some(leaf);
    }

    fn check(&self, pid: i32, said: i32, uid: Option<u32>, leaf: &Leaf) -> Result<(), AdoptError> {
        if pid != said {
            return Err(AdoptError::OtherPid { said, is: pid });
        }
        if let Some(uid) = uid
            && let Some(other) = user_of(pid).filter(|is| *is != uid)
        {
            return Err(AdoptError::OtherUser { pid, uid: other });
        }
        if !leaf.holds(pid)
            && let Err(error) = leaf.place(pid)
            && error.source.raw_os_error() != Some(Errno::ESRCH as i32)
        {
            return Err(error.into()); // ESRCH: dead already, which its reaping will tell
        }
        Ok(())
    }

    fn reap(&mut self, pid: i32) {
        let Some(known) = self.known.get(&pid) else { return };
        // read while the zombie still holds the pid
        let killed = self.watchdog.as_ref().is_some_and(|watchdog| watchdog.forget(pid));
        let out_of_memory = killed || known.leaf.out_of_memory();
        if !self.tree.has(Controller::Pids) {
            let _ = sys::kill_hard(-pid); // its process group, if it made one
        }
        let dead = match sys::wait(Which::Child(known.pidfd.as_fd()), true) {
            Ok(Some(dead)) => dead,
            Ok(None) => return, // a thread of it lives on; there will be another event
            Err(error) => {
                tracing::error!("reap process {pid}: {error}");
                self.known.remove(&pid);
                return;
            }
        };
        let Some(known) = self.known.remove(&pid) else { return };
        let _ = self.epoll.delete(&*known.pidfd);
        known.exit.send_replace(Some(Exit::new(dead, out_of_memory)));
        self.retire(known.leaf);
        if let Some(leaf) = known.ahead {
            self.retire(leaf);
        }
    }

    /// Kills what a dead process left in its leaf; gives the leaf back when it is empty.
    fn retire(&mut self, mut leaf: Leaf) {
        if self.forks_under_way.load(Ordering::Acquire) > 0 {
            return self.deferred.push(leaf);
        }
        let pidfds = leaf.kill();
        if pidfds.is_empty() {
            return leaf.recycle();
        }
        let token = LEFTOVER | self.next_leftover;
        self.next_leftover = (self.next_leftover + 1) % LEFTOVER;
        for pidfd in &pidfds {
            if let Err(error) = self.epoll.add(pidfd, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
                tracing::warn!("watch what was left in a control group: {error}");
            }
        }
        self.leftovers.insert(token, Leftover { leaf, pidfds });
    }

    fn leftover_died(&mut self, token: u64) {
        let Some(leftover) = self.leftovers.get_mut(&token) else { return };
        let epoll = &self.epoll;
        leftover.pidfds.retain(|pidfd| {
            let alive = is_alive(pidfd);
            if !alive {
                let _ = epoll.delete(pidfd);
            }
            alive
        });
        if leftover.pidfds.is_empty()
            && let Some(leftover) = self.leftovers.remove(&token)
        {
            self.retire(leftover.leaf);
        }
    }

    /// Dead children that nobody has spoken of.
    fn reap_strays(&mut self) {
        while let Ok(Some(dead)) = sys::wait(Which::Any, false) {
            if self.known.contains_key(&dead.pid) {
                return self.reap(dead.pid); // its event would come; this way the list moves on
            }
            match sys::wait(Which::Pid(dead.pid), true) {
                Ok(Some(_)) => {
                    tracing::warn!("reaped process {}, which its zygote had not reported", dead.pid)
                }
                _ => return,
            }
        }
    }

    fn stop(&mut self) {
        for known in self.known.values() {
            let _ = sys::pidfd_signal(known.pidfd.as_fd(), libc::SIGKILL);
        }
        self.forks_under_way = Arc::default();
        let until = Instant::now() + STOP_PATIENCE;
        while Instant::now() < until {
            for pid in my_children().into_iter().filter(|pid| !self.known.contains_key(pid)) {
                let _ = sys::kill_hard(pid); // a child of this thread, which alone reaps: the pid is its
            }
            if self.known.is_empty()
                && self.leftovers.is_empty()
                && self.deferred.is_empty()
                && sys::wait(Which::Any, false) == Err(Errno::ECHILD)
            {
                break;
            }
            self.wait_and_reap(EpollTimeout::from(20_u8));
        }
        for pid in self.known.keys() {
            tracing::error!("process {pid} doesn't die");
        }
        if let Err(error) = self.tree.remove() {
            tracing::warn!("remove the control groups: {error}");
        }
    }
}

/// The live and dead children of this thread.
fn my_children() -> Vec<i32> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What a pidfd's process is called here: -1 when it has been reaped, 0 when it isn't visible.
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|pid| pid.trim().parse().ok()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The real user of a process.
fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

fn is_alive(pidfd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}
