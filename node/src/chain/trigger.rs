//! Emitted values: into the chain's bucket, and out of it into calls of their own.
//!
//! A call that a trigger starts has its own name and deadline. Nobody waits for its result; how it went is in the
//! chain's history, and its failure in its log.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use spry_wire::frame::Place;

use super::bucket::Fired;
use super::call::Call;
use super::domain::{Domain, Outbox};
use super::plan::On;
use super::served::Chain;
use super::value::{self, Part};
use crate::activation::{Record, Stream};
use crate::dispatch::{Dispatcher, Run};
use crate::gateway::call_id::CallId;
use crate::gateway::{Failed, Refusal};
use crate::inbox::Block;
use crate::instance::Instance;
use crate::metrics::Outcome;

/// Calls that start one another by the values that they emit, at most: a function that wakes itself must end.
const DEPTH_MAX: u8 = 8;
/// Calls of one chain that triggers have started and that haven't ended, at most. More than that would only wait for places in the
/// functions' queues, each with what a call takes.
const STARTED_MAX: usize = 512;

/// A value that was emitted, kept until nobody needs it.
#[derive(Clone, Debug)]
pub struct Emitted {
    part: Part,
    content_type: String,
    /// How many triggers led to it.
    depth: u8,
    keep: Arc<Kept>,
}

/// Where it lies.
#[derive(Debug)]
enum Kept {
    /// In the outbox of who emitted it, in the block at this offset.
    Outbox(Arc<Outbox>, u32),
    /// In the inbox.
    Copy { _block: Block },
}

impl Kept {
    fn in_outbox(outbox: Arc<Outbox>, offset: u32) -> Arc<Self> {
        outbox.instance.keep_block();
        Arc::new(Self::Outbox(outbox, offset))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Self::Outbox(outbox, offset) = self {
            outbox.instance.give_back(*offset);
        }
    }
}

impl Emitted {
    /// A value that waits while its instance has died is copied: an outbox takes descriptors and memory that nobody
    /// accounts for, a block in the inbox doesn't. So is one of an instance that has lent as many blocks as it can, and could not
    /// answer any more. False: it must be copied, and there is no room for it.
    fn outlive(&mut self, domain: &Domain) -> bool {
        let Kept::Outbox(outbox, _) = &*self.keep else { return true };
        let has_ended = outbox.instance.has_ended();
        if !has_ended && !outbox.instance.is_short_of_blocks() {
            return true;
        }
        let Ok(block) = value::copy_to_inbox(domain, self.part.place) else { return !has_ended };
        self.part.place = block.place();
        self.keep = Arc::new(Kept::Copy { _block: block });
        true
    }
}

/// A function has emitted what lies at `place`.
pub fn emitted(dispatcher: &Rc<Dispatcher>, run: &Run, call_id: CallId, by: &Arc<Instance>, place: Place) {
    let chain = &run.chain;
    let own = (place.segment, place.generation) == (by.outbox_name.id, by.outbox_name.generation);
    let drop_it = |count: usize, why: &str| {
        chain.dropped_values.fetch_add(count as u64, Ordering::Relaxed);
        let note = format!("[spry: {why}]");
        chain.history.lock().log(Some(call_id), Stream::Stderr, note.as_bytes());
    };
    let Some(outbox) = chain.domain.outbox(by.outbox_name) else {
        return drop_it(1, "an emitted value was dropped: its function's process has ended");
    };
    let keep = Kept::in_outbox(outbox, place.offset);
    let read = if run.depth >= DEPTH_MAX {
        Err(format!("{DEPTH_MAX} triggers have led to it, one by the other's value"))
    } else if own {
        value::emission(&by.outbox, place)
    } else {
        Err("it isn't its function's own".to_owned())
    };
    let (name, content_type, part) = match read {
        Ok(read) => read,
        Err(why) => return drop_it(1, &format!("an emitted value was dropped: {why}")),
    };
    let value = Emitted { part, content_type, depth: run.depth, keep };
    let on = chain.triggers.iter().map(|trigger| &trigger.on);
    let (lost, added) = {
        let mut bucket = chain.bucket.lock();
        let lost = bucket.retain(|waiting| waiting.outlive(&chain.domain));
        (lost, bucket.add(on, &name, &value, Instant::now()))
    };
    if lost > 0 {
        drop_it(
            lost,
            &format!("{lost} emitted values were dropped: no room to keep them without their processes"),
        );
    }
    if added.dropped {
        drop_it(1, &format!("the emitted value \"{name}\" was dropped: no trigger has a place for it"));
    }
    for fired in added.fired {
        start(dispatcher, chain, fired);
    }
    for (trigger, closes) in added.windows {
        // (A version that has ended meanwhile is not kept for this: what waited has gone with it.)
        let (dispatcher, chain) = (Rc::clone(dispatcher), Arc::downgrade(chain));
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(closes.into()).await;
            let Some(chain) = chain.upgrade() else { return };
            let fired = chain.bucket.lock().close(trigger);
            if let Some(fired) = fired {
                start(&dispatcher, &chain, fired);
            }
        });
    }
}

/// Starts a trigger's call, unless there are too many.
fn start(dispatcher: &Rc<Dispatcher>, chain: &Arc<Chain>, fired: Fired<Emitted>) {
    let Some(begun) = Begun::now(fired.trigger) else { return };
    match Started::one_more(chain) {
        Some(started) => {
            tokio::task::spawn_local(run(Rc::clone(dispatcher), started, begun, fired));
        }
        None => begun.end(chain, None, &Err(Failed::from(Refusal::QueueFull { limit: STARTED_MAX }))),
    }
}

/// One of [`Chain::started`], until it is dropped.
struct Started(Arc<Chain>);

impl Started {
    fn one_more(chain: &Arc<Chain>) -> Option<Self> {
        let started = Self(Arc::clone(chain));
        (chain.started.fetch_add(1, Ordering::Relaxed) < STARTED_MAX).then_some(started)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.started.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn run(dispatcher: Rc<Dispatcher>, started: Started, begun: Begun, mut fired: Fired<Emitted>) {
    let chain = &started.0;
    for (_, value) in &mut fired.values {
        // (Without room for a copy it is read where it lies, which stays for this call.)
        value.outlive(&chain.domain);
    }
    let trigger = &chain.triggers[fired.trigger];
    let deadline = begun.since + chain.plan.timeout;
    let depth = fired.values.iter().map(|(_, value)| value.depth).max().unwrap_or_default() + 1;
    let call = value::bare_request(chain, begun.call_id)
        .map(|block| Call::new(dispatcher, Arc::clone(chain), begun.call_id, deadline, depth, block));
    let went = match &call {
        Ok(call) => match input_of(call, &trigger.on, &fired.values) {
            Ok(input) => call.go(&trigger.stages, input).await.map(drop),
            Err(refusal) => Err(Failed::from(refusal)),
        },
        Err(refusal) => Err(Failed::from(refusal.clone())),
    };
    begun.end(chain, call.as_ref().ok(), &went);
}

/// A call that a trigger has started.
struct Begun {
    trigger: usize,
    call_id: CallId,
    since: Instant,
    at: SystemTime,
}

impl Begun {
    /// `None`: the kernel has no random number for its name.
    fn now(trigger: usize) -> Option<Self> {
        let (since, at) = (Instant::now(), SystemTime::now());
        let random = crate::sys::random_u64().ok()?;
        let call_id = CallId::new(random, since.elapsed().as_nanos() as u64 ^ random.rotate_left(32));
        Some(Self { trigger, call_id, since, at })
    }

    /// Counts it and writes down how it went.
    fn end(&self, chain: &Chain, call: Option<&Call>, went: &Result<(), Failed>) {
        let (status, error) = match went {
            Ok(()) => (200, None),
            Err(failed) => {
                let (status, code) = failed.refusal.status();
                (status.as_u16(), Some(code))
            }
        };
        chain.counts.ended(Outcome::of(status, error.is_some()));
        let mut history = chain.history.lock();
        if let Err(failed) = went {
            let text = failed.text.clone().unwrap_or_else(|| failed.refusal.to_string());
            let text = format!("[spry: trigger {} failed: {text}]", chain.triggers[self.trigger].label);
            history.log(Some(self.call_id), Stream::Stderr, text.as_bytes());
        }
        history.record(&Record {
            call_id: self.call_id,
            version: chain.version,
            started_unix_ms: self
                .at
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            start: call.and_then(|call| call.timeline().start()),
            queue_ns: 0,
            start_ns: 0,
            exec_ns: self.since.elapsed().as_nanos() as u64,
            cpu_ns: None,
            memory_bytes: None,
            status,
            error,
            steps: call.map(|call| String::from_utf8_lossy(&call.timeline().header()).into()),
        });
    }
}

/// A single value as itself, several as a list.
fn input_of(call: &Call, on: &On, values: &[(String, Emitted)]) -> Result<Place, Refusal> {
    match (on, values) {
        (On::Every(_), [(_, value)]) => call.values().view(value.part.place, &value.content_type),
        _ => call.values().list(values.iter().map(|(name, value)| (name.as_str(), value.part))),
    }
}
