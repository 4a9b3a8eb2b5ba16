//! The thread that makes and ends processes: zygotes, instances, their deaths, scaling, redeploys.
//!
//! What several functions import is imported once ([`layers`]). One task tends each function ([`tend`]); it alone gives its function processes and ends idle ones, but for those that
//! must go because memory is short ([`memory`]). Births
//! ([`birth`]) and deaths ([`death`]) are tasks of their own, so that a slow one holds up nothing. All run on one
//! thread, spryd's main thread; the processes' parent is the nursery of [`crate::zygote`], a thread of its own.

mod birth;
mod chains;
mod death;
mod deploy;
mod layers;
mod memory;
mod recency;
mod segments;
mod tend;
mod turns;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use shm_bus::ids::{FunctionIndex, PortIndex};
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{SegmentError, SegmentName};
use shm_bus::transport::{Fault, FaultKind};
use spry_ebpf_common::{DEFAULT_ROUTES, SEATS};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::api::{Applied, ApplyError, DeployError, Deployed, RemoveError};
use crate::budget::Budget;
use crate::chain::{Chain, FreeRoutes};
use crate::dispatch::{Bus, Dispatcher, ToWorker};
use crate::function::Function;
use crate::inbox::{Inbox, NodeBytes, Readers};
use crate::instance::{Doom, Instance};
use crate::manifest::{Isolation, Name};
use crate::node::Node;
use crate::packages::Packages;
use crate::progress::Progress;
use crate::secrets::Secrets;
use crate::store::{PlannedChain, Recalled, Staged, Store, StoredFunction};
use crate::zygote::Executor;

use layers::Layers;
use memory::Memory;
pub use tend::ToTender;
use turns::Turns;

/// What the keeper is told by other threads.
pub enum ToKeeper {
    /// A function has begun to write to its log.
    Talks(Arc<Function>),
    /// A chain's runs have become a crowd, or are none any more.
    Crowd(Arc<Chain>),
    /// A function's advice on placement has changed.
    Place {
        /// Which.
        function: Arc<Function>,
        /// On the core of the worker, or anywhere.
        at_home: bool,
    },
    /// An instance serves a worker on another core than its own.
    Move {
        /// Which.
        instance: Arc<Instance>,
        /// That worker's core.
        cpu: usize,
    },
    /// Serve this code from now on.
    Deploy {
        /// What was uploaded.
        staged: Box<Staged>,
        /// Told what is being done.
        progress: Progress,
        /// Told how it went.
        done: oneshot::Sender<Result<Deployed, DeployError>>,
    },
    /// Serve this earlier version again.
    RollBack {
        /// Which.
        recalled: Box<Recalled>,
        /// Told what is being done.
        progress: Progress,
        /// Told how it went.
        done: oneshot::Sender<Result<Deployed, DeployError>>,
    },
    /// Serve this function no more.
    Remove {
        /// Its name.
        name: Name,
        /// Told when its processes have ended.
        done: oneshot::Sender<Result<(), RemoveError>>,
    },
    /// Serve this chain from now on.
    ApplyChain {
        /// What it comes to, and what comes to the chains around it.
        planned: Box<PlannedChain>,
        /// Told how it went.
        done: oneshot::Sender<Result<Applied, ApplyError>>,
    },
    /// Serve this chain no more.
    RemoveChain {
        /// Its name.
        name: Name,
        /// Told when its processes have ended.
        done: oneshot::Sender<Result<(), RemoveError>>,
    },
}

/// What a process that closed its bus socket may take to begin to end, before it is ended.
const CLOSED_GRACE: std::time::Duration = std::time::Duration::from_millis(50);

/// What the processes of all functions may take to end one by one, before what is left is ended at once.
const END_GRACE: std::time::Duration = std::time::Duration::from_secs(3);

/// What all of the keeper's tasks share.
pub struct Keeper {
    node: Arc<Node>,
    bus: Arc<Bus>,
    executor: Arc<Executor>,
    store: Arc<Store>,
    packages: Packages,
    secrets: Arc<Secrets>,
    dispatcher: Rc<Dispatcher>,
    workers: Vec<Worker>,
    node_bytes: Arc<NodeBytes>,
    tended: RefCell<HashMap<FunctionIndex, UnboundedSender<ToTender>>>,
    next_segment: Cell<u32>,
    segment_generation: Cell<u32>,
    next_instance: Cell<u64>,
    closing: Cell<bool>,
    /// The release page of all instances that answer once.
    silent_release: OnceCell<ReleaseWriter>,
    memory: Memory,
    layers: Layers,
    /// CPUs that spryd may use.
    cores: u32,
    free_routes: Arc<FreeRoutes>,
    /// Held while a name changes what it stands for. Before `chain_changes`, where both are.
    turns: Turns,
    /// Held while chains are made and swapped: what was planned last is published last.
    chain_changes: tokio::sync::Mutex<()>,
    /// When functions were used last, as the store has it.
    noted_uses: RefCell<HashMap<String, u64>>,
}

/// A gateway worker, as the keeper knows it.
pub struct Worker {
    /// Its mailbox.
    pub mailbox: UnboundedSender<ToWorker>,
    /// The CPU that it is bound to.
    pub cpu: Option<usize>,
}

/// What a keeper is made of.
pub struct Parts {
    /// The node.
    pub node: Arc<Node>,
    /// The bus.
    pub bus: Arc<Bus>,
    /// Makes processes.
    pub executor: Arc<Executor>,
    /// Remembers functions.
    pub store: Arc<Store>,
    /// Python packages that functions share.
    pub packages: Packages,
    /// What functions are told by file.
    pub secrets: Arc<Secrets>,
    /// The keeper's own way onto the bus.
    pub dispatcher: Rc<Dispatcher>,
    /// The gateway's workers.
    pub workers: Vec<Worker>,
    /// Bounds what requests hold.
    pub node_bytes: Arc<NodeBytes>,
    /// Bounds what processes are promised.
    pub budget: Arc<Budget>,
    /// When idle processes go.
    pub keepalive: spry_sched::keepalive::Kind,
}

impl Keeper {
    /// A keeper that tends nothing yet.
    pub fn new(parts: Parts) -> Rc<Self> {
        let layers = Layers::new(&parts.node.config(), parts.executor.needs_own_users());
        Rc::new(Self {
            layers,
            node: parts.node,
            bus: parts.bus,
            executor: parts.executor,
            store: parts.store,
            packages: parts.packages,
            secrets: parts.secrets,
            dispatcher: parts.dispatcher,
            workers: parts.workers,
            node_bytes: parts.node_bytes,
            tended: RefCell::default(),
            next_segment: Cell::new(1),
            segment_generation: Cell::new(1),
            next_instance: Cell::new(1),
            closing: Cell::new(false),
            silent_release: OnceCell::new(),
            memory: Memory::new(parts.budget, parts.keepalive),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            free_routes: FreeRoutes::new(DEFAULT_ROUTES as u16),
            turns: Turns::default(),
            chain_changes: tokio::sync::Mutex::default(),
            noted_uses: RefCell::default(),
        })
    }

    /// Serves what the store remembers. Zygotes come back by and by, those that were used last first ([`recency`]).
    pub async fn restore(self: &Rc<Self>) {
        self.restore_functions();
        self.restore_chains().await;
        self.sweep_packages().await;
    }

    /// Works through the mailbox until every sender is gone.
    pub async fn run(self: Rc<Self>, mut mailbox: UnboundedReceiver<ToKeeper>) {
        tokio::task::spawn_local(Rc::clone(&self).tend_layers());
        while let Some(message) = mailbox.recv().await {
            match message {
                ToKeeper::Place { function, at_home } => {
                    for instance in function.instances() {
                        self.place(&function, &instance, at_home);
                    }
                }
                ToKeeper::Talks(function) => self.seat_all(&function),
                ToKeeper::Crowd(chain) => chain.members.iter().for_each(|member| self.seat_all(member)),
                // (Unless it was set free meanwhile.)
                ToKeeper::Move { instance, cpu } if instance.has_home() => {
                    self.bus.transport.set_home(instance.peer, Some(cpu));
                    instance.bind_to(Some(cpu));
                }
                ToKeeper::Move { .. } => {}
                ToKeeper::Deploy { staged, progress, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.deploy(*staged, &progress).await);
                    });
                }
                ToKeeper::RollBack { recalled, progress, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.roll_back(*recalled, &progress).await);
                    });
                }
                ToKeeper::Remove { name, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.remove(&name).await);
                    });
                }
                ToKeeper::ApplyChain { planned, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.apply_chain(*planned).await);
                    });
                }
                ToKeeper::RemoveChain { name, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.remove_chain(&name).await);
                    });
                }
            }
        }
    }

    /// Ends the peers that break the bus's rules, until the thread ends.
    pub async fn serve_faults(self: Rc<Self>) -> std::io::Result<()> {
        let fd = self.bus.transport.faults_fd().try_clone_to_owned()?;
        let ready = crate::sys::watch(fd)?;
        let mut faults = Vec::new();
        loop {
            let mut guard = ready.readable().await?;
            guard.clear_ready();
            self.bus.transport.faults(&mut faults);
            for fault in faults.drain(..) {
                self.fault(fault);
            }
        }
    }

    fn fault(&self, Fault { peer, kind }: Fault) {
        let Some(function) = self.bus.functions[usize::from(peer.function().0)].load_full() else { return };
        tokio::task::spawn_local(async move {
            // It may not be known yet.
            let instance = function.born(peer.bit()).await.filter(|instance| instance.peer == peer);
            let Some(instance) = instance else { return };
            // A process that ends closes its sockets first; only one that lives on has broken the rules.
            match kind {
                FaultKind::Closed => {
                    tokio::time::sleep(CLOSED_GRACE).await;
                    if instance.is_ending() {
                        return;
                    }
                }
                _ => tracing::warn!(
                    pid = instance.pid,
                    ?kind,
                    "an instance broke the bus's rules and is ended"
                ),
            }
            instance.kill(Doom::Fault(kind));
        });
    }

    /// Ends everything: instances, zygotes, their cgroups.
    pub async fn close(&self) {
        self.closing.set(true);
        self.packages.close();
        self.layers.close();
        self.note_uses().await;
        let tenders: Vec<_> = self.tended.borrow().values().cloned().collect();
        let told = tenders.into_iter().filter_map(|tender| {
            let (done, ended) = oneshot::channel();
            tender.send(ToTender::End(done)).is_ok().then_some(ended)
        });
        let mut all = futures_util::future::join_all(told);
        // A tender that waits for a zygote to load its code doesn't hear it until that has ended, one way or the other.
        let have_ended = tokio::time::timeout(END_GRACE, &mut all).await.is_ok();
        self.executor.shutdown().await;
        if !have_ended {
            all.await;
        }
    }

    /// The inbox of a function that serves by itself. With `isolation = "request"` its instances have inboxes of their own.
    fn inbox(&self, stored: &StoredFunction) -> Result<Arc<Inbox>, shm_bus::segment::SegmentError> {
        let manifest = &stored.manifest;
        let (payload_max, node_bytes) = (manifest.limits.payload.as_bytes(), Arc::clone(&self.node_bytes));
        let name = manifest.name.as_str();
        let readers = match manifest.isolation {
            Isolation::Request => Readers::Nobody,
            Isolation::Instance => Readers::Instances(Isolation::Instance),
        };
        Inbox::new(name, self.segment_name(), payload_max, node_bytes, readers)
    }

    /// The release page of an instance that answers once.
    fn silent_release(&self) -> Result<ReleaseWriter, SegmentError> {
        if let Some(shared) = self.silent_release.get().and_then(ReleaseWriter::share) {
            return Ok(shared);
        }
        let made = ReleaseWriter::silent("spry-release")?;
        let _ = self.silent_release.set(made);
        Ok(self.silent_release.get().and_then(ReleaseWriter::share).expect("a silent page was just made"))
    }

    /// A name that no other segment has had.
    fn segment_name(&self) -> SegmentName {
        let id = self.next_segment.get();
        let (next, generation) = match id.checked_add(1) {
            Some(next) => (next, self.segment_generation.get()),
            None => (1, self.segment_generation.get() + 1),
        };
        self.next_segment.set(next);
        self.segment_generation.set(generation);
        SegmentName { id, generation }
    }

    fn place(&self, function: &Function, instance: &Instance, at_home: bool) {
        let bound: Vec<usize> = self.workers.iter().filter_map(|worker| worker.cpu).collect();
        if bound.is_empty() {
            return;
        }
        // (Some transports give out every bit, others every `SEATS`th.)
        let bit = instance.peer.bit() as usize;
        let home = bound[(bit + bit / SEATS as usize) % bound.len()];
        let cpu = at_home.then_some(home);
        self.bus.transport.set_home(instance.peer, cpu);
        instance.bind_to(cpu);
        self.seat(function, instance);
    }

    fn seat_all(&self, function: &Function) {
        for instance in function.instances() {
            self.seat(function, &instance);
        }
    }

    /// Whether more than one invocation may wait in an instance: where they wait for the same core in any case, and not long.
    /// A policy has the say itself over who waits where.
    fn seat(&self, function: &Function, instance: &Instance) {
        let may =
            instance.has_home() && function.may_queue_in_instances() && self.bus.cores.scheduler.is_none();
        let has = self.bus.transport.set_seats(instance.peer, may);
        let in_crowd = function.domain.as_ref().is_some_and(|domain| domain.is_crowded());
        instance.set_preempting(!(has && in_crowd));
    }

    fn worker(&self, port: PortIndex) -> Option<&UnboundedSender<ToWorker>> {
        self.workers.get(usize::from(port.0)).map(|worker| &worker.mailbox)
    }

    /// Returns when every worker has answered: all of them live, and so does this thread.
    pub async fn roll_call(&self) {
        self.flush_ports().await;
    }

    /// Returns when every thread has taken in what had arrived on its port by now.
    async fn flush_ports(&self) {
        self.dispatcher.receive();
        let mut flushed = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            if worker.mailbox.send(ToWorker::Flush(done)).is_ok() {
                flushed.push(wait);
            }
        }
        for wait in flushed {
            let _ = wait.await;
        }
    }
}

/// Waits for the disk without holding up the other tasks.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
