//! When what is idle goes, and when it comes back: what the keep-alive policy's windows mean for one function.

use std::time::{Duration, Instant};

use spry_sched::keepalive::{Layer, Phase};

use super::Tender;
use crate::instance::{Doom, Instance};
use crate::keeper::memory::{self, idle_ns};

/// A pool that is larger than it should be is looked at again after this long.
const POOL_LOOK: Duration = Duration::from_secs(2);
/// A pool without arrivals for so long holds no reserve against a rate that wavers.
const QUIET_MS: u64 = 5_000;
/// Between two looks at an instance that should go but is busy, at least this much lies.
const BUSY_LOOK: Duration = Duration::from_secs(1);
/// Between any two looks.
const LOOK_MIN: Duration = Duration::from_millis(10);

impl Tender {
    /// When the function was used last, or this version of it began.
    fn used_unix_ms(&self) -> u64 {
        self.function.served.last_unix_ms().max(self.since_unix_ms)
    }

    /// When an instance was used last. Those that wait for their only use count with their function.
    fn instance_used_unix_ms(&self, instance: &Instance) -> u64 {
        let own = instance.used_unix_ms();
        if self.is_single_use() { own.max(self.used_unix_ms()) } else { own }
    }

    /// Where the function is in this layer's window.
    pub(super) fn phase(&self, layer: Layer) -> Phase {
        let idle_ns = idle_ns(self.used_unix_ms(), crate::activation::unix_ms());
        self.keeper.memory.window(&self.function, layer).phase(idle_ns)
    }

    /// Whether an instance is to be made ahead of the next request, now; says so once.
    pub(super) fn window_has_opened(&mut self) -> bool {
        self.awaiting
            && self.phase(Layer::Instance) == Phase::Within
            && std::mem::take(&mut self.awaiting)
            && self.live() == 0
    }

    /// Ends what needn't be there now.
    pub(super) fn expire(&mut self) {
        self.measure();
        let min = self.function.stored.manifest.scale.min as usize;
        let now_ms = crate::activation::unix_ms();
        let window = self.keeper.memory.window(&self.function, Layer::Instance);
        let mut spare = self.instances.len().saturating_sub(min);
        let mut surplus = self.surplus();
        let mut awaiting = false;
        for instance in self.instances.values() {
            if spare == 0 || instance.doom().is_some() {
                continue;
            }
            let phase = window.phase(idle_ns(self.instance_used_unix_ms(instance), now_ms));
            if phase == Phase::Within && surplus == 0 {
                continue;
            }
            if self.keeper.bus.transport.retire(instance.peer) {
                spare -= 1;
                surplus = surplus.saturating_sub(1);
                awaiting |= phase == Phase::Before;
                instance.kill(Doom::Retired);
            }
        }
        self.awaiting |= awaiting;
        self.expire_zygote(min);
    }

    /// Idle single-use instances beyond what the pool should have. While requests come there is some play, so that a rate
    /// that wavers doesn't end what it has just made.
    fn surplus(&self) -> usize {
        if !self.is_single_use() || !self.function.queue.is_empty() {
            return 0;
        }
        let ready = self.ready().max(self.warm).max(self.function.stored.manifest.scale.min as usize).max(1);
        let quiet = crate::activation::unix_ms().saturating_sub(self.used_unix_ms()) >= QUIET_MS;
        let play = if quiet { 0 } else { 1 + ready / 2 };
        self.idle().saturating_sub(ready + play)
    }

    fn expire_zygote(&mut self, min: usize) {
        let alone = self.live() == 0 && min == 0 && self.function.is_unused();
        if !alone || self.zygote.is_none() {
            return;
        }
        match self.phase(Layer::Zygote) {
            Phase::Within => return,
            Phase::Before => self.awaiting = true,
            Phase::After => {}
        }
        self.drop_zygote();
        if self.function.domain.is_some() {
            return; // the inbox is its chain's
        }
        // Large requests of the past have left pages in the inbox; nobody maps it now.
        if let Some(own) = &self.function.own_inboxes {
            own.forget_spare();
        }
        match self.keeper.inbox(&self.function.stored) {
            Ok(inbox) => drop(self.function.replace_inbox(inbox)),
            Err(error) => tracing::warn!(%error, "an inbox could not be replaced"),
        }
    }

    /// Tells the policy what an instance costs, once one has served (then it has the memory that it needs).
    fn measure(&mut self) {
        let cost = &mut self.profile.costs[Layer::Instance as usize];
        let birth_ns = self.pool.birth_ns();
        if cost.start_ns != birth_ns {
            cost.start_ns = birth_ns;
            self.keeper.memory.learn(&self.function, self.profile);
        }
        if self.measured {
            return;
        }
        let Some(used) = self.instances.values().find(|instance| instance.served() > 0) else { return };
        if let Some(bytes) =
            Some(used).filter(|used| !used.has_ended()).and_then(|used| memory::held_bytes(used.pid))
        {
            self.profile.costs[Layer::Instance as usize].bytes = bytes;
            self.keeper.memory.learn(&self.function, self.profile);
        }
        self.measured = true;
    }

    /// When there may be something to do without anybody saying so.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let (now, now_ms) = (Instant::now(), crate::activation::unix_ms());
        let scale = &self.function.stored.manifest.scale;
        let window = self.keeper.memory.window(&self.function, Layer::Instance);
        let after = |ns: u64, least: Duration| now.checked_add(Duration::from_nanos(ns).max(least));
        let has_spare = self.instances.len() > scale.min as usize;
        let expiry = self.instances.values().filter(|_| has_spare).filter_map(|instance| {
            let idle_ns = idle_ns(self.instance_used_unix_ms(instance), now_ms);
            match window.phase(idle_ns) {
                Phase::Within => after(window.next_change_ns(idle_ns)? - idle_ns, LOOK_MIN),
                // It should have gone: it is busy, or dying.
                Phase::Before | Phase::After => {
                    after(0, BUSY_LOOK.min(Duration::from_nanos(window.until_ns)).max(LOOK_MIN))
                }
            }
        });
        let idle_ns = idle_ns(self.used_unix_ms(), now_ms);
        let opens = self.awaiting.then(|| window.next_change_ns(idle_ns)).flatten();
        let opens = opens.and_then(|at_ns| after(at_ns - idle_ns, LOOK_MIN));
        let alone = self.live() == 0 && scale.min == 0 && self.zygote.is_some();
        let zygote = alone.then(|| self.keeper.memory.window(&self.function, Layer::Zygote));
        let zygote = zygote.and_then(|window| match window.next_change_ns(idle_ns) {
            Some(at_ns) => after(at_ns - idle_ns, LOOK_MIN),
            // It should have gone, but is in use.
            None => (window.until_ns != u64::MAX).then(|| now + BUSY_LOOK),
        });
        let wanted =
            !self.function.queue.is_empty() || self.live() < scale.min as usize || self.short.is_some();
        let retry = self.not_before.filter(|_| wanted).map(|at| at.max(now + Duration::from_millis(1)));
        let least = (scale.min as usize).max(1);
        let pool = (self.is_single_use() && self.instances.len() > least).then(|| now + POOL_LOOK);
        expiry.chain([opens, zygote, retry, pool].into_iter().flatten()).min()
    }
}
