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
use super::domain::Pin;
use super::plan::On;
use super::served::Chain;
use super::value::{self, Part};
use crate::activation::{Record, Stream};
use crate::dispatch::{Dispatcher, Run};
use crate::gateway::call_id::CallId;
use crate::gateway::{Failed, Refusal};
use crate::instance::Instance;

/// Calls that start one another by the values that they emit, at most: a function that wakes itself must end.
const DEPTH_MAX: u8 = 8;

/// A value that was emitted, kept until nobody needs it.
#[derive(Clone, Debug)]
pub struct Emitted {
    part: Part,
    content_type: String,
    /// How many triggers led to it.
    depth: u8,
    _keep: Arc<Kept>,
}

/// The block in the outbox of who emitted it.
#[derive(Debug)]
struct Kept {
    instance: Arc<Instance>,
    offset: u32,
    _pin: Pin,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.instance.release.post(self.offset);
    }
}

/// A function has emitted what lies at `place`.
pub fn emitted(dispatcher: &Rc<Dispatcher>, run: &Run, call_id: CallId, by: &Arc<Instance>, place: Place) {
    let chain = &run.chain;
    let own = (place.segment, place.generation) == (by.outbox_name.id, by.outbox_name.generation);
    let keep = Arc::new(Kept { instance: Arc::clone(by), offset: place.offset, _pin: chain.domain.pin() });
    let read = if run.depth >= DEPTH_MAX {
        Err(format!("{DEPTH_MAX} triggers have led to it, one by the other's value"))
    } else if own {
        value::emission(&by.outbox, place)
    } else {
        Err("it isn't its function's own".to_owned())
    };
    let (name, content_type, part) = match read {
        Ok(read) => read,
        Err(why) => {
            chain.dropped_values.fetch_add(1, Ordering::Relaxed);
            let note = format!("[spry: an emitted value was dropped: {why}]");
            return chain.history.lock().log(Some(call_id), Stream::Stderr, note.as_bytes());
        }
    };
    let value = Emitted { part, content_type, depth: run.depth, _keep: keep };
    let on = chain.triggers.iter().map(|trigger| &trigger.on);
    let added = chain.bucket.lock().add(on, &name, &value, Instant::now());
    if added.dropped {
        chain.dropped_values.fetch_add(1, Ordering::Relaxed);
        let note = format!("[spry: the emitted value \"{name}\" was dropped: no trigger has a place for it]");
        chain.history.lock().log(Some(call_id), Stream::Stderr, note.as_bytes());
    }
    for fired in added.fired {
        tokio::task::spawn_local(start(Rc::clone(dispatcher), Arc::clone(chain), fired));
    }
    for (trigger, closes) in added.windows {
        let (dispatcher, chain) = (Rc::clone(dispatcher), Arc::clone(chain));
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(closes.into()).await;
            let fired = chain.bucket.lock().close(trigger);
            if let Some(fired) = fired {
                start(dispatcher, chain, fired).await;
            }
        });
    }
}

/// The call that a trigger starts.
async fn start(dispatcher: Rc<Dispatcher>, chain: Arc<Chain>, fired: Fired<Emitted>) {
    let trigger = &chain.triggers[fired.trigger];
    let begun = Instant::now();
    let at = SystemTime::now();
    let Ok(random) = crate::sys::random_u64() else { return };
    let call_id = CallId::new(random, begun.elapsed().as_nanos() as u64 ^ random.rotate_left(32));
    let deadline = begun + chain.plan.timeout;
    let depth = fired.values.iter().map(|(_, value)| value.depth).max().unwrap_or_default() + 1;
    let call = value::bare_request(&chain, call_id)
        .map(|block| Call::new(dispatcher, Arc::clone(&chain), call_id, deadline, depth, block));
    let went = match &call {
        Ok(call) => match input_of(call, &trigger.on, &fired.values) {
            Ok(input) => call.go(&trigger.stages, input).await.map(drop),
            Err(refusal) => Err(Failed::from(refusal)),
        },
        Err(refusal) => Err(Failed::from(refusal.clone())),
    };
    let (counter, status, error) = match &went {
        Ok(()) => (&chain.counts.ok, 200, None),
        Err(failed) => {
            let (status, code) = failed.refusal.status();
            (&chain.counts.failed, status.as_u16(), Some(code))
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let mut history = chain.history.lock();
    if let Err(failed) = &went {
        let text = failed.text.clone().unwrap_or_else(|| failed.refusal.to_string());
        let text = format!("[spry: trigger {} failed: {text}]", trigger.label);
        history.log(Some(call_id), Stream::Stderr, text.as_bytes());
    }
    history.record(Record {
        call_id,
        version: chain.version,
        started_unix_ms: at
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64),
        start: call.as_ref().ok().and_then(|call| call.timeline().start()),
        queue_ns: 0,
        start_ns: 0,
        exec_ns: begun.elapsed().as_nanos() as u64,
        status,
        error,
    });
}

/// A single value as itself, several as a list.
fn input_of(call: &Call, on: &On, values: &[(String, Emitted)]) -> Result<Place, Refusal> {
    match (on, values) {
        (On::Every(_), [(_, value)]) => call.values().view(value.part.place, &value.content_type),
        _ => call.values().list(values.iter().map(|(name, value)| (name.as_str(), value.part))),
    }
}
