//! An experiment: a process that has answered goes back to what it was, or ends and is forked anew, or just goes on. The
//! mechanisms alone, without a node (docs/decisions/0010): one process asks over a seqpacket pair, one answers after it has
//! written to some pages of a frozen heap.
//!
//! Both run on one core, so that the time of a round is the CPU time of both.

use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send,
    sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// How the next request finds a process as the last one did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It doesn't: what was written stays.
    Warm,
    /// The process drops what was written, after it was let go on from outside.
    Rewound,
    /// Each request has a fork, which is reaped.
    Forked,
}

/// A heap and what a request does to it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Its size in bytes.
    pub heap: usize,
    /// Pages that are written to.
    pub written: usize,
    /// Mappings that it consists of.
    pub ranges: usize,
}

/// Bytes of stack that are copied back.
const STACK: usize = 16 << 10;
/// Gaps between mappings that are unmapped, where nothing is.
const GAPS: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const PAGE: usize = 4096;

/// The process that answers; killed and reaped when dropped.
#[derive(Debug)]
pub struct Answering {
    socket: OwnedFd,
    /// Where the kernel tells of the one call that is to be let go on.
    notifications: Option<OwnedFd>,
    /// What is looked at meanwhile.
    statm: File,
    pid: Pid,
}

impl Answering {
    /// Starts it, from a process with one thread or in which nobody holds a lock that it could want: it calls the kernel
    /// only.
    pub fn start(way: Way, shape: Shape) -> io::Result<Self> {
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let ((socket, theirs), (handing, handed)) = (pair()?, pair()?);
        let heap = frozen(shape.heap)?;
        let mask = full_mask()?;
        let mut saved = vec![1_u8; STACK];
        // SAFETY: the child runs `answer` only, which neither allocates nor returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop((socket, handing));
                if way == Way::Rewound && hand_listener(mask, &handed).is_err() {
                    end();
                }
                answer(way, shape, heap, mask, theirs.as_raw_fd(), &mut saved)
            }
            pid => {
                drop((theirs, handed));
                // SAFETY: the mapping was made above for the child alone.
                unsafe { libc::munmap(heap.cast(), shape.heap) };
                let notifications = (way == Way::Rewound).then(|| receive_fd(&handing)).transpose()?;
                let statm = File::open(format!("/proc/{pid}/statm"))?;
                Ok(Self { socket, notifications, statm, pid: Pid::from_raw(pid) })
            }
        }
    }

    /// Asks once, and sees to it that the process can be asked again.
    pub fn ask(&self) -> io::Result<()> {
        let mut bytes = [0; 32];
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        if recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())? != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.notifications.as_ref().map_or(Ok(()), |listener| self.let_go_on(listener))
    }

    fn let_go_on(&self, listener: &OwnedFd) -> io::Result<()> {
        // SAFETY: plain data, for which zeros are right (the kernel insists on them).
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: writes one `seccomp_notif`.
        check(unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut asked) })?;
        let mut sizes = [0; 128];
        self.statm.read_at(&mut sizes, 0)?;
        let go_on = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: reads one `seccomp_notif_resp`.
        check(unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const go_on) }).map(drop)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let _ended = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _reaped = waitpid(self.pid, None);
    }
}

/// `SECCOMP_IOCTL_NOTIF_RECV` and `…_SEND`: `_IOWR('!', 0 and 1, struct seccomp_notif and seccomp_notif_resp)`.
const NOTIF_RECV: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
const NOTIF_SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
const _: () =
    assert!(size_of::<libc::seccomp_notif>() == 0x50 && size_of::<libc::seccomp_notif_resp>() == 0x18);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn end() -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(1) }
}

/// Memory with something on every page, mapped privately from a file.
fn frozen(len: usize) -> io::Result<*mut u8> {
    // SAFETY: the name is a C string.
    let fd = check(unsafe { libc::memfd_create(c"bench-heap".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: it was made just now.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len as u64)?;
    let page = [7; PAGE];
    (0..len / PAGE).try_for_each(|index| file.write_all_at(&page, (index * PAGE) as u64))?;
    // SAFETY: a new mapping.
    map(unsafe { libc::mmap(ptr::null_mut(), len, RW, libc::MAP_PRIVATE, fd, 0) })
}

const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn map(mapped: *mut libc::c_void) -> io::Result<*mut u8> {
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped.cast()) }
}

/// A word of ones and a word of zeros, at an address that both processes know.
fn full_mask() -> io::Result<*mut u64> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    let words = map(unsafe { libc::mmap(ptr::null_mut(), PAGE, RW, flags, -1, 0) })?.cast::<u64>();
    // SAFETY: it is that long.
    unsafe { words.write(u64::MAX) };
    Ok(words)
}

/// From here on one call is told to whoever has the listener: the one that blocks signals by this very mask.
fn hand_listener(mask: *mut u64, to: &OwnedFd) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |at: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32);
    let unless = |k: u32, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let second = offset_of!(libc::seccomp_data, args) + 8;
    let mut program = [
        load(offset_of!(libc::seccomp_data, nr)),
        unless(libc::SYS_rt_sigprocmask as u32, 5),
        load(second),
        unless(mask as usize as u32, 3),
        load(second + 4),
        unless((mask as usize as u64 >> 32) as u32, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: no pointer is involved.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the kernel copies the program.
    let listener = check(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter) as i32 })?;
    let fds = [listener];
    let beside = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(to.as_raw_fd(), &[io::IoSlice::new(&[0])], &beside, MsgFlags::empty(), None)?;
    Ok(())
}

fn receive_fd(from: &OwnedFd) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = ([0], cmsg_space!(RawFd));
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let fd = message.cmsgs()?.find_map(|beside| match beside {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made it for us.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The child's whole life. Allocates nothing.
fn answer(way: Way, shape: Shape, heap: *mut u8, mask: *mut u64, socket: RawFd, saved: &mut [u8]) -> ! {
    let mut bytes = [0_u8; 32];
    let work = |bytes: &[u8]| {
        for index in 0..shape.written {
            let at = index * PAGE * 3 % shape.heap;
            // SAFETY: within the heap, which is this process's alone.
            unsafe { heap.add(at).write_volatile(heap.add(at).read_volatile().wrapping_add(1)) };
        }
        let _ = send(socket, bytes, MsgFlags::MSG_NOSIGNAL);
    };
    while recv(socket, &mut bytes, MsgFlags::empty()) == Ok(bytes.len()) {
        match way {
            Way::Warm => work(&bytes),
            Way::Rewound => {
                work(&bytes);
                rewind(shape, heap, mask, saved);
            }
            // SAFETY: the child works and ends; the parent waits for it.
            Way::Forked => match unsafe { libc::fork() } {
                0 => {
                    work(&bytes);
                    end()
                }
                pid => drop(waitpid(Pid::from_raw(pid), None)),
            },
        }
    }
    end()
}

/// What the stub of the decision's page would do, call by call.
fn rewind(shape: Shape, heap: *mut u8, mask: *mut u64, saved: &mut [u8]) {
    let each = shape.heap / shape.ranges / PAGE * PAGE;
    // SAFETY: signals are this process's own; the ranges are its heap's, whose old bytes are in the file; in the gaps is
    // nothing; descriptors from 100 on are nobody's.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, mask, 0, 8);
        for range in 0..shape.ranges {
            libc::madvise(heap.add(range * each).cast(), each, libc::MADV_DONTNEED);
        }
        for gap in GAPS {
            libc::munmap(ptr::without_provenance_mut((1 << 44) + (gap << 36)), 1 << 35);
        }
        libc::syscall(libc::SYS_brk, 0);
        libc::syscall(libc::SYS_close_range, 100, u32::MAX, 0);
    }
    let mut stack = [0_u8; STACK];
    stack.copy_from_slice(saved);
    std::hint::black_box(&mut stack);
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, mask.add(1), 0, 8) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_answers() {
        for way in [Way::Warm, Way::Rewound, Way::Forked] {
            let shape = Shape { heap: 1 << 20, written: 10, ranges: 4 };
            let process = Answering::start(way, shape).expect("start");
            (0..5).for_each(|_| process.ask().expect("an answer"));
        }
    }
}
