//! A new instance's setup: a list of steps, each of which may fail and then says which it was.

use std::error::Error;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use shm_bus::endpoint;
use shm_bus::transport::{Endpoint, Kind};
use spry_wire::control::Fork;
use spry_wire::rewind::BUS_FD;

use crate::outbox::Outbox;
use crate::segments::Inbox;
use crate::serve::Instance;
use crate::sys;

/// What happens between the fork and `Hello`, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It dies with spryd: the wish isn't inherited by a fork. Whoever loops in a handler doesn't see the end of
    /// file that tells the others.
    DieWithSpryd,
    /// No other process of its function can be signalled any more: they have the same user, and the zygote runs what it was
    /// told to run at a signal while the function was loaded.
    ScopeSignals,
    /// stdout and stderr become this instance's log pipes.
    RedirectOutput,
    /// The inbox is mapped, read-only.
    MapInbox,
    /// The outbox is mapped read-write and then sealed, so that nobody else ever can.
    MapOutbox,
    /// The bus endpoint is opened.
    OpenBus,
    /// What else is open is closed: the zygote's control socket, files that the function opened while it was
    /// loaded (they would be shared between instances, with their positions).
    CloseOthers,
}

impl Step {
    /// For the message to spryd.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DieWithSpryd => "die with spryd",
            Self::ScopeSignals => "keep signals in (landlock)",
            Self::RedirectOutput => "redirect output",
            Self::MapInbox => "map inbox",
            Self::MapOutbox => "map and seal outbox",
            Self::OpenBus => "open bus endpoint",
            Self::CloseOthers => "close other descriptors",
        }
    }
}

/// A step that failed.
#[derive(Debug)]
pub(crate) struct StepFailed {
    pub(crate) step: Step,
    pub(crate) cause: Box<dyn Error>,
}

/// The descriptors beside a [`Fork`] message, by their meaning.
#[derive(Debug)]
pub(crate) struct Handed {
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    output: OwnedFd,
    inbox: OwnedFd,
    outbox: OwnedFd,
    release: OwnedFd,
    endpoint: Vec<OwnedFd>,
}

impl Handed {
    /// Names them; `None` when they are too few.
    pub(crate) fn sort(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let handed = Self {
            control: fds.next()?,
            stdout: fds.next()?,
            stderr: fds.next()?,
            output: fds.next()?,
            inbox: fds.next()?,
            outbox: fds.next()?,
            release: fds.next()?,
            endpoint: fds.collect(),
        };
        (!handed.endpoint.is_empty()).then_some(handed)
    }
}

/// Runs all steps. The control socket comes back in any case, to tell spryd how it went.
#[inline(never)]
pub(crate) fn run(fork: &Fork, handed: Handed) -> (OwnedFd, Result<Instance, StepFailed>) {
    let Handed { control, stdout, stderr, output, inbox, outbox, release, endpoint } = handed;
    let kept_control = control.as_raw_fd();
    let steps = || {
        let at = |step| move |cause: Box<dyn Error>| StepFailed { step, cause };
        sys::die_with_parent().map_err(|e| at(Step::DieWithSpryd)(e.into()))?;
        if fork.scope_signals {
            sys::landlock::scope_signals().map_err(|e| at(Step::ScopeSignals)(e.into()))?;
        }
        redirect(stdout, stderr).map_err(at(Step::RedirectOutput))?;
        let inbox = Inbox::map(inbox, &fork.inbox).map_err(|e| at(Step::MapInbox)(e.into()))?;
        let outbox = Outbox::map(outbox, release, &fork.outbox, fork.payload_max)
            .map_err(|e| at(Step::MapOutbox)(e.into()))?;
        let endpoint = match fork.rewind {
            // What stays of its descriptors has the lowest numbers.
            true => vec![renumber(endpoint).map_err(at(Step::OpenBus))?],
            false => endpoint,
        };
        let mut keep: Vec<RawFd> = endpoint.iter().map(AsRawFd::as_raw_fd).collect();
        let endpoint = open(&fork.transport, endpoint).map_err(at(Step::OpenBus))?;
        keep.extend([0, 1, 2, kept_control, output.as_raw_fd()]);
        keep.extend(outbox.fds());
        keep.sort_unstable();
        keep.dedup();
        sys::close_all_but(&keep).map_err(|e| at(Step::CloseOthers)(e.into()))?;
        sys::forget_rseq();
        let (payload_max, rewinds) = (fork.payload_max, fork.rewind);
        Ok(Instance { inbox, outbox, endpoint, output, payload_max, rewinds })
    };
    let ready = steps();
    (control, ready)
}

fn redirect(stdout: OwnedFd, stderr: OwnedFd) -> Result<(), Box<dyn Error>> {
    sys::install(&stdout, 1)?;
    sys::install(&stderr, 2)?;
    Ok(())
}

fn renumber(endpoint: Vec<OwnedFd>) -> Result<OwnedFd, Box<dyn Error>> {
    let Ok([bus]) = <[OwnedFd; 1]>::try_from(endpoint) else {
        return Err("an instance that is rewound has one descriptor for the bus".into());
    };
    Ok(sys::renumber(bus, BUS_FD)?)
}

fn open(transport: &str, fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, Box<dyn Error>> {
    let kind = transport.parse::<Kind>()?;
    Ok(endpoint::open(kind, fds)?)
}
