//! System calls and instructions of being rewound: see [`crate::rewind`].

use std::arch::{asm, global_asm};
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use spry_wire::rewind::{
    COMMON_AT, COMMON_MAX, EXTENDED_MAX, Head, List, ORDERS_AT, ORDERS_LEN, PLAN_AT, PLAN_MAX, Registers,
    STUB_AT, STUB_LEN,
};

use super::check;

/// `ARCH_GET_FS` and `ARCH_GET_GS`.
const GET_BASES: [c_int; 2] = [0x1003, 0x1004];

fn map(file: &OwnedFd, at: u64, len: u64, protection: c_int) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing that is mapped is replaced.
    let mapped =
        unsafe { libc::mmap(at as *mut c_void, len as usize, protection, flags, file.as_raw_fd(), 0) };
    if mapped as u64 == at {
        return Ok(());
    }
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Err(io::Error::other("something else is mapped there"))
}

/// Maps the stub and sees to it that it stays so.
pub(crate) fn map_stub(stub: &OwnedFd) -> io::Result<()> {
    map(stub, STUB_AT, STUB_LEN, libc::PROT_READ | libc::PROT_EXEC)?;
    seal(STUB_AT, STUB_LEN)
}

/// From now on nobody can unmap, remap or change the rights of what is mapped there (`mseal`, Linux 6.10).
fn seal(start: u64, len: u64) -> io::Result<()> {
    // SAFETY: what is there stays there.
    check(unsafe { libc::syscall(libc::SYS_mseal, start, len, 0) as c_int }).map(drop)
}

/// Adds a filter on system calls that asks; returns the descriptor by which it does.
pub(crate) fn add_asking_filter(program: &mut [libc::sock_filter]) -> io::Result<OwnedFd> {
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once spryd knows of a call, signals don't interrupt it.
    const KILLABLE: c_ulong = 1 << 5;
    // SAFETY: no pointer is involved. (The sandbox has done it already.)
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | KILLABLE;
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, which has that length.
    let fd = check(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter) as c_int })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `MADV_NOHUGEPAGE` for all that is mapped, in one call: what spryd is asked about takes a while. Nothing is mapped in between, which
/// the kernel says when it has done the rest.
pub(crate) fn keep_pages_small() {
    // With five levels of page tables; with four, there is nothing behind the half of it.
    const END: usize = 0x00ff_ffff_ffff_f000;
    let (start, len) = (4096 as *mut c_void, END - 4096);
    // SAFETY: changes how memory is mapped, and not what is read there.
    let _something_is_not_mapped = unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
}

/// How long a file is; an error if that isn't within these bounds.
fn len_of(file: &OwnedFd, least: u64, most: u64) -> io::Result<u64> {
    // SAFETY: plain data.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fills the struct.
    check(unsafe { libc::fstat(file.as_raw_fd(), &raw mut about) })?;
    let len = about.st_size as u64;
    if (least..=most).contains(&len) { Ok(len) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Maps the plan, the pages that it has in common with others, and spryd's orders, and seals what the plan names.
pub(crate) fn seal_by(plan: &OwnedFd, orders: &OwnedFd, common: &OwnedFd) -> io::Result<()> {
    map(orders, ORDERS_AT, ORDERS_LEN, libc::PROT_READ)?;
    seal(ORDERS_AT, ORDERS_LEN)?;
    let common_len = len_of(common, 1, COMMON_MAX)?;
    map(common, COMMON_AT, common_len, libc::PROT_READ)?;
    seal(COMMON_AT, common_len)?;
    let len = len_of(plan, size_of::<Head>() as u64, PLAN_MAX)?;
    map(plan, PLAN_AT, len, libc::PROT_READ)?;
    // SAFETY: the plan is mapped, at least that long, and never changes.
    let List { at, count } = unsafe { (*(PLAN_AT as *const Head)).seals };
    if at < PLAN_AT || count > len / 16 || at - PLAN_AT > len - count * 16 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    for index in 0..count {
        // SAFETY: within the plan, as was just looked at.
        let [start, len] = unsafe { *((at + index * 16) as *const [u64; 2]) };
        seal(start, len)?;
    }
    seal(PLAN_AT, len)
}

// What a call keeps, the stack's end and where it returns to are noted; then the rest is called, which doesn't return. The
// stub comes back to the last line.
global_asm!(
    ".balign 16",
    ".globl spry_hold",
    ".hidden spry_hold",
    "spry_hold:",
    "mov [rdi + {kept}], rbx",
    "mov [rdi + {kept} + 8], rbp",
    "mov [rdi + {kept} + 16], r12",
    "mov [rdi + {kept} + 24], r13",
    "mov [rdi + {kept} + 32], r14",
    "mov [rdi + {kept} + 40], r15",
    "mov [rdi + {stack}], rsp",
    "lea rax, [rip + 2f]",
    "mov [rdi + {goes_on}], rax",
    "sub rsp, 8",
    "mov rdi, rdx",
    "call rsi",
    "ud2",
    "2: ret",
    kept = const offset_of!(Registers, kept),
    stack = const offset_of!(Registers, stack),
    goes_on = const offset_of!(Registers, goes_on),
);

unsafe extern "C" {
    fn spry_hold(registers: *mut Registers, then: extern "C" fn(*mut c_void) -> !, context: *mut c_void);
}

/// Notes where this process is, and calls `announce` with the place of the registers, which doesn't return. This function
/// does, each time that the process has been rewound.
pub(crate) fn hold<F: FnOnce(u64) -> std::convert::Infallible>(announce: F) -> io::Result<()> {
    struct Context<F> {
        announce: Option<F>,
        registers: u64,
    }
    extern "C" fn then<F: FnOnce(u64) -> std::convert::Infallible>(context: *mut c_void) -> ! {
        // SAFETY: the context of the caller below, whose frame stays.
        let context = unsafe { &mut *context.cast::<Context<F>>() };
        let Some(announce) = context.announce.take() else { super::exit_now(2) };
        match announce(context.registers) {}
    }
    expand_stack()?;
    let registers = registers()?;
    let mut context = Context { announce: Some(announce), registers: registers as u64 };
    // SAFETY: for the compiler this is a call that changes what calls change: the stub restores the registers that
    // it keeps, and this frame, which nobody has written to between the note and spryd's look.
    unsafe { spry_hold(registers, then::<F>, (&raw mut context).cast()) };
    // What was announced is gone, whether or not it was taken.
    std::mem::forget(context);
    Ok(())
}

/// In a mapping of their own, which isn't part of what the process goes back to.
fn registers() -> io::Result<*mut Registers> {
    // The component sizes of XCR0, all together.
    let needed = std::arch::x86_64::__cpuid_count(0xd, 0).ebx;
    if u64::from(needed) > EXTENDED_MAX {
        return Err(io::Error::other(format!("this processor has {needed} bytes of extended registers")));
    }
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // A page more on each side keeps it from becoming one with its neighbours.
    let len = size_of::<Registers>().next_multiple_of(4096);
    // SAFETY: a new mapping.
    let whole = unsafe { libc::mmap(ptr::null_mut(), len + 8192, libc::PROT_NONE, flags, -1, 0) };
    if whole == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let registers = whole.wrapping_byte_add(4096).cast::<Registers>();
    // SAFETY: within what was mapped just now; a page's start is aligned for it.
    unsafe {
        check(libc::mprotect(registers.cast(), len, rights))?;
        asm!("xsave64 [{}]", in(reg) registers, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        for (get, base) in GET_BASES.into_iter().zip(&mut (*registers).bases) {
            check(libc::syscall(libc::SYS_arch_prctl, get, &raw mut *base) as c_int)?;
        }
        let (how, none, mask) = (libc::SIG_SETMASK, ptr::null::<u64>(), &raw mut (*registers).mask);
        check(libc::syscall(libc::SYS_rt_sigprocmask, how, none, mask, 8) as c_int)?;
        (*registers).brk = libc::syscall(libc::SYS_brk, 0) as u64;
    }
    Ok(registers)
}

/// Makes the stack as large as it may become: it is sealed as it is then, and could not grow.
fn expand_stack() -> io::Result<()> {
    const LARGEST: u64 = 64 << 20;
    /// Below the limit by so much: what the kernel counts to the stack and can't be touched.
    const MARGIN: u64 = 256 << 10;
    // SAFETY: plain data.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: fills the struct.
    check(unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) })?;
    if limit.rlim_cur > LARGEST {
        return Err(io::Error::other("the stack's limit is larger than 64 MiB"));
    }
    let here = super::memory::stack_address() as u64;
    let lowest = (here + (64 << 10)).saturating_sub(limit.rlim_cur - MARGIN.min(limit.rlim_cur)) & !4095;
    if lowest < here - (64 << 10) {
        // SAFETY: the kernel makes the stack longer for an access below it, within its limit, which this is; nothing but
        // the stack lies there, for the kernel keeps that room free.
        unsafe {
            (lowest as *const u8).read_volatile();
        }
    }
    Ok(())
}

/// Where this process goes back.
pub(crate) fn go_to_stub() -> ! {
    // SAFETY: by spryd's contract the stub is mapped there; it restores all that it changes, or ends the process.
    unsafe { asm!("jmp {}", in(reg) STUB_AT, options(noreturn)) }
}

const _: () = assert!(size_of::<c_long>() == 8);
