//! A version comes and a version goes: deploys, redeploys, rollbacks, removals.
//!
//! A new version is started beside the old one, which goes on serving until the new one has its code loaded, is
//! stored, and has an instance if the old one had any. Then the name is swapped, and the old one runs dry. If
//! anything fails before the swap, nothing has changed.
//!
//! Of changes to one name that come at once, one is stored and published, or removed, after the other ([`super::turns`]).

use std::rc::Rc;
use std::sync::Arc;

use shm_bus::ids::FunctionIndex;
use shm_bus::transport::Kind;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::{Keeper, ToTender, off_the_loop, tend};
use crate::activation::History;
use crate::api::{DeployError, Deployed, RemoveError};
use crate::function::{Counts, Function};
use crate::manifest::{Egress, Isolation, Manifest, Name, Runtime};
use crate::packages::{PackagesError, Wanted};
use crate::progress::Progress;
use crate::secrets::SecretError;
use crate::store::{Recalled, Staged, Store, StoreError, StoredFunction};
use crate::units::Size;
use crate::zygote::{self, ProcessLimits, StartError, ZygoteSpec};

impl Keeper {
    pub(super) async fn deploy(
        self: &Rc<Self>,
        staged: Staged,
        progress: &Progress,
    ) -> Result<Deployed, DeployError> {
        let preview = preview(&staged);
        self.replace(preview, progress, move |store| store.commit(staged)).await
    }

    /// Serves a version that is kept again; it comes as a new one does, from its zygote on.
    pub(super) async fn roll_back(
        self: &Rc<Self>,
        recalled: Recalled,
        progress: &Progress,
    ) -> Result<Deployed, DeployError> {
        let version = recalled.function().clone();
        self.replace(version, progress, move |store| store.roll_back(&recalled)).await
    }

    /// Starts a version beside the one that serves, and puts it in its place once it is ready and `commit` has made it
    /// durable.
    async fn replace(
        self: &Rc<Self>,
        version: StoredFunction,
        progress: &Progress,
        commit: impl FnOnce(&Store) -> Result<StoredFunction, StoreError> + Send + 'static,
    ) -> Result<Deployed, DeployError> {
        if self.closing.get() {
            return Err(DeployError::ShuttingDown);
        }
        let name = version.manifest.name.to_string();
        let function = self.make(version, self.node.named(&name).as_ref())?;
        let started = match self.start_first(&function, progress).await {
            Ok(started) => started,
            Err(error) => {
                self.bus.functions[usize::from(function.index.0)].store(None);
                self.sweep_packages().await;
                return Err(error);
            }
        };
        let zygote = Rc::clone(&started.zygote);
        let zygote_ms = started.took_ns as f64 / 1e6;
        let turn = self.turns.of(&name);
        let _turn = match turn.try_lock() {
            Ok(held) => held,
            Err(_) => {
                progress.say("waiting: the function is being changed or removed");
                turn.lock().await
            }
        };
        // (Whoever had the turn may have put another one there, or none.)
        let before = self.node.named(&name);
        let store = Arc::clone(&self.store);
        let stored = match off_the_loop(move || commit(&store)).await {
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
        let tender = tend::spawn(Rc::clone(self), Arc::clone(&function), Some(started));
        let (ready, warmed) = oneshot::channel();
        let _ = tender.send(ToTender::WarmThen(warm, ready));
        // The old version goes on serving until the new one has what it needs.
        let _ = warmed.await;
        let view = crate::node::view(&function);
        let old = self.node.publish(function);
        // Before the old version goes: until then the chains serve with its files.
        self.refresh_chains(&name).await;
        if let Some(old) = old {
            old.supersede();
        }
        tracing::info!(function = name, version = stored.version, "deployed");
        Ok(Deployed { function: view, runtime_version, zygote_ms, replaced })
    }

    /// Starts the zygote of a new version, if there is room for it and for the instances that it is to have.
    async fn start_first(
        self: &Rc<Self>,
        function: &Function,
        progress: &Progress,
    ) -> Result<tend::Started, DeployError> {
        let manifest = &function.stored.manifest;
        let each = manifest.limits.memory.as_bytes();
        let processes = 1 + u64::from(manifest.scale.min.max(1));
        let promise = self.room(each.saturating_mul(processes), function.index, true).await;
        let promise = promise.map_err(|short| {
            DeployError::NoRoom(format!(
                "{} {short}: {} each for its zygote and {} instance(s)",
                manifest.name,
                Size::bytes(each).rounded(),
                processes - 1
            ))
        })?;
        let started = tend::start_zygote(self, function, promise.keep(each), progress).await;
        started.map_err(|error| deploy_error(error, manifest))
    }

    pub(super) async fn remove(self: &Rc<Self>, name: &Name) -> Result<(), RemoveError> {
        let turn = self.turns.of(name.as_str());
        let _turn = turn.lock().await;
        // Before anything ends: what a chain uses stays, and from now on none begins to use it.
        let (store, leaving) = (Arc::clone(&self.store), name.clone());
        let _retired = off_the_loop(move || store.retire(&leaving)).await?;
        // A removal that fails (the disk is full) changes nothing.
        let (store, gone) = (Arc::clone(&self.store), name.clone());
        let leaving = match off_the_loop(move || store.remove(&gone)).await {
            Err(StoreError::NoSuchFunction(name)) => return Err(RemoveError::NoSuchFunction(name)),
            removed => removed?,
        };
        // (It isn't served if it could not be.)
        if let Some(function) = self.node.unpublish(name.as_str()) {
            function.supersede();
            // Who follows its output needn't wait for a line to hear that there is nothing to follow.
            function.history.lock().news().notify_waiters();
        }
        // Versions before it may have calls, too.
        for tender in self.tenders_of(name) {
            // Closed when its task has ended everything.
            tender.closed().await;
        }
        if let Err(error) = off_the_loop(move || leaving.clear()).await {
            tracing::warn!(function = name.as_str(), %error, "a removed function's files stay behind until the next start");
        }
        self.noted_uses.borrow_mut().remove(name.as_str());
        self.layers_changed();
        self.sweep_packages().await;
        tracing::info!(function = name.as_str(), "removed");
        Ok(())
    }

    /// Of all versions that still run, by themselves or in a chain.
    fn tenders_of(&self, name: &Name) -> Vec<UnboundedSender<ToTender>> {
        let functions = self.bus.functions.iter().filter_map(|entry| entry.load_full());
        let same = functions.filter(|function| function.name() == name.as_str());
        let tended = self.tended.borrow();
        same.filter_map(|function| tended.get(&function.index).cloned()).collect()
    }

    /// Gives a function a place on the bus and an inbox.
    pub(super) fn make(
        &self,
        stored: StoredFunction,
        before: Option<&Arc<Function>>,
    ) -> Result<Arc<Function>, DeployError> {
        let index = self.free_index()?;
        let inbox = self.inbox(&stored).map_err(|error| DeployError::NoRoom(error.to_string()))?;
        let new = || History::new(stored.manifest.name.as_str(), Arc::clone(self.node.recorder()));
        let history =
            before.map_or_else(|| Arc::new(parking_lot::Mutex::new(new())), |old| Arc::clone(&old.history));
        let counts = before.map_or_else(|| Arc::new(Counts::default()), |old| Arc::clone(&old.counts));
        let function = Function::new(index, stored, inbox, history, counts, None);
        self.bus.functions[usize::from(index.0)].store(Some(Arc::clone(&function)));
        Ok(function)
    }

    /// A place on the bus that nobody has.
    pub(super) fn free_index(&self) -> Result<FunctionIndex, DeployError> {
        let free = self.bus.functions.iter().position(|entry| entry.load().is_none());
        free.map(|index| FunctionIndex(index as u16)).ok_or_else(|| {
            DeployError::NoRoom(format!("{} functions are on the bus", self.bus.functions.len()))
        })
    }

    /// Removes the Python packages that no function on the bus asks for or was given.
    pub(super) async fn sweep_packages(&self) {
        let wanted = || {
            let mut wanted = Wanted::default();
            for function in self.bus.functions.iter().filter_map(|entry| entry.load_full()) {
                let list = &function.stored.manifest.packages;
                if !list.is_empty() {
                    wanted.lists.insert(list.clone());
                    wanted.given.append(&mut function.packages());
                }
            }
            wanted
        };
        match zygote::find_interpreter(self.node.config().python.as_deref(), self.packages.uid_gid()) {
            Ok(interpreter) => self.packages.sweep(&interpreter, wanted).await,
            Err(error) => tracing::debug!(%error, "no packages without an interpreter"),
        }
    }

    /// What a function's processes are to be.
    pub(super) fn spec(&self, stored: &StoredFunction) -> Result<ZygoteSpec, StartError> {
        let manifest = &stored.manifest;
        let uid_gid = self.executor.needs_own_users().then_some((stored.uid, stored.uid));
        let runtime = match manifest.runtime {
            Runtime::Native => zygote::Runtime::Native,
            Runtime::Python => {
                let config = self.node.config();
                let wanted = config.python.as_deref();
                zygote::Runtime::Python { interpreter: zygote::find_interpreter(wanted, uid_gid)? }
            }
        };
        Ok(ZygoteSpec {
            name: manifest.name.to_string(),
            runtime,
            handler: manifest.handler.clone(),
            code: stored.code.clone(),
            packages: None,
            secrets: Vec::new(),
            env: manifest.env.clone(),
            uid_gid,
            limits: ProcessLimits {
                memory_bytes: manifest.limits.memory.as_bytes(),
                cpu: manifest.limits.cpu,
                processes: manifest.limits.processes,
                tmpfs_bytes: manifest.limits.tmpfs.as_bytes(),
                ..ProcessLimits::default()
            },
            egress: match manifest.network.egress {
                Egress::None => zygote::Egress::None,
                Egress::Host => zygote::Egress::Host,
            },
            single_use: manifest.isolation == Isolation::Request,
            freeze: self.node.config().freeze,
            rewind: self.may_rewind(stored),
        })
    }

    /// Whether this function's instances shall be rewound, or why not.
    fn may_rewind(&self, stored: &StoredFunction) -> Result<(), String> {
        let manifest = &stored.manifest;
        if manifest.isolation != Isolation::Request {
            return Err("its instances keep what they have".to_owned());
        }
        if !self.node.config().rewind {
            return Err("switched off (zygotes.rewind)".to_owned());
        }
        if !self.executor.needs_own_users() {
            return Err("spryd isn't root: it may not look into functions' processes".to_owned());
        }
        let transport = self.bus.transport.kind();
        if transport != Kind::Sockmap {
            return Err(format!("the transport {} shares memory or messages with spryd", transport.name()));
        }
        // These have code of the function's choice run before the runtime has begun, which is when it is trusted.
        let early =
            manifest.env.keys().find(|key| ["LD_", "PYTHON"].iter().any(|start| key.starts_with(start)));
        if let Some(key) = early {
            return Err(format!("its variable {key} changes how its runtime starts"));
        }
        zygote::rewind::probe()
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
        code_sha256: staged.code_sha256().to_owned(),
        used_unix_ms: 0,
    }
}

/// Whose fault it is that a zygote did not start, in the deployer's words.
fn deploy_error(error: StartError, manifest: &Manifest) -> DeployError {
    let with_output = |text: String, output: String| {
        if output.is_empty() { text } else { format!("{text}\n--- what it printed ---\n{output}") }
    };
    match error {
        StartError::Code { message, output } => DeployError::Code(with_output(message, output)),
        StartError::Died { exit, output } => {
            let mut how = exit.to_string();
            if exit.out_of_memory {
                how += &format!(
                    ": loading it takes more than its limit of {} (`limits.memory` of its spry.toml)",
                    manifest.limits.memory
                );
            }
            DeployError::ZygoteDied(with_output(how, output))
        }
        StartError::Timeout { after, .. } => DeployError::InitTimeout(after),
        StartError::Files(error) => DeployError::Store(error),
        StartError::Secrets(error @ SecretError::Missing(_)) => DeployError::SecretMissing(error.to_string()),
        StartError::Packages(error) if error.blames_function() => DeployError::Packages(error.to_string()),
        StartError::Packages(PackagesError::ShuttingDown) => DeployError::ShuttingDown,
        StartError::Os { operation, source } => DeployError::Os { step: operation, source },
        other => DeployError::Runtime { runtime: manifest.runtime, why: other.to_string() },
    }
}
