//! Leaving a process at one place and going on there in another: the few instructions of package layers.
//!
//! [`leave`] keeps the registers that a called function must keep on the stack, and where that is in a [`Context`].
//! [`arrive`] is the other end, in a process whose memory is about to be all another: it runs from a *bridge*, a
//! mapping that is in neither process's way, does a list of system calls there (everything else is unmapped, and what the
//! other process had is mapped), takes the stack pointer from the context, and returns from [`leave`].
//!
//! ```text
//! bridge   page 0: the code      page 1: BLOB, what the calls point to      then: the calls, eight words each
//! ```

#[cfg(target_arch = "x86_64")]
use std::ffi::c_void;

/// Where the other side is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Context {
    /// The stack pointer; above it, the registers.
    pub(crate) stack: u64,
    /// MXCSR in the low half, the x87 control word in the high one.
    pub(crate) floating_point: u64,
}

/// The mapping that an arrival came over; to be unmapped.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// One system call: its number, six arguments, and whether its failure matters (0) or not (1).
pub(crate) type Call = [u64; 8];

/// Bytes of the code, and of the blob.
pub(crate) const PART: usize = 4096;
/// What a process exits with whose calls failed on the bridge.
#[cfg(target_arch = "x86_64")]
pub(crate) const FAILED: i32 = 98;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    // leave(context, act, argument) -> (start, len)
    ".globl spry_layer_leave",
    ".hidden spry_layer_leave",
    ".type spry_layer_leave,@function",
    "spry_layer_leave:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [rdi], rsp",
    "stmxcsr [rdi + 8]",
    "fnstcw [rdi + 12]",
    "mov rdi, rdx",
    "call rsi",
    "xor eax, eax",
    "xor edx, edx",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".size spry_layer_leave, . - spry_layer_leave",
    // bridge(first call, end of calls, context, start, len): no stack
    ".globl spry_layer_bridge",
    ".hidden spry_layer_bridge",
    ".globl spry_layer_bridge_end",
    ".hidden spry_layer_bridge_end",
    "spry_layer_bridge:",
    "mov rbx, rdi",
    "mov r12, rsi",
    "mov r13, rdx",
    "mov r14, rcx",
    "mov r15, r8",
    "2:",
    "cmp rbx, r12",
    "jae 4f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "cmp rax, -4096",
    "jbe 3f",
    "cmp qword ptr [rbx + 56], 0",
    "jne 3f",
    "mov edi, {failed}",
    "mov eax, {exit_group}",
    "syscall",
    "ud2",
    "3:",
    "add rbx, 64",
    "jmp 2b",
    "4:",
    "mov rsp, [r13]",
    "ldmxcsr [r13 + 8]",
    "fldcw [r13 + 12]",
    "mov rax, r14",
    "mov rdx, r15",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "spry_layer_bridge_end:",
    failed = const FAILED,
    exit_group = const libc::SYS_exit_group,
);

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn spry_layer_leave(
        context: *mut Context,
        act: extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Bridge;
    fn spry_layer_bridge();
    fn spry_layer_bridge_end();
}

/// Whether this machine's code is known here.
pub(crate) const KNOWN: bool = cfg!(target_arch = "x86_64");

/// Calls `act`, and returns `None` when that has returned. In the process that `act` made possible, returns the bridge that
/// it came over; the values that `act` has borrowed are as they were when it copied the stack.
#[cfg(target_arch = "x86_64")]
pub(crate) fn leave(act: &mut dyn FnMut(Context)) -> Option<Bridge> {
    struct Leaving<'a> {
        context: Context,
        act: &'a mut dyn FnMut(Context),
    }
    extern "C" fn call(argument: *mut c_void) {
        // SAFETY: the pointer below, to a value that lives until `spry_layer_leave` returns and that nobody else uses.
        let leaving = unsafe { &mut *argument.cast::<Leaving<'_>>() };
        (leaving.act)(leaving.context);
    }
    let mut leaving = Leaving { context: Context::default(), act };
    let context = &raw mut leaving.context;
    // SAFETY: writes the context before it calls; keeps what the ABI wants kept, whichever way it returns.
    let bridge = unsafe { spry_layer_leave(context, call, (&raw mut leaving).cast()) };
    (bridge.start != 0).then_some(bridge)
}

/// Elsewhere nobody can leave.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn leave(act: &mut dyn FnMut(Context)) -> Option<Bridge> {
    act(Context::default());
    None
}

/// What an arrival is made of.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "nobody arrives"))]
pub(crate) struct Arrival<'a> {
    /// Where nothing is, now and afterwards.
    pub(crate) bridge: Bridge,
    pub(crate) context: Context,
    /// At most [`PART`] bytes less a context, to be at the bridge's second page.
    pub(crate) blob: &'a [u64],
    pub(crate) calls: &'a [Call],
}

/// Leaves this process's memory behind. Returns only if the bridge can't be made.
///
/// # Safety
///
/// The calls leave the bridge alone, and make of this process what the context was taken in. Signals are blocked.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn arrive(arrival: &Arrival<'_>) -> std::io::Error {
    use std::io::Error;
    use std::mem::size_of;
    let Bridge { start, len } = arrival.bridge;
    let (code, code_end) =
        (spry_layer_bridge as *const () as usize, spry_layer_bridge_end as *const () as usize);
    let context_at = start + 2 * PART - size_of::<Context>();
    let calls_at = start + 2 * PART;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping in an unused place, whose parts are written within its length; the code is copied whole and has
    // no addresses in it. The jump's promise is the caller's.
    unsafe {
        let place = libc::mmap(start as *mut c_void, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if place as usize != start {
            return Error::last_os_error();
        }
        std::ptr::copy_nonoverlapping(code as *const u8, start as *mut u8, code_end - code);
        let blob = (start + PART) as *mut u64;
        std::ptr::copy_nonoverlapping(arrival.blob.as_ptr(), blob, arrival.blob.len().min(PART / 8 - 2));
        (context_at as *mut Context).write(arrival.context);
        std::ptr::copy_nonoverlapping(arrival.calls.as_ptr(), calls_at as *mut Call, arrival.calls.len());
        if libc::mprotect(place, PART, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Error::last_os_error();
        }
        let calls_end = calls_at + size_of_val(arrival.calls);
        std::arch::asm!(
            "jmp rax",
            in("rax") start, in("rdi") calls_at, in("rsi") calls_end, in("rdx") context_at,
            in("rcx") start, in("r8") len,
            options(noreturn),
        );
    }
}

/// Elsewhere nobody arrives.
///
/// # Safety
///
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn arrive(_: &Arrival<'_>) -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
