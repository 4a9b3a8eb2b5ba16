//! One function's tender: it gives the function the processes that it needs, and takes them away again.
//!
//! It wakes when somebody waits (the function's bell), when an instance was born or has died, when memory that it waits
//! for may have come back, when a policy has said that something may have to be done, and at no other time. What
//! it does follows from rules that are elsewhere:
//!
//! - instances that requests wait for: as many as wait, up to `scale.max` ([`births`]);
//! - instances ahead of requests, when each serves only one: `spry_sched::pool` ([`births`]);
//! - when what is idle goes, and when it is made again ahead of need: `spry_sched::keepalive` ([`idle`]);
//! - who gets memory: [`super::memory`].
//!
//! [`finish`] is the end of a version.

mod births;
mod finish;
mod idle;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use shm_bus::ids::PeerId;
use spry_sched::keepalive::{Cost, Layer, Profile};
use spry_sched::pool::Pool;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::{Keeper, birth, death, memory};
use crate::api::ZygoteState;
use crate::budget::Promise;
use crate::function::Function;
use crate::instance::Instance;
use crate::manifest::Isolation;
use crate::metrics::Replaced;
use crate::progress::Progress;
use crate::zygote::{Runtime, StartError, Zygote};

/// What a tender is told.
pub enum ToTender {
    /// Have at least this many instances.
    Warm(usize),
    /// The same, and say when they are there (or can't be).
    WarmThen(usize, oneshot::Sender<()>),
    /// Have a zygote, if memory for it is free; say when it is there (or can't be).
    BringBack(oneshot::Sender<()>),
    /// A birth has ended.
    Born {
        /// How.
        born: Result<Arc<Instance>, birth::BirthError>,
        /// From the zygote with this pid.
        zygote: i32,
    },
    /// An instance has died and was taken off the bus.
    Died(PeerId),
    /// The zygote with this pid has died.
    ZygoteDied(i32),
    /// Memory is short: the zygote must go, if nobody needs it now.
    Evict,
    /// End everything now.
    End(oneshot::Sender<()>),
}

/// A zygote that has just been started.
pub(super) struct Started {
    pub(super) zygote: Rc<Zygote>,
    /// Its memory.
    pub(super) promise: Promise,
    /// How long that took.
    pub(super) took_ns: u64,
}

/// Instances in a row that could not be rewound, after which it isn't tried any more.
const SPOILED_MAX: u32 = 8;

struct Tender {
    keeper: Rc<Keeper>,
    function: Arc<Function>,
    zygote: Option<Rc<Zygote>>,
    letters: UnboundedSender<ToTender>,
    instances: HashMap<PeerId, Arc<Instance>>,
    starting: usize,
    warm: usize,
    warmed: Vec<oneshot::Sender<()>>,
    bring_back: Option<oneshot::Sender<()>>,
    failures: u32,
    /// When the first of them was.
    failing_since: Instant,
    not_before: Option<Instant>,
    /// When this tender began, in milliseconds since the epoch: counts as a use.
    since_unix_ms: u64,
    /// Nothing is there because the policy's window has not opened.
    awaiting: bool,
    /// What the policy knows about costs.
    profile: Profile,
    /// Whether an instance's memory has been measured.
    measured: bool,
    /// With single-use instances: how many are kept ready.
    pool: Pool,
    /// Memory was short: changes when some has come back.
    short: Option<watch::Receiver<u64>>,
}

/// Starts tending; `started` when the zygote runs already.
pub(super) fn spawn(
    keeper: Rc<Keeper>,
    function: Arc<Function>,
    started: Option<Started>,
) -> UnboundedSender<ToTender> {
    let (letters, mailbox) = unbounded_channel();
    keeper.tended.borrow_mut().insert(function.index, letters.clone());
    let manifest = &function.stored.manifest;
    // Until something has been measured: what it may use at most, and no time at all.
    let cost = Cost { start_ns: 0, bytes: manifest.limits.memory.as_bytes() };
    let standard_ns = manifest.scale.idle.as_duration().as_nanos() as u64;
    let profile = Profile { standard_ns, package: None, costs: [cost; 3] };
    keeper.memory.learn(&function, profile);
    let tender = Tender {
        keeper,
        function,
        zygote: None,
        letters: letters.clone(),
        instances: HashMap::new(),
        starting: 0,
        warm: 0,
        warmed: Vec::new(),
        bring_back: None,
        failures: 0,
        failing_since: Instant::now(),
        not_before: None,
        since_unix_ms: crate::activation::unix_ms(),
        awaiting: false,
        profile,
        measured: false,
        pool: Pool::default(),
        short: None,
    };
    tokio::task::spawn_local(tender.run(mailbox, started));
    letters
}

/// Starts a function's zygote in this memory: its code is loaded when this returns.
pub(super) async fn start_zygote(
    keeper: &Rc<Keeper>,
    function: &Function,
    promise: Promise,
    progress: &Progress,
) -> Result<Started, StartError> {
    let (store, version) = (Arc::clone(&keeper.store), function.stored.clone());
    let begun = Instant::now();
    super::off_the_loop(move || store.check(&version)).await?;
    tracing::debug!(
        function = function.name(),
        took_us = begun.elapsed().as_micros() as u64,
        "its files are what was deployed"
    );
    let mut spec = keeper.spec(&function.stored)?;
    if function.domain.is_some() {
        // Others of the chain read its answers where they lie, after it has answered.
        spec.rewind = Err("it serves in a chain".to_owned());
    }
    let wanted = &function.stored.manifest.packages;
    if let Runtime::Python { interpreter } = &spec.runtime
        && !wanted.is_empty()
    {
        let site = keeper.packages.provide(wanted, interpreter, progress).await?;
        function.note_packages(&site);
        spec.packages = Some(site);
    }
    let names = function.stored.manifest.secrets.clone();
    if !names.is_empty() {
        let secrets = Arc::clone(&keeper.secrets);
        spec.secrets = super::off_the_loop(move || secrets.open(&names)).await?;
    }
    progress.say("starting its zygote …");
    let begun = Instant::now();
    let zygote = Rc::new(keeper.start_process(function, &spec).await?);
    let took_ns = begun.elapsed().as_nanos() as u64;
    keeper.bus.totals.zygote.observe(took_ns);
    Ok(Started { zygote, promise, took_ns })
}

impl Tender {
    async fn run(mut self, mut mailbox: UnboundedReceiver<ToTender>, started: Option<Started>) {
        if let Some(started) = started {
            self.adopt(started);
        }
        let function = Arc::clone(&self.function);
        let told_to_end = loop {
            let wake_at = self.next_look();
            let look = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let short = self.short.as_mut();
            let memory = async {
                match short {
                    Some(returned) => drop(returned.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = function.bell.notified() => {}
                letter = mailbox.recv() => match letter {
                    Some(ToTender::End(done)) => break Some(done),
                    Some(letter) => self.read(letter),
                    None => break None,
                },
                () = look => {}
                () = memory => self.not_before = None,
            }
            if function.is_superseded() && function.users() == 0 && self.starting == 0 && function.end() {
                break None;
            }
            self.balance().await;
        };
        self.finish(mailbox, told_to_end).await;
    }

    fn read(&mut self, letter: ToTender) {
        match letter {
            ToTender::Warm(count) => self.warm = self.warm.max(count),
            ToTender::WarmThen(count, ready) => {
                self.warm = self.warm.max(count);
                self.warmed.push(ready);
            }
            ToTender::BringBack(there) => self.bring_back = Some(there),
            ToTender::Born { born: Ok(instance), .. } => {
                self.set_starting(self.starting - 1);
                self.failures = 0;
                self.not_before = None;
                if !instance.cold {
                    self.pool.born((instance.ready_at - instance.requested_at).as_nanos() as u64);
                }
                self.instances.insert(instance.peer, instance);
            }
            ToTender::Born { born: Err(error), zygote } => {
                self.set_starting(self.starting - 1);
                // (Not one that was started since: births that began together fail one after the other.)
                let is_same = self.zygote.as_ref().is_some_and(|now| now.pid() == zygote);
                if error.ends_zygote() && is_same {
                    self.drop_zygote();
                }
                self.failed(error.to_string(), false);
            }
            ToTender::Died(peer) => {
                let dead = self.instances.remove(&peer);
                if let Some(took) = dead.and_then(|dead| dead.doomed_for()) {
                    self.pool.ended(took.as_nanos() as u64);
                }
            }
            ToTender::ZygoteDied(pid) => {
                if self.zygote.as_ref().is_some_and(|zygote| zygote.pid() == pid) {
                    self.drop_zygote();
                }
            }
            ToTender::Evict => {
                if self.live() == 0 && self.function.is_unused() {
                    self.drop_zygote();
                }
            }
            ToTender::End(_) => unreachable!("handled by the loop"),
        }
    }

    /// Instances that are there, at work or dying, and those that are being born.
    fn live(&self) -> usize {
        self.instances.len() + self.starting
    }

    fn set_starting(&mut self, count: usize) {
        self.starting = count;
        self.function.set_starting(count as u32);
    }

    /// Each of its instances serves one request and ends.
    fn is_single_use(&self) -> bool {
        let rewinds = self.zygote.as_ref().is_some_and(|zygote| zygote.rewinding().is_ok());
        self.function.stored.manifest.isolation == Isolation::Request && !rewinds
    }

    /// Where most requests do what can't be put back, a fork ahead of each costs less than trying.
    fn look_at_rewinding(&self) {
        let Some(zygote) = &self.zygote else { return };
        if zygote.rewinding().is_ok() && self.function.spoiled_in_a_row() >= SPOILED_MAX {
            let why = "its requests make system calls whose effects can't be put back";
            zygote.stop_rewinding(why.to_owned());
        }
        let noted = self.function.rewinding();
        if noted.as_ref().is_some_and(|noted| *noted != zygote.rewinding()) {
            if noted == Some(Ok(())) && self.function.spoiled_in_a_row() < SPOILED_MAX {
                self.function.not_rewound(Replaced::Plan);
            }
            self.function.set_rewinding(zygote.listener().cloned(), zygote.rewinding());
        }
    }

    fn adopt(&mut self, Started { zygote, promise, took_ns }: Started) -> Rc<Zygote> {
        let cost = &mut self.profile.costs[Layer::Zygote as usize];
        cost.start_ns = took_ns;
        if let Some(bytes) = memory::held_bytes(zygote.pid()) {
            cost.bytes = bytes;
        }
        self.keeper.memory.learn(&self.function, self.profile);
        death::watch_zygote(Rc::clone(&zygote), promise, Arc::clone(&self.function), self.letters.clone());
        self.function.set_zygote(ZygoteState::Ready, None);
        self.function.set_frozen(zygote.frozen());
        self.function.set_rewinding(zygote.listener().cloned(), zygote.rewinding());
        if let Some(mut arrivals) = zygote.take_arrivals() {
            let dispatcher = Rc::clone(&self.keeper.dispatcher);
            tokio::task::spawn_local(async move {
                while let Some(gate) = arrivals.recv().await {
                    dispatcher.let_go_on(&gate);
                }
            });
        }
        self.zygote = Some(Rc::clone(&zygote));
        zygote
    }

    fn drop_zygote(&mut self) {
        self.function.set_zygote(ZygoteState::None, None);
        // Its instances have their own way to it.
        self.function.set_rewinding(None, Err("there is no zygote".to_owned()));
        if let Some(zygote) = self.zygote.take() {
            zygote.kill();
        }
    }
}
