//! Rewinding: an instance that serves one request at a time, each with nothing left of the one before, and lives on
//! (docs/decisions/0010).
//!
//! ```text
//! zygote     (trusted still) maps the stub, filters, hands over the listener; loads the function; freezes
//! instance   set up ── Hold ──► spryd looks, makes the plan ── Plan ──► maps it, seals all it has ──► stub asks
//!            spryd looks again: is it what the plan says? sealed? nothing else? ── goes on ──► first rewinding ──► receive
//! request    … answer ──► stub asks ── spryd: not spoiled, outbox small, pipes empty ── goes on ──► receive
//! ```
//!
//! What the guarantee rests on: the stub and the plan, which are spryd's own and sealed; the filter, which is in force
//! before any code of the function runs; and what spryd sees from outside when the stub first asks ([`Plan::check`] for memory,
//! `holds_only` for descriptors, one thread, no child, no other filter, hidden memory). Nothing that the instance says is believed.
//!
//! - [`listener`]: who asks, and what is answered.
//! - [`gate`]: one instance's state between answer and next request.
//! - [`parents`]: who may have left a process that shares its memory.
//! - [`plan`], [`mappings`], [`pages`], [`copies`], [`common`]: what it goes back to, and what a request has changed.

mod common;
mod copies;
mod gate;
mod listener;
mod mappings;
mod pages;
mod parents;
mod plan;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::OnceLock;
use std::time::Instant;

use nix::errno::Errno;

pub use gate::{Gate, Next};
pub use listener::Listener;
pub(super) use plan::{Plan, Subject};

use crate::sys::rewind as sys;

/// The stub's file, the same for all functions. An error says why there is none.
pub(super) fn stub() -> Result<BorrowedFd<'static>, String> {
    static STUB: OnceLock<Result<OwnedFd, String>> = OnceLock::new();
    let made = STUB.get_or_init(|| {
        let code = sys::stub().ok_or("there is a stub for x86-64 only")?;
        let rest = vec![0xcc; spry_wire::rewind::STUB_LEN as usize - code.len()];
        sys::sealed_file(c"spry-stub", &[code, &rest], true)
            .map_err(|error| format!("make the stub: {error}"))
    });
    made.as_ref().map(OwnedFd::as_fd).map_err(Clone::clone)
}

/// Makes all the pages of an outbox that the stub zeroes mostly, so that every page beyond is one more.
pub(super) fn fill_outbox(outbox: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = nix::fcntl::FallocateFlags::empty();
    nix::fcntl::fallocate(outbox, flags, 0, spry_wire::rewind::OUTBOX_FIRST as i64)
}

/// The files that an instance is to have open between requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holdings {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
    pub(super) bus: u64,
}

/// An open file's inode.
pub(super) fn inode(fd: impl AsFd) -> Result<u64, Errno> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// Looks at an instance that waits in the stub for the first time: has it anything but what each request may begin with?
/// `asked_for`: before its fork.
pub(super) fn check(
    pid: i32,
    plan: &Plan,
    gate: &Gate,
    holdings: Holdings,
    asked_for: Instant,
) -> Result<(), String> {
    let stub = stub().and_then(|stub| inode(stub).map_err(|errno| errno.to_string()))?;
    let orders = inode(gate.orders()).map_err(|errno| errno.to_string())?;
    plan.check(pid, stub, orders)?;
    holds_only(pid, holdings)?;
    let process = format!("/proc/{pid}");
    is_hidden(&process)?;
    let filters = filters(pid).map_err(|error| format!("its filters can't be looked up: {error}"))?;
    if filters != gate.listener().filters() {
        return Err(
            "it has a filter of its own on system calls, which could keep it from being rewound".to_owned()
        );
    }
    // One that shares its memory needn't be a thread of it, nor its child any more. (That none can come before it is seen to by the
    // filter: `CLONE_PARENT` goes without `CLONE_VM`.)
    if gate.listener().is_parent(pid, asked_for) {
        return Err("it made a process or a thread before it served".to_owned());
    }
    let tasks = fs::read_dir(format!("{process}/task")).map_err(|error| error.to_string())?;
    if tasks.count() != 1 {
        return Err("it has more than one thread".to_owned());
    }
    let children = fs::read_to_string(format!("{process}/task/{pid}/children"));
    match children {
        Ok(children) if children.trim().is_empty() => Ok(()),
        Ok(_) => Err("it has a child".to_owned()),
        Err(error) => Err(format!("its children can't be looked up: {error}")),
    }
}

/// How many filters on system calls a process has.
pub(super) fn filters(pid: i32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")?.trim().parse().ok());
    count.ok_or_else(|| io::Error::other("the kernel doesn't say"))
}

/// Nobody but root can open its memory. (Who does can change what it may only execute.)
fn is_hidden(process: &str) -> Result<(), String> {
    let memory = fs::metadata(format!("{process}/mem"));
    let memory = memory.map_err(|error| format!("its memory can't be looked at: {error}"))?;
    match memory.uid() {
        0 => Ok(()),
        _ => Err("its memory isn't hidden from its own user (PR_SET_DUMPABLE)".to_owned()),
    }
}

/// Standard input is empty and stateless, and the others are spryd's own files. What is open beyond is closed by the stub.
fn holds_only(pid: i32, holdings: Holdings) -> Result<(), String> {
    let about = |fd: i32| {
        let about = fs::metadata(format!("/proc/{pid}/fd/{fd}"));
        about.map_err(|error| format!("its descriptor {fd} can't be looked at: {error}"))
    };
    let null = fs::metadata("/dev/null").map_err(|error| error.to_string())?;
    let input = about(0)?;
    if !input.file_type().is_char_device() || input.rdev() != null.rdev() {
        return Err("its standard input isn't /dev/null".to_owned());
    }
    for (fd, wanted) in [
        (libc::STDOUT_FILENO, holdings.stdout),
        (libc::STDERR_FILENO, holdings.stderr),
        (spry_wire::rewind::BUS_FD, holdings.bus),
    ] {
        let is = about(fd)?;
        if is.ino() != wanted || !(is.file_type().is_fifo() || is.file_type().is_socket()) {
            return Err(format!("its descriptor {fd} isn't the one that it was given"));
        }
    }
    Ok(())
}

/// Whether this kernel can do it: what was tried at once, when spryd started. An error says what is missing.
pub fn probe() -> Result<(), String> {
    stub()?;
    // An empty range: the call is there or not.
    match sys::can_seal() {
        Ok(()) => {}
        Err(errno) => return Err(format!("memory can't be sealed (mseal, Linux 6.10): {errno}")),
    }
    sys::user_space_end().map_err(|error| format!("it can't be found out where userspace ends: {error}"))?;
    sys::can_ask()
        .map_err(|errno| format!("system calls can't be asked about (seccomp user notification): {errno}"))
}
