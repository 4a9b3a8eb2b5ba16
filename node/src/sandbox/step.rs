//! One thing that a new process does to itself before it becomes the function's runtime.
//!
//! A step holds everything that it needs, allocated by the parent; running it is child-safe (see `sys/child.rs`).
//! The order is the plan's business ([`super::Plan`]); a new kind of confinement is a new variant, a name, an arm
//! in [`Step::run`], and a line in the plan.

use std::ffi::{CStr, CString, c_int};
use std::os::fd::{AsFd, RawFd};

use nix::errno::Errno;

use super::landlock::Landlock;
use super::spawn::{self, OutOfTheWay};
use crate::secrets::Value;
use crate::sys::confine::{self, Instruction};
use crate::sys::{self, ExecImage};

/// Where the new root is put together: a folder that every host has and that nothing is bound from.
pub(super) const ROOT: &CStr = c"/sys";
/// It holds folders, links and a few lines of text.
const ROOT_OPTIONS: &CStr = c"size=256k,nr_inodes=1024,mode=755";

/// See the module.
#[derive(Debug)]
pub enum Step {
    /// Every signal at its default, none blocked.
    ResetSignals,
    /// Children that end, and orphans that are handed over, leave nothing to be waited for. Stays so over `execve`.
    ReapNobody,
    /// Enter the control group whose `cgroup.procs` this is, before anything is charged to anyone.
    JoinControlGroup(OutOfTheWay),
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
    /// `/proc/self/cgroup` shows no more than the group that was joined and what is beside it.
    HideControlGroups,
    /// An empty, size-limited file system that is to become the root.
    MountRoot,
    /// A folder in it.
    MakeFolder(CString),
    /// A file in it.
    MakeFile {
        /// Where.
        path: CString,
        /// What is in it.
        text: CString,
    },
    /// A symbolic link in it.
    MakeLink {
        /// What it says.
        target: CString,
        /// Where.
        path: CString,
    },
    /// What the host has, with all that is mounted below it, read-only and without set-user-id; and without devices,
    /// unless it is one.
    Bind {
        /// On the host.
        source: CString,
        /// In the new root.
        target: CString,
        /// One of the harmless devices.
        device: bool,
    },
    /// A folder of the host that may be written to; without set-user-id and devices.
    BindWritable {
        /// On the host.
        source: CString,
        /// In the new root.
        target: CString,
    },
    /// `/proc`, without the processes of others.
    MountProc(CString),
    /// `/tmp`; the options limit it.
    MountTmp {
        /// In the new root.
        path: CString,
        /// Size, number of files, mode.
        options: CString,
    },
    /// `/tmp`, once everything below it is there, for those who must not leave anything.
    SealTmp(CString),
    /// A small file system for secrets; the options limit it and say whose it is.
    MountSecrets {
        /// In the new root.
        path: CString,
        /// Size, number of files, mode, owner.
        options: CString,
    },
    /// A secret in it, readable by one user.
    MakeSecret {
        /// Where.
        path: CString,
        /// What.
        value: Value,
        /// Whose.
        owner: (u32, u32),
    },
    /// Nothing can be changed in it.
    SealSecrets(CString),
    /// From here on the new root is the root; what was mounted before is gone from this namespace.
    EnterRoot,
    /// Nothing can be made in the root itself.
    SealRoot,
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
    /// Files by landlock: what the root's mounts say, said again by another mechanism.
    RestrictFiles(Landlock),
    /// Die with the thread of spryd that made this process. After [`Self::SetUser`], which would clear it. spryd's number
    /// here; 0 in a pid namespace, from where it isn't to be seen.
    DieWithParent(i32),
    /// The same for who is the first in his namespace, where a parent that is gone has the same number as before. `/proc` tells
    /// (this is spryd's number there); where it doesn't, whether anybody holds the other end of the report's pipe. (That a thread of spryd's
    /// may do a little longer than the one that made this process lives.)
    EndUnwatched(Option<i32>),
    /// The working directory, entered with the function's own rights.
    ChangeDirectory(CString),
    /// Descriptor `to` is this one.
    InstallFd {
        /// What.
        from: OutOfTheWay,
        /// Where.
        to: RawFd,
    },
    /// Close every descriptor from this one on.
    CloseFrom(u32),
    /// From here on, only these system calls.
    FilterSystemCalls(Vec<Instruction>),
    /// Become the runtime.
    Execute(ExecImage),
    /// Become a pid namespace's init.
    BecomeInit {
        /// Where its program lies.
        program: RawFd,
        /// Its name.
        image: ExecImage,
    },
}

impl Step {
    /// What a failure is reported as.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ResetSignals => "reset signals",
            Self::ReapNobody => "ignore the death of children",
            Self::JoinControlGroup(_) => "join the control group",
            Self::RaiseOomScore(_) => "raise the OOM score",
            Self::MapUser { .. } => "map the user",
            Self::NewSession => "start a session",
            Self::LimitResource { .. } => "limit a resource",
            Self::PrivateMounts => "make mounts private",
            Self::HideControlGroups => "hide control groups",
            Self::MountRoot => "mount the root",
            Self::MakeFolder(_) => "make a folder in the root",
            Self::MakeFile { .. } => "make a file in the root",
            Self::MakeLink { .. } => "make a link in the root",
            Self::Bind { .. } => "bind into the root",
            Self::BindWritable { .. } => "bind a writable folder into the root",
            Self::MountProc(_) => "mount /proc",
            Self::MountTmp { .. } => "mount /tmp",
            Self::SealTmp(_) => "seal /tmp",
            Self::MountSecrets { .. } => "mount /run/secrets",
            Self::MakeSecret { .. } => "make a secret's file",
            Self::SealSecrets(_) => "seal /run/secrets",
            Self::EnterRoot => "enter the root",
            Self::SealRoot => "seal the root",
            Self::SetHostname(_) => "set the host name",
            Self::SetUmask(_) => "set the umask",
            Self::DropBoundingSet => "drop the bounding set",
            Self::ClearAmbientSet => "clear the ambient set",
            Self::DropGroups => "drop supplementary groups",
            Self::SetGroup(_) => "set the group",
            Self::SetUser(_) => "set the user",
            Self::DropCapabilities => "drop capabilities",
            Self::NoNewPrivileges => "forbid new privileges",
            Self::RestrictFiles(_) => "restrict files",
            Self::DieWithParent(_) => "die with the parent",
            Self::EndUnwatched(_) => "find spryd",
            Self::ChangeDirectory(_) => "enter the code folder",
            Self::InstallFd { .. } => "install a descriptor",
            Self::CloseFrom(_) => "close descriptors",
            Self::FilterSystemCalls(_) => "filter system calls",
            Self::Execute(_) => "execute the runtime",
            Self::BecomeInit { .. } => "become a pid namespace's init",
        }
    }

    /// Takes the step. Child-safe.
    pub(super) fn run(&self) -> Result<(), Errno> {
        match self {
            Self::ResetSignals => sys::reset_signals(),
            Self::ReapNobody => sys::ignore_children(),
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
            Self::HideControlGroups => confine::unshare(libc::CLONE_NEWCGROUP),
            Self::MountRoot => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV;
                confine::mount(Some(c"spry"), ROOT, Some(c"tmpfs"), flags, Some(ROOT_OPTIONS))
            }
            Self::MakeFolder(path) => confine::make_folder(path),
            Self::MakeFile { path, text } => confine::make_file(path, text.to_bytes()),
            Self::MakeLink { target, path } => confine::make_link(target, path),
            Self::Bind { source, target, device } => {
                confine::mount(Some(source), target, None, libc::MS_BIND | libc::MS_REC, None)?;
                let kind = if *device { libc::MOUNT_ATTR_NOEXEC } else { libc::MOUNT_ATTR_NODEV };
                let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | kind;
                confine::set_mount_attributes(target, attributes)
            }
            Self::BindWritable { source, target } => {
                confine::mount(Some(source), target, None, libc::MS_BIND, None)?;
                confine::set_mount_attributes(target, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)
            }
            Self::MountProc(path) => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                confine::mount(Some(c"proc"), path, Some(c"proc"), flags, Some(c"hidepid=2"))
            }
            Self::MountTmp { path, options } => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV;
                confine::mount(Some(c"tmp"), path, Some(c"tmpfs"), flags, Some(options))
            }
            Self::SealTmp(path) => remount_read_only(path),
            Self::MountSecrets { path, options } => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                confine::mount(Some(c"secrets"), path, Some(c"tmpfs"), flags, Some(options))
            }
            Self::MakeSecret { path, value, owner } => confine::make_secret(path, value.as_bytes(), *owner),
            Self::SealSecrets(path) => {
                let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOEXEC;
                confine::mount(None, path, None, flags | libc::MS_NOSUID | libc::MS_NODEV, None)
            }
            Self::EnterRoot => confine::change_root(ROOT),
            Self::SealRoot => remount_read_only(c"/"),
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
            Self::RestrictFiles(landlock) => landlock.apply(),
            Self::DieWithParent(parent) => sys::die_with_parent(*parent),
            Self::EndUnwatched(spryd) => match (spryd, sys::parent_by_proc()) {
                (Some(spryd), Some(parent)) if *spryd != parent => Err(Errno::ESRCH),
                _ => sys::has_reader(spawn::report_at_its_place()),
            },
            Self::ChangeDirectory(path) => sys::change_directory(path),
            Self::InstallFd { from, to } => sys::install_fd(from.as_fd(), *to, false),
            Self::CloseFrom(first) => sys::close_from(*first),
            Self::FilterSystemCalls(program) => confine::filter_system_calls(program),
            Self::Execute(image) => Err(image.execute()),
            Self::BecomeInit { program, image } => Err(image.execute_file(*program)),
        }
    }
}

/// This mount only, not what is mounted below it.
fn remount_read_only(path: &CStr) -> Result<(), Errno> {
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    confine::mount(None, path, None, flags, None)
}
