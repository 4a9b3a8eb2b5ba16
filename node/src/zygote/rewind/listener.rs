//! Where the processes of one zygote ask before they make certain system calls, and what they are told.
//!
//! Everybody may answer who happens to look: the gateway's workers, each in its own loop, and the keeper while nobody else
//! is there yet or a process is being born. So what is decided here depends on the call and on the instance's own state
//! ([`Gate`]) alone.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use parking_lot::Mutex;
use spry_wire::rewind::{PLAN_AT, STUB_ASKS, at};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::common::Commons;
use super::gate::Gate;
use super::parents::Parents;
use crate::sys::rewind::{self as sys, Asked, Reply};

/// Calls that are answered in one go: whoever asks without end must not keep a thread from its other work.
const AT_ONCE: usize = 32;

/// Pages that are remembered: copying more takes longer than finding out and dropping them.
const WRITTEN_MAX: usize = 1024;

/// Pages of a zygote's instances that requests write to, beside those that differ before any request.
#[derive(Debug, Clone, Default)]
pub(in crate::zygote) struct Written {
    pub(super) pages: BTreeSet<u64>,
    /// How often some were found that weren't known.
    pub(super) generation: u32,
}

/// Whom instances ask.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Held while one call is taken: two who wait for one call would wait for ever.
    taking: Mutex<()>,
    gates: Mutex<HashMap<i32, Arc<Gate>>>,
    parents: Parents,
    /// Whether a gateway worker looks.
    looked_at: AtomicBool,
    written: Mutex<Written>,
    commons: Commons,
    /// Filters that each of its processes has: those of the zygote before it has run code of others.
    filters: u32,
    /// Told when one does.
    looked_after: Notify,
    /// Those that the keeper finds to have arrived.
    found: UnboundedSender<Arc<Gate>>,
}

impl Listener {
    /// Also: where those come from that [`Self::look`] finds to have arrived. `filters`: see [`super::filters`].
    pub(in crate::zygote) fn new(fd: OwnedFd, filters: u32) -> (Arc<Self>, UnboundedReceiver<Arc<Gate>>) {
        // Without it, it is slower.
        let _old_kernel = sys::wake_nearby(fd.as_fd());
        let (found, arrivals) = unbounded_channel();
        let listener = Self {
            fd,
            taking: Mutex::default(),
            gates: Mutex::default(),
            parents: Parents::default(),
            looked_at: AtomicBool::new(false),
            written: Mutex::default(),
            commons: Commons::default(),
            filters,
            looked_after: Notify::new(),
            found,
        };
        (Arc::new(listener), arrivals)
    }

    /// Answers all who ask, for as long as it is polled and there is anybody who could.
    pub(in crate::zygote) async fn look(&self) {
        let found = |gate| self.found.send(gate).is_err();
        let Ok(ready) = self.duplicate().and_then(crate::sys::watch_readable) else { return };
        while let Ok(more) = self.serve(found) {
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let Ok(mut guard) = ready.readable().await else { return };
            guard.clear_ready();
        }
    }

    /// The same until a gateway worker does.
    pub(in crate::zygote) async fn look_meanwhile(&self) {
        let looked_after = self.looked_after.notified();
        if !self.is_looked_after() {
            tokio::select! {
                () = self.look() => {}
                () = looked_after => {}
            }
        }
    }

    /// A gateway worker looks from now on, for all: every one that waits is woken by every call, and one is enough. The
    /// others take what they find when they have an answer. False: there is one already.
    pub fn begin_to_look(&self) -> bool {
        if self.looked_at.load(Ordering::Relaxed) || self.looked_at.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.looked_after.notify_waiters();
        true
    }

    fn is_looked_after(&self) -> bool {
        self.looked_at.load(Ordering::Acquire)
    }

    /// Filters that each of its processes has, and no more.
    pub(super) fn filters(&self) -> u32 {
        self.filters
    }

    /// Pages that requests write to, as far as is known.
    pub(in crate::zygote) fn written(&self) -> Written {
        self.written.lock().clone()
    }

    /// What the plans of its instances have in common.
    pub(in crate::zygote) fn commons(&self) -> &Commons {
        &self.commons
    }

    /// A request has written to these. The generation that is known now.
    pub(super) fn learn(&self, pages: &[u64]) -> u32 {
        let mut written = self.written.lock();
        let before = written.pages.len();
        if before + pages.len() <= WRITTEN_MAX {
            written.pages.extend(pages);
        }
        written.generation += u32::from(written.pages.len() > before);
        written.generation
    }

    /// The descriptor, for a loop to wait for.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    pub(in crate::zygote) fn know(&self, pid: i32, gate: Arc<Gate>) {
        self.gates.lock().insert(pid, gate);
    }

    pub(in crate::zygote) fn forget(&self, pid: i32) {
        self.gates.lock().remove(&pid);
    }

    /// Answers who ask now, up to [`AT_ONCE`]; true: there may be more. `arrived` is told of instances that have answered their
    /// request and wait in the stub, and says whether that is enough. An error: there is nobody left who could ask.
    pub fn serve(&self, mut arrived: impl FnMut(Arc<Gate>) -> bool) -> io::Result<bool> {
        for _ in 0..AT_ONCE {
            let Some(asked) = self.take()? else { return Ok(false) };
            let gate = self.gates.lock().get(&asked.pid).cloned();
            if asked.from == STUB_ASKS && i64::from(asked.number) == libc::SYS_rt_sigprocmask {
                match gate.filter(|_| is_as_the_stub_asks(&asked)) {
                    Some(gate) => {
                        if gate.arrive(asked.id) && arrived(gate) {
                            return Ok(true);
                        }
                    }
                    // A child of some instance, or another call at that place: it isn't let go on, and the stub ends it.
                    None => self.tell(asked.id, Reply::Fail(Errno::EPERM)),
                }
                continue;
            }
            if let Some(reply) = usage(&asked) {
                if let Some(gate) = gate {
                    gate.write();
                }
                self.tell(asked.id, reply);
                continue;
            }
            if makes_a_process(&asked) && gate.as_ref().is_none_or(|gate| !gate.serves()) {
                self.parents.note(asked.pid, Instant::now());
            }
            // One that does nothing else costs spryd time that nobody counts.
            let goes_on = gate.is_none_or(|gate| gate.spoil());
            self.tell(asked.id, if goes_on { Reply::GoOn } else { Reply::Fail(Errno::EAGAIN) });
        }
        Ok(true)
    }

    /// See [`Parents::has`].
    pub(super) fn is_parent(&self, pid: i32, asked_for: Instant) -> bool {
        self.parents.has(pid, asked_for)
    }

    fn take(&self) -> io::Result<Option<Asked>> {
        let _taking = self.taking.lock();
        sys::asked(self.fd.as_fd())
    }

    fn tell(&self, id: u64, reply: Reply) {
        // Who was killed meanwhile needs no answer.
        let _gone = sys::reply(self.fd.as_fd(), id, reply);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_as_the_stub_asks(asked: &Asked) -> bool {
    let mask = PLAN_AT + at::ALL_SIGNALS as u64;
    asked.arguments[..4] == [libc::SIG_SETMASK as u64, mask, 0, 8]
}

/// Or a thread.
fn makes_a_process(asked: &Asked) -> bool {
    [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork].contains(&i64::from(asked.number))
}

/// What a process has used includes what earlier requests have used: it is told zeros.
fn usage(asked: &Asked) -> Option<Reply> {
    let (at, len) = match i64::from(asked.number) {
        libc::SYS_getrusage => (asked.arguments[1], size_of::<libc::rusage>()),
        libc::SYS_times => (asked.arguments[0], size_of::<libc::tms>()),
        libc::SYS_clock_gettime => (asked.arguments[1], size_of::<libc::timespec>()),
        _ => return None,
    };
    // `times` takes no pointer for an answer.
    if at == 0 && i64::from(asked.number) == libc::SYS_times {
        return Some(Reply::Value(0));
    }
    Some(sys::write_zeros(asked.pid, at, len).map_or_else(Reply::Fail, |()| Reply::Value(0)))
}
