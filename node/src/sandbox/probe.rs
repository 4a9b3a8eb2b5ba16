//! What the kernel, and spryd's own rights, allow: found by trying, said in three ways. "Not permitted" is not
//! "not there", and an unexpected failure is neither.

use std::io;

use nix::errno::Errno;

use super::landlock::SCOPES_SINCE;
use super::{Credentials, Plan, Root, Step, StepFailed, pid_namespace};
use crate::cgroup;
use crate::sys::{self, Forked, SignalsBlocked};

/// One line of `spry doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What was tried.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// How a probe went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there; in more words where there is something to say.
    Yes {
        /// Which version, which layout; may be empty.
        detail: String,
    },
    /// It isn't, and something else is used.
    No {
        /// Why not.
        why: String,
        /// What is used instead.
        instead: &'static str,
    },
    /// It could not be found out.
    Error {
        /// What went wrong.
        what: String,
    },
}

/// The kinds of namespace that a function gets, with the words for each.
const NAMESPACES: [(i32, &str, &str); 5] = [
    (libc::CLONE_NEWNET, "network namespaces", "functions share the host's network"),
    (libc::CLONE_NEWNS, "mount namespaces", "functions share the host's mounts"),
    (libc::CLONE_NEWIPC, "IPC namespaces", "functions share the host's System V IPC and message queues"),
    (libc::CLONE_NEWUTS, "UTS namespaces", "functions see the host's name"),
    // made by a step of the plan, once the control group has been joined
    (libc::CLONE_NEWCGROUP, "cgroup namespaces", "functions see the names of the host's control groups"),
];
const MOUNTS: usize = 1;
const CONTROL_GROUPS: usize = 4;

/// What can be asked of `clone3` here. Made once, by trying each kind on a process that ends at once.
#[derive(Debug, Clone, Copy)]
pub struct Ability {
    root: bool,
    user_namespaces: Result<(), Errno>,
    /// One per [`NAMESPACES`], made from root or within a user namespace, whichever is used.
    others: [Result<(), Errno>; NAMESPACES.len()],
    /// With an init, which takes more than the namespace.
    pid_namespaces: Result<(), Errno>,
    own_root: Result<(), StepFailed>,
    /// Can `/proc` be mounted anew? Its owner is the pid namespace: not ours, unless spryd is root, and even then a
    /// container may hide parts of it.
    own_proc: bool,
    landlock: Result<u32, Errno>,
    filter: Result<(), Errno>,
}

impl Ability {
    /// Tries. Starts and reaps a few processes of the calling thread.
    pub fn find() -> io::Result<Self> {
        let root = nix::unistd::geteuid().is_root();
        let user_namespaces = try_namespaces(libc::CLONE_NEWUSER)?;
        let base = if root { 0 } else { libc::CLONE_NEWUSER };
        let mut others = [Err(Errno::EPERM); NAMESPACES.len()];
        for (result, (flag, ..)) in others.iter_mut().zip(NAMESPACES) {
            *result = try_namespaces(base | flag)?;
        }
        let not_tried = StepFailed { step: "make mounts private", errno: Errno::EPERM };
        let (landlock, filter) = (sys::landlock_version(), sys::seccomp_filter_available());
        let own_root = Err(not_tried);
        // Whoever isn't root couldn't start processes in one that he has made.
        let pid_namespaces = if root { pid_namespace::try_one((0, 0))? } else { Err(Errno::EPERM) };
        let mut found = Self {
            root,
            user_namespaces,
            others,
            pid_namespaces,
            own_root,
            own_proc: root,
            landlock,
            filter,
        };
        found.own_root = found.try_root()?;
        if found.own_root.is_err() && found.own_proc {
            found.own_proc = false;
            found.own_root = found.try_root()?;
        }
        Ok(found)
    }

    /// Puts a root together in a process that ends at once.
    fn try_root(&self) -> io::Result<Result<(), StepFailed>> {
        let ids = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let Some(credentials) = self.credentials(self.root.then_some(ids)) else { return Ok(self.own_root) };
        let namespaces = self.namespaces(credentials, false);
        if namespaces & libc::CLONE_NEWNS as u64 == 0 {
            let errno = self.others[MOUNTS].err().unwrap_or(Errno::EPERM);
            return Ok(Err(StepFailed { step: "make mounts private", errno }));
        }
        let mut steps: Vec<Step> = super::map_user(credentials).into_iter().collect();
        steps.push(Step::PrivateMounts);
        let root = Root {
            visible: &[],
            writable: None,
            secrets: &[],
            tmp_bytes: 1 << 20,
            tmp_writable: false,
            host_network: false,
            own_proc: self.has_own_proc(),
            user: ids,
        };
        steps.extend(root.steps().map_err(io::Error::other)?);
        let spawned = super::spawn(&Plan { namespaces, init: None, steps }, None)?;
        super::await_death(&spawned.pidfd)?;
        sys::wait(sys::Which::Child(std::os::fd::AsFd::as_fd(&spawned.pidfd)), true)?;
        match spawned.report.read() {
            Ok(failed) => Ok(failed.map_or(Ok(()), Err)),
            // It is dead and has said nothing; a process that was forked meanwhile still has the pipe's other end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Ok(())),
            Err(error) => Err(error),
        }
    }

    /// Is `/proc` mounted anew, rather than the host's shown?
    pub fn has_own_proc(&self) -> bool {
        self.own_proc
    }

    /// Can functions have a root of their own; else, which step failed?
    pub fn own_root(&self) -> Result<(), StepFailed> {
        self.own_root
    }

    /// Does a process with these credentials get a root of its own?
    pub(super) fn has_own_root(&self, credentials: Credentials) -> bool {
        credentials != Credentials::Inherited && self.own_root.is_ok()
    }

    pub(super) fn can_hide_control_groups(&self, credentials: Credentials) -> bool {
        credentials != Credentials::Inherited && self.others[CONTROL_GROUPS].is_ok()
    }

    /// The version of landlock, where there is one.
    pub(super) fn landlock(&self) -> Option<u32> {
        self.landlock.ok()
    }

    /// Can an instance be kept from signalling others of its function?
    pub fn scopes_signals(&self) -> bool {
        self.landlock.is_ok_and(|version| version >= SCOPES_SINCE)
    }

    /// Can system calls be filtered?
    pub(super) fn has_filter(&self) -> bool {
        self.filter.is_ok()
    }

    /// Can processes be given users of their own?
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Who a function's process can be. Root needs to be told whose user to take.
    pub fn credentials(&self, own: Option<(u32, u32)>) -> Option<Credentials> {
        match own {
            Some((uid, gid)) if self.root => Some(Credentials::Own { uid, gid }),
            None if !self.root && self.user_namespaces.is_ok() => {
                let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                Some(Credentials::UserNamespace { uid, gid })
            }
            None if !self.root => Some(Credentials::Inherited),
            _ => None,
        }
    }

    /// Whom the init of a pid namespace is to be, for a process with these credentials; `None`: it has none. The numbers in
    /// `/proc` must be those of the namespace.
    pub(super) fn pid_namespace_of(&self, credentials: Credentials) -> Option<(u32, u32)> {
        match credentials {
            Credentials::Own { uid, gid } if self.pid_namespaces.is_ok() && self.shows_own_proc() => {
                Some((uid, gid))
            }
            _ => None,
        }
    }

    fn shows_own_proc(&self) -> bool {
        self.own_root.is_ok() && self.own_proc
    }

    /// Is this one of the namespaces that functions get?
    pub fn has_private_network(&self) -> bool {
        self.others[0].is_ok()
    }

    /// The flags for `clone3`.
    pub(super) fn namespaces(&self, credentials: Credentials, private_network: bool) -> u64 {
        let mut flags = match credentials {
            Credentials::UserNamespace { .. } => libc::CLONE_NEWUSER,
            Credentials::Own { .. } => 0,
            Credentials::Inherited => return 0,
        };
        for (result, (flag, ..)) in self.others.iter().zip(NAMESPACES) {
            let later = flag == libc::CLONE_NEWCGROUP;
            if result.is_ok() && !later && (flag != libc::CLONE_NEWNET || private_network) {
                flags |= flag;
            }
        }
        flags as u64
    }

    /// Root may, and so may the first process of a user namespace; anyone else has nothing to drop.
    pub(super) fn can_drop_bounding_set(&self, credentials: Credentials) -> bool {
        credentials != Credentials::Inherited
    }

    /// One line per kind.
    pub fn probes(&self) -> Vec<Probe> {
        let users = match (self.user_namespaces, self.root) {
            (Ok(()), _) => Outcome::Yes { detail: String::new() },
            (Err(errno), true) => {
                no(errno, "nothing is lost: spryd is root and functions have users of their own")
            }
            (Err(errno), false) => no(errno, "functions run as spryd's own user, in the host's namespaces"),
        };
        let mut probes = vec![Probe { name: "user namespaces", outcome: users }];
        for (result, (_, name, instead)) in self.others.iter().zip(NAMESPACES) {
            let outcome = match result {
                Ok(()) => Outcome::Yes { detail: String::new() },
                Err(errno) => no(*errno, instead),
            };
            probes.push(Probe { name, outcome });
        }
        let instead = "other users' processes are hidden, and end with their control groups";
        let processes = match self.pid_namespaces {
            Ok(()) if self.shows_own_proc() => {
                Outcome::Yes { detail: "with an init for each zygote".to_owned() }
            }
            Ok(()) => Outcome::No { why: "/proc can't be mounted anew".to_owned(), instead },
            Err(errno) => no(errno, instead),
        };
        probes.push(Probe { name: "pid namespaces", outcome: processes });
        let own = match self.root {
            true => Outcome::Yes { detail: "a user and group per function".to_owned() },
            false => Outcome::No {
                why: "spryd is not root".to_owned(),
                instead: "functions run as spryd's own user",
            },
        };
        probes.push(Probe { name: "own users", outcome: own });
        let files = match self.own_root {
            Ok(()) if self.has_own_proc() => {
                Outcome::Yes { detail: "read-only, own /proc and /tmp".to_owned() }
            }
            Ok(()) => Outcome::Yes { detail: "read-only, own /tmp, the host's /proc".to_owned() },
            Err(failed) => Outcome::No {
                why: failed.to_string(),
                instead: "functions see the host's files, as far as their user may",
            },
        };
        probes.push(Probe { name: "own root", outcome: files });
        probes
    }
}

fn no(errno: Errno, instead: &'static str) -> Outcome {
    Outcome::No { why: errno.desc().to_owned(), instead }
}

/// The inner result is the kernel's answer; the outer one is about the trying itself.
#[allow(unsafe_code, reason = "fork; the child ends at once")]
fn try_namespaces(flags: i32) -> io::Result<Result<(), Errno>> {
    let _blocked = SignalsBlocked::new();
    // SAFETY: the child does nothing but end.
    let pidfd = match unsafe { sys::clone3_fork(flags as u64) } {
        Ok(Forked::Child) => sys::exit_now(0),
        Ok(Forked::Parent { pidfd, .. }) => pidfd,
        Err(error) => return Ok(Err(Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
    };
    super::await_death(&pidfd)?;
    sys::wait(sys::Which::Child(std::os::fd::AsFd::as_fd(&pidfd)), true)?;
    Ok(Ok(()))
}

/// Everything in this module's reach, for `spry doctor`: what a daemon started by the caller, here, would find.
pub fn probe() -> Vec<Probe> {
    let mut probes = Vec::new();
    match Ability::find() {
        Ok(ability) => {
            let detail = "with process descriptors".to_owned();
            probes.push(Probe { name: "clone3", outcome: Outcome::Yes { detail } });
            probes.extend(ability.probes());
        }
        Err(error) => {
            probes.push(Probe { name: "clone3", outcome: Outcome::Error { what: error.to_string() } })
        }
    }
    let me = std::process::id() as i32;
    probes.push(Probe {
        name: "pidfd",
        outcome: match sys::pidfd_open(me) {
            Ok(_) => Outcome::Yes { detail: String::new() },
            Err(error) => Outcome::Error { what: format!("needed, Linux 5.4: {error}") },
        },
    });
    probes.push(Probe {
        name: "landlock",
        outcome: match sys::landlock_version() {
            Ok(version) if version < SCOPES_SINCE => Outcome::Yes {
                detail: format!(
                    "version {version}; instances of one function can signal each other (version {SCOPES_SINCE}, Linux 6.12)"
                ),
            },
            Ok(version) => Outcome::Yes { detail: format!("version {version}") },
            Err(Errno::ENOSYS) => lacks("not in this kernel"),
            Err(Errno::EOPNOTSUPP) => lacks("switched off at boot (lsm=)"),
            Err(errno) => Outcome::Error { what: errno.desc().to_owned() },
        },
    });
    probes.push(Probe {
        name: "seccomp",
        outcome: match sys::seccomp_filter_available() {
            Ok(()) => Outcome::Yes { detail: "filters".to_owned() },
            Err(errno) => no(errno, "no filter on system calls"),
        },
    });
    // what was made of each zygote is said by `spry describe`
    probes.push(Probe {
        name: "frozen zygotes",
        outcome: match sys::seccomp_filter_available() {
            Ok(()) => Outcome::Yes { detail: "their memory becomes a sealed file".to_owned() },
            Err(errno) => {
                no(errno, "forks copy the page tables of all memory; zygotes.freeze = \"huge\" helps")
            }
        },
    });
    probes.push(Probe { name: "package layers", outcome: layers() });
    probes.push(Probe {
        name: "rewinding",
        outcome: match crate::zygote::rewind::probe() {
            Ok(()) => Outcome::Yes { detail: "isolation = \"request\" without a fork for each".to_owned() },
            Err(why) => Outcome::No { why, instead: "with isolation = \"request\" each request is a fork" },
        },
    });
    probes.extend(cgroup::probe());
    probes
}

/// What zygotes need that begin as what another process was. Whether a given set of packages can be a layer is said by
/// `spry status`.
fn layers() -> Outcome {
    let instead = "every zygote imports its packages itself";
    let no = |why: &str| Outcome::No { why: why.to_owned(), instead };
    if !cfg!(target_arch = "x86_64") {
        return no("only on x86-64 so far");
    }
    if let Err(errno) = sys::seccomp_filter_available() {
        return no(errno.desc());
    }
    for file in ["/proc/self/pagemap", "/proc/self/timers"] {
        if let Err(error) = std::fs::File::open(file) {
            return no(&format!("{file}: {error}"));
        }
    }
    Outcome::Yes { detail: "Python's packages are imported once for several functions".to_owned() }
}

fn lacks(why: &str) -> Outcome {
    Outcome::No { why: why.to_owned(), instead: "file permissions and the function's own user" }
}
