//! What becomes of an instance that is rewound, once it has answered: it waits in its stub, is let go on, and is in service
//! again.
//!
//! Two things must have happened, in any order: its answer has been read from its outbox, which is zeroed then; and it has
//! come to the stub. Whoever sees the second lets it go on, mostly the thread that got the answer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Dispatcher;
use crate::activation::Stream;
use crate::function::Function;
use crate::instance::{Doom, Instance};
use crate::manifest::Isolation;
use crate::metrics::Replaced;
use crate::zygote::rewind::{Gate, Listener, Next};

/// How long an instance may take from its answer to the stub.
const LATE: Duration = Duration::from_secs(1);

/// Those that have answered and haven't come to the stub yet, by time.
#[derive(Debug, Default)]
pub(super) struct Awaited(RefCell<VecDeque<Late>>);

#[derive(Debug)]
struct Late {
    at: Instant,
    gate: Arc<Gate>,
    round: u64,
}

impl Dispatcher {
    /// Sees to it that this thread hears of what the function's processes ask, from before they get its requests.
    pub(super) fn look_after(self: &Rc<Self>, function: &Function) {
        if function.stored.manifest.isolation != Isolation::Request {
            return;
        }
        if let Some(listener) = &*function.listener() {
            self.look_at(listener);
        }
    }

    fn look_at(self: &Rc<Self>, listener: &Arc<Listener>) {
        if !listener.begin_to_look() {
            return;
        }
        let (listener, dispatcher) = (Arc::clone(listener), Rc::clone(self));
        tokio::task::spawn_local(async move {
            let ready = match listener.duplicate().and_then(crate::sys::watch_readable) {
                Ok(ready) => ready,
                Err(error) => {
                    return tracing::error!(%error, "what functions ask can't be waited for");
                }
            };
            while let Ok(more) = dispatcher.serve(&listener, || false) {
                if more {
                    tokio::task::yield_now().await;
                    continue;
                }
                let Ok(mut guard) = ready.readable().await else { return };
                guard.clear_ready();
            }
        });
    }

    /// Answers who ask, until `enough` says so; see [`Listener::serve`].
    fn serve(self: &Rc<Self>, listener: &Listener, enough: impl Fn() -> bool) -> std::io::Result<bool> {
        listener.serve(|gate| {
            self.let_go_on(&gate);
            enough()
        })
    }

    /// It has answered. `read` resolves when whoever reads the answer is done with it.
    pub(super) async fn rewind(
        self: Rc<Self>,
        function: &Function,
        bit: u32,
        gate: Arc<Gate>,
        read: Option<oneshot::Receiver<()>>,
    ) {
        if let Some(read) = read {
            let _dropped = read.await;
        }
        if let Some(own) = &function.own_inboxes {
            own.clear(bit);
        }
        self.look_at(gate.listener());
        match gate.answered() {
            Next::MayGoOn => self.let_go_on(&gate),
            Next::Ends => self.replace(&gate, Replaced::Call),
            Next::Awaited { round } => {
                // Its call waits already, mostly: then it goes on at once.
                let _others = self.serve(gate.listener(), || !gate.is_late(round));
                if gate.is_late(round) {
                    let at = Instant::now() + LATE;
                    self.awaited.0.borrow_mut().push_back(Late { at, gate, round });
                    self.watch(at);
                }
            }
        }
    }

    /// It waits in the stub, and its answer has been read.
    pub fn let_go_on(self: &Rc<Self>, gate: &Arc<Gate>) {
        let Some(instance) = gate.instance() else { return };
        let function = self.bus.function(instance.peer.function());
        // What it has written since it answered could be read back by its next request.
        let is_silent = instance.output.drain_whole();
        if let Some(function) = &function {
            log_late(function, &instance);
        }
        if let Err(why) = gate.let_go_on(is_silent) {
            return self.replace(gate, why);
        }
        self.bus.transport.admit(instance.peer);
        if let Some(function) = function {
            function.rewound();
            if !function.queue.is_empty() {
                self.pump(&function);
            }
        }
    }

    /// It is not as it was, or doesn't come: another takes its place.
    fn replace(&self, gate: &Gate, why: Replaced) {
        let Some(instance) = gate.instance() else { return };
        if let Some(function) = self.bus.function(instance.peer.function()) {
            function.not_rewound(why);
        }
        instance.kill(Doom::Used);
    }

    /// Ends those that have answered and didn't come to the stub in time; says when to look again.
    pub(super) fn end_late(&self) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let late = {
                let mut awaited = self.awaited.0.borrow_mut();
                let first = awaited.front()?;
                if first.at > now && first.gate.is_late(first.round) {
                    return Some(first.at);
                }
                awaited.pop_front()?
            };
            if late.gate.is_late(late.round) {
                self.replace(&late.gate, Replaced::Late);
            }
        }
    }
}

/// What an instance has written after its answer is of no call.
fn log_late(function: &Function, instance: &Instance) {
    let Some(output) = instance.output.take(false) else { return };
    let mut history = function.history.lock();
    for (stream, bytes) in &output.chunks {
        history.log(None, *stream, bytes);
    }
    if output.dropped_bytes > 0 {
        let note = format!("[spry: {} bytes of output over the limit were dropped]", output.dropped_bytes);
        history.log(None, Stream::Stderr, note.as_bytes());
    }
}
