//! One function's tender: how many instances it has, and when its zygote runs.
//!
//! It wakes when somebody waits (the function's bell), when an instance was born or has died, when an
//! instance has been idle for long enough, and at no other time. The rule is plain: as many more instances as
//! requests wait, up to the limit; fewer when they have been idle for `scale.idle`; the zygote goes last, another
//! `scale.idle` after its last instance (layers go one at a time).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shm_bus::ids::PeerId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::{Keeper, birth, death};
use crate::api::ZygoteState;
use crate::dispatch::{ToWorker, port_of};
use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::{Doom, Instance};
use crate::manifest::Isolation;
use crate::progress::Progress;
use crate::zygote::{Runtime, StartError, Zygote};
use shm_bus::ids::InvocationId;

/// What a tender is told.
pub enum ToTender {
    /// Have at least this many instances.
    Warm(usize),
    /// The same, and say when they are there (or can't be).
    WarmThen(usize, oneshot::Sender<()>),
    /// A birth has ended.
    Born(Result<Arc<Instance>, birth::BirthError>),
    /// An instance has died and was taken off the bus.
    Died(PeerId),
    /// The zygote with this pid has died.
    ZygoteDied(i32),
    /// End everything now.
    End(oneshot::Sender<()>),
}

/// After failed births, the next is tried this much later, twice as much each time.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Failures may be bad luck (a zygote that was killed just then): for this long, those who wait go on waiting, and
/// births are tried again after a moment.
const PATIENCE: Duration = Duration::from_secs(2);
const MOMENT_MIN: Duration = Duration::from_millis(1);
const MOMENT_MAX: Duration = Duration::from_millis(50);

struct Tender {
    keeper: Rc<Keeper>,
    function: Arc<Function>,
    zygote: Option<Rc<Zygote>>,
    letters: UnboundedSender<ToTender>,
    instances: HashMap<PeerId, Arc<Instance>>,
    starting: usize,
    warm: usize,
    warmed: Vec<oneshot::Sender<()>>,
    failures: u32,
    /// When the first of them was.
    failing_since: Instant,
    not_before: Option<Instant>,
    /// When the last instance ended: the zygote's idle time counts from here.
    alone_since: Instant,
}

/// Starts tending; `zygote` when it runs already.
pub(super) fn spawn(
    keeper: Rc<Keeper>,
    function: Arc<Function>,
    zygote: Option<Rc<Zygote>>,
) -> UnboundedSender<ToTender> {
    let (letters, mailbox) = unbounded_channel();
    keeper.tended.borrow_mut().insert(function.index, letters.clone());
    let tender = Tender {
        keeper,
        function,
        zygote: None,
        letters: letters.clone(),
        instances: HashMap::new(),
        starting: 0,
        warm: 0,
        warmed: Vec::new(),
        failures: 0,
        failing_since: Instant::now(),
        not_before: None,
        alone_since: Instant::now(),
    };
    tokio::task::spawn_local(tender.run(mailbox, zygote));
    letters
}

/// Starts a function's zygote: its code is loaded when this returns.
pub(super) async fn start_zygote(
    keeper: &Rc<Keeper>,
    function: &Function,
    progress: &Progress,
) -> Result<Rc<Zygote>, StartError> {
    let mut spec = keeper.spec(&function.stored)?;
    let wanted = &function.stored.manifest.packages;
    if let Runtime::Python { interpreter } = &spec.runtime
        && !wanted.is_empty()
    {
        spec.packages = Some(keeper.packages.provide(wanted, interpreter, progress).await?);
    }
    let names = function.stored.manifest.secrets.clone();
    if !names.is_empty() {
        let secrets = Arc::clone(&keeper.secrets);
        spec.secrets = super::off_the_loop(move || secrets.open(&names)).await?;
    }
    progress.say("starting its zygote …");
    let zygote = Zygote::start(&keeper.executor, &spec).await?;
    Ok(Rc::new(zygote))
}

impl Tender {
    async fn run(mut self, mut mailbox: UnboundedReceiver<ToTender>, zygote: Option<Rc<Zygote>>) {
        if let Some(zygote) = zygote {
            self.adopt(zygote);
        }
        let function = Arc::clone(&self.function);
        let told_to_end = loop {
            let wake_at = self.next_look();
            let look = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = function.bell.notified() => {}
                letter = mailbox.recv() => match letter {
                    Some(ToTender::End(done)) => break Some(done),
                    Some(letter) => self.read(letter),
                    None => break None,
                },
                () = look => {}
            }
            if function.is_superseded() && function.users() == 0 && self.starting == 0 && function.end() {
                break None;
            }
            self.balance().await;
        };
        self.finish(mailbox, told_to_end).await;
    }

    fn read(&mut self, letter: ToTender) {
        match letter {
            ToTender::Warm(count) => self.warm = self.warm.max(count),
            ToTender::WarmThen(count, ready) => {
                self.warm = self.warm.max(count);
                self.warmed.push(ready);
            }
            ToTender::Born(Ok(instance)) => {
                self.starting -= 1;
                self.failures = 0;
                self.not_before = None;
                self.instances.insert(instance.peer, instance);
            }
            ToTender::Born(Err(error)) => {
                self.starting -= 1;
                if error.ends_zygote() {
                    self.drop_zygote();
                }
                self.failed(error.to_string(), false);
            }
            ToTender::Died(peer) => {
                let dead = self.instances.remove(&peer);
                self.alone_since = Instant::now();
                // One that was used up is replaced ahead of the next request.
                let single_use = self.function.stored.manifest.isolation == Isolation::Request;
                if single_use && dead.is_some_and(|dead| dead.served() > 0) {
                    self.warm = self.warm.max(1);
                }
            }
            ToTender::ZygoteDied(pid) => {
                if self.zygote.as_ref().is_some_and(|zygote| zygote.pid() == pid) {
                    self.drop_zygote();
                }
            }
            ToTender::End(_) => unreachable!("handled by the loop"),
        }
    }

    fn live(&self) -> usize {
        self.instances.len() + self.starting
    }

    async fn balance(&mut self) {
        self.expire();
        if self.function.take_prewarm() {
            self.warm = self.warm.max(1);
        }
        let scale = &self.function.stored.manifest.scale;
        let (min, max) = (scale.min as usize, scale.max as usize);
        let waiting = self.function.queue_len().saturating_sub(self.starting);
        let floor = if self.function.is_superseded() { 0 } else { min.max(self.warm).min(max) };
        let wanted = (self.live() + waiting).max(floor).min(max.max(self.live()));
        let may_try = self.not_before.is_none_or(|at| Instant::now() >= at);
        if wanted > self.live() && may_try {
            let births = wanted - self.live();
            let requested_at = Instant::now();
            let cold = self.zygote.is_none();
            match self.ensure_zygote().await {
                Ok(zygote) => {
                    for _ in 0..births {
                        self.starting += 1;
                        birth::spawn(birth::Birth {
                            keeper: Rc::clone(&self.keeper),
                            function: Arc::clone(&self.function),
                            zygote: Rc::clone(&zygote),
                            requested_at,
                            cold,
                            letters: self.letters.clone(),
                        });
                    }
                }
                Err(error) => {
                    let broken = matches!(error, StartError::Code { .. });
                    if broken {
                        self.function.set_zygote(ZygoteState::Failed, Some(error.to_string()));
                    }
                    self.failed(error.to_string(), broken);
                }
            }
        }
        if self.instances.len() >= floor || self.not_before.is_some() {
            self.warm = 0;
            for ready in self.warmed.drain(..) {
                let _ = ready.send(());
            }
        }
    }

    async fn ensure_zygote(&mut self) -> Result<Rc<Zygote>, StartError> {
        if let Some(zygote) = &self.zygote {
            return Ok(Rc::clone(zygote));
        }
        let zygote = start_zygote(&self.keeper, &self.function, &Progress::silent()).await?;
        Ok(self.adopt(zygote))
    }

    fn adopt(&mut self, zygote: Rc<Zygote>) -> Rc<Zygote> {
        self.alone_since = Instant::now();
        death::watch_zygote(Rc::clone(&zygote), Arc::clone(&self.function), self.letters.clone());
        self.function.set_zygote(ZygoteState::Ready, None);
        self.function.set_frozen(zygote.frozen());
        self.zygote = Some(Rc::clone(&zygote));
        zygote
    }

    fn drop_zygote(&mut self) {
        self.function.set_zygote(ZygoteState::None, None);
        if let Some(zygote) = self.zygote.take() {
            zygote.kill();
        }
    }

    /// A birth failed. It is tried again, soon at first; whoever waits is told when that doesn't help (or
    /// can't: `hopeless`) and nobody is there who could still serve them.
    fn failed(&mut self, why: String, hopeless: bool) {
        tracing::warn!(function = self.function.name(), why, "no instance could be started");
        let now = Instant::now();
        if self.failures == 0 {
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

    /// Ends what has been idle for long enough.
    fn expire(&mut self) {
        let scale = &self.function.stored.manifest.scale;
        let idle_ms = scale.idle.as_millis();
        let now_ms = crate::activation::unix_ms();
        let mut spare = self.instances.len().saturating_sub(scale.min as usize);
        for instance in self.instances.values() {
            let is_idle = now_ms.saturating_sub(instance.used_unix_ms()) >= idle_ms;
            if spare > 0 && is_idle && self.keeper.bus.transport.retire(instance.peer) {
                spare -= 1;
                instance.kill(Doom::Retired);
            }
        }
        let alone = self.live() == 0 && scale.min == 0 && self.function.users() == 0;
        if alone && self.zygote.is_some() && self.alone_since.elapsed() >= scale.idle.as_duration() {
            if let Some(zygote) = self.zygote.take() {
                zygote.kill();
            }
            self.drop_zygote();
            if self.function.domain.is_some() {
                return; // the inbox is its chain's
            }
            // Large requests of the past have left pages in the inbox; nobody maps it now.
            match self.keeper.inbox(&self.function.stored) {
                Ok(inbox) => drop(self.function.replace_inbox(inbox)),
                Err(error) => tracing::warn!(%error, "an inbox could not be replaced"),
            }
        }
    }

    /// When there may be something to do without anybody saying so.
    fn next_look(&self) -> Option<Instant> {
        let scale = &self.function.stored.manifest.scale;
        let now = Instant::now();
        let now_ms = crate::activation::unix_ms();
        let idle = scale.idle.as_duration();
        let has_spare = self.instances.len() > scale.min as usize;
        let oldest = self.instances.values().map(|instance| instance.used_unix_ms()).min();
        // A busy instance is looked at again after a while; at least a second lies between two looks.
        let expiry = oldest.filter(|_| has_spare).map(|used_ms| {
            let left = idle.saturating_sub(Duration::from_millis(now_ms.saturating_sub(used_ms)));
            now + left.max(Duration::from_secs(1).min(idle)).max(Duration::from_millis(10))
        });
        let alone = self.live() == 0 && scale.min == 0 && self.zygote.is_some();
        let zygote = alone.then(|| (self.alone_since + idle).max(now + Duration::from_millis(10)));
        let wanted = self.function.queue_len() > 0 || self.live() < scale.min as usize;
        let retry = self.not_before.filter(|_| wanted).map(|at| at.max(now + Duration::from_millis(1)));
        [expiry, zygote, retry].into_iter().flatten().min()
    }

    /// Ends everything of this version, and waits until it has ended.
    async fn finish(mut self, mut mailbox: UnboundedReceiver<ToTender>, told: Option<oneshot::Sender<()>>) {
        while self.starting > 0 {
            let Some(letter) = mailbox.recv().await else { break };
            if !matches!(letter, ToTender::End(_)) {
                self.read(letter);
            }
        }
        for instance in self.instances.values() {
            self.keeper.bus.transport.retire(instance.peer);
            instance.kill(Doom::Retired);
        }
        while !self.instances.is_empty() {
            let Some(letter) = mailbox.recv().await else { break };
            if !matches!(letter, ToTender::End(_)) {
                self.read(letter);
            }
        }
        if let Some(zygote) = self.zygote.take() {
            zygote.kill();
            zygote.exited().await;
        }
        self.drop_zygote();
        for queued in self.keeper.bus.take_queue(&self.function) {
            let invocation = InvocationId(queued.descriptor.invocation);
            if let Some(worker) = self.keeper.worker(port_of(invocation)) {
                let _ =
                    worker.send(ToWorker::Lost { invocation, begun: true, refusal: Refusal::ShuttingDown });
            }
        }
        let (index, stored) = (self.function.index, &self.function.stored);
        self.keeper.tended.borrow_mut().remove(&index);
        self.keeper.bus.functions[usize::from(index.0)].store(None);
        let is_member = self.function.domain.is_some(); // then its files are the function's
        let replaced =
            self.function.is_superseded() && self.keeper.node.named(self.function.name()).is_some();
        if replaced && !is_member {
            let (store, name, version) =
                (Arc::clone(&self.keeper.store), stored.manifest.name.clone(), stored.version);
            if let Err(error) = super::off_the_loop(move || store.forget(&name, version)).await {
                tracing::warn!(function = self.function.name(), %error, "an old version's files stay behind");
            }
            self.keeper.sweep_packages().await;
        }
        if let Some(told) = told {
            let _ = told.send(());
        }
    }
}
