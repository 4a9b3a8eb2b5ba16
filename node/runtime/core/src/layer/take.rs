//! Writing this process down.
//!
//! From the first look at `/proc/self/smaps` to the last page, nothing of what is written may change. So all of it is
//! done by one function that neither allocates nor writes to anything but its own stack, which the other side doesn't go
//! back to, and a scratch mapping that isn't written down. What another process can't be given (threads, children, timers,
//! open files, memory shared with others, code made at run time) is a reason not to make a layer; the reason is told.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::writer::{Refusal, SCRATCH_WORDS, Writer};
use super::{FILE_NAME, PAGEMAP_FD};
use crate::handler::Side;
use crate::sys::switch::{self, Bridge};
use crate::sys::{self, layer as kernel, memory};

/// What came of it.
#[derive(Debug)]
pub(crate) enum Taken {
    /// The file, sealed, with this many bytes of contents.
    Written(OwnedFd, u64),
    /// There is none, for this reason.
    Refused(String),
    /// This is the other process.
    Arrived,
}

/// Writes this process down. `around` calls what it is given, which returns once in each process, with what the language
/// needs before and after a fork.
pub(crate) fn take(around: impl FnOnce(&mut dyn FnMut() -> Side) -> Side) -> Taken {
    if let Err(why) = ready() {
        return Taken::Refused(why);
    }
    memory::trim_heap();
    sys::forget_rseq();
    let name = kernel::thread_name();
    let file = match kernel::make_file(FILE_NAME) {
        Ok(file) => file,
        Err(errno) => return Taken::Refused(format!("make a file in memory: {}", words(errno))),
    };
    let mut result = Err(Refusal::of("nothing was tried")(0));
    let side = around(&mut || memory::without_signals(|| once(file, &name, &mut result)));
    match (side, result) {
        // (The descriptor of the file is the other process's.)
        (Side::Child, _) => Taken::Arrived,
        (Side::Parent, result) => {
            // SAFETY: made above, and this process's alone.
            let file = unsafe { OwnedFd::from_raw_fd(file) };
            match result {
                Ok(bytes) => match memory::seal(&file) {
                    Ok(()) => Taken::Written(file, bytes),
                    Err(error) => Taken::Refused(format!("the file could not be sealed: {error}")),
                },
                Err(Refusal { what, errno, address }) => {
                    let place = if address == 0 { String::new() } else { format!(" (at {address:x})") };
                    let cause = if errno == 0 { String::new() } else { format!(": {}", words(errno)) };
                    Taken::Refused(format!("{what}{place}{cause}"))
                }
            }
        }
    }
}

fn words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// What can be told before.
fn ready() -> Result<(), String> {
    if !switch::KNOWN {
        return Err("there are no layers on this kind of machine".to_owned());
    }
    if !kernel::is_open(PAGEMAP_FD) {
        return Err("/proc/self/pagemap can't be read".to_owned());
    }
    if !sys::single_threaded() {
        return Err(format!("importing starts threads ({})", sys::other_threads().join(", ")));
    }
    if kernel::has_children() {
        return Err("importing starts processes".to_owned());
    }
    let timers = std::fs::read_to_string("/proc/self/timers").unwrap_or_default();
    if !timers.is_empty() || kernel::has_timer() {
        return Err("importing starts timers".to_owned());
    }
    let others = (4..kernel::descriptors_max()).filter(|fd| *fd != PAGEMAP_FD && kernel::is_open(*fd));
    match others.count() {
        0 => Ok(()),
        count => Err(format!("importing leaves {count} files open")),
    }
}

/// The moment itself. Returns twice, once in each process.
fn once(file: RawFd, name: &[u8; 16], result: &mut Result<u64, Refusal>) -> Side {
    let mut scratch = match kernel::Scratch::new(SCRATCH_WORDS * 8) {
        Ok(scratch) => scratch,
        Err(errno) => {
            *result = Err(Refusal::of("memory to work in")(errno));
            return Side::Parent;
        }
    };
    let own = scratch.address();
    let arrived = switch::leave(&mut |context| {
        let mut writer = Writer::new(scratch.words(), own, file, context);
        *result = writer.write();
    });
    match arrived {
        None => Side::Parent,
        Some(bridge) => {
            std::mem::forget(scratch); // it isn't here
            arrive(bridge, name);
            Side::Child
        }
    }
}

/// The first thing that the other process does.
fn arrive(bridge: Bridge, name: &[u8; 16]) {
    kernel::renew_thread_id();
    kernel::take_down(bridge);
    kernel::set_thread_name(name);
}
