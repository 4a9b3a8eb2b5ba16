//! How many instances a function gets, and what happens when it gets none.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shm_bus::ids::InvocationId;
use spry_sched::keepalive::{Layer, Phase};
use spry_sched::pool::Pool;

use super::{Tender, start_zygote};
use crate::api::ZygoteState;
use crate::budget::{Promise, Shortage};
use crate::dispatch::{ToWorker, port_of};
use crate::gateway::Refusal;
use crate::keeper::birth;
use crate::progress::Progress;
use crate::store::StoreError;
use crate::zygote::{StartError, Zygote};

/// After failed births, the next is tried this much later, twice as much each time.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Failures may be bad luck (a zygote that was killed just then): for this long, those who wait go on waiting, and
/// births are tried again after a moment.
const PATIENCE: Duration = Duration::from_secs(2);
const MOMENT_MIN: Duration = Duration::from_millis(1);
const MOMENT_MAX: Duration = Duration::from_millis(50);

/// Why there was no birth.
enum NoBirth {
    Memory(Shortage),
    Zygote(StartError),
}

impl Tender {
    /// Brings the function to what it should have now.
    pub(super) async fn balance(&mut self) {
        self.look_at_rewinding();
        self.note_uses();
        self.expire();
        if self.function.take_prewarm() || self.window_has_opened() {
            self.warm = self.warm.max(1);
        }
        self.come_back().await;
        let scale = &self.function.stored.manifest.scale;
        let (min, max) = (scale.min as usize, scale.max as usize);
        // Before the queue is looked at: who comes later than that rings, unless there may be no more anyway.
        self.function.set_full(self.live() >= max && !self.is_single_use());
        let queued = self.function.queue.len();
        let floor = if self.function.is_superseded() { 0 } else { min.max(self.warm).min(max) };
        // Those that somebody waits for, and those beyond them that shall be ready.
        // (An instance to which a request was sent ahead is there for that one.)
        let starting = self.starting.saturating_sub(self.function.expected_now());
        let waited_for = queued.saturating_sub(starting).max(floor.saturating_sub(self.live()));
        let ahead = (queued + self.ready()).saturating_sub(self.idle() + starting);
        let wanted = match self.is_single_use() {
            false => waited_for,
            true => {
                let missing = waited_for.max(ahead) as u32;
                let waiting = (waited_for + self.starting) as u32;
                Pool::births(missing, waiting, self.starting as u32, self.keeper.cores) as usize
            }
        };
        let births = wanted.min(max.saturating_sub(self.live()));
        let may_try = self.not_before.is_none_or(|at| Instant::now() >= at);
        if may_try {
            // Nothing is left of an earlier failure but its count.
            (self.short, self.not_before) = (None, None);
        }
        if births > 0 && may_try {
            match self.beget(births, waited_for).await {
                Ok(()) => {}
                Err(NoBirth::Memory(short)) => {
                    self.short = Some(self.keeper.memory.budget.returned());
                    if self.live() > 0 {
                        // Those that are there serve who waits.
                        self.not_before = Some(Instant::now() + BACKOFF_MIN);
                    } else {
                        self.failed(short.to_string(), false);
                    }
                }
                Err(NoBirth::Zygote(error)) => self.no_zygote(&error),
            }
        }
        if self.instances.len() >= floor || self.not_before.is_some() {
            self.warm = 0;
            for ready in self.warmed.drain(..) {
                let _ = ready.send(());
            }
        }
    }

    /// After a restart: the zygote, ahead of the first call, if nobody has to make room for it.
    async fn come_back(&mut self) {
        let Some(there) = self.bring_back.take() else { return };
        if self.zygote.is_none()
            && let Ok(promise) = self.memory_for_one(false).await
        {
            match start_zygote(&self.keeper, &self.function, promise, &Progress::silent()).await {
                Ok(started) => drop(self.adopt(started)),
                Err(error) => self.no_zygote(&error),
            }
        }
        let _ = there.send(());
    }

    /// A zygote could not be started. Where that won't change by itself, the function says so from now on.
    fn no_zygote(&mut self, error: &StartError) {
        let broken = matches!(error, StartError::Code { .. } | StartError::Files(StoreError::Altered { .. }));
        if broken {
            self.function.set_zygote(ZygoteState::Failed, Some(error.to_string()));
        }
        self.failed(error.to_string(), broken);
    }

    /// Takes in what has been served since the last look.
    fn note_uses(&mut self) {
        let uses = self.function.served.take();
        if uses.count > 0 {
            self.awaiting = false;
            self.pool.arrived(uses.count, self.keeper.memory.now_ns());
            self.keeper.memory.arrived(&self.function, &uses);
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.keeper.bus.transport.idle(self.function.index) as usize
    }

    /// How many single-use instances should be idle now, beyond what requests wait for.
    pub(super) fn ready(&self) -> usize {
        let in_use = self.is_single_use() && !self.function.is_superseded() && self.function.served.any();
        if !in_use || self.phase(Layer::Instance) != Phase::Within {
            return 0;
        }
        self.pool.ready(self.keeper.memory.now_ns()) as usize
    }

    /// Begins so many births, of which the first `needed` may push others out of memory.
    async fn beget(&mut self, births: usize, needed: usize) -> Result<(), NoBirth> {
        let requested_at = Instant::now();
        let cold = self.zygote.is_none();
        let zygote = self.ensure_zygote().await?;
        for birth in 0..births {
            let promise = match self.memory_for_one(birth < needed).await {
                Ok(promise) => promise,
                // Those ahead of need are made when there is room.
                Err(_) if birth >= needed => return Ok(()),
                Err(short) => return Err(NoBirth::Memory(short)),
            };
            self.set_starting(self.starting + 1);
            birth::spawn(birth::Birth {
                keeper: Rc::clone(&self.keeper),
                function: Arc::clone(&self.function),
                zygote: Rc::clone(&zygote),
                promise,
                ahead: self.failures == 0,
                requested_at,
                cold,
                letters: self.letters.clone(),
            });
        }
        Ok(())
    }

    async fn memory_for_one(&self, needed: bool) -> Result<Promise, Shortage> {
        let bytes = self.function.stored.manifest.limits.memory.as_bytes();
        if needed {
            self.keeper.room(bytes, self.function.index, false).await
        } else {
            self.keeper.memory.budget.promise(bytes)
        }
    }

    async fn ensure_zygote(&mut self) -> Result<Rc<Zygote>, NoBirth> {
        if let Some(zygote) = &self.zygote {
            return Ok(Rc::clone(zygote));
        }
        let promise = self.memory_for_one(true).await.map_err(NoBirth::Memory)?;
        let started = start_zygote(&self.keeper, &self.function, promise, &Progress::silent())
            .await
            .map_err(NoBirth::Zygote)?;
        Ok(self.adopt(started))
    }

    /// A birth failed. It is tried again, soon at first; whoever waits is told when that doesn't help (or
    /// can't: `hopeless`) and nobody is there who could still serve them.
    pub(super) fn failed(&mut self, why: String, hopeless: bool) {
        self.keeper.bus.totals.start_failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if self.failures == 0 {
            tracing::warn!(function = self.function.name(), why, "no instance could be started");
            self.failing_since = now;
        }
        let doublings = self.failures.min(16);
        self.failures += 1;
        let bad_luck = !hopeless && now - self.failing_since < PATIENCE;
        let (least, most) = if bad_luck { (MOMENT_MIN, MOMENT_MAX) } else { (BACKOFF_MIN, BACKOFF_MAX) };
        self.not_before = Some(now + least.saturating_mul(1 << doublings).min(most));
        if bad_luck || self.live() > 0 {
            return;
        }
        for queued in self.keeper.bus.take_queue(&self.function) {
            let invocation = InvocationId(queued.descriptor.invocation);
            if let Some(worker) = self.keeper.worker(port_of(invocation)) {
                let refusal = Refusal::StartFailed(why.clone());
                let _ = worker.send(ToWorker::Lost { invocation, begun: true, refusal });
            }
        }
    }
}
