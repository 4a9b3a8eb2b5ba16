//! Starting a zygote: a confined process that loads its function and says that it is ready.
//!
//! It begins as its runtime, or from a [`Layer`]. Either way it is the same process to the kernel: what confines it is
//! [`begin`]'s, and done before either.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Channel, ChannelError};
use super::confine::{Beginning, Begun, begin, confined};
use super::error::StartError;
use super::executor::Executor;
use super::exit::Exit;
use super::fork::Link;
use super::layer::Layer;
use super::nursery::Child;
use super::output::Output;
use super::rewind::{self, Gate, Listener};
use super::spec::{ProcessLimits, ZygoteSpec};
use crate::cgroup::{FunctionGroup, GroupLimits};
use crate::packages::Site;
use crate::sandbox::{StepFailed, StepReport};
use crate::sys;
use parking_lot::Mutex;
use spry_wire::control::{FromZygote, Init, ToZygote};
use spry_wire::freeze::{Freeze, FreezeWish, Frozen};
use spry_wire::layer::Imports;
use tokio::sync::mpsc::UnboundedReceiver;

/// A process that has loaded its function and forks instances of it. Dropping it kills it; its instances live on.
#[derive(Debug)]
pub struct Zygote {
    pub(super) executor: Arc<Executor>,
    pub(super) child: Child,
    pub(super) link: tokio::sync::Mutex<Link>,
    pub(super) group: Arc<FunctionGroup>,
    pub(super) limits: ProcessLimits,
    /// The user that its instances must have, where functions have users of their own.
    pub(super) uid: Option<u32>,
    runtime: String,
    frozen: Frozen,
    imports: Imports,
    /// What it began from.
    pub(super) layer: Option<Arc<Layer>>,
    restore_cpu_time: Option<Duration>,
    loading_output: String,
    output: Mutex<Option<OwnedFd>>,
    /// Where its processes ask, if they do.
    pub(super) listener: Option<Arc<Listener>>,
    /// Why its instances aren't rewound, if they aren't.
    no_rewinding: Mutex<Option<String>>,
    arrivals: Mutex<Option<UnboundedReceiver<Arc<Gate>>>>,
}

impl Zygote {
    /// Starts one and waits until it has loaded its function.
    pub async fn start(executor: &Arc<Executor>, spec: &ZygoteSpec) -> Result<Self, StartError> {
        Self::start_from(executor, spec, None).await
    }

    /// The same, from a layer, which holds nothing that the function wouldn't import. If it can't be done so, it can by
    /// [`Self::start`]: whatever fails here is no more than a hint.
    pub async fn start_on(
        executor: &Arc<Executor>,
        spec: &ZygoteSpec,
        layer: &Arc<Layer>,
    ) -> Result<Self, StartError> {
        Self::start_from(executor, spec, Some(layer)).await
    }

    async fn start_from(
        executor: &Arc<Executor>,
        spec: &ZygoteSpec,
        layer: Option<&Arc<Layer>>,
    ) -> Result<Self, StartError> {
        let group = executor.tree.function(&spec.name)?;
        let beginning = if layer.is_some() { Beginning::Layer } else { Beginning::Runtime };
        let Begun { child, report, channel, mut output } = begin(executor, spec, beginning, &group).await?;
        let restore_cpu_time = Cell::new(None);
        let loading =
            load(&child, report, &channel, &mut output, spec, layer.map(|layer| (layer, &restore_cpu_time)));
        let loaded = tokio::time::timeout(executor.config.start_timeout, loading).await;
        let by_layer = |error: StartError| match layer {
            Some(_) if restore_cpu_time.get().is_none() && !matches!(error, StartError::Layer { .. }) => {
                StartError::Layer { why: error.to_string() }
            }
            _ => error,
        };
        let Ready { runtime, frozen, imports, asks } = match loaded {
            Ok(Ok(ready)) => ready,
            Ok(Err(failure)) => {
                child.kill();
                let exit = child.exited_or_lost().await;
                output.drain_now();
                return Err(by_layer(failure.explain(exit, output.text())));
            }
            Err(_) => {
                child.kill();
                output.drain_now();
                let after = executor.config.start_timeout;
                return Err(by_layer(StartError::Timeout { after, output: output.text() }));
            }
        };
        output.drain_now();
        executor.nursery.place_ahead(child.pid, group.lease("instance", &GroupLimits::from(&spec.limits))?);
        let (listener, arrivals, no_rewinding) = match (asks, &frozen) {
            (Err(why), _) => (None, None, Some(why)),
            (Ok((listener, arrivals)), Frozen { how: Freeze::Memfd, .. }) => {
                (Some(listener), Some(arrivals), None)
            }
            (Ok((listener, arrivals)), Frozen { why, .. }) => {
                let why = why.as_deref().unwrap_or("zygotes.freeze has chosen another way");
                (Some(listener), Some(arrivals), Some(format!("its memory isn't in a file: {why}")))
            }
        };
        let zygote = Self {
            executor: executor.clone(),
            child,
            link: tokio::sync::Mutex::new(Link::new(channel)),
            group,
            limits: spec.limits,
            uid: spec.uid_gid.map(|(uid, _)| uid),
            runtime,
            frozen,
            imports,
            layer: layer.cloned(),
            restore_cpu_time: restore_cpu_time.get(),
            loading_output: output.text(),
            output: Mutex::new(Some(output.into_pipe())),
            listener,
            no_rewinding: Mutex::default(),
            arrivals: Mutex::new(arrivals),
        };
        if let Some(listener) = zygote.listener.clone() {
            tokio::task::spawn_local(async move { listener.look_meanwhile().await });
        }
        if let Some(why) = no_rewinding {
            zygote.stop_rewinding(why);
        }
        Ok(zygote)
    }

    /// Whether the instances that it makes now are rewound, or why not.
    pub fn rewinding(&self) -> Result<(), String> {
        self.no_rewinding.lock().clone().map_or(Ok(()), Err)
    }

    /// Its instances aren't rewound from now on.
    pub fn stop_rewinding(&self, why: String) {
        let before = self.no_rewinding.lock().replace(why);
        // They ask all the same, and somebody must answer those whose answers no worker waits for.
        if let (None, Some(listener)) = (before, self.listener.clone()) {
            tokio::task::spawn_local(async move { listener.look().await });
        }
    }

    /// Where its processes ask, if they do.
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        self.listener.as_ref()
    }

    /// Instances that were found, on this thread, to have answered and to wait in the stub; once.
    pub fn take_arrivals(&self) -> Option<UnboundedReceiver<Arc<Gate>>> {
        self.arrivals.lock().take()
    }

    /// The processor's time that beginning from its layer took, before its function was loaded.
    pub fn restore_cpu_time(&self) -> Option<Duration> {
        self.restore_cpu_time
    }

    /// The processor's time that it has had.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.child.cpu_time()
    }

    /// What it has imported, as it says.
    pub fn imports(&self) -> &Imports {
        &self.imports
    }

    /// What runs the function, e.g. `CPython 3.11.2`.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// What it has done to its memory, as it says (it is the function's process: for people to read).
    pub fn frozen(&self) -> &Frozen {
        &self.frozen
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// What was printed while the function was loaded.
    pub fn loading_output(&self) -> &str {
        &self.loading_output
    }

    /// The pipe with what it prints from now on, once (non-blocking). If nobody reads it, a zygote that
    /// prints more than a pipe holds waits.
    pub fn take_output(&self) -> Option<OwnedFd> {
        self.output.lock().take()
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Exit {
        self.child.exited_or_lost().await
    }

    /// Its end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        *self.child.exit.borrow()
    }

    /// Kills it.
    pub fn kill(&self) {
        self.child.kill();
    }
}

/// Why loading failed, before it is known what became of the process.
enum LoadFailure {
    Sandbox(StepFailed),
    Code(String),
    Died,
    Channel(ChannelError),
    Layer(String),
    Protocol,
}

impl LoadFailure {
    fn explain(self, exit: Exit, output: String) -> StartError {
        match self {
            Self::Sandbox(failed) => StartError::Sandbox(failed),
            Self::Code(message) => StartError::Code { message, output },
            Self::Died => StartError::Died { exit, output },
            Self::Channel(source) => StartError::Channel { source, output },
            Self::Layer(why) => StartError::Layer { why: line(&why) },
            Self::Protocol => StartError::Protocol,
        }
    }
}

/// What a zygote says of itself when it is ready.
struct Ready {
    runtime: String,
    frozen: Frozen,
    imports: Imports,
    asks: Asks,
}

async fn load(
    child: &Child,
    report: StepReport,
    channel: &Channel,
    output: &mut Output,
    spec: &ZygoteSpec,
    layer: Option<(&Arc<Layer>, &Cell<Option<Duration>>)>,
) -> Result<Ready, LoadFailure> {
    let begun = Instant::now();
    // Whatever it waits for ends with the process, after all that the process has said. (To wait for the process's end beside it would be
    // a race: the end may come when this has just been asked and has nothing yet.)
    let conversation = async {
        if let Some(failed) =
            confined(report, child).await.map_err(|error| LoadFailure::Channel(ChannelError::Wait(error)))?
        {
            return Err(LoadFailure::Sandbox(failed));
        }
        let stub = spec.rewind.clone().and_then(|()| rewind::stub());
        let beside = stub.as_ref().map_or(&[][..], std::slice::from_ref);
        let mut asks = None;
        if let Some((layer, restore_cpu_time)) = layer {
            // The packages have run code in what it is going to be: it is filtered before.
            let files: Vec<_> = [layer.file().as_fd()].into_iter().chain(beside.iter().copied()).collect();
            channel.send(&ToZygote::Restore { rewind: stub.is_ok() }, &files).await.map_err(failed)?;
            let asks = asks.insert(filtered(channel, child, stub.clone().map(drop)).await?);
            match answer_to(channel, child, asks).await? {
                (FromZygote::Restored, fds) if fds.is_empty() => {
                    restore_cpu_time.set(Some(child.cpu_time().unwrap_or_else(|| begun.elapsed())));
                }
                (FromZygote::NoLayer { why }, _) => return Err(LoadFailure::Layer(why)),
                _ => return Err(LoadFailure::Protocol),
            }
        }
        let init = Init {
            name: spec.name.clone(),
            handler: spec.handler.clone(),
            code: spec.code.to_string_lossy().into_owned(),
            packages: folders(spec.packages.as_ref()),
            freeze: FreezeWish {
                how: spec.freeze,
                memory_bytes: spec.limits.memory_bytes,
                always: stub.is_ok(),
            },
            rewind: stub.is_ok(),
        };
        channel.send(&ToZygote::Init(init), beside).await.map_err(failed)?;
        let asks = match asks {
            Some(asks) => asks,
            None => filtered(channel, child, stub.map(drop)).await?,
        };
        let imports = match answer_to(channel, child, &asks).await? {
            (FromZygote::Imported(imports), fds) if fds.is_empty() => imports.checked(),
            (FromZygote::Failed { message }, _) => return Err(LoadFailure::Code(message)),
            _ => return Err(LoadFailure::Protocol),
        };
        match answer_to(channel, child, &asks).await? {
            (FromZygote::Ready { runtime, frozen }, fds) if fds.is_empty() => {
                tracing::debug!(
                    function = spec.name,
                    ?frozen,
                    on_layer = layer.is_some(),
                    "a zygote is ready"
                );
                Ok(Ready { runtime, frozen: legible(frozen), imports, asks })
            }
            _ => Err(LoadFailure::Protocol),
        }
    };
    let drained = async {
        output.drain().await;
        std::future::pending::<()>().await; // it may close its output and go on
    };
    tokio::select! {
        biased;
        result = conversation => result,
        () = drained => unreachable!("never ends"),
    }
}

/// As a process is told of them.
pub(super) fn folders(site: Option<&Site>) -> Vec<String> {
    site.into_iter()
        .flat_map(|site| &site.folders)
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect()
}

/// Where a zygote's processes ask; or why they don't.
type Asks = Result<(Arc<Listener>, UnboundedReceiver<Arc<Gate>>), String>;

fn failed(error: ChannelError) -> LoadFailure {
    match error {
        ChannelError::Closed => LoadFailure::Died,
        error => LoadFailure::Channel(error),
    }
}

async fn heard(channel: &Channel, child: &Child) -> Result<(FromZygote, Vec<OwnedFd>), LoadFailure> {
    channel.receive_from(child).await.map_err(|_| LoadFailure::Died)?.map_err(failed)
}

/// What came of the wish that a zygote filters its system calls. No code but spry's has run in it yet: what it says is true.
async fn filtered(channel: &Channel, child: &Child, wish: Result<(), String>) -> Result<Asks, LoadFailure> {
    if let Err(why) = wish {
        return Ok(Err(why));
    }
    match heard(channel, child).await? {
        (FromZygote::Filtered { asks }, _) => {
            let taken = sys::take_fd(child.pidfd.as_fd(), asks);
            let taken = taken.map_err(|error| match error.raw_os_error() {
                Some(libc::ESRCH) => LoadFailure::Died,
                _ => LoadFailure::Channel(ChannelError::Wait(error)),
            })?;
            let filters = rewind::filters(child.pid);
            let filters = filters.map_err(|error| LoadFailure::Channel(ChannelError::Wait(error)))?;
            let asks = Listener::new(taken, filters);
            channel.send(&ToZygote::Taken, &[]).await.map_err(failed)?;
            Ok(Ok(asks))
        }
        (FromZygote::Unfiltered { why }, _) => Ok(Err(line(&why))),
        _ => Err(LoadFailure::Protocol),
    }
}

/// What a zygote says next; what it asks meanwhile is answered.
async fn answer_to(
    channel: &Channel,
    child: &Child,
    asks: &Asks,
) -> Result<(FromZygote, Vec<OwnedFd>), LoadFailure> {
    let looking = async {
        if let Ok((listener, _)) = asks {
            listener.look().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = heard(channel, child) => answer,
        () = looking => unreachable!("never ends"),
    }
}

/// What a hostile process says of itself is shown to people: a line of text.
fn legible(frozen: Frozen) -> Frozen {
    Frozen { why: frozen.why.as_deref().map(line), ..frozen }
}

/// For people: one line, not too long.
pub(crate) fn line(text: &str) -> String {
    text.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
