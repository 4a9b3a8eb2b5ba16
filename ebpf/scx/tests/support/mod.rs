//! Children that compute for a given CPU time when they are told to, and say when they are done.

#![allow(dead_code, reason = "every user of this module uses a part of it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};

/// Longer than anything here takes in an emulated machine.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);

/// What a child does once it is told to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Computes until it has used so much CPU time.
    Compute(Duration),
    /// As often as said: computes for the first time, sleeps for the second.
    Alternate { times: u32, compute: Duration, sleep: Duration },
    /// Forks a child that computes, and waits for it.
    InChild(Duration),
    /// Computes until it is killed.
    Forever,
}

/// A child of this process, on the first CPU.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) pidfd: Arc<OwnedFd>,
    go: OwnedFd,
    reaped: bool,
}

/// Where children say that they are done, in order.
#[derive(Debug)]
pub(crate) struct Finish {
    read: OwnedFd,
    write: OwnedFd,
}

impl Finish {
    pub(crate) fn new() -> Self {
        let (read, write) = pipe().expect("a pipe");
        Self { read, write }
    }

    /// The next child that is done, by its number.
    pub(crate) fn next(&self) -> u8 {
        let mut waiting = [libc::pollfd { fd: self.read.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        let deadline = Instant::now() + WATCHDOG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            // SAFETY: one entry, which lives through the call.
            let ready =
                unsafe { libc::poll(waiting.as_mut_ptr(), 1, i32::try_from(left).unwrap_or(i32::MAX)) };
            assert!(ready != 0, "nobody is done after {WATCHDOG:?}");
            if ready > 0 {
                break;
            }
        }
        let mut number = [0];
        assert_eq!(read(&self.read, &mut number), Ok(1));
        number[0]
    }
}

impl Worker {
    /// Forks a child with this number. It waits for [`Worker::go`].
    pub(crate) fn start(number: u8, work: Work, finish: &Finish) -> Self {
        let (wait, go) = pipe().expect("a pipe");
        let (ready, pinned) = pipe().expect("a pipe");
        // SAFETY: the child makes only system calls, on descriptors and memory of its own, and ends with _exit.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                drop(go);
                let mut first = CpuSet::new();
                let there = first.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &first)).is_ok();
                let said = write(&pinned, &[1]);
                if there && said == Ok(1) && read(&wait, &mut [0]) == Ok(1) {
                    perform(work);
                    let _told = write(&finish.write, &[number]);
                }
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(pinned);
                assert_eq!(read(&ready, &mut [0]), Ok(1), "the child is on its CPU");
                // SAFETY: takes numbers, makes a descriptor.
                let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
                assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
                // SAFETY: just made for us.
                let pidfd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("a descriptor")) };
                Self { pid: child, pidfd: Arc::new(pidfd), go, reaped: false }
            }
        }
    }

    /// Lets it begin.
    pub(crate) fn go(&self) {
        write(&self.go, &[1]).expect("the child waits");
    }

    /// Waits for its end.
    pub(crate) fn reap(mut self) {
        self.reaped = true;
        let ended = waitpid(self.pid, None);
        assert!(matches!(ended, Ok(WaitStatus::Exited(_, 0))), "{ended:?}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.reaped {
            let _ended = kill(self.pid, Signal::SIGKILL);
            let _reaped = waitpid(self.pid, None);
        }
    }
}

fn perform(work: Work) {
    match work {
        Work::Compute(time) => compute(time),
        Work::Alternate { times, compute: busy, sleep } => {
            for _ in 0..times {
                compute(busy);
                std::thread::sleep(sleep);
            }
        }
        // SAFETY: as in `Worker::start`.
        Work::InChild(time) => match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                compute(time);
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(0) }
            }
            Ok(ForkResult::Parent { child }) => drop(waitpid(child, None)),
            Err(_) => {}
        },
        Work::Forever => loop {
            std::hint::spin_loop();
        },
    }
}

/// Computes until this process has had so much more CPU time.
pub(crate) fn compute(time: Duration) {
    let end = cpu_time() + time;
    while cpu_time() < end {
        for _ in 0..200 {
            std::hint::spin_loop();
        }
    }
}

fn cpu_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Time since the machine began.
pub(crate) fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a structure of the right type.
    unsafe { libc::clock_gettime(which, &raw mut now) };
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
