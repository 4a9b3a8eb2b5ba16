//! From a [`Plan`] to a process: `clone3`, the steps in the child, and how a failed step gets back.
//!
//! The parent has many threads, so the child has one rule: allocate nothing, lock nothing, and end in `execve` or
//! `_exit` (see [`crate::sys`]). A step that fails writes its number and errno to a pipe that closes on exec:
//! end of file there means that the runtime is running.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::{PidNamespace, Plan};
use crate::sys::{self, Forked, SignalsBlocked};

/// Where the child keeps the report pipe: the first descriptor past those that it hands to the runtime.
pub(super) const REPORT_FD: i32 = 4;
/// Bytes of a report: the step's number and the errno.
const REPORT_LEN: usize = 8;
/// What a child whose step failed exits with; only seen by whoever looks at the zombie.
const STEP_FAILED: i32 = 127;

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid.
    pub pid: i32,
    /// The process itself.
    pub pidfd: OwnedFd,
    /// Where a failed step is reported; end of file: none failed.
    pub report: StepReport,
}

/// The reading end of the report pipe, with the names that go with the numbers.
#[derive(Debug)]
pub struct StepReport {
    pipe: OwnedFd,
    names: Vec<&'static str>,
    init: Option<Box<StepReport>>,
}

/// A step of the plan failed in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {errno}")]
pub struct StepFailed {
    /// Which, by [`super::Step::name`].
    pub step: &'static str,
    /// Why.
    pub errno: Errno,
}

impl StepReport {
    /// Of a process in a pid namespace: with the report of the namespace's init, if that has just been started.
    pub fn after(self, init: Option<StepReport>) -> Self {
        Self { init: init.map(Box::new), ..self }
    }

    /// What comes first: without an init, its namespace's processes can't live.
    pub fn take_init(&mut self) -> Option<StepReport> {
        self.init.take().map(|init| *init)
    }

    /// Waits until there is something to [`Self::read`].
    pub(super) fn wait(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        match poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What became readable on [`Self::as_fd`]: `Ok(None)` when the runtime is running. Non-blocking.
    pub fn read(&self) -> io::Result<Option<StepFailed>> {
        let mut bytes = [0; REPORT_LEN];
        let len = nix::unistd::read(&self.pipe, &mut bytes)?;
        if len != REPORT_LEN {
            return Ok(None);
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        let index = u32::from_ne_bytes([a, b, c, d]) as usize;
        let errno = Errno::from_raw(i32::from_ne_bytes([e, f, g, h]));
        let step = self.names.get(index).copied().unwrap_or_else(|| {
            tracing::error!(?bytes, "a report that no step has written");
            "an unknown step"
        });
        Ok(Some(StepFailed { step, errno }))
    }
}

impl AsFd for StepReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A copy of `fd` whose number is out of the way of those that the child hands to the runtime.
pub(super) fn out_of_the_way(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(16))?;
    Ok(own(number))
}

#[allow(unsafe_code, reason = "fcntl returns a bare number for what it duplicated")]
fn own(number: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Starts the process, in this pid namespace or in the caller's. The calling thread becomes its parent, and its end is the
/// child's end ([`super::Step::DieWithParent`]).
#[allow(unsafe_code, reason = "fork; everything that the child does is behind `run_steps`")]
pub fn spawn(plan: &Plan, within: Option<&PidNamespace>) -> io::Result<Spawned> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let writer = out_of_the_way(writer.as_fd())?;
    let names = plan.steps.iter().map(super::Step::name).collect();
    let forked = {
        let _inside = within.map(PidNamespace::enter).transpose()?;
        let _blocked = SignalsBlocked::new();
        // SAFETY: the child calls nothing but `run_steps`, which keeps to child-safe functions and never returns.
        match unsafe { sys::clone3_fork(plan.namespaces) }? {
            Forked::Child => run_steps(plan, writer.as_fd()),
            parent => parent,
        }
    };
    match forked {
        Forked::Parent { pid, pidfd } => {
            Ok(Spawned { pid, pidfd, report: StepReport { pipe: reader, names, init: None } })
        }
        Forked::Child => unreachable!("the child never leaves run_steps"),
    }
}

/// The child's whole life until `execve`. Child-safe: no allocation, no lock, no panic.
fn run_steps(plan: &Plan, report: BorrowedFd<'_>) -> ! {
    let mut report_fd = report;
    if sys::install_fd(report, REPORT_FD, true).is_ok() {
        report_fd = report_at_its_place();
    }
    for (index, step) in plan.steps.iter().enumerate() {
        if let Err(errno) = step.run() {
            let mut bytes = [0; REPORT_LEN];
            bytes[..4].copy_from_slice(&(index as u32).to_ne_bytes());
            bytes[4..].copy_from_slice(&(errno as i32).to_ne_bytes());
            let _ = sys::write_once(report_fd, &bytes);
            sys::exit_now(STEP_FAILED);
        }
    }
    sys::exit_now(STEP_FAILED)
}

#[allow(unsafe_code, reason = "a descriptor that was installed at a fixed number")]
pub(super) fn report_at_its_place() -> BorrowedFd<'static> {
    // SAFETY: `install_fd` has just put the pipe there, and the plan closes only what lies above.
    unsafe { BorrowedFd::borrow_raw(REPORT_FD) }
}
