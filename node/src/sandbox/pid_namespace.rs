//! A pid namespace of a function's own: its processes see, and can signal, nobody else's, and all of them end with it.
//!
//! The first process of such a namespace is its init: the kernel hands it whatever is orphaned there, and kills everything
//! there when it dies. A zygote can't be that (`CLONE_PARENT` is refused to it, and its instances outlive it), so it is a
//! program of a few instructions, which waits for nothing. Orphans need no reaping: its SIGCHLD is ignored.
//!
//! The init dies with the thread that started it, as all of spryd's children do. So when spryd is killed, what functions have
//! forked dies, too, though the death signal isn't inherited by fork; and where there are no control groups, nothing
//! outlives its function either.
//!
//! Not here: who keeps it as long as a process is in it, and who reaps it (`crate::zygote::nursery`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::spawn::{self, OutOfTheWay, Spawned, StepReport};
use super::{Plan, Step};
use crate::sys::{self, ExecImage};

/// What its init is called in lists of processes.
const NAME: &str = "spry-init";

/// Where the init's program lies among its descriptors; above it only the report's pipe.
const PROGRAM_FD: i32 = 3;

/// The namespace, by its init. Dropping it kills everything in it.
#[derive(Debug)]
pub struct PidNamespace {
    pid: i32,
    init: OwnedFd,
}

impl PidNamespace {
    /// Makes one whose init is this user. The calling thread becomes the init's parent, and reaps it; the report says what
    /// became of its start.
    pub fn start((uid, gid): (u32, u32)) -> io::Result<(Self, StepReport)> {
        // If the last process was made elsewhere and the way back failed: not within that.
        Inside::leave()?;
        let null = super::null_input()?;
        let mut steps = vec![Step::ResetSignals, Step::ReapNobody, Step::NewSession];
        steps.extend([Step::DropBoundingSet, Step::ClearAmbientSet]);
        steps.extend([Step::DropGroups, Step::SetGroup(gid), Step::SetUser(uid)]);
        // spryd is not to be seen from in there: it has no number.
        steps.extend([Step::DropCapabilities, Step::NoNewPrivileges, Step::DieWithParent(0)]);
        for to in 0..PROGRAM_FD {
            steps.push(Step::InstallFd { from: OutOfTheWay::copy(null.as_fd())?, to });
        }
        steps.push(Step::InstallFd { from: OutOfTheWay::copy(program()?)?, to: PROGRAM_FD });
        steps.push(Step::CloseFrom(spawn::REPORT_FD as u32 + 1));
        steps.push(Step::EndUnwatched(number_by_proc()));
        let name = CString::new(NAME)?;
        steps.push(Step::BecomeInit { program: PROGRAM_FD, image: ExecImage::new(name, vec![], vec![]) });
        let plan = Plan { namespaces: libc::CLONE_NEWPID as u64, init: None, steps };
        let Spawned { pid, pidfd, report } = spawn::spawn(&plan, None)?;
        Ok((Self { pid, init: pidfd }, report))
    }

    /// The init's number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The init.
    pub fn init(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// Children of the calling thread are born in it, as long as the guard lives.
    pub(super) fn enter(&self) -> io::Result<Inside> {
        setns(&self.init, CloneFlags::CLONE_NEWPID)?;
        Ok(Inside)
    }
}

/// This process, as the `/proc` that is mounted here knows it.
fn number_by_proc() -> Option<i32> {
    std::fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()
}

impl Drop for PidNamespace {
    fn drop(&mut self) {
        if let Err(error) = sys::pidfd_signal(self.init(), libc::SIGKILL) {
            tracing::warn!("end the pid namespace of process {}: {error}", self.pid);
        }
    }
}

/// See [`PidNamespace::enter`].
pub(super) struct Inside;

impl Inside {
    /// Children of the calling thread are born where it is itself.
    fn leave() -> io::Result<()> {
        let this = sys::pidfd_open(nix::unistd::getpid().as_raw())?;
        Ok(setns(&this, CloneFlags::CLONE_NEWPID)?)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = Self::leave() {
            tracing::error!("return from a pid namespace: {error}");
        }
    }
}

/// Can there be such namespaces here? Tries it; the calling thread has one child more meanwhile.
pub(super) fn try_one(user: (u32, u32)) -> io::Result<Result<(), Errno>> {
    let errno = |error: &io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let (namespace, report) = match PidNamespace::start(user) {
        Ok(made) => made,
        Err(error) => return Ok(Err(errno(&error))),
    };
    let entered = namespace.enter().map(drop).map_err(|error| errno(&error));
    let failed = loop {
        match report.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => report.wait()?,
            result => break result?,
        }
    };
    sys::pidfd_signal(namespace.init(), libc::SIGKILL)?;
    super::await_death(&namespace.init)?;
    sys::wait(sys::Which::Child(namespace.init()), true)?;
    Ok(entered.and(failed.map_or(Ok(()), |failed| Err(failed.errno))))
}

/// The init's program, in memory: made once.
fn program() -> io::Result<BorrowedFd<'static>> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.as_fd());
    }
    let made = sys::rewind::sealed_file(c"spry-init", &[&elf(MACHINE_CODE), MACHINE_CODE], true)?;
    // To be run, not read, by others than its owner: who runs such a file can't be looked into by who has the same user. In the
    // init he would find the host's root.
    nix::sys::stat::fchmod(&made, Mode::from_bits_truncate(0o111))?;
    Ok(PROGRAM.get_or_init(|| made).as_fd())
}

/// What the init does for ever: `pause()`.
#[cfg(target_arch = "x86_64")]
const MACHINE_CODE: &[u8] = &[
    0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp, to the first
];
/// What the init does for ever: `ppoll(NULL, 0, NULL, NULL)`; there is no `pause` here.
#[cfg(target_arch = "aarch64")]
const MACHINE_CODE: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0x01, 0x00, 0x80, 0xd2, // mov x1, 0
    0x02, 0x00, 0x80, 0xd2, // mov x2, 0
    0x03, 0x00, 0x80, 0xd2, // mov x3, 0
    0x28, 0x09, 0x80, 0xd2, // mov x8, 73 (ppoll)
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0xfa, 0xff, 0xff, 0x17, // b, to the first
];

/// The number by which ELF knows this machine.
const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
/// The largest page that a kernel for this machine may have: parts begin at a multiple of it.
const PAGE_MAX: u64 = if cfg!(target_arch = "x86_64") { 0x1000 } else { 0x1_0000 };

/// The smallest head of a program (ELF): the file is mapped whole, and begins with `code` behind this.
fn elf(code: &[u8]) -> Vec<u8> {
    const AT: u64 = 0x40_0000;
    const _: () = assert!(AT.is_multiple_of(PAGE_MAX));
    const FILE_HEAD: u16 = 64;
    const PART_HEAD: u16 = 56;
    const HEADS: u64 = (FILE_HEAD + PART_HEAD) as u64;
    let len = HEADS + code.len() as u64;
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| head.extend_from_slice(bytes);
    put(&2_u16.to_le_bytes()); // a program at fixed addresses
    put(&MACHINE.to_le_bytes());
    put(&1_u32.to_le_bytes());
    put(&(AT + HEADS).to_le_bytes()); // begins here
    put(&u64::from(FILE_HEAD).to_le_bytes()); // its one part's head
    put(&[0; 8]); // no sections
    put(&[0; 4]);
    for number in [FILE_HEAD, PART_HEAD, 1, 0, 0, 0] {
        put(&number.to_le_bytes());
    }
    put(&1_u32.to_le_bytes()); // to be loaded,
    put(&5_u32.to_le_bytes()); // read and run,
    for number in [0, AT, AT, len, len, PAGE_MAX] {
        put(&number.to_le_bytes());
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_as_long_as_it_says() {
        assert_eq!(elf(&[]).len(), 120);
    }

    #[test]
    fn an_init_waits_and_dies_with_all_that_is_in_its_namespace() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        assert_eq!(try_one((65534, 65534)).expect("tried"), Ok(()));
    }

    /// Nobody but `/proc` can tell it there.
    #[test]
    fn the_first_of_a_namespace_knows_whether_its_parent_is_spryd() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let own = number_by_proc().expect("there is a /proc");
        assert_eq!(sys::parent_by_proc(), Some(std::os::unix::process::parent_id() as i32));
        let goes_on = ("enter the code folder", Errno::ENOENT);
        for (spryd, ends) in
            [(Some(own), goes_on), (None, goes_on), (Some(own + 1), ("find spryd", Errno::ESRCH))]
        {
            let steps = vec![Step::EndUnwatched(spryd), Step::ChangeDirectory(c"/nowhere".to_owned())];
            let plan = Plan { namespaces: libc::CLONE_NEWPID as u64, init: None, steps };
            let spawned = spawn::spawn(&plan, None).expect("spawn");
            super::super::await_death(&spawned.pidfd).expect("its end");
            let failed = spawned.report.read().expect("a report").expect("a step failed");
            sys::wait(sys::Which::Child(spawned.pidfd.as_fd()), true).expect("reaped");
            assert_eq!((failed.step, failed.errno), ends, "{spryd:?}");
        }
    }
}
