//! One instance, as far as its rewinding goes: may it go on, and when?
//!
//! ```text
//!              arrive        checked
//!   Born ──────────────► … ──────────► Serving ──── answer ────► Answered ──┐ both: let go on,
//!                                         ▲    ──── arrive ────► AtStub   ──┤ and Serving again
//!                                         └──────────────────────────────────┘
//! ```
//!
//! A call that leaves what isn't restored ([`Gate::spoil`]) makes it an instance that ends with its answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use nix::errno::Errno;
use parking_lot::Mutex;
use shm_bus::segment::{self, SegmentError, Writer};
use shm_bus::transport::FaultKind;
use spry_wire::rewind::{
    NOTHING_TO_DROP, NOTHING_TO_UNMAP, ORDERS_LEN, ORDERS_OUTBOX, OUTBOX_FIRST, OUTBOX_ZEROED,
};
use tokio::sync::Notify;

use super::listener::Listener;
use super::plan::Plan;
use crate::instance::{Doom, Instance};
use crate::metrics::Replaced;
use crate::sys::rewind::{self as sys, Reply};

/// See the module.
#[derive(Debug)]
pub struct Gate {
    listener: Arc<Listener>,
    state: Mutex<State>,
    /// Told when it has arrived for the first time.
    born: Notify,
    /// Its outbox, and how much of it there is when only what is zeroed has been written to.
    outbox: OwnedFd,
    instance: OnceLock<Weak<Instance>>,
    plan: OnceLock<Plan>,
    /// The page on which it finds what needn't be done.
    orders: Writer,
}

#[derive(Debug, Default)]
struct State {
    serving: bool,
    answered: bool,
    spoiled: bool,
    /// spryd has written to its memory since it was let go on.
    written: bool,
    /// The call that waits in the stub.
    waits: Option<u64>,
    /// Calls that spryd was asked about since it serves.
    told: u32,
    /// Counts the requests, so that a late look isn't taken for the next one's.
    round: u64,
    /// Requests that have written to pages of which the plan doesn't know that they would.
    surprises: u32,
}

/// Calls that an instance may make which aren't restored, before it is replaced. Some hundred are what starting a program takes.
const TOLD_MAX: u32 = 100_000;

/// After so many surprises in an instance that was made before anything was known, one that knows takes its place.
const SURPRISES_FIRST: u32 = 3;
/// The same of later ones: what one more page saves must pay for a fork.
const SURPRISES_LATER: u32 = 64;

/// What becomes of one that has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It hasn't come to the stub yet.
    Awaited {
        /// For [`Gate::is_late`].
        round: u64,
    },
    /// It waits in the stub.
    MayGoOn,
    /// It is replaced.
    Ends,
}

impl Gate {
    pub(in crate::zygote) fn new(listener: Arc<Listener>, outbox: OwnedFd) -> io::Result<Arc<Self>> {
        let page = segment::create("rewind-orders", ORDERS_LEN).and_then(|fd| Writer::map(fd, ORDERS_LEN));
        let orders = page.map_err(io::Error::other)?;
        let (state, born, instance, plan) =
            (Mutex::default(), Notify::new(), OnceLock::new(), OnceLock::new());
        Ok(Arc::new(Self { listener, state, born, outbox, instance, plan, orders }))
    }

    /// The page with its orders, which nobody else can write to.
    pub(in crate::zygote) fn orders(&self) -> BorrowedFd<'_> {
        self.orders.fd()
    }

    /// Where it asks.
    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Notes what it goes back to.
    pub(in crate::zygote) fn set_plan(&self, plan: Plan) {
        let _once = self.plan.set(plan);
    }

    /// Its outbox.
    pub(in crate::zygote) fn outbox(&self) -> BorrowedFd<'_> {
        self.outbox.as_fd()
    }

    /// Says which instance it is of.
    pub fn set_instance(&self, instance: &Arc<Instance>) {
        let _once = self.instance.set(Arc::downgrade(instance));
    }

    /// The instance that it is of.
    pub fn instance(&self) -> Option<Arc<Instance>> {
        self.instance.get()?.upgrade()
    }

    /// It waits in the stub. True: it has answered before, and may go on.
    pub(super) fn arrive(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        state.waits = Some(id);
        if !state.serving {
            self.born.notify_one();
        }
        state.serving && state.answered
    }

    /// It is given requests.
    pub(super) fn serves(&self) -> bool {
        self.state.lock().serving
    }

    /// It has made a call whose effects aren't restored. False: it has made too many, and is ended.
    pub(super) fn spoil(&self) -> bool {
        let mut state = self.state.lock();
        state.spoiled = state.serving;
        state.told += u32::from(state.serving);
        let is_much = state.told > TOLD_MAX;
        if is_much && let Some(instance) = self.instance() {
            tracing::warn!(
                pid = instance.pid,
                "an instance does nothing but make calls that spryd is asked about"
            );
            instance.kill(Doom::Fault(FaultKind::Malformed));
        }
        !is_much
    }

    /// spryd writes to its memory, to answer a call.
    pub(super) fn write(&self) {
        self.state.lock().written = true;
    }

    /// It is as it shall be each time, and goes on; it may be given requests from now on.
    pub(in crate::zygote) fn begin(&self) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let id = state.waits.take().ok_or(Errno::ESRCH)?;
        // If it has used more, it is replaced after its first request.
        self.order([0; 2], self.used_outbox().unwrap_or(OUTBOX_ZEROED)).map_err(|_| Errno::EIO)?;
        state.serving = true;
        sys::reply(self.listener.as_fd(), id, Reply::GoOn)
    }

    /// Waits until it has arrived for the first time.
    pub(in crate::zygote) async fn arrived_first(&self) {
        self.born.notified().await;
    }

    /// Its answer has been read.
    pub fn answered(&self) -> Next {
        let mut state = self.state.lock();
        state.answered = true;
        match (state.spoiled, state.waits) {
            (true, _) => Next::Ends,
            (false, Some(_)) => Next::MayGoOn,
            (false, None) => Next::Awaited { round: state.round },
        }
    }

    /// It has answered in that round, and nobody has tried to let it go on since.
    pub fn is_late(&self, round: u64) -> bool {
        let state = self.state.lock();
        state.round == round && state.answered
    }

    /// Lets it go on, if nothing is wrong with it: it is clean then, else it is to be replaced. Either ends its round.
    /// `is_silent`: all that it has written has been read.
    pub fn let_go_on(&self, is_silent: bool) -> Result<(), Replaced> {
        let mut state = self.state.lock();
        let id = state.waits.take().filter(|_| state.answered).ok_or(Replaced::Late)?;
        // Before it can be told of: what it does next is of its next request.
        state.answered = false;
        state.round += 1;
        if state.spoiled {
            return Err(Replaced::Call);
        }
        if !is_silent {
            return Err(Replaced::Late);
        }
        let outbox = self.used_outbox().ok_or(Replaced::LargeAnswer)?;
        if !self.is_order_given(&mut state, outbox) {
            return Err(Replaced::Learned);
        }
        sys::reply(self.listener.as_fd(), id, Reply::GoOn).map_err(|_| Replaced::Late)
    }

    /// Looks what its request has written to, and has it dropped unless there is nothing to drop. False: such as it make place
    /// for such that copy it back, which takes less time. `outbox`: how much of that has been used, at most.
    fn is_order_given(&self, state: &mut State, outbox: u64) -> bool {
        let written = std::mem::take(&mut state.written);
        let Some(plan) = self.plan.get() else { return self.order([0; 2], outbox).is_ok() };
        let seen = plan.look(written);
        let drops = match seen.pages {
            Some(changed) if changed.is_empty() => NOTHING_TO_DROP,
            Some(changed) => {
                let known = self.listener.learn(&changed);
                state.surprises += 1;
                let most = if plan.generation == 0 { SURPRISES_FIRST } else { SURPRISES_LATER };
                if known > plan.generation && state.surprises >= most {
                    return false;
                }
                0
            }
            None => 0,
        };
        let gaps = if seen.gaps { 0 } else { NOTHING_TO_UNMAP };
        self.order([drops, gaps], outbox).is_ok()
    }

    /// Says what it does when it goes on: what it may leave out, and how much of its outbox is zeroed.
    fn order(&self, left_out: [u8; 2], outbox: u64) -> Result<(), SegmentError> {
        // SYNC(rewind-orders): it waits in a system call, which returns after this is written.
        self.orders.write_at(0, &left_out)?;
        self.orders.write_at(ORDERS_OUTBOX, &(outbox / 8).to_le_bytes())
    }

    /// How much of its outbox can have been written to; `None`: more than the stub zeroes. The first pages are there from its
    /// birth on, so any page more shows in their number.
    fn used_outbox(&self) -> Option<u64> {
        if outbox_bytes(&self.outbox).ok()? <= OUTBOX_FIRST {
            return Some(OUTBOX_FIRST);
        }
        // No data from there on.
        let beyond = nix::unistd::lseek(&self.outbox, OUTBOX_ZEROED as i64, nix::unistd::Whence::SeekData);
        (beyond == Err(Errno::ENXIO)).then_some(OUTBOX_ZEROED)
    }
}

/// How much memory there is in an outbox.
pub(super) fn outbox_bytes(outbox: &OwnedFd) -> std::io::Result<u64> {
    let about = nix::sys::stat::fstat(outbox)?;
    Ok(about.st_blocks as u64 * 512)
}
