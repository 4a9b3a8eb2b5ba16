//! The stub that rewinds an instance (its code is here, and runs in the instance), and the system calls by which spryd is
//! asked. See [`crate::zygote::rewind`].

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;

/// `SECCOMP_IOCTL_NOTIF_*`: `_IOWR('!', 0 and 1, struct seccomp_notif and seccomp_notif_resp)`, `_IOW('!', 4, __u64)`.
const RECEIVE: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
const SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
const SET_FLAGS: libc::Ioctl = 0x4008_2104_u32 as libc::Ioctl;
const _: () =
    assert!(size_of::<libc::seccomp_notif>() == 0x50 && size_of::<libc::seccomp_notif_resp>() == 0x18);

/// A system call that waits for spryd's word: all of it from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Names it, as long as it waits.
    pub id: u64,
    /// The thread that made it, in this pid namespace.
    pub pid: i32,
    /// Which call.
    pub number: i32,
    /// Where it will return to.
    pub from: u64,
    /// What it was given.
    pub arguments: [u64; 6],
}

/// What becomes of such a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is made.
    GoOn,
    /// It returns this, and isn't made.
    Value(i64),
    /// It fails with this, and isn't made.
    Fail(Errno),
}

/// The next call that waits; `None`: there is none now. Two who ask at once may wait for each other's: the caller sees to it
/// that there is one.
pub fn asked(listener: BorrowedFd<'_>) -> io::Result<Option<Asked>> {
    let mut polled = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which is local.
    while let Err(errno) = Errno::result(unsafe { libc::poll(&raw mut polled, 1, 0) }) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    if polled.revents & libc::POLLIN == 0 {
        let over = polled.revents & (libc::POLLHUP | libc::POLLERR) != 0;
        return if over { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(None) };
    }
    // SAFETY: plain data; the kernel insists on zeros.
    let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: fills one `seccomp_notif`.
    match Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut raw) }) {
        Ok(_) => {}
        // It was killed just now.
        Err(Errno::ENOENT | Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let (number, from, arguments) = (raw.data.nr, raw.data.instruction_pointer, raw.data.args);
    Ok(Some(Asked { id: raw.id, pid: raw.pid as i32, number, from, arguments }))
}

/// Says what becomes of a call. `ENOENT`: it doesn't wait any more.
pub fn reply(listener: BorrowedFd<'_>, id: u64, reply: Reply) -> Result<(), Errno> {
    let (val, error, flags) = match reply {
        Reply::GoOn => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Reply::Value(value) => (value, 0, 0),
        Reply::Fail(errno) => (0, -(errno as i32), 0),
    };
    let raw = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: reads one `seccomp_notif_resp`.
    Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const raw) }).map(drop)
}

/// Who asks and who answers wake each other on one core, where the kernel can (Linux 6.6).
pub fn wake_nearby(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    const SYNCHRONOUS: u64 = 1;
    // SAFETY: the argument is a number.
    Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS, SYNCHRONOUS) }).map(drop)
}

/// Writes zeros to another process's memory, where it could write itself.
pub fn write_zeros(pid: i32, at: u64, len: usize) -> Result<(), Errno> {
    let zeros = [0_u8; 256];
    let len = len.min(zeros.len());
    let here = libc::iovec { iov_base: zeros.as_ptr().cast_mut().cast(), iov_len: len };
    let there = libc::iovec { iov_base: at as *mut _, iov_len: len };
    // SAFETY: reads `len` of the zeros; what is written to isn't this process's.
    let wrote = unsafe { libc::process_vm_writev(pid, &raw const here, 1, &raw const there, 1, 0) };
    match Errno::result(wrote)? {
        all if all as usize == len => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Copies another process's memory; as many bytes as `out` has.
pub fn read_memory(pid: i32, at: u64, out: &mut [u8]) -> Result<(), Errno> {
    let here = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let there = libc::iovec { iov_base: at as *mut _, iov_len: out.len() };
    // SAFETY: fills `out`.
    let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
    match Errno::result(read)? {
        all if all as usize == out.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Reads what lies there in a file, all of it.
pub fn read_file(file: &OwnedFd, at: u64, out: &mut [u8]) -> io::Result<()> {
    // SAFETY: fills `out`.
    let read = unsafe { libc::pread(file.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), at as i64) };
    match Errno::result(read)? {
        all if all as usize == out.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A file in memory with these bytes, which nobody can change. `executable`: it may be mapped so.
pub fn sealed_file(name: &std::ffi::CStr, parts: &[&[u8]], executable: bool) -> io::Result<OwnedFd> {
    use std::io::Write;
    use std::os::fd::FromRawFd;
    const NOT_EXECUTABLE: libc::c_uint = 8;
    const EXECUTABLE: libc::c_uint = 16;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a terminated string.
    let make = |flags| Errno::result(unsafe { libc::memfd_create(name.as_ptr(), flags) });
    // Kernels before 6.3 don't know the words.
    let fd = make(flags | if executable { EXECUTABLE } else { NOT_EXECUTABLE }).or_else(|_| make(flags))?;
    // SAFETY: the kernel has just made it for us.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    for part in parts {
        file.write_all(part)?;
    }
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals as c_int) })?;
    Ok(file.into())
}

/// Whether memory can be sealed.
pub fn can_seal() -> Result<(), Errno> {
    // SAFETY: an empty range: the kernel looks whether it knows the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) }).map(drop)
}

/// Where userspace ends: beyond 2^47 bytes with five levels of page tables, of which the kernel gives something out to those only who
/// ask for it.
pub fn user_space_end() -> io::Result<u64> {
    const ENDS: [u64; 2] = [0x0000_7fff_ffff_f000, 0x00ff_ffff_ffff_f000];
    static FOUND: OnceLock<u64> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let (wanted, len) = (1_u64 << 48, 4096);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, there if that can be, else elsewhere; nobody else has it.
    let at = unsafe { libc::mmap(wanted as *mut _, len, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: what was mapped just now.
    unsafe { libc::munmap(at, len) };
    Ok(*FOUND.get_or_init(|| ENDS[usize::from(at as u64 > ENDS[0])]))
}

/// Whether filters can ask about system calls.
pub fn can_ask() -> Result<(), Errno> {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the kernel reads one word.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(result).map(drop)
}

/// Whether the kernel lets processes set their segments' bases by instructions (Linux 5.9): `HWCAP2_FSGSBASE`.
pub fn sets_bases() -> bool {
    const FSGSBASE: libc::c_ulong = 2;
    // SAFETY: no memory is involved.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & FSGSBASE != 0 }
}

/// The stub's code; `None` where there is none for this machine.
pub fn stub() -> Option<&'static [u8]> {
    #[cfg(target_arch = "x86_64")]
    {
        use spry_wire::rewind::{STUB_ASKS, STUB_AT, STUB_LEN};
        let [start, asks, end] = [&raw const spry_stub, &raw const spry_stub_asks, &raw const spry_stub_end]
            .map(|label| label as usize);
        debug_assert_eq!((asks - start) as u64, STUB_ASKS - STUB_AT);
        debug_assert!((end - start) as u64 <= STUB_LEN);
        // SAFETY: the labels are the first and last of one piece of this program's text, which never changes.
        Some(unsafe { std::slice::from_raw_parts(start as *const u8, end - start) })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    static spry_stub: u8;
    static spry_stub_asks: u8;
    static spry_stub_end: u8;
}

// Straight code. It has no stack until the last lines, and uses nothing that it has not loaded from the plan: until its
// first system call has returned, nothing at all; from then on no signal can come between.
//
// Each step that fails ends the process, by an instruction that doesn't exist.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.spry_stub, \"ax\", @progbits",
    ".balign 64",
    ".globl spry_stub, spry_stub_asks, spry_stub_end",
    ".hidden spry_stub, spry_stub_asks, spry_stub_end",
    "spry_stub:",
    // 1. rt_sigprocmask(SIG_SETMASK, all signals, NULL, 8): this is what spryd is asked about.
    "mov eax, {sigprocmask}",
    "mov edi, {set_mask}",
    "movabs rsi, {plan} + {all_signals}",
    "xor edx, edx",
    "mov r10d, 8",
    "nop",
    ".org spry_stub + 0x3e, 0x90",
    "syscall",
    "spry_stub_asks:",
    "test rax, rax",
    "jnz 9f",
    // 2. What an instruction can leave behind beside the registers below: direction, segments.
    "cld",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "movabs rbp, {plan}",
    // 3. The heap ends where it did.
    "mov eax, {brk}",
    "mov rdi, [rbp + {brk_at}]",
    "syscall",
    "cmp rax, [rbp + {brk_at}]",
    "jne 9f",
    // 4. Nothing is mapped in the gaps.
    "movabs rax, {orders}",
    "cmp byte ptr [rax + 1], {nothing_to_unmap}",
    "je 5f",
    "mov r12, [rbp + {gaps}]",
    "mov r13, [rbp + {gaps} + 8]",
    "4:",
    "test r13, r13",
    "jz 5f",
    "mov eax, {munmap}",
    "mov rdi, [r12]",
    "mov rsi, [r12 + 8]",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "add r12, 16",
    "dec r13",
    "jmp 4b",
    // 5. Private pages are dropped, if there are any: what lies below them comes back.
    "5:",
    "movabs rax, {orders}",
    "cmp byte ptr [rax], {nothing_to_drop}",
    "je 7f",
    "mov r12, [rbp + {drops}]",
    "mov r13, [rbp + {drops} + 8]",
    "6:",
    "test r13, r13",
    "jz 7f",
    "mov eax, {madvise}",
    "mov rdi, [r12]",
    "mov rsi, [r12 + 8]",
    "mov edx, {dontneed}",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "add r12, 16",
    "dec r13",
    "jmp 6b",
    // 6. Pages that differ from that are copied back.
    "7:",
    "mov r12, [rbp + {copies}]",
    "mov r13, [rbp + {copies} + 8]",
    "8:",
    "test r13, r13",
    "jz 8f",
    "mov rdi, [r12]",
    "mov rcx, [r12 + 8]",
    "mov rsi, [r12 + 16]",
    "rep movsq",
    "add r12, 24",
    "dec r13",
    "jmp 8b",
    // 7. Nothing is in the outbox.
    "8:",
    "movabs rax, {orders}",
    "mov rdi, [rbp + {outbox}]",
    "mov rcx, [rax + {orders_outbox}]",
    "xor eax, eax",
    "rep stosq",
    // 8. close_range(FDS, all, 0)
    "mov eax, {close_range}",
    "mov edi, {fds}",
    "mov esi, -1",
    "xor edx, edx",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    // 9. Signals that wait are taken, one by one: rt_sigtimedwait(all, NULL, no time, 8). Only now: closing descriptors
    // and unmapping files can send some (O_ASYNC on a pipe whose other end goes).
    "mov ebx, 1024",
    "2:",
    "mov eax, {sigtimedwait}",
    "lea rdi, [rbp + {all_signals}]",
    "xor esi, esi",
    "lea rdx, [rbp + {no_time}]",
    "mov r10d, 8",
    "syscall",
    "cmp rax, -{eagain}",
    "je 3f",
    "test rax, rax",
    "js 9f",
    "dec ebx",
    "jnz 2b",
    "jmp 9f",
    // 10. The segments' bases.
    "3:",
    "cmp qword ptr [rbp + {sets_bases}], 1",
    "jne 4f",
    "mov rax, [rbp + {bases}]",
    "wrfsbase rax",
    "mov rax, [rbp + {bases} + 8]",
    "wrgsbase rax",
    "jmp 5f",
    "4:",
    "mov eax, {arch_prctl}",
    "mov edi, 0x1002",
    "mov rsi, [rbp + {bases}]",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "mov eax, {arch_prctl}",
    "mov edi, 0x1001",
    "mov rsi, [rbp + {bases} + 8]",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    // 11. All registers. Some processors keep the place of the last x87 instruction over XRSTOR: it becomes this one.
    "5:",
    "fnclex",
    "emms",
    "fild qword ptr [rbp + {no_time}]",
    "mov eax, -1",
    "mov edx, -1",
    "xrstor64 [rbp + {extended}]",
    "lea rsp, [rbp + {flags}]",
    "popfq",
    "mov rsp, [rbp + {stack}]",
    "mov rbx, [rbp + {kept}]",
    "mov r12, [rbp + {kept} + 16]",
    "mov r13, [rbp + {kept} + 24]",
    "mov r14, [rbp + {kept} + 32]",
    "mov r15, [rbp + {kept} + 40]",
    "mov r8d, 0",
    "mov r9d, 0",
    // 12. The signal mask: a handler that runs from here on finds nothing that was.
    "mov eax, {sigprocmask}",
    "mov edi, {set_mask}",
    "lea rsi, [rbp + {mask}]",
    "mov edx, 0",
    "mov r10d, 8",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "movabs rax, {plan}",
    "mov rbp, [rax + {kept} + 8]",
    "mov ecx, 0",
    "mov esi, 0",
    "mov edi, 0",
    "mov r10d, 0",
    "mov r11d, 0",
    "jmp qword ptr [rax + {goes_on}]",
    "9:",
    "ud2",
    "spry_stub_end:",
    ".popsection",
    sigprocmask = const libc::SYS_rt_sigprocmask,
    set_mask = const libc::SIG_SETMASK,
    sigtimedwait = const libc::SYS_rt_sigtimedwait,
    eagain = const libc::EAGAIN,
    brk = const libc::SYS_brk,
    munmap = const libc::SYS_munmap,
    madvise = const libc::SYS_madvise,
    dontneed = const libc::MADV_DONTNEED,
    close_range = const libc::SYS_close_range,
    arch_prctl = const libc::SYS_arch_prctl,
    fds = const spry_wire::rewind::FDS,
    plan = const spry_wire::rewind::PLAN_AT,
    orders = const spry_wire::rewind::ORDERS_AT,
    orders_outbox = const spry_wire::rewind::ORDERS_OUTBOX,
    nothing_to_drop = const spry_wire::rewind::NOTHING_TO_DROP,
    nothing_to_unmap = const spry_wire::rewind::NOTHING_TO_UNMAP,
    extended = const spry_wire::rewind::EXTENDED_AT,
    all_signals = const spry_wire::rewind::at::ALL_SIGNALS,
    no_time = const spry_wire::rewind::at::NO_TIME,
    brk_at = const spry_wire::rewind::at::BRK,
    gaps = const spry_wire::rewind::at::GAPS,
    drops = const spry_wire::rewind::at::DROPS,
    copies = const spry_wire::rewind::at::COPIES,
    outbox = const spry_wire::rewind::at::OUTBOX,
    bases = const spry_wire::rewind::at::BASES,
    sets_bases = const spry_wire::rewind::at::SETS_BASES,
    mask = const spry_wire::rewind::at::MASK,
    flags = const spry_wire::rewind::at::FLAGS,
    stack = const spry_wire::rewind::at::STACK,
    kept = const spry_wire::rewind::at::KEPT,
    goes_on = const spry_wire::rewind::at::GOES_ON,
);
