//! The thread's own work: starting, watching and reaping, and putting groups away.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use spry_sched::backend::Process;
use tokio::sync::watch;

use super::adopt::end_unknown;
use super::forks::{Forks, Moment};
use super::{Child, Command, Steward};
use crate::cgroup::watchdog::Watchdog;
use crate::cgroup::{Controller, GroupLimits, Leaf, Tree};
use crate::sandbox::{self, PidNamespace, Plan, StepReport};
use crate::sys::{self, Which};
use crate::zygote::exit::Exit;

/// Epoll data of the eventfd; pids and leftovers have smaller numbers.
pub(super) const COMMANDS: u64 = u64::MAX;
/// Set in the epoll data of a leftover's pidfd.
const LEFTOVER: u64 = 1 << 40;
/// How long the end waits for killed processes.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Known {
    pub(super) pidfd: Arc<OwnedFd>,
    pub(super) process: Arc<Process>,
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) leaf: Leaf,
    /// A zygote's: where it waits for its next fork.
    pub(super) ahead: Option<Leaf>,
    /// Is it there?
    pub(super) placed: watch::Sender<bool>,
}

/// Processes that were killed to empty a leaf.
#[derive(Debug)]
pub(super) struct Leftover {
    leaf: Leaf,
    pidfds: Vec<OwnedFd>,
}

/// The thread's own state.
pub(super) struct Keeper {
    pub(super) epoll: Epoll,
    pub(super) wake: Arc<EventFd>,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) tree: Arc<Tree>,
    pub(super) watchdog: Option<Arc<Watchdog>>,
    pub(super) steward: Steward,
    pub(super) forks: Arc<Forks>,
    pub(super) known: HashMap<i32, Known>,
    /// The inits of pid namespaces.
    pub(super) inits: HashMap<i32, OwnedFd>,
    pub(super) leftovers: HashMap<u64, Leftover>,
    pub(super) next_leftover: u64,
    /// Leaves to clear, when no fork is under way any more that was then.
    pub(super) deferred: Vec<(Moment, Leaf)>,
    /// A dead child that nobody has spoken of, and when it was found.
    pub(super) stray: Option<(i32, Moment)>,
}

impl Keeper {
    pub(super) fn run(&mut self) {
        loop {
            self.wait_and_reap(EpollTimeout::NONE);
            loop {
                match self.inbox.try_recv() {
                    Ok(Command::Spawn(plan, leaf, limits, reply)) => {
                        let _ = reply.send(self.spawn(&plan, leaf, limits));
                    }
                    Ok(Command::Adopt(adoption, reply)) => {
                        let zygote = adoption.zygote;
                        let (result, spare) = self.adopt(*adoption);
                        let born = result.as_ref().ok().map(|child| child.pid);
                        let _ = reply.send(result);
                        // before anything is reaped: what is in a dead instance's group is killed
                        self.place_ahead(zygote, spare);
                        if let Some(born) = born.and_then(|pid| self.known.get_mut(&pid)) {
                            born.leaf.set_common_end(true);
                        }
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
        self.reap_strays();
        for (since, leaf) in std::mem::take(&mut self.deferred) {
            self.retire_since(since, leaf);
        }
    }

    fn spawn(&mut self, plan: &Plan, mut leaf: Leaf, limits: GroupLimits) -> io::Result<(Child, StepReport)> {
        let (namespace, init) = match plan.init() {
            Some(user) => {
                let (namespace, report) = PidNamespace::start(user)?;
                let pid = namespace.pid();
                self.epoll.add(namespace.init(), EpollEvent::new(EpollFlags::EPOLLIN, pid as u64))?;
                self.inits.insert(pid, namespace.init().try_clone_to_owned()?);
                (Some(Arc::new(namespace)), Some(report))
            }
            None => (None, None),
        };
        leaf.set_common_end(true);
        let spawned = sandbox::spawn(plan, namespace.as_deref())?;
        let child = self.know(spawned.pid, spawned.pidfd, leaf, limits, namespace)?;
        Ok((child, spawned.report.after(init)))
    }

    pub(super) fn know(
        &mut self,
        pid: i32,
        pidfd: OwnedFd,
        leaf: Leaf,
        limits: GroupLimits,
        namespace: Option<Arc<PidNamespace>>,
    ) -> io::Result<Child> {
        let pidfd = Arc::new(pidfd);
        let (sender, exit) = watch::channel(None);
        let (told, placed) = watch::channel(false);
        if let Err(errno) = self.epoll.add(&*pidfd, EpollEvent::new(EpollFlags::EPOLLIN, pid as u64)) {
            end_unknown(pidfd.as_fd());
            self.deferred.push((self.forks.now(), leaf)); // its zygote may be in there, about to be moved
            return Err(errno.into());
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.watch(pid, pidfd.clone(), limits.memory_bytes);
        }
        let process = Arc::new(Process::new(pid, pidfd.clone(), leaf.cpu_folder().map(Path::to_owned)));
        if let Some(backend) = self.steward.get() {
            backend.adopt(&process, limits.cpu);
        }
        let (known, ours) = (pidfd.clone(), process.clone());
        let known = Known { pidfd: known, process: ours, exit: sender, leaf, ahead: None, placed: told };
        self.known.insert(pid, known);
        Ok(Child { pid, pidfd, process, exit, placed, namespace })
    }

    fn reap(&mut self, pid: i32) {
        if let Some(init) = self.inits.remove(&pid) {
            return self.reap_init(pid, init);
        }
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
                if let Some(known) = self.known.remove(&pid) {
                    self.release(&known);
                }
                return;
            }
        };
        let Some(known) = self.known.remove(&pid) else { return };
        self.release(&known);
        let _ = self.epoll.delete(&*known.pidfd);
        known.exit.send_replace(Some(Exit::new(dead, out_of_memory)));
        self.retire(known.leaf);
        if let Some(leaf) = known.ahead {
            self.retire(leaf);
        }
    }

    fn reap_init(&mut self, pid: i32, init: OwnedFd) {
        match sys::wait(Which::Child(init.as_fd()), true) {
            Ok(None) => drop(self.inits.insert(pid, init)),
            Ok(Some(_)) => {}
            Err(error) => tracing::error!("reap init {pid} of a pid namespace: {error}"),
        }
    }

    fn release(&self, known: &Known) {
        if let Some(backend) = self.steward.get() {
            backend.release(&known.process);
        }
    }

    /// Kills what a dead process left in its leaf; gives the leaf back when it is empty.
    fn retire(&mut self, leaf: Leaf) {
        self.retire_since(self.forks.now(), leaf);
    }

    fn retire_since(&mut self, since: Moment, mut leaf: Leaf) {
        if self.forks.lasts(since, |of| leaf.is_of(of)) {
            return self.deferred.push((since, leaf));
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
            if self.known.contains_key(&dead.pid) || self.inits.contains_key(&dead.pid) {
                return self.reap(dead.pid); // its event would come; this way the list moves on
            }
            let found = self.stray.filter(|(pid, _)| *pid == dead.pid);
            let (_, since) = *self.stray.insert(found.unwrap_or((dead.pid, self.forks.now())));
            if self.forks.lasts(since, |_| true) {
                return;
            }
            self.stray = None;
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
        self.forks = Arc::default();
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

fn is_alive(pidfd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}
