//! The scheduler's part of a start: what the configuration asks for is opened, and its thread runs while it is kept.

use std::sync::Arc;

use shm_bus::ids::PortIndex;

use super::{StartupError, os};
use crate::config::Config;
use crate::dispatch::{Bus, Cores};
use crate::schedule::{self, Scheduler};
use crate::zygote::Executor;

/// What the bus gets, and in words where CPU times come from.
pub(super) fn open(config: &Config, executor: &Executor) -> Result<(Cores, String), StartupError> {
    let backend = schedule::open_backend(config.scheduler, executor.cpu_folder());
    let cores = crate::sys::allowed_cpus().len().max(1);
    let opened = Scheduler::new(config.scheduler.policy, Arc::clone(&backend), cores);
    let scheduler = opened.map_err(os("make the scheduler's timer"))?;
    if let Some(scheduler) = &scheduler {
        let (policy, made) = (scheduler.policy().as_str(), backend);
        let backend = scheduler.backend();
        executor.set_backend(made);
        tracing::info!(policy, backend = backend.kind().as_str(), how = backend.describe(), "scheduling");
    }
    let (signals, in_words) = schedule::open_signals(config.scheduler);
    Ok((Cores { scheduler, signals, count: cores as u32 }, in_words))
}

/// The scheduler's thread; it ends when this is dropped.
pub(super) struct Scheduling {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Starts it on the bus port with this number, if anything is to be scheduled.
pub(super) fn start(bus: &Arc<Bus>, port: usize) -> Result<Option<Scheduling>, StartupError> {
    let Some(scheduler) = &bus.cores.scheduler else { return Ok(None) };
    let (stop, end) = tokio::sync::oneshot::channel();
    let spec = schedule::ThreadSpec {
        scheduler: Arc::clone(scheduler),
        port: PortIndex(port as u8),
        bus: Arc::clone(bus),
        end,
    };
    let (ready, wait) = std::sync::mpsc::channel();
    let thread =
        std::thread::Builder::new().name("scheduler".into()).spawn(move || schedule::run_thread(spec, ready));
    let thread = thread.map_err(os("start the scheduler's thread"))?;
    wait.recv().unwrap_or_else(|_| Err("it ended at once".into())).map_err(StartupError::Worker)?;
    Ok(Some(Scheduling { stop: Some(stop), thread: Some(thread) }))
}

impl Drop for Scheduling {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
