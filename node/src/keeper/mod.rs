//! The thread that makes and ends processes: zygotes, instances, their deaths, scaling, redeploys.
//!
//! One task tends each function ([`tend`]); it alone decides how many instances its function has. Births
//! ([`birth`]) and deaths ([`death`]) are tasks of their own, so that a slow one holds up nothing. All run on one
//! thread, spryd's main thread, which lives as long as the process (parent-death signals are bound to it).

mod birth;
mod death;
mod tend;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use shm_bus::ids::{FunctionIndex, PortIndex};
use shm_bus::segment::SegmentName;
use shm_bus::transport::{Fault, FaultKind};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::activation::History;
use crate::api::{DeployError, Deployed, RemoveError, ZygoteState};
use crate::dispatch::{Bus, Dispatcher, ToWorker};
use crate::function::{Counts, Function};
use crate::inbox::{Inbox, NodeBytes};
use crate::instance::{Doom, Instance};
use crate::manifest::{Egress, Name, Runtime};
use crate::node::Node;
use crate::store::{Staged, Store, StoredFunction};
use crate::zygote::{self, Executor, ProcessLimits, StartError, ZygoteSpec};

pub use tend::ToTender;

/// What the keeper is told by other threads.
pub enum ToKeeper {
    /// A function's advice on placement has changed.
    Place {
        /// Which.
        function: Arc<Function>,
        /// On the core of the worker, or anywhere.
        at_home: bool,
    },
    /// Serve this code from now on.
    Deploy {
        /// What was uploaded.
        staged: Box<Staged>,
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
}

/// What a process that closed its bus socket may take to end, before it is ended.
const CLOSED_GRACE: std::time::Duration = std::time::Duration::from_millis(50);

/// What all of the keeper's tasks share.
pub struct Keeper {
    node: Arc<Node>,
    bus: Arc<Bus>,
    executor: Arc<Executor>,
    store: Arc<Store>,
    dispatcher: Rc<Dispatcher>,
    workers: Vec<Worker>,
    node_bytes: Arc<NodeBytes>,
    tended: RefCell<HashMap<FunctionIndex, UnboundedSender<ToTender>>>,
    next_segment: Cell<u32>,
    segment_generation: Cell<u32>,
    next_instance: Cell<u64>,
    closing: Cell<bool>,
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
    /// The keeper's own way onto the bus.
    pub dispatcher: Rc<Dispatcher>,
    /// The gateway's workers.
    pub workers: Vec<Worker>,
    /// Bounds what requests hold.
    pub node_bytes: Arc<NodeBytes>,
}

impl Keeper {
    /// A keeper that tends nothing yet.
    pub fn new(parts: Parts) -> Rc<Self> {
        Rc::new(Self {
            node: parts.node,
            bus: parts.bus,
            executor: parts.executor,
            store: parts.store,
            dispatcher: parts.dispatcher,
            workers: parts.workers,
            node_bytes: parts.node_bytes,
            tended: RefCell::default(),
            next_segment: Cell::new(1),
            segment_generation: Cell::new(1),
            next_instance: Cell::new(1),
            closing: Cell::new(false),
        })
    }

    /// Serves what the store remembers. Zygotes are started when they are needed.
    pub fn restore(self: &Rc<Self>) {
        let opened = self.store.opened();
        if *opened != crate::store::Opened::default() {
            tracing::warn!(?opened, "what an earlier crash left in the state folder was mended");
        }
        let stored = match self.store.functions() {
            Ok(stored) => stored,
            Err(error) => return tracing::error!(%error, "the stored functions can't be read"),
        };
        for stored in stored {
            let name = stored.manifest.name.to_string();
            match self.make(stored, None) {
                Ok(function) => {
                    if opened.missing.contains(&name) {
                        let problem = "its files are gone from the state folder; deploy it again";
                        function.set_zygote(ZygoteState::Failed, Some(problem.into()));
                    }
                    let min = function.stored.manifest.scale.min;
                    self.node.publish(Arc::clone(&function));
                    let tender = tend::spawn(Rc::clone(self), function, None);
                    let _ = tender.send(ToTender::Warm(min as usize));
                }
                Err(error) => tracing::error!(function = name, %error, "a stored function can't be served"),
            }
        }
    }

    /// Works through the mailbox until every sender is gone.
    pub async fn run(self: Rc<Self>, mut mailbox: UnboundedReceiver<ToKeeper>) {
        while let Some(message) = mailbox.recv().await {
            match message {
                ToKeeper::Place { function, at_home } => {
                    for instance in function.instances() {
                        self.place(&instance, at_home);
                    }
                }
                ToKeeper::Deploy { staged, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.deploy(*staged).await);
                    });
                }
                ToKeeper::Remove { name, done } => {
                    let keeper = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = done.send(keeper.remove(&name).await);
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
        let function = self.bus.functions[usize::from(peer.function().0)].load_full();
        let instance = function.and_then(|function| function.instances[peer.bit() as usize].load_full());
        let Some(instance) = instance.filter(|instance| instance.peer == peer) else { return };
        if kind != FaultKind::Closed {
            tracing::warn!(pid = instance.pid, ?kind, "an instance broke the bus's rules and is ended");
            return instance.kill(Doom::Fault(kind));
        }
        // A process that ends closes its sockets first; only one that lives on has broken the rules.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(CLOSED_GRACE).await;
            instance.kill(Doom::Fault(kind));
        });
    }

    /// Ends everything: instances, zygotes, their cgroups.
    pub async fn close(&self) {
        self.closing.set(true);
        let tenders: Vec<_> = self.tended.borrow().values().cloned().collect();
        for tender in tenders {
            let (done, ended) = oneshot::channel();
            if tender.send(ToTender::End(done)).is_ok() {
                let _ = ended.await;
            }
        }
        self.executor.shutdown().await;
    }

    async fn deploy(self: &Rc<Self>, staged: Staged) -> Result<Deployed, DeployError> {
        if self.closing.get() {
            return Err(DeployError::ShuttingDown);
        }
        let name = staged.manifest().name.to_string();
        let before = self.node.named(&name);
        let function = self.make(preview(&staged), before.as_ref())?;
        let started = Instant::now();
        let zygote = match tend::start_zygote(self, &function).await {
            Ok(zygote) => zygote,
            Err(error) => {
                self.bus.functions[usize::from(function.index.0)].store(None);
                return Err(deploy_error(error, function.stored.manifest.runtime));
            }
        };
        let zygote_ms = started.elapsed().as_secs_f64() * 1e3;
        let store = Arc::clone(&self.store);
        let stored = match off_the_loop(move || store.commit(staged)).await {
            Ok(stored) => stored,
            Err(error) => {
                self.bus.functions[usize::from(function.index.0)].store(None);
                zygote.kill();
                zygote.exited().await;
                return Err(error.into());
            }
        };
        let warm_before = before.as_ref().map_or(0, |old| usize::from(old.instances().next().is_some()));
        let warm = warm_before.max(function.stored.manifest.scale.min as usize);
        let runtime_version = zygote.runtime().to_owned();
        let replaced = before.as_ref().map(|old| old.stored.version);
        let tender = tend::spawn(Rc::clone(self), Arc::clone(&function), Some(zygote));
        let (ready, warmed) = oneshot::channel();
        let _ = tender.send(ToTender::WarmThen(warm, ready));
        // The old version goes on serving until the new one has what it needs.
        let _ = warmed.await;
        let view = crate::node::view(&function);
        let old = self.node.publish(function);
        if let Some(old) = old {
            old.supersede();
        }
        tracing::info!(function = name, version = stored.version, "deployed");
        Ok(Deployed { function: view, runtime_version, zygote_ms, replaced })
    }

    async fn remove(self: &Rc<Self>, name: &Name) -> Result<(), RemoveError> {
        let Some(function) = self.node.unpublish(name.as_str()) else {
            return Err(RemoveError::NoSuchFunction(name.to_string()));
        };
        let tender = self.tended.borrow().get(&function.index).cloned();
        function.supersede();
        if let Some(tender) = tender {
            // Closed when its task has ended everything.
            tender.closed().await;
        }
        let (store, gone) = (Arc::clone(&self.store), name.clone());
        off_the_loop(move || store.remove(&gone)).await?;
        tracing::info!(function = name.as_str(), "removed");
        Ok(())
    }

    /// Gives a function a place on the bus and an inbox.
    fn make(
        &self,
        stored: StoredFunction,
        before: Option<&Arc<Function>>,
    ) -> Result<Arc<Function>, DeployError> {
        let free = self.bus.functions.iter().position(|entry| entry.load().is_none());
        let index = FunctionIndex(free.ok_or_else(|| {
            DeployError::NoRoom(format!("{} functions are on the bus", self.bus.functions.len()))
        })? as u16);
        let inbox = self.inbox(&stored).map_err(|error| DeployError::NoRoom(error.to_string()))?;
        let history = before.map_or_else(
            || Arc::new(parking_lot::Mutex::new(History::default())),
            |old| Arc::clone(&old.history),
        );
        let counts = before.map_or_else(|| Arc::new(Counts::default()), |old| Arc::clone(&old.counts));
        let function = Function::new(index, stored, inbox, history, counts);
        self.bus.functions[usize::from(index.0)].store(Some(Arc::clone(&function)));
        Ok(function)
    }

    fn inbox(&self, stored: &StoredFunction) -> Result<Arc<Inbox>, shm_bus::segment::SegmentError> {
        let manifest = &stored.manifest;
        let payload_max = manifest.limits.payload.as_bytes();
        Inbox::new(manifest.name.as_str(), self.segment_name(), payload_max, Arc::clone(&self.node_bytes))
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

    fn place(&self, instance: &Instance, at_home: bool) {
        let bound: Vec<usize> = self.workers.iter().filter_map(|worker| worker.cpu).collect();
        if bound.is_empty() {
            return;
        }
        let home = bound[instance.peer.bit() as usize % bound.len()];
        let cpu = at_home.then_some(home);
        self.bus.transport.set_home(instance.peer, cpu);
        instance.bind_to(cpu);
    }

    /// What a function's processes are to be.
    fn spec(&self, stored: &StoredFunction) -> Result<ZygoteSpec, StartError> {
        let manifest = &stored.manifest;
        let uid_gid = self.executor.needs_own_users().then_some((stored.uid, stored.uid));
        let runtime = match manifest.runtime {
            Runtime::Native => zygote::Runtime::Native,
            Runtime::Python => {
                let wanted = self.node.config().python.as_deref();
                zygote::Runtime::Python { interpreter: zygote::find_interpreter(wanted, uid_gid)? }
            }
        };
        Ok(ZygoteSpec {
            name: manifest.name.to_string(),
            runtime,
            handler: manifest.handler.clone(),
            code: stored.code.clone(),
            env: manifest.env.clone(),
            uid_gid,
            limits: ProcessLimits {
                memory_bytes: manifest.limits.memory.as_bytes(),
                cpu: manifest.limits.cpu,
                processes: manifest.limits.processes,
                ..ProcessLimits::default()
            },
            egress: match manifest.network.egress {
                Egress::None => zygote::Egress::None,
                Egress::Host => zygote::Egress::Host,
            },
        })
    }

    fn worker(&self, port: PortIndex) -> Option<&UnboundedSender<ToWorker>> {
        self.workers.get(usize::from(port.0)).map(|worker| &worker.mailbox)
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

/// What a staged version will be once it is committed.
fn preview(staged: &Staged) -> StoredFunction {
    StoredFunction {
        manifest: staged.manifest().clone(),
        version: staged.version(),
        sha256: staged.sha256().to_owned(),
        slot: staged.slot(),
        uid: staged.uid(),
        code: staged.code(),
        bytes: staged.contents().bytes,
        deployed_unix_ms: crate::activation::unix_ms(),
    }
}

/// Whose fault it is that a zygote did not start, in the deployer's words.
fn deploy_error(error: StartError, runtime: Runtime) -> DeployError {
    let with_output = |text: String, output: String| {
        if output.is_empty() { text } else { format!("{text}\n--- what it printed ---\n{output}") }
    };
    match error {
        StartError::Code { message, output } => DeployError::Code(with_output(message, output)),
        StartError::Died { exit, output } => DeployError::ZygoteDied(with_output(exit.to_string(), output)),
        StartError::Timeout { after, .. } => DeployError::InitTimeout(after),
        StartError::Os { operation, source } => DeployError::Os { step: operation, source },
        other => DeployError::Runtime { runtime, why: other.to_string() },
    }
}
