//! What a function's process is kept from, as a list of steps that the process takes before it runs any code that
//! isn't spry's.
//!
//! [`Plan::new`] turns a [`Confinement`] (what is wanted, for whom) into the ordered list; [`spawn()`] runs it in
//! a new process; [`Ability`] knows what the kernel and spryd's own rights allow; [`probe()`] says it to people.
//! The zygote is confined so, and its instances inherit all of it by fork.
//!
//! Not here: control groups (`crate::cgroup`; the plan only enters one), and what a process is told after it
//! has started (`crate::zygote`).
//!
//! The order matters:
//!
//! 1. what needs spryd's rights: control group, OOM score, mounts, host name, bounding set;
//! 2. the change of user, which on the way clears the death signal and makes `/proc/self` unwritable;
//! 3. what must come after it: capabilities, no-new-privileges, death signal, entering the code folder with the
//!    function's own rights;
//! 4. descriptors, since the earlier steps use them, and at the very end the filter on system calls, which
//!    refuses most of what came before.
//!
//! Where there is a [`PidNamespace`] for it, the process is born in that; a plan names the user for its init.
//!
//! [`Root`] says what is to be seen of the host's files, [`filter`] which system calls may be made, [`landlock`]
//! guards the files a second time.

pub mod filter;
pub mod landlock;
mod pid_namespace;
pub mod probe;
mod root;
mod spawn;
mod step;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, NulError, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use landlock::Landlock;
pub use pid_namespace::PidNamespace;
pub use probe::{Ability, Outcome, Probe, probe};
pub use root::{Root, installation};
pub use spawn::{OutOfTheWay, Spawned, StepFailed, StepReport, spawn};
pub use step::Step;

use crate::sys::ExecImage;

/// The function's processes are the kernel's first choice when memory is short; spryd itself is not.
const OOM_SCORE_ADJ: &CStr = c"500";

/// Who the process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// Another user; needs root.
    Own {
        /// The function's user.
        uid: u32,
        /// The function's group.
        gid: u32,
    },
    /// spryd's own user, alone in a user namespace.
    UserNamespace {
        /// spryd's user.
        uid: u32,
        /// spryd's group.
        gid: u32,
    },
    /// spryd's own user: there are neither root nor user namespaces.
    Inherited,
}

/// A program to become.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Its arguments after `argv[0]`.
    pub arguments: &'a [std::ffi::OsString],
    /// Its whole environment.
    pub environment: &'a BTreeMap<String, String>,
    /// Its working directory.
    pub directory: &'a Path,
}

/// What a process gets as descriptors 0 to 3, and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors<'a> {
    /// Standard input.
    pub input: BorrowedFd<'a>,
    /// Standard output and standard error.
    pub output: BorrowedFd<'a>,
    /// [`spry_wire::control::ZYGOTE_FD`].
    pub control: BorrowedFd<'a>,
}

/// Resource limits; everything that a control group doesn't hold better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimits {
    /// Open files of one process.
    pub open_files: u64,
    /// Processes and threads of the function's user; far above what the control group allows when there is one.
    pub processes: Option<u64>,
    /// Private writable memory of one process; only where no control group counts memory.
    pub data_bytes: Option<u64>,
}

/// Everything that a plan is made from.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// What the kernel allows.
    pub ability: &'a Ability,
    /// Who.
    pub credentials: Credentials,
    /// Without the host's network.
    pub private_network: bool,
    /// Becomes the host name, where there is a namespace for it.
    pub hostname: &'a str,
    /// The `cgroup.procs` to enter.
    pub control_groups: Vec<OwnedFd>,
    /// See there.
    pub limits: Rlimits,
    /// What it sees of the host's files, where the kernel lets it have a root of its own.
    pub root: Root<'a>,
    /// Which system calls it may make.
    pub filter: filter::Profile,
    /// What runs.
    pub program: Program<'a>,
    /// What it holds.
    pub descriptors: Descriptors<'a>,
}

/// A plan could not be made: nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A path, argument, variable or name has a zero byte in it.
    #[error("the {what} has a zero byte in it")]
    ZeroByte {
        /// Which.
        what: &'static str,
    },
    /// Without a root of its own, a function has no place for them that others can't see.
    #[error("secrets need a root of the function's own, which can't be had here (see `spry doctor`)")]
    NoPlaceForSecrets,
    /// A descriptor couldn't be copied.
    #[error("prepare the descriptors of a new process: {0}")]
    Descriptors(#[source] io::Error),
}

/// Namespaces and steps, ready to run.
#[derive(Debug)]
pub struct Plan {
    namespaces: u64,
    init: Option<(u32, u32)>,
    steps: Vec<Step>,
}

impl Plan {
    /// The ordered list for this confinement.
    pub fn new(wanted: Confinement<'_>) -> Result<Self, PlanError> {
        let namespaces = wanted.ability.namespaces(wanted.credentials, wanted.private_network);
        let has = |flag: i32| namespaces & flag as u64 != 0;
        let init = wanted.ability.pid_namespace_of(wanted.credentials);
        let mut steps = vec![Step::ResetSignals];
        for procs in wanted.control_groups {
            steps.push(Step::JoinControlGroup(out_of_the_way(procs.as_fd())?));
        }
        steps.push(Step::RaiseOomScore(OOM_SCORE_ADJ.to_owned()));
        steps.extend(map_user(wanted.credentials));
        steps.push(Step::NewSession);
        steps.extend(rlimits(wanted.limits));
        if has(libc::CLONE_NEWNS) {
            steps.push(Step::PrivateMounts);
        }
        // after the control group has been joined: it is what the namespace's root will be
        if wanted.ability.can_hide_control_groups(wanted.credentials) {
            steps.push(Step::HideControlGroups);
        }
        if wanted.ability.has_own_root(wanted.credentials) {
            steps.push(Step::SetUmask(0o022));
            steps.extend(wanted.root.steps()?);
        } else if !wanted.root.secrets.is_empty() {
            return Err(PlanError::NoPlaceForSecrets);
        }
        if has(libc::CLONE_NEWUTS) {
            let name: Vec<u8> = wanted.hostname.bytes().take(64).collect();
            steps.push(Step::SetHostname(text("host name", OsStr::from_bytes(&name))?));
        }
        steps.push(Step::SetUmask(0o077));
        if wanted.ability.can_drop_bounding_set(wanted.credentials) {
            steps.push(Step::DropBoundingSet);
        }
        steps.push(Step::ClearAmbientSet);
        if let Credentials::Own { uid, gid } = wanted.credentials {
            steps.extend([Step::DropGroups, Step::SetGroup(gid), Step::SetUser(uid)]);
        }
        steps.extend([
            Step::DropCapabilities,
            Step::NoNewPrivileges,
            Step::DieWithParent(if init.is_some() { 0 } else { nix::unistd::getpid().as_raw() }),
            Step::ChangeDirectory(text("code folder", wanted.program.directory.as_os_str())?),
        ]);
        if let Some(version) = wanted.ability.landlock() {
            let writable = wanted.root.writable.map(|path| text("path", path.as_os_str())).transpose()?;
            steps.push(Step::RestrictFiles(Landlock::new(version, !wanted.private_network, writable)));
        }
        let held = wanted.descriptors;
        let places = [(held.input, 0), (held.output, 1), (held.output, 2), (held.control, 3)];
        for (fd, to) in places {
            steps.push(Step::InstallFd { from: out_of_the_way(fd)?, to });
        }
        steps.push(Step::CloseFrom(spawn::REPORT_FD as u32 + 1));
        // Not before: until here this process has all of spryd's descriptors, and the steps above open more.
        steps.push(Step::LimitResource {
            resource: libc::RLIMIT_NOFILE as i32,
            value: wanted.limits.open_files,
        });
        if wanted.ability.has_filter() {
            steps.push(Step::FilterSystemCalls(filter::compile(wanted.filter)));
        }
        steps.push(Step::Execute(image(wanted.program)?));
        Ok(Self { namespaces, init, steps })
    }

    /// Its process needs a pid namespace, whose init is to be this user and group.
    pub fn init(&self) -> Option<(u32, u32)> {
        self.init
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// Without root: the step that makes the new user namespace's one user.
fn map_user(credentials: Credentials) -> Option<Step> {
    let Credentials::UserNamespace { uid, gid } = credentials else { return None };
    let line = |id: u32| CString::new(format!("{id} {id} 1")).expect("digits and spaces");
    Some(Step::MapUser { uid_map: line(uid), gid_map: line(gid) })
}

/// All but the one on open files.
fn rlimits(limits: Rlimits) -> impl Iterator<Item = Step> {
    let fixed = [
        (libc::RLIMIT_CORE, Some(0)),
        (libc::RLIMIT_MEMLOCK, Some(64 * 1024)),
        (libc::RLIMIT_MSGQUEUE, Some(0)),
        (libc::RLIMIT_SIGPENDING, Some(256)),
        (libc::RLIMIT_RTPRIO, Some(0)),
        (libc::RLIMIT_NICE, Some(0)),
        (libc::RLIMIT_NPROC, limits.processes),
        (libc::RLIMIT_DATA, limits.data_bytes),
    ];
    fixed.into_iter().filter_map(|(resource, value)| {
        Some(Step::LimitResource { resource: resource as i32, value: value? })
    })
}

fn image(program: Program<'_>) -> Result<ExecImage, PlanError> {
    let path = text("program", program.path.as_os_str())?;
    let arguments = program.arguments.iter().map(|argument| text("argument", argument));
    let variables = program.environment.iter().map(|(name, value)| {
        CString::new(format!("{name}={value}")).map_err(|_| PlanError::ZeroByte { what: "environment" })
    });
    Ok(ExecImage::new(path, arguments.collect::<Result<_, _>>()?, variables.collect::<Result<_, _>>()?))
}

fn out_of_the_way(fd: BorrowedFd<'_>) -> Result<OutOfTheWay, PlanError> {
    OutOfTheWay::copy(fd).map_err(PlanError::Descriptors)
}

fn text(what: &'static str, text: &OsStr) -> Result<CString, PlanError> {
    CString::new(text.as_bytes()).map_err(|_: NulError| PlanError::ZeroByte { what })
}

/// `/dev/null`, for standard input.
pub(crate) fn null_input() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}

/// Waits until the process is dead; it stays to be reaped.
pub(crate) fn await_death(pidfd: &OwnedFd) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
