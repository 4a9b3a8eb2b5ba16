//! On real processes: what the kernel was told is what it says.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::policy::UNLIMITED;

/// A process that waits for its end of file.
struct Sleeper {
    child: Child,
    process: Process,
}

impl Sleeper {
    #[allow(unsafe_code)]
    fn start(group: Option<PathBuf>) -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let pid = child.id() as i32;
        // SAFETY: a plain system call.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
        // SAFETY: the call above has just made it.
        let pidfd = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        assert!(pidfd.as_raw_fd() >= 0);
        Self { child, process: Process::new(pid, pidfd, group) }
    }

    fn class(&self) -> i32 {
        sys::attr(self.process.pid()).expect("attributes").policy as i32
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const BACK: Standing = Standing { level: Level::Back, ..Standing::FREE };

#[test]
fn by_threads_the_back_is_the_idle_class_and_the_front_the_fair_one() {
    let posix = Posix::open(PosixOptions::default());
    if posix.means() != Means::Thread {
        eprintln!("SKIP: {}", posix.describe());
        return;
    }
    let sleeper = Sleeper::start(None);
    posix.apply(&sleeper.process, BACK).expect("back");
    assert_eq!(sleeper.class(), libc::SCHED_IDLE);
    posix.apply(&sleeper.process, Standing::FREE).expect("front");
    assert_eq!(sleeper.class(), libc::SCHED_OTHER);
}

#[test]
fn a_slice_is_asked_for_within_the_kernels_bounds() {
    let posix = Posix::open(PosixOptions::default());
    let sleeper = Sleeper::start(None);
    let asked = Standing { slice_ns: 1, ..Standing::FREE };
    if let Err(error) = posix.apply(&sleeper.process, asked) {
        eprintln!("SKIP: {error}");
        return;
    }
    let attr = sys::attr(sleeper.process.pid()).expect("attributes");
    // 0: this kernel has no slices of one's own (before 6.12).
    assert!(attr.runtime_ns == 0 || attr.runtime_ns == 100_000, "{attr:?}");
}

#[test]
fn a_process_that_has_been_reaped_is_never_touched() {
    let posix = Posix::open(PosixOptions { realtime: true, ..PosixOptions::default() });
    let mut sleeper = Sleeper::start(None);
    sleeper.child.kill().expect("kill");
    sleeper.child.wait().expect("reap");
    assert!(!sleeper.process.is_alive());
    for level in [Level::Front, Level::Back] {
        let refused = posix.apply(&sleeper.process, Standing { level, ..Standing::FREE });
        assert!(refused.is_err() || posix.means() == Means::None);
    }
    assert_eq!(sleeper.process.cpu_ns(), None);
}

#[test]
fn real_time_where_it_is_refused_is_said_and_replaced() {
    let posix = Posix::open(PosixOptions { realtime: true, ..PosixOptions::default() });
    let sleeper = Sleeper::start(None);
    let front = Standing { rank: 5_000_000, ..Standing::FREE };
    posix.apply(&sleeper.process, front).expect("front");
    match posix.means() {
        Means::Realtime => {
            // (With the flag that its children are not.)
            let class = || sleeper.class() & !0x4000_0000;
            assert!(posix.wants_ranks(), "it isn't told who begins, and who is free again");
            assert_eq!(class(), libc::SCHED_FIFO);
            // Nobody is asked about what it serves next, nor for how long.
            for standing in [BACK, Standing::FREE] {
                posix.apply(&sleeper.process, standing).expect("not at the front for a call");
                assert_eq!(class(), libc::SCHED_OTHER);
                posix.apply(&sleeper.process, front).expect("front");
                assert_eq!(class(), libc::SCHED_FIFO);
            }
        }
        _ => assert!(posix.describe().contains("SCHED_FIFO is refused"), "{}", posix.describe()),
    }
}

static MADE: AtomicU32 = AtomicU32::new(0);

/// A group of the cpu controller, v1 or v2, of this test's own.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let roots = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];
        roots.into_iter().map(Path::new).find_map(|root| {
            // (Tests run beside each other.)
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("spry-backend-test-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).ok()?;
            let group = Self(path);
            group.0.join("cpu.idle").exists().then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn by_groups_the_back_is_an_idle_group() {
    let Some(group) = Group::make() else {
        eprintln!("SKIP: no control group with cpu.idle can be made here");
        return;
    };
    let posix = Posix::open(PosixOptions { groups: Some(&group.0), realtime: false });
    assert_eq!(posix.means(), Means::Group, "{}", posix.describe());
    let sleeper = Sleeper::start(Some(group.0.clone()));
    let idle = || std::fs::read_to_string(group.0.join("cpu.idle")).expect("cpu.idle").trim().to_owned();
    posix.apply(&sleeper.process, BACK).expect("back");
    assert_eq!(idle(), "1");
    posix.apply(&sleeper.process, Standing { slice_ns: UNLIMITED, ..Standing::FREE }).expect("front");
    assert_eq!(idle(), "0");
}

#[test]
fn at_the_front_a_smaller_rank_has_more_weight_and_a_shorter_slice() {
    let Some(group) = Group::make() else {
        eprintln!("SKIP: no control group with cpu.idle can be made here");
        return;
    };
    let posix = Posix::open(PosixOptions { groups: Some(&group.0), realtime: false });
    assert!(posix.wants_ranks());
    let sleeper = Sleeper::start(Some(group.0.clone()));
    let weight = || {
        let file = ["cpu.weight", "cpu.shares"]
            .into_iter()
            .find_map(|file| std::fs::read_to_string(group.0.join(file)).ok());
        file.expect("a weight").trim().parse::<u64>().expect("a number")
    };
    let stand = |level, rank| {
        let standing = Standing { level, rank, fall: 1, ..Standing::FREE };
        posix.apply(&sleeper.process, standing).expect("it stands");
        (weight(), sys::attr(sleeper.process.pid()).expect("attributes").runtime_ns)
    };
    let long = stand(Level::Front, 500_000_000);
    let short = stand(Level::Front, 5_000_000);
    assert!(short.0 > 50 * long.0, "{short:?} {long:?}");
    // (Before 6.12 there are no slices of one's own: both are 0.)
    assert!(short.1 < long.1 || (short.1, long.1) == (0, 0), "{short:?} {long:?}");
    // Who was at the back, where there are no weights, has his own again.
    stand(Level::Back, 5_000_000);
    assert_eq!(stand(Level::Front, 5_000_000), short);
    // Nobody is asked about the next call: it is one among others.
    posix.apply(&sleeper.process, Standing::FREE).expect("it stands");
    let usual = (weight(), sys::attr(sleeper.process.pid()).expect("attributes").runtime_ns);
    assert!(usual.0 < short.0 / 4 && usual.0 > long.0, "{usual:?}");
    assert_eq!(usual, stand(Level::Front, 20_000));
}

#[test]
fn a_process_without_a_group_of_its_own_is_steered_by_its_class() {
    let Some(group) = Group::make() else {
        eprintln!("SKIP: no control group with cpu.idle can be made here");
        return;
    };
    let posix = Posix::open(PosixOptions { groups: Some(&group.0), realtime: false });
    let sleeper = Sleeper::start(None);
    posix.apply(&sleeper.process, BACK).expect("back");
    assert_eq!(sleeper.class(), libc::SCHED_IDLE);
}

#[test]
fn without_the_schedulers_kernel_or_program_the_other_backend_is_used_and_it_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let backend = SchedExt::open(&folder.path().join("nothing"), Posix::open(PosixOptions::default()));
    assert_eq!((backend.kind(), backend.wants_ranks(), backend.fallbacks()), (Kind::Posix, false, 0));
    assert_eq!(backend.look(), None);
    let how = backend.describe();
    assert!(how.starts_with(&Posix::open(PosixOptions::default()).describe()), "{how}");
    if Path::new(KERNEL).is_dir() {
        assert!(how.ends_with("is spry-scx running?") && backend.look_every().is_some(), "{how}");
    } else {
        let none = "; not sched_ext: the kernel has none (CONFIG_SCHED_CLASS_EXT, Linux 6.12)";
        assert!(how.ends_with(none) && backend.look_every().is_none(), "{how}");
    }
    // Who is known to it is steered all the same.
    let mut sleeper = Sleeper::start(None);
    let process = Arc::new(Process::new(sleeper.process.pid(), Arc::clone(sleeper.process.pidfd()), None));
    backend.adopt(&process, 1.0);
    if backend.apply(&process, BACK).is_ok() && Posix::open(PosixOptions::default()).means() == Means::Thread
    {
        assert_eq!(sleeper.class(), libc::SCHED_IDLE);
        backend.apply(&process, Standing::FREE).expect("front");
        assert_eq!(sleeper.class(), libc::SCHED_OTHER);
    }
    sleeper.child.kill().expect("kill");
    backend.release(&process);
}

#[test]
fn cpu_time_is_read_and_grows() {
    let sleeper = Sleeper::start(None);
    // (Only its pid is used for that.)
    let unused = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("a descriptor")));
    let own = Process::new(std::process::id() as i32, unused, None);
    let before = own.cpu_ns().expect("a clock");
    let mut sum = 0u64;
    while own.cpu_ns().expect("a clock") == before {
        sum = std::hint::black_box(sum.wrapping_add(1));
    }
    assert!(sleeper.process.cpu_ns().is_some());
}
