//! An instance's life after its setup: receive a descriptor, call the handler, answer.
//!
//! The warm path makes two system calls for the bus, and one more that asks whether the log pipes hold anything:
//! if they do, the answer carries [`flags::HOLD`], so that spryd reads the log before the next invocation
//! writes to it. Whoever wrote (the language's own streams, C code, a child process), the pipe knows. Both pipes are
//! asked at once, by the epoll descriptor that spryd has made for them: that doesn't even look at pipes to which nobody
//! has written, and no argument of the call has to be checked by the sandbox's filter.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shm_bus::Descriptor;
use shm_bus::transport::{BusError, Endpoint};
use spry_ebpf_common::{flags, status};
use spry_wire::frame::ResponseEncoder;

use crate::handler::{Failure, Handler};
use crate::input::{Input, InputError};
use crate::outbox::Outbox;
use crate::request::Request;
use crate::response::Response;
use crate::segments::{Inbox, Segments};
use crate::{rewind, sys};

/// An instance that is set up.
pub(crate) struct Instance {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) endpoint: Box<dyn Endpoint>,
    /// Tells whether the log pipes hold anything.
    pub(crate) output: OwnedFd,
    pub(crate) payload_max: u64,
    /// It goes back to what it was after each answer.
    pub(crate) rewinds: bool,
}

impl Instance {
    /// Serves until the bus is closed. (A function of its own, so that what a hop needs lies together.)
    ///
    /// `control` is where it asks for other segments than its inbox.
    #[inline(never)]
    pub(crate) fn serve<H: Handler>(self, control: OwnedFd, handler: &mut H) -> Result<(), BusError> {
        let Self { inbox, mut outbox, mut endpoint, output, payload_max, rewinds } = self;
        if rewinds {
            // Here it goes on after each rewinding.
            rewind::hold(&control);
            handler.rewound();
        }
        let mut input = Input::new(Segments::new(inbox, control), payload_max);
        let mut head = ResponseEncoder::default();
        while let Some(descriptor) = endpoint.receive()? {
            outbox.begin(descriptor.invocation);
            outbox.reclaim();
            let answered = answer(
                &descriptor,
                &mut input,
                &mut outbox,
                &mut *endpoint,
                &mut head,
                |request, response| handler.call(request, response),
            );
            let mut answer = match answered {
                Ok(answer) => Descriptor { flags: status::OK, ..answer },
                Err(failure) => outbox.fail(&failure.text),
            };
            answer.invocation = descriptor.invocation;
            answer.route = descriptor.route;
            answer.step = descriptor.step;
            handler.flush();
            sys::flush_c_streams();
            // One that is rewound waits for spryd in any case.
            if !rewinds && sys::has_output(&output) {
                answer.flags |= flags::HOLD;
            }
            endpoint.send(&answer)?;
            if rewinds {
                rewind::again();
            }
        }
        Ok(())
    }
}

/// Runs the handler, by `call`. The result says where the answer lies.
pub(crate) fn answer(
    descriptor: &Descriptor,
    input: &mut Input,
    outbox: &mut Outbox,
    bus: &mut dyn Endpoint,
    head: &mut ResponseEncoder,
    call: impl FnOnce(&Request<'_>, &mut Response<'_>) -> Result<(), Failure>,
) -> Result<Descriptor, Failure> {
    let request = input.read(descriptor, outbox).map_err(unreadable)?;
    let mut response = Response::new(outbox, head, bus, request.call());
    // A handler that panicked half-way is called again: it gets `&mut self` either way, and what it leaves
    // inconsistent is its own function's.
    let outcome = catch_unwind(AssertUnwindSafe(|| call(&request, &mut response)));
    let answered = match outcome {
        Ok(Ok(())) => response.finish(&request).map_err(Failure::from),
        Ok(Err(failure)) => Err(failure),
        Err(payload) => Err(Failure::new(panic_text(payload.as_ref()))),
    };
    let keep = request.is_kept();
    drop(request);
    input.release(keep);
    answered
}

#[cold]
fn unreadable(error: InputError) -> Failure {
    Failure::new(error.to_string())
}

#[cold]
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "with something that is no text",
    };
    format!("the runtime panicked: {message}")
}
