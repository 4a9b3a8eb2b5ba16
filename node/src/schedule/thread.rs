//! The scheduler's thread: wakes when a slice should be over, and sends what that lets in.
//!
//! It has a bus port of its own to send on. (Answers go to the worker whose request it was; what comes here is what
//! couldn't be delivered.) While nothing is scheduled it sleeps, but for a look at whether `spry-scx` is there, on kernels that can
//! have it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use shm_bus::ids::PortIndex;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use super::Scheduler;
use crate::dispatch::{Bus, Dispatcher};

/// What the thread needs.
pub struct Spec {
    /// Its scheduler.
    pub scheduler: Arc<Scheduler>,
    /// Its bus port.
    pub port: PortIndex,
    /// The bus.
    pub bus: Arc<Bus>,
    /// Resolves (or is dropped) when it is to end.
    pub end: oneshot::Receiver<()>,
}

/// Serves until told to end; the body of the thread. `ready` is told once the port is open.
pub fn run(spec: Spec, ready: std::sync::mpsc::Sender<Result<(), String>>) {
    spry_sched::backend::wake_soon();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(format!("event loop: {error}")))),
    };
    LocalSet::new().block_on(&runtime, async move {
        let opened = crate::sys::random_u64().map_err(|error| format!("draw random bits: {error}"));
        let opened = opened.and_then(|seed| {
            Dispatcher::new(Arc::clone(&spec.bus), spec.port, None, seed).map_err(|error| error.to_string())
        });
        let timer = spec.scheduler.timer_fd().map_err(|error| format!("the scheduler's timer: {error}"));
        let (dispatcher, timer) = match (opened, timer) {
            (Ok(dispatcher), Ok(timer)) => (dispatcher, timer),
            (Err(error), _) | (_, Err(error)) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        let served = async {
            tokio::try_join!(
                Rc::clone(&dispatcher).serve_port(),
                turns(&spec.scheduler, &dispatcher, timer),
                events(&spec.scheduler, &dispatcher),
                looks(&spec.scheduler, &dispatcher)
            )
        };
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::error!(%error, "the scheduler can't wait for its timer or its port any more");
                }
            }
            _ = spec.end => {}
        }
    });
}

async fn turns(scheduler: &Scheduler, dispatcher: &Rc<Dispatcher>, timer: OwnedFd) -> std::io::Result<()> {
    let ready = crate::sys::watch(timer)?;
    let mut expirations = [0; 8];
    loop {
        let mut guard = ready.readable().await?;
        // How often it has expired is of no interest.
        let _ = nix::unistd::read(guard.get_inner(), &mut expirations);
        guard.clear_ready();
        scheduler.turn(dispatcher);
    }
}

/// Whether the backend has to take another way, where it ever has to.
async fn looks(scheduler: &Scheduler, dispatcher: &Rc<Dispatcher>) -> std::io::Result<()> {
    let Some(every) = scheduler.backend().look_every() else { return Ok(()) };
    let mut due = tokio::time::interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        scheduler.look(dispatcher);
    }
}

/// Who blocks and who wakes, where that is told.
async fn events(scheduler: &Scheduler, dispatcher: &Rc<Dispatcher>) -> std::io::Result<()> {
    let Some(signals) = dispatcher.bus().cores.signals.clone() else { return Ok(()) };
    let ready = crate::sys::watch(signals.events_fd()?)?;
    let mut told = Vec::new();
    loop {
        let mut guard = ready.readable().await?;
        guard.clear_ready();
        signals.told(&mut told);
        scheduler.told(dispatcher, &told);
        told.clear();
    }
}
