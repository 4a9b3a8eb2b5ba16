//! The birth of an instance: a place on the bus, its segments, the fork, and into service.

use std::cell::OnceCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use shm_bus::begun;
use shm_bus::ids::PeerId;
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{self, Reader, SegmentError};
use shm_bus::transport::{Attachment, BusError};
use spry_sched::placement::Advice;
use spry_wire::control::SegmentSpec;
use spry_wire::frame::HEAD_MAX;
use tokio::sync::mpsc::UnboundedSender;

use super::{Keeper, ToTender, death};
use crate::budget::Promise;
use crate::cgroup::WhenEmpty;
use crate::dispatch::ToWorker;
use crate::expected::Expectation;
use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::{Instance, Parts};
use crate::manifest::Isolation;
use crate::zygote::{ForkError, ForkRequest, InstanceProcess, Zygote};

/// Why there is no new instance.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// The bus has no place for it.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Its memory could not be made.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The zygote did not fork.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// A descriptor could not be duplicated.
    #[error("duplicate a descriptor: {0}")]
    Duplicate(std::io::Error),
}

impl BirthError {
    /// Whether the zygote must be started again.
    pub fn ends_zygote(&self) -> bool {
        matches!(self, Self::Fork(error) if error.ends_zygote())
    }
}

/// What a birth needs.
pub(super) struct Birth {
    pub(super) keeper: Rc<Keeper>,
    pub(super) function: Arc<Function>,
    pub(super) zygote: Rc<Zygote>,
    /// Its memory.
    pub(super) promise: Promise,
    /// Births go well: requests may be sent to it before it is there.
    pub(super) ahead: bool,
    pub(super) requested_at: Instant,
    pub(super) cold: bool,
    pub(super) letters: UnboundedSender<ToTender>,
}

/// A birth that has failed.
struct Failed {
    error: BirthError,
    /// Says whether the instance has begun what it was sent.
    outbox: Option<Reader>,
}

impl<E: Into<BirthError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), outbox: None }
    }
}

/// Answers that an instance can have outstanding at once, were all of the largest size.
const OUTBOX_BLOCKS: u64 = 4;
const OUTBOX_MIN: u64 = 1 << 20;
const OUTBOX_MAX: u64 = 2 << 30;

/// Lets the birth happen; its tender is told how it ended.
pub(super) fn spawn(birth: Birth) {
    tokio::task::spawn_local(async move {
        let (letters, zygote) = (birth.letters.clone(), birth.zygote.pid());
        let born = birth.go().await;
        let _ = letters.send(ToTender::Born { born, zygote });
    });
}

impl Birth {
    async fn go(self) -> Result<Arc<Instance>, BirthError> {
        let transport = &self.keeper.bus.transport;
        let Attachment { peer, endpoint } = transport.attach(self.function.index)?;
        let expected = OnceCell::new();
        match self.fork(peer, endpoint, &expected).await {
            Ok((process, instance)) => {
                self.function.instances[peer.bit() as usize].store(Some(Arc::clone(&instance)));
                if self.function.placement.lock().advice() == Advice::Home {
                    self.keeper.place(&self.function, &instance, true);
                }
                death::watch(death::Watched {
                    keeper: self.keeper.clone(),
                    function: self.function.clone(),
                    instance: instance.clone(),
                    process,
                    promise: self.promise,
                    tender: self.letters,
                });
                match expected.into_inner() {
                    Some(expectation) => expectation.meet(&instance),
                    None => admit(&self.keeper, &self.function, peer),
                }
                self.keeper.dispatcher.pump(&self.function);
                Ok(instance)
            }
            Err(Failed { error, outbox }) => {
                match expected.into_inner() {
                    Some(expectation) => self.take_back(peer, &error, outbox.as_ref(), expectation).await,
                    None => drop(self.keeper.bus.transport.detach(peer)),
                }
                if let Some(own) = &self.function.own_inboxes {
                    own.take_away(peer.bit());
                }
                Err(error)
            }
        }
    }

    /// What waits goes to the new instance while it is made: it finds its request when it begins.
    ///
    /// Not in a chain, where what it answers may go on to others before it is known who it is.
    fn send_ahead(&self, peer: PeerId, expected: &OnceCell<Expectation>) {
        if self.ahead && !self.function.queue.is_empty() && self.function.domain.is_none() {
            expected.get_or_init(|| Expectation::new(&self.function, peer));
            admit(&self.keeper, &self.function, peer);
            self.keeper.dispatcher.pump(&self.function);
        }
    }

    /// A birth has failed on whose instance a request waits.
    async fn take_back(
        &self,
        peer: PeerId,
        error: &BirthError,
        outbox: Option<&Reader>,
        expectation: Expectation,
    ) {
        let transport = &self.keeper.bus.transport;
        transport.retire(peer);
        self.keeper.flush_ports().await;
        let held = transport.detach(peer);
        let refusal = match error {
            BirthError::Fork(ForkError::Died(exit)) => death::ended(&self.function, exit),
            // If there is a process, nobody knows it, and it is killed as a stray.
            BirthError::Fork(
                ForkError::DiedUnknown | ForkError::ZygoteGone(_) | ForkError::ZygoteDied(_),
            ) => Refusal::Killed { signal: libc::SIGKILL },
            error => Refusal::StartFailed(error.to_string()),
        };
        expectation.miss(refusal.clone());
        let Some((invocation, port)) = held else { return };
        let begun = match error {
            BirthError::Fork(ForkError::Died(_)) => outbox.and_then(begun::read) == Some(invocation),
            // Nobody was there to begin it.
            BirthError::Fork(ForkError::Refused { .. } | ForkError::Setup { .. }) => false,
            _ => true,
        };
        if let Some(worker) = self.keeper.worker(port) {
            let _ = worker.send(ToWorker::Lost { invocation, begun, refusal });
        }
    }

    async fn fork(
        &self,
        peer: PeerId,
        endpoint: Vec<std::os::fd::OwnedFd>,
        expected: &OnceCell<Expectation>,
    ) -> Result<(InstanceProcess, Arc<Instance>), Failed> {
        let payload_max = self.function.stored.manifest.limits.payload.as_bytes();
        let block = (payload_max + HEAD_MAX as u64).next_power_of_two();
        let outbox_len = block.saturating_mul(OUTBOX_BLOCKS).clamp(OUTBOX_MIN, OUTBOX_MAX);
        let outbox_name = self.keeper.segment_name();
        let outbox_fd = segment::create(&format!("spry-outbox-{}", self.function.name()), outbox_len)?;
        // One that answers once is read once, and never wants a block back. (In a chain others read it, too, and it may
        // emit more than its outbox holds at once.)
        let answers_once =
            self.function.stored.manifest.isolation == Isolation::Request && self.function.domain.is_none();
        let (outbox, release) = if answers_once {
            let own = outbox_fd.try_clone().map_err(BirthError::Duplicate)?;
            (Reader::unmapped(own, outbox_len)?, self.keeper.silent_release()?)
        } else {
            let release = ReleaseWriter::create(&format!("spry-release-{}", self.function.name()))?;
            (Reader::map(outbox_fd.as_fd(), outbox_len)?, release)
        };
        // Whichever it reads: its own, or the one that all do.
        let own = self.function.own_inboxes.as_ref();
        let own = own.map(|own| own.give(peer.bit(), self.keeper.segment_name())).transpose()?;
        let inbox = self.function.inbox();
        let instance = self.keeper.next_instance.get();
        self.keeper.next_instance.set(instance + 1);
        let request = ForkRequest {
            instance,
            transport: self.keeper.bus.transport.kind(),
            endpoint,
            inbox: own.as_ref().map_or_else(|| (inbox.fd(), inbox.spec()), |own| (own.fd(), own.spec())),
            outbox: (
                outbox_fd.as_fd(),
                SegmentSpec {
                    id: outbox_name.id,
                    generation: outbox_name.generation,
                    len: outbox_len as u32,
                },
            ),
            release_page: release.fd(),
            payload_max,
            when_all_have_ended: own.as_ref().map(|own| WhenEmpty::new(own.when_all_have_ended())),
        };
        let asked = Instant::now();
        let under_way = || self.send_ahead(peer, expected);
        let process = match self.zygote.fork(request, under_way).await {
            Ok(process) => process,
            Err(error) => return Err(Failed { error: error.into(), outbox: Some(outbox) }),
        };
        self.keeper.bus.totals.fork.observe(asked.elapsed().as_nanos() as u64);
        let duplicate =
            |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(BirthError::Duplicate);
        let instance = Instance::new(Parts {
            peer,
            pid: process.pid,
            pidfd: Arc::clone(&process.pidfd),
            process: Arc::clone(&process.process),
            tracked: self.keeper.bus.cores.signals.as_ref().and_then(|signals| signals.track(process.pid)),
            outbox: Arc::new(outbox),
            outbox_name,
            own_inbox: own.map(|own| own.name()),
            release,
            requested_at: self.requested_at,
            cold: self.cold,
            stdout: duplicate(process.stdout.as_fd())?,
            stderr: duplicate(process.stderr.as_fd())?,
            cpus: process.cpus(),
            output_max: self.keeper.node.config().log_volume.as_usize(),
            gate: process.gate.clone(),
            ahead: expected.get().is_some(),
        });
        if let Some(domain) = &self.function.domain {
            domain.admit(&instance, outbox_fd);
            if let Some(scheduler) = &self.keeper.bus.cores.scheduler {
                scheduler.share(&instance);
            }
        }
        Ok((process, instance))
    }
}

/// Puts a new instance in service.
fn admit(keeper: &Keeper, function: &Function, peer: PeerId) {
    let transport = &keeper.bus.transport;
    if function.stored.manifest.isolation == Isolation::Request {
        transport.set_single_use(peer);
    }
    transport.admit(peer);
}
