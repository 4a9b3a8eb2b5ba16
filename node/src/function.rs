//! One deployed version of a function, as all threads share it: inbox, instances, queue, counters.
//!
//! Workers enter a function before they use it and leave after; the keeper can take an unused one apart
//! (replace its inbox, end it) only while nobody is in. A redeploy makes a new `Function` beside the old one,
//! swaps the name, and lets the old one run dry.

#[cfg(test)]
pub(crate) mod example;
mod queue;
mod uses;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use shm_bus::ids::{FunctionIndex, PeerId};
use spry_ebpf_common::{SEATS, SLOTS_PER_FUNCTION};
use spry_sched::placement::Placement;
use spry_wire::freeze::Frozen;
use tokio::sync::Notify;

use crate::activation::History;
use crate::api::{ZygoteStart, ZygoteState};
use crate::chain::Domain;
use crate::expected::Expected;
use crate::inbox::{Inbox, OwnInboxes};
use crate::instance::Instance;
use crate::manifest::Isolation;
pub use crate::metrics::{Counts, Replaced};
use crate::packages::Site;
use crate::schedule::Usage;
use crate::store::StoredFunction;
use crate::zygote::rewind::Listener;
pub use queue::{Queue, Queued, SentAt};
pub use uses::{Served, Uses};

/// One version of a function.
#[derive(Debug)]
pub struct Function {
    /// Its place in the bus's tables.
    pub index: FunctionIndex,
    /// What was deployed.
    pub stored: StoredFunction,
    /// Its instances, by bit.
    pub instances: [ArcSwapOption<Instance>; SLOTS_PER_FUNCTION as usize],
    /// Those on the bus whose processes aren't known yet.
    pub expected: Expected,
    /// The last invocations and output.
    pub history: Arc<Mutex<History>>,
    /// Counters; they go on over versions.
    pub counts: Arc<Counts>,
    /// Where its instances run.
    pub placement: Mutex<Placement>,
    /// What its invocations cost, and how many of them are kept back.
    pub usage: Usage,
    /// Those that wait for an idle instance.
    pub queue: Queue,
    /// What it has served.
    pub served: Served,
    /// The chain that it serves in, if it doesn't serve by itself: whose memory its instances may see.
    pub domain: Option<Arc<Domain>>,
    /// Where its instances find their requests, if each has an inbox of its own.
    pub own_inboxes: Option<OwnInboxes>,
    /// Rung when the keeper should look: somebody waits for an instance, or the last user left.
    pub bell: Notify,
    inbox: ArcSwap<Inbox>,
    users: AtomicU32,
    superseded: AtomicBool,
    starting: AtomicU32,
    prewarm: AtomicBool,
    zygote: Mutex<(ZygoteState, Option<String>)>,
    frozen: Mutex<Option<Frozen>>,
    start: Mutex<Option<ZygoteStart>>,
    /// Where its processes ask before some calls, if its instances are rewound.
    listener: ArcSwapOption<Listener>,
    rewinding: Mutex<Option<Result<(), String>>>,
    /// The folders of packages that its zygotes were given, and what the last one was.
    packages: Mutex<(BTreeSet<PathBuf>, Option<Site>)>,
    /// It has as many instances as it may have: nobody needs to be told that another is wanted.
    full: AtomicBool,
    /// An instance has written to its log.
    talks: AtomicBool,
    /// Instances in a row that could not be rewound for what their requests have done.
    spoiled: AtomicU32,
}

/// Set in `users` while the keeper holds the function for itself.
const HELD: u32 = 1 << 31;
/// Set in `users` for ever, when the function has ended.
const ENDED: u32 = 1 << 30;

impl Function {
    /// A function with nothing running yet.
    pub fn new(
        index: FunctionIndex,
        stored: StoredFunction,
        inbox: Arc<Inbox>,
        history: Arc<Mutex<History>>,
        counts: Arc<Counts>,
        domain: Option<Arc<Domain>>,
    ) -> Arc<Self> {
        let manifest = &stored.manifest;
        let own_inboxes =
            OwnInboxes::beside(&inbox, manifest.name.as_str(), manifest.limits.payload.as_bytes());
        Arc::new(Self {
            index,
            own_inboxes,
            stored,
            instances: [const { ArcSwapOption::const_empty() }; SLOTS_PER_FUNCTION as usize],
            expected: Expected::default(),
            history,
            counts,
            placement: Mutex::default(),
            usage: Usage::default(),
            queue: Queue::default(),
            served: Served::default(),
            domain,
            bell: Notify::new(),
            inbox: ArcSwap::new(inbox),
            users: AtomicU32::new(0),
            superseded: AtomicBool::new(false),
            starting: AtomicU32::new(0),
            prewarm: AtomicBool::new(false),
            zygote: Mutex::new((ZygoteState::None, None)),
            frozen: Mutex::default(),
            start: Mutex::default(),
            listener: ArcSwapOption::const_empty(),
            rewinding: Mutex::default(),
            packages: Mutex::default(),
            full: AtomicBool::new(false),
            talks: AtomicBool::new(false),
            spoiled: AtomicU32::new(0),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.stored.manifest.name.as_str()
    }

    /// Uses the function until the guard is dropped. `None`: this version has ended; look it up again.
    pub fn enter(self: &Arc<Self>) -> Option<Entered> {
        loop {
            let users = self.users.load(Ordering::Acquire);
            if users & ENDED != 0 {
                return None;
            }
            if users & HELD != 0 {
                std::hint::spin_loop();
                continue;
            }
            let entered = self.users.compare_exchange(users, users + 1, Ordering::AcqRel, Ordering::Relaxed);
            if entered.is_ok() {
                return Some(Entered(Arc::clone(self)));
            }
        }
    }

    /// Says that a newer version serves now, or none: this one ends when its last user has left.
    pub fn supersede(&self) {
        self.superseded.store(true, Ordering::SeqCst);
        self.bell.notify_one();
    }

    /// Whether a newer version serves now.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::SeqCst)
    }

    /// How many use it now: requests being read, waiting, or running.
    pub fn users(&self) -> u32 {
        self.users.load(Ordering::Acquire) & !(HELD | ENDED)
    }

    /// Replaces the inbox, if nobody uses the function now (its instances must have ended).
    pub fn replace_inbox(&self, inbox: Arc<Inbox>) -> bool {
        if self.users.compare_exchange(0, HELD, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.inbox.store(inbox);
        self.users.store(0, Ordering::Release);
        true
    }

    /// Ends this version, if nobody uses it now: nobody can enter any more.
    pub fn end(&self) -> bool {
        self.users.compare_exchange(0, ENDED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Notes where its zygote is, and what is wrong with it.
    pub fn set_zygote(&self, state: ZygoteState, problem: Option<String>) {
        *self.zygote.lock() = (state, problem);
    }

    /// Notes what its zygote has done to its memory.
    pub fn set_frozen(&self, frozen: &Frozen) {
        *self.frozen.lock() = Some(frozen.clone());
    }

    /// What its zygote has done to its memory, while there is one.
    pub fn frozen(&self) -> Option<Frozen> {
        let frozen = self.frozen.lock().clone();
        frozen.filter(|_| self.zygote_state() == ZygoteState::Ready)
    }

    /// Notes the packages that a zygote of its is given.
    pub fn note_packages(&self, site: &Site) {
        let mut packages = self.packages.lock();
        packages.0.extend(site.folders.iter().cloned());
        packages.1 = Some(site.clone());
    }

    /// The folders that its zygotes were given: their processes may use them as long as this version is there.
    pub fn packages(&self) -> BTreeSet<PathBuf> {
        self.packages.lock().0.clone()
    }

    /// The packages that its last zygote was given.
    pub fn site(&self) -> Option<Site> {
        self.packages.lock().1.clone()
    }

    /// Notes how its zygote has begun.
    pub fn set_start(&self, start: ZygoteStart) {
        *self.start.lock() = Some(start);
    }

    /// How its zygote has begun, while there is one.
    pub fn start(&self) -> Option<ZygoteStart> {
        let start = self.start.lock().clone();
        start.filter(|_| self.zygote_state() == ZygoteState::Ready)
    }

    /// Notes where its zygote's processes ask, and whether its instances are rewound, or why not.
    pub fn set_rewinding(&self, listener: Option<Arc<Listener>>, rewinding: Result<(), String>) {
        self.listener.store(listener);
        *self.rewinding.lock() = Some(rewinding);
        self.spoiled.store(0, Ordering::Relaxed);
    }

    /// Where its processes ask before some calls, if they do.
    pub fn listener(&self) -> arc_swap::Guard<Option<Arc<Listener>>> {
        self.listener.load()
    }

    /// Whether its instances are rewound, or why not, while there is a zygote.
    pub fn rewinding(&self) -> Option<Result<(), String>> {
        let rewinding = self.rewinding.lock().clone();
        rewinding.filter(|_| self.zygote_state() == ZygoteState::Ready)
    }

    /// An instance was rewound.
    pub fn rewound(&self) {
        self.counts.rewinds.done();
        if self.spoiled.load(Ordering::Relaxed) != 0 {
            self.spoiled.store(0, Ordering::Relaxed);
        }
    }

    /// An instance was to be rewound, and isn't.
    pub fn not_rewound(&self, why: Replaced) {
        self.counts.rewinds.replaced(why);
        // Of the others, the one is no fault of its requests', and after the other nothing is rewound any more.
        if !matches!(why, Replaced::Learned | Replaced::Plan) {
            self.spoiled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Instances in a row that could not.
    pub fn spoiled_in_a_row(&self) -> u32 {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// Where its zygote is.
    pub fn zygote_state(&self) -> ZygoteState {
        self.zygote.lock().0
    }

    /// Why it can't serve, when it can't.
    pub fn problem(&self) -> Option<String> {
        self.zygote.lock().1.clone()
    }

    /// Notes whether it may have more instances.
    pub fn set_full(&self, is_full: bool) {
        self.full.store(is_full, Ordering::SeqCst);
        // SYNC(full): with the fence in `want_instance`. Whoever has queued a request and sees it full is seen in the queue by
        // whoever says that it isn't, and looks then.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// An instance has written to its log. True: for the first time.
    pub fn note_talk(&self) -> bool {
        !self.talks.load(Ordering::Relaxed) && !self.talks.swap(true, Ordering::Relaxed)
    }

    /// Whether several invocations may wait in one of its instances. Not if it writes to its log, which spryd reads between
    /// two invocations to know whose it is; nor if the instance serves one only, or is rewound after each; nor where the
    /// seats of all that there may be, and of one that is just ending, would leave no slot for another.
    pub fn may_queue_in_instances(&self) -> bool {
        self.domain.is_some()
            && self.stored.manifest.isolation == Isolation::Instance
            && (self.stored.manifest.scale.max + 1) * SEATS <= SLOTS_PER_FUNCTION
            && !self.talks.load(Ordering::Relaxed)
    }

    /// Somebody waits for an instance: the keeper makes another, where there may be one.
    pub fn want_instance(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if !self.full.load(Ordering::SeqCst) {
            self.bell.notify_one();
        }
    }

    /// Notes how many instances are being made.
    pub fn set_starting(&self, count: u32) {
        self.starting.store(count, Ordering::Relaxed);
    }

    /// How many instances are being made.
    pub fn starting(&self) -> u32 {
        self.starting.load(Ordering::Relaxed)
    }

    /// The inbox: where its requests wait, and unless its instances have inboxes of their own, where they find them. Only for
    /// those who have entered, and for the keeper.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.inbox.load_full()
    }

    /// Invocations that wait, those that are kept back included.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.usage.held()
    }

    /// The instance with this name on the bus.
    pub fn instance_of(&self, peer: PeerId) -> Option<Arc<Instance>> {
        self.instances[peer.bit() as usize].load_full().filter(|instance| instance.peer == peer)
    }

    /// Nobody uses it now, and nobody waits. (A chain is always a user of its members.)
    pub fn is_unused(&self) -> bool {
        self.users() <= u32::from(self.domain.is_some()) && self.queue.is_empty()
    }

    /// Wants an instance soon, if there is none: its chain has been called.
    pub fn prewarm(&self) {
        if self.instances.iter().all(|instance| instance.load().is_none())
            && !self.prewarm.swap(true, Ordering::AcqRel)
        {
            self.bell.notify_one();
        }
    }

    /// Whether an instance is wanted ahead of its first request; asks once.
    pub fn take_prewarm(&self) -> bool {
        self.prewarm.swap(false, Ordering::AcqRel)
    }

    /// The instances that there are.
    pub fn instances(&self) -> impl Iterator<Item = Arc<Instance>> {
        self.instances.iter().filter_map(ArcSwapOption::load_full)
    }
}

/// Somebody uses the function; see [`Function::enter`].
#[derive(Debug)]
pub struct Entered(Arc<Function>);

impl std::ops::Deref for Entered {
    type Target = Arc<Function>;
    fn deref(&self) -> &Arc<Function> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.users.fetch_sub(1, Ordering::AcqRel);
        // The last one out tells a keeper that may wait to take this version apart.
        if before == 1 && self.0.is_superseded() {
            self.0.bell.notify_one();
        }
    }
}
