//! The zygote's life: load the function, then fork on request until the control socket is closed.

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use spry_wire::control::{self, ControlError, FromZygote, Init, ToZygote, ZYGOTE_FD};

use crate::fork::fork;
use crate::freeze::freeze;
use crate::handler::{Handler, LoadError};
use crate::sys;

/// Longest text of a [`LoadError`] that is sent: even if every byte of it is escaped, the message fits.
const MESSAGE_BYTES: usize = control::MESSAGE_MAX / 6 - 1024;

/// Runs a zygote, and in its forks the instances. Never returns.
///
/// Started by anything but spryd (without a control socket as fd 3), it says so on stderr and ends with 64.
pub fn run<H: Handler>() -> ! {
    sys::ignore_interrupts();
    let Ok(socket) = sys::adopt_seqpacket(ZYGOTE_FD) else {
        eprintln!(
            "This is the inside of a spry function. spryd starts it, with a control socket as fd {ZYGOTE_FD}."
        );
        sys::exit_now(64);
    };
    // All instances of a function have the same user: without this, one that a request has taken over could write to
    // the memory of the others, and of this zygote, from which all later ones come.
    if let Err(error) = sys::hide_from_own_user() {
        eprintln!("spry: the zygote can't hide its memory: {error}");
        sys::exit_now(2);
    }
    let code = match live::<H>(&socket) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("spry: the zygote lost its control socket: {error}");
            2
        }
    };
    sys::exit_now(code)
}

fn live<H: Handler>(socket: &OwnedFd) -> Result<(), ControlError> {
    let Some((ToZygote::Init(init), _)) = control::receive::<ToZygote>(socket.as_fd())? else {
        return Ok(());
    };
    let mut handler = match load::<H>(&init) {
        Ok(handler) => handler,
        Err(LoadError { message }) => {
            let message = shorten(message, MESSAGE_BYTES);
            return control::send(socket.as_fd(), &FromZygote::Failed { message }, &[]);
        }
    };
    handler.flush();
    sys::flush_c_streams();
    let runtime = H::runtime();
    // Once, for all instances.
    sys::rseq_offset();
    let frozen = freeze(&init.freeze);
    control::send(socket.as_fd(), &FromZygote::Ready { runtime, frozen }, &[])?;
    while let Some((message, fds)) = control::receive::<ToZygote>(socket.as_fd())? {
        match message {
            ToZygote::Fork(request) => fork(socket, &mut handler, &request, fds)?,
            ToZygote::Init(_) => {}
        }
    }
    Ok(())
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
