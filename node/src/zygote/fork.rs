//! Asking a zygote for an instance.
//!
//! ```text
//! spryd ── Fork + descriptors ──► zygote ── clone3(CLONE_PARENT) ──► instance
//!       ◄── Forked + pidfd ──────                                      │
//!   checks the process, its control group                              │
//!       ◄── Hello ────────────────────────────────────────────────────┘
//!   checks the outbox's seals
//! ```
//!
//! A request that waits is on its way to the instance meanwhile, if it isn't to be rewound: it serves after its hello, whoever has
//! heard that by then ([`crate::expected`]).
//!
//! One request at a time is on a zygote's socket (it has one thread); what follows on the instance's own socket
//! runs side by side. A fork whose caller gave up is remembered, and the process killed when it shows up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use shm_bus::segment::{SegmentError, require_sealed};
use shm_bus::transport::Kind;
use spry_wire::control::{Fork, FromInstance, FromZygote, SegmentSpec, ToInstance, ToZygote};

use super::channel::{Channel, ChannelError};
use super::exit::{Exit, ExitHow};
use super::instance::InstanceProcess;
use super::kit::Kit;
use super::nursery::{AdoptError, Adoption, Child};
use super::rewind::{self, Gate, Holdings, Plan, Subject};
use super::start::Zygote;
use crate::cgroup::{CgroupError, GroupLimits, Leaf, WhenEmpty};
use crate::stat;

/// What an instance is made from.
#[derive(Debug)]
pub struct ForkRequest<'a> {
    /// spryd's name for it; never the same twice.
    pub instance: u64,
    /// Which transport `endpoint` is of.
    pub transport: Kind,
    /// The instance's end of the bus.
    pub endpoint: Vec<OwnedFd>,
    /// Where it finds its requests.
    pub inbox: (BorrowedFd<'a>, SegmentSpec),
    /// The instance's outbox, which it seals.
    pub outbox: (BorrowedFd<'a>, SegmentSpec),
    /// Where spryd tells which answers have left.
    pub release_page: BorrowedFd<'a>,
    /// Largest response (head and body), in bytes.
    pub payload_max: u64,
    /// Whom to tell when it has ended with all that it has left, if that can be known.
    pub when_all_have_ended: Option<WhenEmpty>,
}

/// There is no instance.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The zygote's socket failed or was closed; it must be started again.
    #[error("the zygote is gone: {0}")]
    ZygoteGone(ChannelError),
    /// The zygote has ended; it must be started again.
    #[error("the zygote {0}")]
    ZygoteDied(Exit),
    /// The zygote could not fork.
    #[error("the zygote could not fork: {step}: {errno}")]
    Refused {
        /// Which step.
        step: String,
        /// Why.
        errno: nix::errno::Errno,
    },
    /// The zygote lied or spoke nonsense; it has been killed.
    #[error("the zygote broke the protocol and was killed: {what}")]
    Lied {
        /// About what.
        what: String,
    },
    /// The instance ended before it said hello.
    #[error("the new instance {0}")]
    Died(Exit),
    /// The instance ended before anything was known about it.
    #[error("the new instance ended at once")]
    DiedUnknown,
    /// The instance could not set itself up.
    #[error("the new instance could not set up: {step}: {message}")]
    Setup {
        /// Which step.
        step: String,
        /// Why.
        message: String,
    },
    /// The instance said something else than hello, or its socket failed.
    #[error("the new instance broke the protocol: {0}")]
    Instance(ChannelError),
    /// The instance said hello before it had sealed its outbox.
    #[error("the new instance's outbox is not sealed: {0}")]
    NotSealed(SegmentError),
    /// It took too long.
    #[error("no {awaited} came from the {from} in time")]
    Timeout {
        /// Which message.
        awaited: &'static str,
        /// From whom.
        from: &'static str,
    },
    /// It can't be rewound. The zygote's next ones aren't to be.
    #[error("the new instance can't be rewound, the next won't be: {why}")]
    Rewind {
        /// Why.
        why: String,
    },
    /// Its control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The node failed.
    #[error("{operation}: {source}")]
    Os {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ForkError {
    /// Must the zygote be started again?
    pub fn ends_zygote(&self) -> bool {
        matches!(
            self,
            Self::ZygoteGone(_)
                | Self::ZygoteDied(_)
                | Self::Lied { .. }
                | Self::Timeout { from: "zygote", .. }
        )
    }
}

/// The socket to a zygote, and what is still to come on it.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    /// A request that was sent and not answered.
    unanswered: Option<u64>,
}

impl Link {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, unanswered: None }
    }
}

/// What a zygote is asked for.
struct Asked<'a> {
    request: ForkRequest<'a>,
    /// The other descriptors, in the message's order.
    handed: [OwnedFd; 4],
    rewind: bool,
}

/// A zygote's answer.
enum Answer {
    Forked { pidfd: OwnedFd },
    Failed { step: String, errno: i32 },
}

impl Zygote {
    /// Makes an instance. It is confined like its zygote, in a control group of its own, has said hello and
    /// sealed its outbox; it isn't on the bus yet. Safe to call side by side, and to give up on.
    ///
    /// It is rewound ([`super::rewind`]) if this zygote's instances are. If not, it serves as soon as it is there, and
    /// `under_way` is called when the zygote has been asked: what is sent to it from then on waits for it at its birth.
    pub async fn fork(
        &self,
        request: ForkRequest<'_>,
        under_way: impl FnOnce(),
    ) -> Result<InstanceProcess, ForkError> {
        let forked = self.fork_one(request, under_way);
        let Some(listener) = &self.listener else { return forked.await };
        let looking = async {
            listener.look().await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            forked = forked => forked.inspect_err(|error| {
                if let ForkError::Rewind { why } = error {
                    self.stop_rewinding(why.clone());
                }
            }),
            () = looking => unreachable!("never ends"),
        }
    }

    async fn fork_one(
        &self,
        request: ForkRequest<'_>,
        under_way: impl FnOnce(),
    ) -> Result<InstanceProcess, ForkError> {
        let os = |operation| move |source| ForkError::Os { operation, source };
        let (timeout, asked_for) = (self.executor.config.fork_timeout, Instant::now());
        let kit = self.executor.kit.take().map_err(os("make an instance's sockets and pipes"))?;
        let Kit { control, stdout, stderr, theirs: handed } = kit;
        let channel = Channel::new(control).map_err(os("watch an instance's control socket"))?;
        let instance = request.instance;
        let outbox = request.outbox.0;
        let held = match (&self.listener, self.rewinding()) {
            (Some(listener), Ok(())) => {
                let bus = request.endpoint.first().ok_or(io::ErrorKind::InvalidInput.into());
                let inode = |fd: BorrowedFd<'_>| rewind::inode(fd).map_err(io::Error::from);
                let found = bus.and_then(|bus| {
                    rewind::fill_outbox(outbox)?;
                    let (stdout, stderr) = (inode(stdout.as_fd())?, inode(stderr.as_fd())?);
                    let gate = Gate::new(Arc::clone(listener), outbox.try_clone_to_owned()?)?;
                    Ok((gate, Holdings { stdout, stderr, bus: inode(bus.as_fd())? }))
                });
                Some(found.map_err(os("prepare to rewind an instance"))?)
            }
            _ => None,
        };
        let asked = Asked { request, handed, rewind: held.is_some() };
        let child = self.ask(asked, under_way).await.inspect_err(|error| {
            if error.ends_zygote() {
                self.kill();
            }
        })?;
        let born = async {
            match &held {
                None => greeting(&child, &channel, Greeting::Hello).await.map(drop),
                Some((gate, holdings)) => {
                    let held = hold(&child, &channel, gate, *holdings, asked_for).await;
                    unless_killed(held, &child).await
                }
            }
        };
        let gate = held.as_ref().map(|(gate, _)| Arc::clone(gate));
        let born = tokio::time::timeout(timeout, born).await;
        let born = born.unwrap_or(Err(ForkError::Timeout { awaited: "hello", from: "instance" }));
        let born = born.and_then(|()| require_sealed(outbox).map_err(ForkError::NotSealed));
        let born = born.and_then(|()| match &gate {
            None => Ok(()),
            Some(gate) => gate.begin().map_err(|errno| os("let a new instance go on")(errno.into())),
        });
        if let (Err(_), Some(gate)) = (&born, &gate) {
            gate.listener().forget(child.pid);
        }
        born?;
        let (pid, pidfd, process) = (child.pid, child.pidfd.clone(), child.process.clone());
        let executor = Arc::clone(&self.executor);
        Ok(InstanceProcess {
            instance,
            pid,
            pidfd,
            process,
            stdout,
            stderr,
            gate,
            control: channel,
            child,
            executor,
            _layer: self.layer.clone(),
        })
    }

    /// The exchange with the zygote, and the adoption of what it made. The time runs from this request's turn.
    async fn ask(&self, asked: Asked<'_>, under_way: impl FnOnce()) -> Result<Child, ForkError> {
        let mut link = self.link.lock().await;
        let _under_way = self.executor.nursery.fork_begins(&self.group);
        let exchange = self.exchange(&mut link, asked, under_way);
        let exchange = tokio::time::timeout(self.executor.config.fork_timeout, exchange);
        tokio::select! {
            biased;
            answered = exchange => {
                answered.unwrap_or(Err(ForkError::Timeout { awaited: "answer", from: "zygote" }))
            }
            // its socket alone doesn't tell: an instance may have kept a copy
            exit = self.child.exited_or_lost() => Err(ForkError::ZygoteDied(exit)),
        }
    }

    async fn exchange(
        &self,
        link: &mut Link,
        Asked { request, handed, rewind }: Asked<'_>,
        under_way: impl FnOnce(),
    ) -> Result<Child, ForkError> {
        self.settle(link).await?;
        self.child.placed().await;
        let ForkRequest { instance, transport, endpoint, inbox, outbox, release_page, payload_max, .. } =
            request;
        let told = request.when_all_have_ended;
        let transport = transport.name().to_owned();
        let (inbox_spec, outbox_spec) = (inbox.1, outbox.1);
        let fork = Fork {
            instance,
            transport,
            inbox: inbox_spec,
            outbox: outbox_spec,
            payload_max,
            rewind,
            scope_signals: self.executor.ability.scopes_signals(),
        };
        let message = ToZygote::Fork(fork);
        let mut fds: Vec<BorrowedFd<'_>> = handed.iter().map(AsFd::as_fd).collect();
        fds.extend([inbox.0, outbox.0, release_page]);
        fds.extend(endpoint.iter().map(AsFd::as_fd));
        link.unanswered = Some(instance);
        // Somebody waits for the instance; what the zygote has used before is no reason to let others go first.
        self.executor.renew(&self.child.process);
        if let Err(error) = link.channel.send(&message, &fds).await {
            return Err(ForkError::ZygoteGone(error));
        }
        // spryd's copies go, so that the instance's end is the end of its files
        drop(fds);
        drop((handed, endpoint));
        if !rewind {
            under_way();
        }
        // Meanwhile the zygote forks.
        let leaf = self.group.lease("instance", &GroupLimits::from(&self.limits))?;
        self.executor.kit.refill();
        match answer(link).await? {
            Answer::Failed { step, errno } => {
                Err(ForkError::Refused { step, errno: nix::errno::Errno::from_raw(errno) })
            }
            Answer::Forked { pidfd } => self.adopt(pidfd, leaf, told).await,
        }
    }

    /// Takes the answer to a request that its caller gave up on, and the life of what was made.
    async fn settle(&self, link: &mut Link) -> Result<(), ForkError> {
        if link.unanswered.is_none() {
            return Ok(());
        }
        // First: who is there can't be ended without being known.
        let leaf = self.group.lease("instance", &GroupLimits::from(&self.limits))?;
        if let Answer::Forked { pidfd } = answer(link).await? {
            match self.adopt(pidfd, leaf, None).await {
                Ok(child) => drop(child), // kills it
                Err(error) if error.ends_zygote() => return Err(error),
                Err(error) => tracing::debug!("a fork that nobody waits for: {error}"),
            }
        }
        Ok(())
    }

    async fn adopt(
        &self,
        pidfd: OwnedFd,
        leaf: Leaf,
        when_empty: Option<WhenEmpty>,
    ) -> Result<Child, ForkError> {
        let limits = GroupLimits::from(&self.limits);
        let zygote = self.child.pid;
        let namespace = self.child.namespace.clone();
        let adoption = Adoption { pidfd, uid: self.uid, zygote, leaf, when_empty, limits, namespace };
        self.executor.nursery.adopt(adoption).await.map_err(|error| match error {
            AdoptError::Gone => ForkError::DiedUnknown,
            AdoptError::Cgroup(error) => ForkError::Cgroup(error),
            AdoptError::Os(source) => ForkError::Os { operation: "look at a new process", source },
            lie => ForkError::Lied { what: lie.to_string() },
        })
    }
}

/// The answer to the request that is under way, which afterwards isn't.
async fn answer(link: &mut Link) -> Result<Answer, ForkError> {
    let lied = |what: &str| ForkError::Lied { what: what.to_owned() };
    let asked = link.unanswered;
    let (message, fds) = match link.channel.receive::<FromZygote>().await {
        Ok(message) => message,
        Err(error @ (ChannelError::Closed | ChannelError::Wait(_))) => {
            return Err(ForkError::ZygoteGone(error));
        }
        Err(error @ (ChannelError::Control(_) | ChannelError::Descriptors(_))) => {
            return Err(lied(&error.to_string()));
        }
    };
    let mut fds = fds.into_iter();
    let answer = match (message, fds.next(), fds.next()) {
        (FromZygote::Forked { instance }, Some(pidfd), None) if asked == Some(instance) => {
            Answer::Forked { pidfd }
        }
        (FromZygote::ForkFailed { instance, step, errno }, None, None) if asked == Some(instance) => {
            Answer::Failed { step, errno }
        }
        (FromZygote::Forked { .. }, ..) => return Err(lied("what it forked isn't what was asked for")),
        _ => return Err(lied("its answer isn't one")),
    };
    link.unanswered = None;
    Ok(answer)
}

/// An instance's first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    Hello,
    Hold { registers: u64 },
}

/// Waits for it; it is of the same kind as `wanted`.
async fn greeting(child: &Child, channel: &Channel, wanted: Greeting) -> Result<Greeting, ForkError> {
    let message = channel.receive_from::<FromInstance>(child).await.map_err(ForkError::Died)?;
    let unexpected = |what: &str| ForkError::Setup { step: "say hello".to_owned(), message: what.to_owned() };
    match (message, wanted) {
        (Ok((FromInstance::Hello, _)), Greeting::Hello) => Ok(Greeting::Hello),
        (Ok((FromInstance::Hold { registers }, _)), Greeting::Hold { .. }) => {
            Ok(Greeting::Hold { registers })
        }
        (Ok((FromInstance::Failed { step, message }, _)), _) => Err(ForkError::Setup { step, message }),
        (Ok((FromInstance::Map { .. }, _)), _) => {
            Err(unexpected("it asked for a segment before it was ready"))
        }
        (Ok((FromInstance::Hello | FromInstance::Hold { .. }, _)), _) => {
            Err(unexpected("it is of another kind than was asked for"))
        }
        // the process is on its way out; how it ended says more
        (Err(ChannelError::Closed), _) => {
            child.kill();
            Err(ForkError::Died(child.exited_or_lost().await))
        }
        (Err(error), _) => Err(ForkError::Instance(error)),
    }
}

/// What a process is like that was killed meanwhile says nothing of the next one: it wasn't held because it was dead.
async fn unless_killed(held: Result<(), ForkError>, child: &Child) -> Result<(), ForkError> {
    if !matches!(held, Err(ForkError::Rewind { .. })) || !stat::is_ending(child.pid) {
        return held;
    }
    let exit = child.exited_or_lost().await;
    let killed = exit.how == ExitHow::Signal(libc::SIGKILL) && !exit.out_of_memory;
    if killed { Err(ForkError::Died(exit)) } else { held }
}

/// Holds a new instance in the stub, as it is to be before each of its requests.
async fn hold(
    child: &Child,
    channel: &Channel,
    gate: &Arc<Gate>,
    holdings: Holdings,
    asked_for: Instant,
) -> Result<(), ForkError> {
    let Greeting::Hold { registers } = greeting(child, channel, Greeting::Hold { registers: 0 }).await?
    else {
        unreachable!("it is of the kind that was asked for");
    };
    let refused = |why: String| ForkError::Rewind { why };
    let outbox = rewind::inode(gate.outbox()).map_err(|errno| refused(errno.to_string()))?;
    let listener = gate.listener();
    let subject = Subject { pid: child.pid, registers, outbox };
    let plan = Plan::make(subject, &listener.written(), listener.commons());
    let plan = plan.map_err(|error| refused(error.to_string()))?;
    gate.listener().know(child.pid, Arc::clone(gate));
    channel
        .send(&ToInstance::Plan, &[plan.file.as_fd(), gate.orders(), plan.common.file.as_fd()])
        .await
        .map_err(ForkError::Instance)?;
    tokio::select! {
        () = gate.arrived_first() => {}
        // It could not map, or not seal: it has said so in its output.
        exit = child.exited_or_lost() => return Err(refused(format!("it {exit} when it was to be held"))),
    }
    rewind::check(child.pid, &plan, gate, holdings, asked_for).map_err(refused)?;
    gate.set_plan(plan);
    Ok(())
}
