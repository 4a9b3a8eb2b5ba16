//! The few things that need the kernel directly: who we are, ending a process, noticing Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};

use crate::failure::Failure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Are we root?
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// From now on Ctrl-C and SIGTERM only set a mark, so that what was started can be ended in order.
#[allow(unsafe_code, reason = "installing a signal handler")]
pub(crate) fn notice_interrupts() -> Result<(), Failure> {
    extern "C" fn mark(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(mark), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.map_err(Failure::from_display("install a signal handler"))?;
    }
    Ok(())
}

/// An error once Ctrl-C was pressed.
pub(crate) fn check_interrupted() -> Result<(), Failure> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Orphans of our children become our children, so that none of them can get out of sight.
pub(crate) fn adopt_orphans() -> Result<(), Failure> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Failure::from_display("become a subreaper"))
}

/// Asks a child to end.
pub(crate) fn terminate(child: &std::process::Child) {
    signal(child.id(), Signal::SIGTERM);
}

/// Ends a process that didn't listen.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

fn signal(pid: u32, signal: Signal) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // An error means that it has ended already, which is what was wanted.
    let _already_gone = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// Reaps ended children; true when none is left, ended or not.
pub(crate) fn reap_all() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return true,
        }
    }
}
