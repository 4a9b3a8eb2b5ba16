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
//! One request at a time is on a zygote's socket (it has one thread); what follows on the instance's own socket
//! runs side by side. A fork whose caller gave up is remembered, and the process killed when it shows up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use shm_bus::segment::{SegmentError, require_sealed};
use shm_bus::transport::Kind;
use spry_wire::control::{Fork, FromInstance, FromZygote, SegmentSpec, ToZygote};

use super::channel::{Channel, ChannelError};
use super::exit::Exit;
use super::instance::InstanceProcess;
use super::nursery::{AdoptError, Adoption, Child};
use super::output;
use super::start::Zygote;
use crate::cgroup::{CgroupError, GroupLimits, Leaf};

/// What an instance is made from.
#[derive(Debug)]
pub struct ForkRequest<'a> {
    /// spryd's name for it; never the same twice.
    pub instance: u64,
    /// Which transport `endpoint` is of.
    pub transport: Kind,
    /// The instance's end of the bus.
    pub endpoint: Vec<OwnedFd>,
    /// The function's inbox.
    pub inbox: (BorrowedFd<'a>, SegmentSpec),
    /// The instance's outbox, which it seals.
    pub outbox: (BorrowedFd<'a>, SegmentSpec),
    /// Where spryd tells which answers have left.
    pub release_page: BorrowedFd<'a>,
    /// Largest response (head and body), in bytes.
    pub payload_max: u64,
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

/// A zygote's answer.
enum Answer {
    Forked { pid: i32, pidfd: OwnedFd },
    Failed { step: String, errno: i32 },
}

impl Zygote {
    /// Makes an instance. It is confined like its zygote, in a control group of its own, has said hello and
    /// sealed its outbox; it isn't on the bus yet. Safe to call side by side, and to give up on.
    pub async fn fork(&self, request: ForkRequest<'_>) -> Result<InstanceProcess, ForkError> {
        let os = |operation| move |source| ForkError::Os { operation, source };
        let timeout = self.executor.config.fork_timeout;
        let leaf = self.group.lease("instance", &GroupLimits::from(&self.limits))?;
        let (channel, control) = Channel::pair().map_err(os("make a control socket"))?;
        let (stdout, stdout_writer) = output::pipe().map_err(os("make a pipe"))?;
        let (stderr, stderr_writer) = output::pipe().map_err(os("make a pipe"))?;
        let watch = spry_wire::output::watch([stdout.as_fd(), stderr.as_fd()]);
        let watch = watch.map_err(os("watch the pipes"))?;
        let instance = request.instance;
        let outbox = request.outbox.0;
        let handed = [control, stdout_writer, stderr_writer, watch];
        let child = self.ask(request, handed, leaf).await.inspect_err(|error| {
            if error.ends_zygote() {
                self.kill();
            }
        })?;
        let greeted = tokio::time::timeout(timeout, greeting(&child, &channel)).await;
        greeted.unwrap_or(Err(ForkError::Timeout { awaited: "hello", from: "instance" }))?;
        require_sealed(outbox).map_err(ForkError::NotSealed)?;
        let (pid, pidfd, process) = (child.pid, child.pidfd.clone(), child.process.clone());
        let executor = Arc::clone(&self.executor);
        Ok(InstanceProcess {
            instance,
            pid,
            pidfd,
            process,
            stdout,
            stderr,
            control: channel,
            child,
            executor,
            _layer: self.layer.clone(),
        })
    }

    /// The exchange with the zygote, and the adoption of what it made. The time runs from this request's turn.
    async fn ask(
        &self,
        request: ForkRequest<'_>,
        handed: [OwnedFd; 4],
        leaf: Leaf,
    ) -> Result<Child, ForkError> {
        let mut link = self.link.lock().await;
        let _under_way = self.executor.nursery.fork_begins();
        let exchange = self.exchange(&mut link, request, handed, leaf);
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
        request: ForkRequest<'_>,
        handed: [OwnedFd; 4],
        leaf: Leaf,
    ) -> Result<Child, ForkError> {
        self.settle(link).await?;
        self.child.placed().await;
        let ForkRequest { instance, transport, endpoint, inbox, outbox, release_page, payload_max } = request;
        let transport = transport.name().to_owned();
        let message =
            ToZygote::Fork(Fork { instance, transport, inbox: inbox.1, outbox: outbox.1, payload_max });
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
        match answer(link).await? {
            Answer::Failed { step, errno } => {
                Err(ForkError::Refused { step, errno: nix::errno::Errno::from_raw(errno) })
            }
            Answer::Forked { pid, pidfd } => self.adopt(pid, pidfd, leaf).await,
        }
    }

    /// Takes the answer to a request that its caller gave up on, and the life of what was made.
    async fn settle(&self, link: &mut Link) -> Result<(), ForkError> {
        if link.unanswered.is_none() {
            return Ok(());
        }
        if let Answer::Forked { pid, pidfd } = answer(link).await? {
            let leaf = self.group.lease("instance", &GroupLimits::from(&self.limits))?;
            match self.adopt(pid, pidfd, leaf).await {
                Ok(child) => drop(child), // kills it
                Err(error) if error.ends_zygote() => return Err(error),
                Err(error) => tracing::debug!("a fork that nobody waits for: {error}"),
            }
        }
        Ok(())
    }

    async fn adopt(&self, pid: i32, pidfd: OwnedFd, leaf: Leaf) -> Result<Child, ForkError> {
        let limits = GroupLimits::from(&self.limits);
        let zygote = self.child.pid;
        let adoption = Adoption { pidfd, pid, uid: self.uid, zygote, leaf, limits };
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
        (FromZygote::Forked { instance, pid }, Some(pidfd), None) if asked == Some(instance) => {
            Answer::Forked { pid, pidfd }
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

/// Waits for an instance's first message.
async fn greeting(child: &Child, channel: &Channel) -> Result<(), ForkError> {
    let message = tokio::select! {
        biased;
        message = channel.receive::<FromInstance>() => message,
        exit = child.exited_or_lost() => match channel.receive_now::<FromInstance>() {
            // what it said before it died counts
            Some(message) => message,
            None => return Err(ForkError::Died(exit)),
        },
    };
    match message {
        Ok((FromInstance::Hello, _)) => Ok(()),
        Ok((FromInstance::Failed { step, message }, _)) => Err(ForkError::Setup { step, message }),
        Ok((FromInstance::Map { .. }, _)) => Err(ForkError::Setup {
            step: "say hello".to_owned(),
            message: "it asked for a segment before it was ready".to_owned(),
        }),
        // the process is on its way out; how it ended says more
        Err(ChannelError::Closed) => {
            child.kill();
            Err(ForkError::Died(child.exited_or_lost().await))
        }
        Err(error) => Err(ForkError::Instance(error)),
    }
}
