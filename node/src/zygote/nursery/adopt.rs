//! Is what a zygote presents a new process of its function, and a child of this thread? And where is it born?

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::Child;
use super::keeper::Keeper;
use crate::cgroup::{CgroupError, GroupLimits, Leaf, WhenEmpty};
use crate::sandbox::PidNamespace;
use crate::stat;
use crate::sys::{self, Which};

/// Why a process that a zygote presented isn't taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::zygote) enum AdoptError {
    #[error("what it sent is not a process descriptor")]
    NotAPidfd,
    #[error("process {0} is not a child of spryd")]
    NotAChild(i32),
    #[error("process {0} is known already")]
    Known(i32),
    #[error("process {pid} belongs to user {uid}")]
    OtherUser { pid: i32, uid: u32 },
    /// It was, and has been reaped as a stray: nobody's fault.
    #[error("the process ended before it was known")]
    Gone,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("look at the new process: {0}")]
    Os(#[from] io::Error),
}

/// What a zygote said about a new process, and what must hold.
#[derive(Debug)]
pub(in crate::zygote) struct Adoption {
    pub(in crate::zygote) pidfd: OwnedFd,
    pub(in crate::zygote) uid: Option<u32>,
    /// Who forked it.
    pub(in crate::zygote) zygote: i32,
    /// For the new process, unless it was born in one: then the zygote goes there, ahead of its next fork.
    pub(in crate::zygote) leaf: Leaf,
    /// Told when it has ended with all that was in its leaf.
    pub(in crate::zygote) when_empty: Option<WhenEmpty>,
    pub(in crate::zygote) limits: GroupLimits,
    /// The zygote's.
    pub(in crate::zygote) namespace: Option<Arc<PidNamespace>>,
}

impl Keeper {
    /// The child, or why not; and the leaf that was brought along, if it isn't the child's.
    pub(super) fn adopt(&mut self, adoption: Adoption) -> (Result<Child, AdoptError>, Option<Leaf>) {
        let (pid, user) = match self.identify(&adoption.pidfd) {
            Ok(identified) => identified,
            Err(error) => return (Err(error), Some(adoption.leaf)),
        };
        // From here on it is our child and stays unreaped, so its pid names it. What is wrong with it is its end.
        let ours = match sys::pidfd_open(pid) {
            Ok(ours) => ours,
            Err(error) => {
                end_unknown(adoption.pidfd.as_fd());
                return (Err(error.into()), Some(adoption.leaf));
            }
        };
        let zygote = self.known.get_mut(&adoption.zygote);
        let born_in = zygote.and_then(|zygote| {
            // Where one was that is ending, v1 doesn't say: it was born where its zygote is.
            let is_there = *zygote.placed.borrow();
            let leaf = zygote.ahead.take_if(|leaf| leaf.holds(pid) || (is_there && stat::is_ending(pid)))?;
            zygote.placed.send_replace(false); // before anyone is told of this instance, and asks for another
            Some(leaf)
        });
        let in_place = born_in.is_some();
        let (mut leaf, spare) = match born_in {
            Some(leaf) => (leaf, Some(adoption.leaf)),
            None => (adoption.leaf, None),
        };
        leaf.tell(adoption.when_empty);
        let user = adoption.uid.and_then(|wanted| Some((user.or_else(|| user_of(pid))?, wanted)));
        let checked = match user {
            Some((uid, wanted)) if uid != wanted => Err(AdoptError::OtherUser { pid, uid }),
            _ if in_place => Ok(()),
            _ => enter(pid, &leaf),
        };
        match self.know(pid, ours, leaf, adoption.limits, adoption.namespace) {
            Ok(child) => (checked.map(|()| child), spare),
            Err(error) => (Err(error.into()), spare),
        }
    }

    /// Which process a zygote means: a child of this thread that isn't known yet. Its user, if that costs nothing more.
    fn identify(&self, theirs: &OwnedFd) -> Result<(i32, Option<u32>), AdoptError> {
        let is_child = sys::wait(Which::Child(theirs.as_fd()), false);
        match is_child {
            Err(Errno::EBADF) => return Err(AdoptError::NotAPidfd),
            Ok(_) | Err(Errno::ECHILD) => {} // the kernel has waited by it: it is a process descriptor
            Err(errno) => return Err(AdoptError::Os(errno.into())),
        }
        let (pid, user) = match sys::pidfd_info(theirs.as_fd()) {
            Ok(Some(info)) => (info.pid, Some(info.uid)),
            Ok(None) | Err(_) => {
                let pid = pid_of(theirs);
                if pid.is_err() && is_child.is_ok() {
                    end_unknown(theirs.as_fd());
                }
                (pid?, None)
            }
        };
        match is_child {
            Ok(_) if pid > 0 => {}
            Err(Errno::ECHILD) if pid == -1 => return Err(AdoptError::Gone),
            Ok(_) | Err(_) => return Err(AdoptError::NotAChild(pid)),
        }
        let known = self.known.contains_key(&pid) || self.inits.contains_key(&pid);
        if known { Err(AdoptError::Known(pid)) } else { Ok((pid, user)) }
    }

    /// Moves a zygote to where its next instance is to be born. If that fails it must not stay in an instance's
    /// group, which dies with the instance: such a zygote ends.
    pub(super) fn place_ahead(&mut self, zygote: i32, spare: Option<Leaf>) {
        let (Some(mut leaf), Some(known)) = (spare, self.known.get_mut(&zygote)) else { return };
        if known.ahead.is_some() {
            return; // it wasn't the zygote's place that was used up; the leaf isn't needed
        }
        // Its next instance must not take it along if it runs out of memory before the zygote has left again.
        leaf.set_common_end(false);
        if let Err(error) = leaf.place(zygote) {
            tracing::warn!("place zygote {zygote} for its next fork: {error}");
            let _ = sys::pidfd_signal(known.pidfd.as_fd(), libc::SIGKILL);
        } else {
            known.placed.send_replace(true);
        }
        known.ahead = Some(leaf);
    }
}

/// Ends a child that can't be watched: nobody would hear of it again. It is reaped as a stray.
pub(super) fn end_unknown(pidfd: BorrowedFd<'_>) {
    if let Err(error) = sys::pidfd_signal(pidfd, libc::SIGKILL) {
        tracing::warn!("end a process that can't be watched: {error}");
    }
}

/// Moves a process that was born elsewhere into its leaf.
fn enter(pid: i32, leaf: &Leaf) -> Result<(), AdoptError> {
    match leaf.place(pid) {
        // Dead already, which its reaping will tell.
        Err(error) if error.source.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        placed => Ok(placed?),
    }
}

/// What a pidfd's process is called here: -1 when it has been reaped, 0 when it isn't visible.
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|pid| pid.trim().parse().ok()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The real user of a process.
fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}
