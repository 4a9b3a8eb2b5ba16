//! Making an instance: fork, tell spryd, and in the child set up and serve.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use spry_wire::control::{self, ControlError, Fork, FromInstance, FromZygote};

use crate::handler::{Handler, Side};
use crate::setup::{self, Handed};
use crate::sys::{self, Cloned};

/// Serves one [`Fork`] request. Returns in the zygote only.
pub(crate) fn fork<H: Handler>(
    control_socket: &OwnedFd,
    handler: &mut H,
    fork: &Fork,
    fds: Vec<OwnedFd>,
) -> Result<(), ControlError> {
    let instance = fork.instance;
    let failed = |step: &str, error: &io::Error| FromZygote::ForkFailed {
        instance,
        step: step.to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
    };
    let Some(handed) = Handed::sort(fds) else {
        let error = io::Error::from_raw_os_error(libc::EBADMSG);
        return control::send(control_socket.as_fd(), &failed("receive descriptors", &error), &[]);
    };
    sys::flush_c_streams();
    let mut cloned = Err(io::Error::from_raw_os_error(libc::ENOSYS));
    let mut clone = || {
        // On another core it would begin with a wake-up there and nothing in its caches. (Where instances are rewound, spryd is told
        // of such calls, and births are rare.)
        cloned = sys::clone_sibling(!fork.rewind);
        if matches!(cloned, Ok(Cloned::Child)) { Side::Child } else { Side::Parent }
    };
    // What comes of a zygote whose instances are rewound is like a new process already: all that this would write to again
    // would be copied back after each request.
    let side = if fork.rewind { clone() } else { handler.around_fork(&mut clone) };
    match (side, cloned) {
        (Side::Child, _) | (_, Ok(Cloned::Child)) => become_instance(handler, fork, handed),
        (Side::Parent, Ok(Cloned::Parent { pidfd })) => {
            // Our copies of what the instance was handed go first: spryd must see the instance's end of file.
            drop(handed);
            control::send(control_socket.as_fd(), &FromZygote::Forked { instance }, &[pidfd.as_fd()])
        }
        (Side::Parent, Err(error)) => {
            drop(handed);
            control::send(control_socket.as_fd(), &failed("clone3", &error), &[])
        }
    }
}

/// The rest of the new process's life.
fn become_instance<H: Handler>(handler: &mut H, fork: &Fork, handed: Handed) -> ! {
    let (control_socket, ready) = setup::run(fork, handed);
    let instance = match ready {
        Ok(instance) => instance,
        Err(failed) => {
            let (step, message) = (failed.step.name().to_owned(), failed.cause.to_string());
            let told = control::send(control_socket.as_fd(), &FromInstance::Failed { step, message }, &[]);
            sys::exit_now(if told.is_ok() { 1 } else { 2 });
        }
    };
    // One that is rewound says it by asking from the stub, when it has been held.
    if !instance.rewinds && control::send(control_socket.as_fd(), &FromInstance::Hello, &[]).is_err() {
        sys::exit_now(2);
    }
    match instance.serve(control_socket, handler) {
        Ok(()) => sys::exit_now(0),
        Err(error) => {
            eprintln!("spry: the instance lost its bus: {error}");
            sys::exit_now(3);
        }
    }
}
