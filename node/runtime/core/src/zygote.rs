//! The zygote's life: load the function, then fork on request until the control socket is closed.

use std::any::Any;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use spry_wire::control::{self, ControlError, FromZygote, Init, ToZygote, ZYGOTE_FD};
use spry_wire::layer::{Layer, LayerWish};

use crate::fork::fork;
use crate::freeze::{OwnMemory, freeze, guard_layer};
use crate::handler::{Handler, LoadError, Side};
use crate::layer::PAGEMAP_FD;
use crate::layer::restore::restore;
use crate::layer::take::{Taken, take};
use crate::rehearsal::rehearse;
use crate::rewind;
use crate::sys::{self, layer as kernel};

/// Longest text of a [`LoadError`] that is sent: even if every byte of it is escaped, the message fits.
const MESSAGE_BYTES: usize = control::MESSAGE_MAX / 6 - 1024;

/// A zygote that has heard the first of what it is to do, and has done what must be done before any code of the function
/// runs.
struct Begun {
    socket: OwnedFd,
    /// `None`: spryd is gone.
    first: Option<(ToZygote, Vec<OwnedFd>)>,
    memory: OwnMemory,
}

static BEGUN: Mutex<Option<Begun>> = Mutex::new(None);

/// Does what must be done before any code of the function runs, the first time that it is called: [`run`] does by
/// itself. For runtimes in which loading begins earlier.
pub fn begin() {
    let mut begun = BEGUN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if begun.is_none() {
        *begun = Some(Begun::now());
    }
}

/// Runs a zygote, and in its forks the instances. Never returns.
///
/// Started by anything but spryd (without a control socket as fd 3), it says so on stderr and ends with 64.
pub fn run<H: Handler>() -> ! {
    begin();
    let begun = BEGUN.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    let Some(Begun { socket, first, memory }) = begun else { sys::exit_now(2) };
    let code = match live::<H>(&socket, first, memory) {
        Ok(()) => 0,
        Err(error) => lost(&error),
    };
    sys::exit_now(code)
}

fn lost(error: &ControlError) -> i32 {
    eprintln!("spry: the zygote lost its control socket: {error}");
    2
}

impl Begun {
    fn now() -> Self {
        sys::ignore_interrupts();
        let Ok(socket) = sys::adopt_seqpacket(ZYGOTE_FD) else {
            eprintln!(
                "This is the inside of a spry function. spryd starts it, with a control socket as fd {ZYGOTE_FD}."
            );
            sys::exit_now(64);
        };
        kernel::keep(c"/proc/self/pagemap", PAGEMAP_FD);
        // All instances of a function have the same user: without this, one that a request has taken over could write to
        // the memory of the others, and of this zygote, from which all later ones come.
        if let Err(error) = sys::hide_from_own_user() {
            eprintln!("spry: the zygote can't hide its memory: {error}");
            sys::exit_now(2);
        }
        let begun = control::receive::<ToZygote>(socket.as_fd()).and_then(|first| {
            let memory = match &first {
                Some((ToZygote::Init(init), fds)) if init.rewind => filter(&socket, fds.first())?,
                Some((ToZygote::Restore { rewind: true }, fds)) => filter(&socket, fds.get(1))?,
                _ => OwnMemory::default(),
            };
            Ok((first, memory))
        });
        match begun {
            Ok((first, memory)) => Self { socket, first, memory },
            Err(error) => sys::exit_now(lost(&error)),
        }
    }
}

/// Prepares for instances that are rewound.
fn filter(socket: &OwnedFd, stub: Option<&OwnedFd>) -> Result<OwnMemory, ControlError> {
    let memory = OwnMemory::keep();
    let prepared = match stub {
        Some(stub) => rewind::prepare(stub),
        None => Err("no stub came".to_owned()),
    };
    match prepared {
        Ok(asks) => {
            let filtered = FromZygote::Filtered { asks: asks.as_raw_fd() };
            control::send(socket.as_fd(), &filtered, &[])?;
            // The function must not have it: who holds it says what may go on.
            control::receive::<ToZygote>(socket.as_fd())?;
        }
        Err(why) => control::send(socket.as_fd(), &FromZygote::Unfiltered { why }, &[])?,
    }
    Ok(memory)
}

fn live<H: Handler>(
    socket: &OwnedFd,
    first: Option<(ToZygote, Vec<OwnedFd>)>,
    mut memory: OwnMemory,
) -> Result<(), ControlError> {
    let mut of_layer = false;
    let mut next = first;
    let init = loop {
        match next {
            Some((ToZygote::Init(init), _)) => break init,
            Some((ToZygote::Restore { .. }, fds)) => {
                let why = become_layer(fds, memory);
                return control::send(socket.as_fd(), &FromZygote::NoLayer { why }, &[]);
            }
            Some((ToZygote::MakeLayer(wish), _)) => match make_layer::<H>(socket, &wish)? {
                Made::Over => return Ok(()),
                Made::Arrived(own) => (of_layer, memory) = (true, own),
            },
            Some((ToZygote::Fork(_) | ToZygote::Taken, _)) | None => return Ok(()),
        }
        next = control::receive::<ToZygote>(socket.as_fd())?;
    };
    if !of_layer {
        kernel::close(PAGEMAP_FD);
    }
    let mut handler = match load::<H>(&init) {
        Ok(handler) => handler,
        Err(LoadError { message }) => {
            let message = shorten(message, MESSAGE_BYTES);
            return control::send(socket.as_fd(), &FromZygote::Failed { message }, &[]);
        }
    };
    if init.rewind {
        // What is done in each new process is done once here, as if this one were new: what it does for the first time only is
        // part of what is frozen then, and not written to by each.
        handler.around_fork(&mut || Side::Child);
        if !sys::single_threaded() {
            let message = shorten(threads_text(&init, &handler.threads()), MESSAGE_BYTES);
            return control::send(socket.as_fd(), &FromZygote::Failed { message }, &[]);
        }
    } else {
        rehearse(&mut handler);
    }
    control::send(socket.as_fd(), &FromZygote::Imported(handler.imports(&init).bounded()), &[])?;
    handler.flush();
    sys::flush_c_streams();
    let runtime = H::runtime();
    // Once, for all instances.
    sys::rseq_offset();
    sys::landlock::prepare_scope();
    sys::heap::begin();
    let frozen = freeze(&init.freeze, memory);
    if init.rewind {
        rewind::keep_pages_small();
    }
    if of_layer {
        kernel::close(PAGEMAP_FD);
    }
    memory.close();
    if !init.rewind {
        rehearse(&mut handler);
        handler.before_fork();
    }
    control::send(socket.as_fd(), &FromZygote::Ready { runtime, frozen }, &[])?;
    while let Some((message, fds)) = control::receive::<ToZygote>(socket.as_fd())? {
        match message {
            ToZygote::Fork(request) => {
                fork(socket, &mut handler, &request, fds)?;
                if !request.rewind && !sys::has_message(socket) {
                    handler.before_fork();
                }
            }
            ToZygote::Init(_) | ToZygote::MakeLayer(_) | ToZygote::Restore { .. } | ToZygote::Taken => {}
        }
    }
    Ok(())
}

/// Becomes another process; returns why that can't be.
fn become_layer(fds: Vec<OwnedFd>, memory: OwnMemory) -> String {
    match fds.into_iter().next() {
        Some(file) => match restore(file, memory) {
            Err(why) => why,
        },
        None => "no file came with the wish".to_owned(),
    }
}

/// Which of the two processes this is.
enum Made {
    /// The layer's: it has done its work.
    Over,
    /// A zygote, confined as its function's zygotes are, that goes on from here.
    Arrived(OwnMemory),
}

fn make_layer<H: Handler>(socket: &OwnedFd, wish: &LayerWish) -> Result<Made, ControlError> {
    let no = |why: String| {
        let why = shorten(why, MESSAGE_BYTES);
        control::send(socket.as_fd(), &FromZygote::NoLayer { why }, &[]).map(|()| Made::Over)
    };
    let preloaded = catch_unwind(AssertUnwindSafe(|| H::preload(wish)));
    let (imports, absent) = match preloaded {
        Ok(Ok((imports, absent))) => (imports.bounded(), absent.bounded()),
        Ok(Err(LoadError { message })) => return no(message),
        Err(payload) => return no(panic_text(payload.as_ref())),
    };
    sys::flush_c_streams();
    sys::rseq_offset();
    match take(H::around_layer) {
        Taken::Refused(why) => no(why),
        Taken::Written(file, bytes) => {
            let layer = Layer { imports, absent, bytes };
            control::send(socket.as_fd(), &FromZygote::Layer(layer), &[file.as_fd()]).map(|()| Made::Over)
        }
        Taken::Arrived => {
            let memory = match guard_layer() {
                Ok(memory) => memory,
                Err(why) => return no(why),
            };
            control::send(socket.as_fd(), &FromZygote::Restored, &[]).map(|()| Made::Arrived(memory))
        }
    }
}

fn load<H: Handler>(init: &Init) -> Result<H, LoadError> {
    let loaded = catch_unwind(AssertUnwindSafe(|| H::load(init)));
    let handler = loaded.map_err(|payload| LoadError::new(panic_text(payload.as_ref())))??;
    if !sys::single_threaded() {
        return Err(LoadError::new(threads_text(init, &handler.threads())));
    }
    Ok(handler)
}

fn threads_text(init: &Init, threads: &[String]) -> String {
    let named = if threads.is_empty() { String::new() } else { format!(" ({})", threads.join(", ")) };
    format!(
        "loading {} starts a thread{named}. Instances are forked from the process that loaded the function, and \
         a fork copies only one thread: start threads when the function is first called, not while it is \
         loaded. A library's own pool can often be turned off by an environment variable ([env] in spry.toml).",
        init.handler
    )
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "with something that is no text",
    };
    format!("the runtime panicked while loading the function: {message}")
}

/// Cuts the middle out of a text that is too long: its first lines and its last ones say most.
fn shorten(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let head = text.floor_char_boundary(limit / 4);
    let tail = text.ceil_char_boundary(text.len() - limit / 2);
    format!("{}\n[... {} bytes left out ...]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_traceback_keeps_its_ends_and_fits() {
        let text = format!("first{}last", "\u{1}é".repeat(MESSAGE_BYTES));
        let message = shorten(text, MESSAGE_BYTES);
        assert!(message.starts_with("first") && message.ends_with("last"));
        let json = serde_len(&FromZygote::Failed { message });
        assert!(json <= control::MESSAGE_MAX, "{json}");
        assert_eq!(shorten("short".to_owned(), 5), "short");
    }

    fn serde_len(message: &FromZygote) -> usize {
        let (a, b) = std::os::unix::net::UnixDatagram::pair().expect("socketpair");
        control::send(a.as_fd(), message, &[]).expect("send");
        let mut bytes = vec![0; control::MESSAGE_MAX * 2];
        b.recv(&mut bytes).expect("receive")
    }
}
