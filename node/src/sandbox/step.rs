//! One thing that a new process does to itself before it becomes the function's runtime.
//!
//! A step holds everything that it needs, allocated by the parent; running it is child-safe (see [`crate::sys`]).
//! The order is the plan's business ([`super::Plan`]); a new kind of confinement is a new variant, a name, an arm
//! in [`Step::run`], and a line in the plan.

use std::ffi::{CString, c_int};
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::sys::{self, ExecImage};

/// See the module.
#[derive(Debug)]
pub enum Step {
    /// Every signal at its default, none blocked.
    ResetSignals,
    /// Enter the control group whose `cgroup.procs` this is, before anything is charged to anyone.
    JoinControlGroup(OwnedFd),
    /// Be the first to go when memory is short.
    RaiseOomScore(CString),
    /// Without root: be oneself, and nobody else, in the new user namespace.
    MapUser {
        /// The line for `uid_map`.
        uid_map: CString,
        /// The line for `gid_map`.
        gid_map: CString,
    },
    /// Leave spryd's session and terminal.
    NewSession,
    /// One resource limit, soft and hard.
    LimitResource {
        /// `RLIMIT_*`.
        resource: c_int,
        /// In the resource's own unit.
        value: u64,
    },
    /// What is mounted in here stays in here, and the other way round.
    PrivateMounts,
    /// The function's name as its host name.
    SetHostname(CString),
    /// Files that the function makes are its own.
    SetUmask(u32),
    /// No `execve` can bring a capability back.
    DropBoundingSet,
    /// Nor this way.
    ClearAmbientSet,
    /// No supplementary groups.
    DropGroups,
    /// The function's own group.
    SetGroup(u32),
    /// The function's own user.
    SetUser(u32),
    /// No capability at all.
    DropCapabilities,
    /// Set-user-id programs are ordinary ones from here on.
    NoNewPrivileges,
    /// Die with the thread of spryd that made this process. After [`Self::SetUser`], which would clear it.
    DieWithParent(i32),
    /// The working directory, entered with the function's own rights.
    ChangeDirectory(CString),
    /// Descriptor `to` is this one. The plan keeps `from` out of the way of every `to`.
    InstallFd {
        /// What.
        from: OwnedFd,
        /// Where.
        to: RawFd,
    },
    /// Close every descriptor from this one on.
    CloseFrom(u32),
    /// Become the runtime.
    Execute(ExecImage),
}

impl Step {
    /// What a failure is reported as.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ResetSignals => "reset signals",
            Self::JoinControlGroup(_) => "join the control group",
            Self::RaiseOomScore(_) => "raise the OOM score",
            Self::MapUser { .. } => "map the user",
            Self::NewSession => "start a session",
            Self::LimitResource { .. } => "limit a resource",
            Self::PrivateMounts => "make mounts private",
            Self::SetHostname(_) => "set the host name",
            Self::SetUmask(_) => "set the umask",
            Self::DropBoundingSet => "drop the bounding set",
            Self::ClearAmbientSet => "clear the ambient set",
            Self::DropGroups => "drop supplementary groups",
            Self::SetGroup(_) => "set the group",
            Self::SetUser(_) => "set the user",
            Self::DropCapabilities => "drop capabilities",
            Self::NoNewPrivileges => "forbid new privileges",
            Self::DieWithParent(_) => "die with the parent",
            Self::ChangeDirectory(_) => "enter the code folder",
            Self::InstallFd { .. } => "install a descriptor",
            Self::CloseFrom(_) => "close descriptors",
            Self::Execute(_) => "execute the runtime",
        }
    }

    /// Takes the step. Child-safe.
    pub(super) fn run(&self) -> Result<(), Errno> {
        match self {
            Self::ResetSignals => sys::reset_signals(),
            Self::JoinControlGroup(procs) => sys::write_once(procs.as_fd(), b"0"),
            Self::RaiseOomScore(score) => sys::write_file(c"/proc/self/oom_score_adj", score.to_bytes()),
            Self::MapUser { uid_map, gid_map } => {
                sys::write_file(c"/proc/self/setgroups", b"deny")?;
                sys::write_file(c"/proc/self/uid_map", uid_map.to_bytes())?;
                sys::write_file(c"/proc/self/gid_map", gid_map.to_bytes())
            }
            Self::NewSession => sys::new_session(),
            Self::LimitResource { resource, value } => sys::limit_resource(*resource, *value),
            Self::PrivateMounts => sys::make_mounts_private(),
            Self::SetHostname(name) => sys::set_hostname(name),
            Self::SetUmask(mask) => {
                sys::set_umask(*mask);
                Ok(())
            }
            Self::DropBoundingSet => sys::drop_bounding_set(),
            Self::ClearAmbientSet => sys::clear_ambient_set(),
            Self::DropGroups => sys::drop_groups(),
            Self::SetGroup(gid) => sys::set_gid(*gid),
            Self::SetUser(uid) => sys::set_uid(*uid),
            Self::DropCapabilities => sys::drop_capabilities(),
            Self::NoNewPrivileges => sys::set_no_new_privileges(),
            Self::DieWithParent(parent) => sys::die_with_parent(*parent),
            Self::ChangeDirectory(path) => sys::change_directory(path),
            Self::InstallFd { from, to } => sys::install_fd(from.as_fd(), *to, false),
            Self::CloseFrom(first) => sys::close_from(*first),
            Self::Execute(image) => Err(image.execute()),
        }
    }
}
