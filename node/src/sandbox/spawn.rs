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

    /// What became readable on [`Self::as_fd`]: `Ok(None)` when the runtime is running. Non-blocking. An error, when there is what
    /// no step can have written.
    pub fn read(&self) -> io::Result<Option<StepFailed>> {
        let mut bytes = [0; REPORT_LEN];
        let len = nix::unistd::read(&self.pipe, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        let index = u32::from_ne_bytes([a, b, c, d]) as usize;
        let errno = Errno::from_raw(i32::from_ne_bytes([e, f, g, h]));
        match (len, self.names.get(index)) {
            (0, _) => Ok(None),
            (REPORT_LEN, Some(step)) => Ok(Some(StepFailed { step, errno })),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a report that no step has written: {:?}", &bytes[..len]),
            )),
        }
    }
}

impl AsFd for StepReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// What a step uses in the child: a descriptor whose number is out of the way of those that the child puts where the runtime looks
/// for them. The first of these, the report's, is put there before any step is taken.
#[derive(Debug)]
pub struct OutOfTheWay(OwnedFd);

impl OutOfTheWay {
    /// A copy of this one, whatever its number is.
    pub(super) fn copy(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(REPORT_FD + 1))?;
        Ok(Self(own(number)))
    }
}

impl AsFd for OutOfTheWay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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
    let writer = OutOfTheWay::copy(writer.as_fd())?;
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sandbox::Step;

    fn report(names: Vec<&'static str>, written: &[u8]) -> StepReport {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("pipe");
        nix::unistd::write(&writer, written).expect("write");
        StepReport { pipe: reader, names, init: None }
    }

    #[test]
    fn what_no_step_has_written_is_neither_a_step_nor_a_program_that_runs() {
        let silent = report(vec!["a"], b"");
        // a process that another test is starting may still have the other end
        let end = loop {
            match silent.read() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => silent.wait().expect("wait"),
                end => break end,
            }
        };
        assert_eq!(end.expect("the end"), None);
        let failed = StepFailed { step: "b", errno: Errno::EPERM };
        let second = report(vec!["a", "b"], &[1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(second.read().expect("a report"), Some(failed));
        for odd in [&b"0"[..], b"000", &[2, 0, 0, 0, 1, 0, 0, 0]] {
            let error = report(vec!["a", "b"], odd).read().expect_err("nonsense");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_step_writes_to_its_own_file_and_not_to_the_report() {
        let procs = tempfile::NamedTempFile::new().expect("a file");
        let held = OutOfTheWay::copy(procs.as_file().as_fd()).expect("copy");
        assert!(held.as_fd().as_raw_fd() > REPORT_FD);
        let steps = vec![Step::JoinControlGroup(held), Step::ChangeDirectory(c"/nowhere".to_owned())];
        let spawned = spawn(&Plan { namespaces: 0, init: None, steps }, None).expect("spawn");
        crate::sandbox::await_death(&spawned.pidfd).expect("its end");
        let failed = spawned.report.read().expect("a report");
        sys::wait(sys::Which::Child(spawned.pidfd.as_fd()), true).expect("reaped");
        assert_eq!(failed, Some(StepFailed { step: "enter the code folder", errno: Errno::ENOENT }));
        assert_eq!(std::fs::read_to_string(procs.path()).expect("read"), "0");
    }
}
