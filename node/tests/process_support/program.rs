//! The zygote of these tests: this same test program, started again with a mark in its environment, which runs
//! [`main`] before anything of the test harness does (so that it has one thread, as a zygote must).
//!
//! `Init::handler` says how it behaves, as `zygote/instance`. Zygotes: `good`, or one of the lies in [`Lie`].
//! Instances: see [`instance`].
#![allow(
    unsafe_code,
    unreachable_pub,
    reason = "forks like a runtime does, and misbehaves like a hostile one"
)]

use std::ffi::c_int;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shm_bus::segment::Writer;
use spry_wire::control::{self, Fork, FromInstance, FromZygote, ToZygote, ZYGOTE_FD};
use spry_wire::freeze::Frozen;
use spry_wire::layer::Imports;

/// The variable that makes this program a zygote.
pub const MARK: &str = "SPRY_TEST_ZYGOTE";

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    // SAFETY: getenv reads; nothing else runs yet.
    if unsafe { !libc::getenv(c"SPRY_TEST_ZYGOTE".as_ptr()).is_null() } {
        main();
    }
}

fn quit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(code) }
}

fn main() -> ! {
    // SAFETY: spryd put the control socket there; nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(ZYGOTE_FD) };
    let Ok(Some((ToZygote::Init(init), _))) = control::receive::<ToZygote>(socket.as_fd()) else { quit(0) };
    let (zygote, instance) = init.handler.split_once('/').expect("zygote/instance");
    match zygote {
        "raise" => {
            println!("loading");
            eprintln!("Traceback (most recent call last)");
            let message = "NameError: name 'x' is not defined".to_owned();
            say(&socket, &FromZygote::Failed { message });
            quit(1);
        }
        "exit" => {
            println!("so long");
            quit(7);
        }
        "hang" => loop {
            std::thread::park();
        },
        "bomb" => bomb(),
        "chatter" => {
            for line in 0..100_000 {
                println!("line {line}");
            }
        }
        "facts" => print!("{}", facts()),
        "nonsense" => {
            let _ = nix::unistd::write(&socket, b"{\"Ready\"");
            std::thread::park();
        }
        _ => {}
    }
    std::io::stdout().flush().expect("flush");
    say(&socket, &FromZygote::Imported(Imports::default()));
    say(&socket, &FromZygote::Ready { runtime: "test".to_owned(), frozen: Frozen::default() });
    while let Ok(Some((message, fds))) = control::receive::<ToZygote>(socket.as_fd()) {
        if let ToZygote::Fork(fork) = message {
            answer(&socket, zygote, instance, &fork, fds);
        }
    }
    quit(0)
}

fn say(socket: &OwnedFd, message: &FromZygote) {
    control::send(socket.as_fd(), message, &[]).expect("send");
}

/// Serves or betrays one request.
fn answer(socket: &OwnedFd, zygote: &str, instance: &str, fork: &Fork, fds: Vec<OwnedFd>) {
    let id = fork.instance;
    let forked = |instance, pidfds: &[BorrowedFd<'_>]| {
        control::send(socket.as_fd(), &FromZygote::Forked { instance }, pidfds).expect("send");
    };
    match zygote {
        "refuses" => {
            say(
                socket,
                &FromZygote::ForkFailed { instance: id, step: "clone3".to_owned(), errno: libc::EAGAIN },
            );
        }
        "claims-itself" => forked(id, &[pidfd_of(pid_of_self()).as_fd()]),
        "claims-its-init" => forked(id, &[pidfd_of(1).as_fd()]),
        "claims-its-parent" => {
            // SAFETY: no memory is involved.
            let parent = unsafe { libc::getppid() };
            forked(id, &[pidfd_of(parent).as_fd()]);
        }
        "claims-another" => {
            let victim: i32 = std::env::var("VICTIM").expect("VICTIM").parse().expect("pid");
            forked(id, &[pidfd_of(victim).as_fd()]);
        }
        "claims-its-own-child" => {
            let pidfd = fork_with(0, || {
                loop {
                    std::thread::park();
                }
            });
            forked(id, &[pidfd.as_fd()]);
        }
        "wrong-instance" => {
            let pidfd = sibling(|| become_instance("idle", fork, fds));
            forked(id + 1, &[pidfd.as_fd()]);
        }
        "no-pidfd" => {
            let _pidfd = sibling(|| become_instance("idle", fork, fds));
            forked(id, &[]);
        }
        "two-pidfds" => {
            let pidfd = sibling(|| become_instance("idle", fork, fds));
            forked(id, &[pidfd.as_fd(), pidfd.as_fd()]);
        }
        "not-a-pidfd" => {
            let null = fs::File::open("/dev/null").expect("null");
            forked(id, &[null.as_fd()]);
        }
        "garbage" => drop(nix::unistd::write(socket, b"\xff\xfe not json")),
        "closes" => quit(0),
        "silent" => {}
        "same-twice" => {
            let mut kept = KEPT.lock();
            let pidfd = kept.get_or_insert_with(|| sibling(|| become_instance("idle", fork, fds)));
            forked(id, &[pidfd.as_fd()]);
        }
        "strays" => {
            for _ in 0..4 {
                let _ = sibling(|| {
                    loop {
                        std::thread::park();
                    }
                });
                let _ = sibling(|| quit(0));
            }
            let pidfd = sibling(|| become_instance(instance, fork, fds));
            forked(id, &[pidfd.as_fd()]);
        }
        // The first one takes all the memory there is, and is presented when it is dead.
        "presents-the-dead" if fork_is_first() => {
            let pidfd = sibling(|| bomb());
            let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            while poll(&mut polled, PollTimeout::NONE) != Ok(1) {}
            forked(id, &[pidfd.as_fd()]);
        }
        _ => {
            let pidfd = sibling(|| become_instance(instance, fork, fds));
            forked(id, &[pidfd.as_fd()]);
        }
    }
}

fn fork_is_first() -> bool {
    static BEFORE: AtomicBool = AtomicBool::new(false);
    !BEFORE.swap(true, Ordering::Relaxed)
}

static KEPT: parking_lot::Mutex<Option<OwnedFd>> = parking_lot::Mutex::new(None);

fn pid_of_self() -> i32 {
    std::process::id() as i32
}

/// Of the zygote itself, if that process isn't to be seen from here.
fn pidfd_of(pid: i32) -> OwnedFd {
    let open = spry_node::sys::pidfd_open;
    open(pid).or_else(|_| open(pid_of_self())).expect("pidfd_open")
}

/// A child of spryd's.
fn sibling(child: impl FnOnce()) -> OwnedFd {
    fork_with(libc::CLONE_PARENT, child)
}

fn fork_with(flags: c_int, child: impl FnOnce()) -> OwnedFd {
    let mut pidfd: c_int = -1;
    // By clone: the sandbox refuses clone3, whose flags a filter can't see.
    let signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD } else { 0 };
    let none = std::ptr::null_mut::<c_int>();
    // SAFETY: a fork of a process with one thread; the kernel stores the pidfd.
    let pid = unsafe {
        let flags = flags | libc::CLONE_PIDFD | signal;
        libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, none)
    };
    match Errno::result(pid).expect("clone") {
        0 => {
            child();
            quit(0)
        }
        // SAFETY: the kernel has just made it.
        _ => unsafe { OwnedFd::from_raw_fd(pidfd) },
    }
}

/// The instance: sets up like a runtime, then behaves as said.
fn become_instance(behaviour: &str, fork: &Fork, fds: Vec<OwnedFd>) {
    let [control, stdout, stderr, _watch, _inbox, outbox, ..] = &fds[..] else { quit(9) };
    // SAFETY: 1 and 2 are this process's output, which nothing owns.
    unsafe {
        use std::os::fd::AsRawFd;
        libc::dup2(stdout.as_raw_fd(), 1);
        libc::dup2(stderr.as_raw_fd(), 2);
    }
    let hello = || drop(control::send(control.as_fd(), &FromInstance::Hello, &[]));
    match behaviour {
        "unsealed" => hello(),
        "dies-first" => quit(5),
        "mute" => {}
        "fails" => {
            let failed =
                FromInstance::Failed { step: "map inbox".to_owned(), message: "too small".to_owned() };
            let _ = control::send(control.as_fd(), &failed, &[]);
        }
        "babbles" => drop(nix::unistd::write(control, b"[1, 2, 3]")),
        _ => {
            let outbox = outbox.try_clone().expect("dup");
            let _writer =
                std::mem::ManuallyDrop::new(Writer::map(outbox, u64::from(fork.outbox.len)).expect("outbox"));
            hello();
        }
    }
    instance(behaviour);
    loop {
        std::thread::park();
    }
}

/// What it does once it is up.
fn instance(behaviour: &str) {
    match behaviour.split_once(' ').unwrap_or((behaviour, "")) {
        ("exit", code) => quit(code.parse().expect("code")),
        ("facts", path) => {
            print!("{}", facts());
            let reason =
                fs::read(path).map(|_| "read".to_owned()).unwrap_or_else(|error| error.kind().to_string());
            println!("other code: {reason}");
            std::io::stdout().flush().expect("flush");
            quit(0);
        }
        ("bomb", _) => bomb(),
        ("burn", milliseconds) => {
            let until = std::time::Duration::from_millis(milliseconds.parse().expect("number"));
            let time =
                || nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("clock");
            while std::time::Duration::from(time()) < until {}
            quit(0);
        }
        ("forks", _) => {
            let mut made = 0;
            // SAFETY: this process has one thread.
            while let Ok(child) = Errno::result(unsafe { libc::fork() }) {
                if child == 0 {
                    loop {
                        std::thread::park();
                    }
                }
                made += 1;
            }
            println!("made {made}: {}", Errno::last());
            std::io::stdout().flush().expect("flush");
        }
        // children that leave their session and their parent
        ("grandchildren", _) => {
            let mut pids = Vec::new();
            for _ in 0..3 {
                let (reader, writer) = nix::unistd::pipe().expect("pipe");
                // SAFETY: this process has one thread.
                if unsafe { libc::fork() } == 0 {
                    let _ = nix::unistd::setsid();
                    // SAFETY: as above.
                    let child = unsafe { libc::fork() };
                    if child != 0 {
                        let _ = nix::unistd::write(&writer, &child.to_ne_bytes());
                        quit(0);
                    }
                    loop {
                        std::thread::park();
                    }
                }
                let mut pid = [0; 4];
                nix::unistd::read(&reader, &mut pid).expect("read");
                pids.push(i32::from_ne_bytes(pid).to_string());
            }
            println!("{}", pids.join(" "));
            // SAFETY: closes this process's output, so that the reader sees the end.
            unsafe { libc::close(1) };
        }
        _ => {}
    }
}

/// Takes all the memory there is.
fn bomb() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

/// What a process sees of itself.
fn facts() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}"));
    let mut fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .expect("fds")
        .flatten()
        .map(|entry| {
            let target = fs::read_link(entry.path()).map(|target| target.display().to_string());
            format!("{}={}", entry.file_name().display(), target.unwrap_or_else(|_| "the listing".to_owned()))
        })
        .collect();
    fds.sort();
    // SAFETY: sets the mask twice; this process has one thread.
    let umask = unsafe {
        let mask = libc::umask(0);
        libc::umask(mask);
        mask
    };
    let env: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    let host = nix::unistd::gethostname().expect("host name");
    // SAFETY: no memory is involved.
    let (session, pid) = unsafe { (libc::getsid(0), libc::getpid()) };
    let mut death_signal: c_int = 0;
    // SAFETY: the kernel stores one int.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal) };
    format!(
        "{}{}{}oom score: {}\nfds: {}\numask: {umask:o}\ncwd: {}\nenv: {}\nhost: {}\nleads session: {}\n\
         death signal: {death_signal}\nnet: {}\nloopback: {}\n{}",
        read("/proc/self/status"),
        read("/proc/self/limits"),
        read("/proc/self/cgroup"),
        read("/proc/self/oom_score_adj").trim(),
        fds.join(" "),
        std::env::current_dir().expect("cwd").display(),
        env.join(" "),
        host.display(),
        session == pid,
        interfaces(),
        nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None
        )
        .and_then(|socket| {
            use std::os::fd::AsRawFd;
            let address = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, 9);
            nix::sys::socket::connect(socket.as_raw_fd(), &address)
        })
        .map_or_else(|error| error.to_string(), |()| "up".to_owned()),
        sight(),
    )
}

/// What is to be seen of the host.
fn sight() -> String {
    let list = |path: &str| {
        let entries =
            fs::read_dir(path).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
        let mut names: Vec<_> = entries.iter().map(|entry| entry.file_name().display().to_string()).collect();
        names.sort();
        names.join(" ")
    };
    let namespaces = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"].map(|name| {
        let link = fs::read_link(format!("/proc/self/ns/{name}"));
        format!(
            "ns {name}: {}\n",
            link.map_or_else(|error| error.to_string(), |link| link.display().to_string())
        )
    });
    let processes: Vec<i32> = list("/proc").split(' ').filter_map(|name| name.parse().ok()).collect();
    let others = processes.iter().filter(|pid| **pid != pid_of_self()).count();
    let write =
        |path: &str| fs::write(path, "x").map_or_else(|error| error.to_string(), |()| "done".to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            Some(format!("{}={}", fields.get(4)?, fields.get(5)?))
        })
        .collect();
    let tmp = nix::sys::statvfs::statvfs("/tmp").expect("statvfs");
    format!(
        "{}root: {}\netc: {}\ndev: {}\nother processes: {others}\nmounts: {}\nwrite to /: {}\n\
         write to /usr: {}\nwrite to /tmp: {}\ntmp bytes: {}\ntmp files: {}\nsymlink out: {}\n",
        namespaces.concat(),
        list("/"),
        list("/etc"),
        list("/dev"),
        mounts.join(" "),
        write("/x"),
        write("/usr/x"),
        write("/tmp/x"),
        tmp.blocks() * tmp.fragment_size(),
        tmp.files(),
        fs::read("/proc/1/root/etc/shadow")
            .map_or_else(|error| error.kind().to_string(), |_| "read".to_owned()),
    )
}

fn interfaces() -> String {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = text.lines().skip(2).filter_map(|line| line.split(':').next());
    names.map(str::trim).collect::<Vec<_>>().join(" ")
}
