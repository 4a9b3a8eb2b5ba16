//! The end of a process: what it held is found out, told, and given back.
//!
//! The order matters. A dead instance can't be picked any more (`retire`); what it had answered is taken in by
//! everybody (`flush_ports`, unless it is known that there is nothing); only then is its place on the bus given up (`detach`), which tells what it still
//! held. So an accepted answer is never taken for a lost one, and a new instance in the same place
//! can't be taken for the dead one.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use shm_bus::ids::InvocationId;
use tokio::sync::mpsc::UnboundedSender;

use super::{Keeper, ToTender, segments};
use crate::activation::Stream;
use crate::budget::Promise;
use crate::dispatch::ToWorker;
use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::{Doom, Instance};
use crate::zygote::{Exit, ExitHow, InstanceProcess, Zygote, read_some};

/// An instance, and all that its end gives back.
pub(super) struct Watched {
    pub(super) keeper: Rc<Keeper>,
    pub(super) function: Arc<Function>,
    pub(super) instance: Arc<Instance>,
    pub(super) process: InstanceProcess,
    /// Its memory.
    pub(super) promise: Promise,
    pub(super) tender: UnboundedSender<ToTender>,
}

/// Watches an instance until it has ended, and its output until then.
pub(super) fn watch(watched: Watched) {
    let Watched { keeper, function, instance, process, promise, tender } = watched;
    let pipes = [process.stdout.as_fd().try_clone_to_owned(), process.stderr.as_fd().try_clone_to_owned()];
    let readers: Vec<_> = pipes
        .into_iter()
        .filter_map(Result::ok)
        .map(|pipe| tokio::task::spawn_local(read_output(Arc::clone(&instance), pipe)))
        .collect();
    tokio::task::spawn_local(async move {
        let exit = tokio::select! {
            exit = process.exited() => exit,
            never = segments::serve(&function, &instance, &process) => match never {},
        };
        instance.mark_ended();
        function.counts.used.add(exit.cpu_time, exit.max_rss_bytes);
        keeper.bus.transport.retire(instance.peer);
        // Of one that was used up, whoever ended it had taken the answer in. (One that was idle may have become so by an
        // answer that no worker has come to yet.)
        if instance.doom() != Some(Doom::Used) {
            keeper.flush_ports().await;
        }
        let mut held = keeper.bus.transport.detach_seats(instance.peer);
        held.extend(keeper.bus.transport.detach(instance.peer));
        if let Some(own) = &function.own_inboxes {
            own.take_away(instance.peer.bit());
        }
        function.instances[instance.peer.bit() as usize].store(None);
        for reader in readers {
            reader.abort();
        }
        log_rest(&function, &instance);
        instance.output.close();
        for (invocation, port) in held {
            let begun = instance.has_begun(invocation);
            let refusal = refusal(&function, &instance, &exit, invocation);
            tracing::info!(
                function = function.name(),
                pid = instance.pid,
                ?exit,
                begun,
                "an instance died at work"
            );
            if let Some(worker) = keeper.worker(port) {
                let _ = worker.send(ToWorker::Lost { invocation, begun, refusal });
            }
        }
        if let Some(domain) = &function.domain {
            domain.dismiss(&instance);
        }
        drop((process, promise));
        let _ = tender.send(ToTender::Died(instance.peer));
    });
}

/// Why a request that this instance held has no answer.
fn refusal(function: &Function, instance: &Instance, exit: &Exit, lost: InvocationId) -> Refusal {
    let limits = &function.stored.manifest.limits;
    match instance.doom() {
        // (Another one, if it answered in the last moment and was given this one: that is only killed.)
        Some(Doom::TimedOut(late)) if late == lost => Refusal::TimedOut(limits.timeout.as_duration()),
        Some(Doom::Fault(kind)) => Refusal::ProtocolBroken(kind),
        _ => ended(function, exit),
    }
}

/// What a process's own end makes of a request that it had.
pub(super) fn ended(function: &Function, exit: &Exit) -> Refusal {
    match exit.how {
        _ if exit.out_of_memory => Refusal::OutOfMemory { limit: function.stored.manifest.limits.memory },
        ExitHow::Code(code) => Refusal::Exited { code },
        ExitHow::Signal(signal) => Refusal::Killed { signal },
    }
}

fn log_rest(function: &Function, instance: &Instance) {
    if let Some(output) = instance.output.take(true) {
        let mut history = function.history.lock();
        for (stream, bytes) in &output.chunks {
            history.log(None, *stream, bytes);
        }
    }
}

/// Reads a pipe as it fills, so that an instance with much to say isn't held up.
async fn read_output(instance: Arc<Instance>, pipe: OwnedFd) {
    let Ok(ready) = crate::sys::watch(pipe) else { return };
    while let Ok(mut guard) = ready.readable().await {
        guard.clear_ready();
        instance.output.drain();
        if guard.get_inner().as_fd().is_at_end() {
            return;
        }
    }
}

trait AtEnd {
    fn is_at_end(&self) -> bool;
}

impl AtEnd for std::os::fd::BorrowedFd<'_> {
    /// Every writer is gone (and what they wrote has been read): readiness would never end.
    fn is_at_end(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut polled = [PollFd::new(*self, PollFlags::POLLIN)];
        let looked = poll(&mut polled, PollTimeout::ZERO);
        looked.is_ok()
            && polled[0]
                .revents()
                .is_some_and(|seen| seen.contains(PollFlags::POLLHUP) && !seen.contains(PollFlags::POLLIN))
    }
}

/// Watches a zygote until it has ended.
pub(super) fn watch_zygote(
    zygote: Rc<Zygote>,
    promise: Promise,
    function: Arc<Function>,
    tender: UnboundedSender<ToTender>,
) {
    // (Its pipe has both streams.)
    function.history.lock().log(None, Stream::Stderr, zygote.loading_output().as_bytes());
    if let Some(pipe) = zygote.take_output() {
        let function = Arc::clone(&function);
        tokio::task::spawn_local(log_zygote(function, pipe));
    }
    tokio::task::spawn_local(async move {
        let exit = zygote.exited().await;
        drop(promise);
        tracing::debug!(function = function.name(), ?exit, "a zygote ended");
        let _ = tender.send(ToTender::ZygoteDied(zygote.pid()));
    });
}

/// Logs what a zygote prints (it does so rarely: its instances have pipes of their own).
async fn log_zygote(function: Arc<Function>, pipe: OwnedFd) {
    let Ok(ready) = crate::sys::watch(pipe) else { return };
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = read_some(&ready, &mut buffer).await {
        function.history.lock().log(None, Stream::Stderr, &buffer[..len]);
    }
}
