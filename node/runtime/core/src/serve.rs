//! An instance's life after its setup: receive a descriptor, call the handler, answer.
//!
//! The warm path makes two system calls for the bus, and two more that ask whether the log pipes hold anything:
//! if they do, the answer carries [`flags::HOLD`], so that spryd reads the log before the next invocation
//! writes to it. Whoever wrote (the language's own streams, C code, a child process), the pipe knows.

use std::any::Any;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shm_bus::Descriptor;
use shm_bus::transport::{BusError, Endpoint};
use spry_ebpf_common::{flags, status};
use spry_wire::frame::ResponseEncoder;

use crate::handler::{Failure, Handler};
use crate::outbox::{Inbox, Outbox};
use crate::request::Request;
use crate::response::Response;
use crate::sys;

const STDOUT: RawFd = 1;
const STDERR: RawFd = 2;

/// An instance that is set up.
pub(crate) struct Instance {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) endpoint: Box<dyn Endpoint>,
}

impl Instance {
    /// Serves until the bus is closed.
    pub(crate) fn serve<H: Handler>(mut self, handler: &mut H) -> Result<(), BusError> {
        let mut head = ResponseEncoder::default();
        while let Some(descriptor) = self.endpoint.receive()? {
            self.outbox.begin(descriptor.invocation);
            self.outbox.reclaim();
            let mut answer = self.answer(&descriptor, handler, &mut head);
            answer.invocation = descriptor.invocation;
            answer.route = descriptor.route;
            answer.step = descriptor.step;
            handler.flush();
            sys::flush_c_streams();
            if sys::holds_bytes(STDOUT) || sys::holds_bytes(STDERR) {
                answer.flags |= flags::HOLD;
            }
            self.endpoint.send(&answer)?;
        }
        Ok(())
    }

    /// Runs the handler. The result says where the answer lies and what kind it is.
    fn answer<H: Handler>(
        &mut self,
        descriptor: &Descriptor,
        handler: &mut H,
        head: &mut ResponseEncoder,
    ) -> Descriptor {
        let Some(frame) = self.inbox.frame(descriptor) else {
            return self.outbox.fail("the request lies outside the function's inbox");
        };
        let request = match Request::decode(frame, descriptor) {
            Ok(request) => request,
            Err(error) => return self.outbox.fail(&format!("the request can't be read: {error}")),
        };
        let mut response = Response::new(&mut self.outbox, head, request.frame);
        // A handler that panicked half-way is called again: it gets `&mut self` either way, and what it leaves
        // inconsistent is its own function's.
        let outcome = catch_unwind(AssertUnwindSafe(|| handler.call(&request, &mut response)));
        let failure = match outcome {
            Ok(Ok(())) => match response.finish(request.body) {
                Ok(answer) => return Descriptor { flags: answer.flags | status::OK, ..answer },
                Err(error) => Failure::from(error),
            },
            Ok(Err(failure)) => {
                drop(response);
                failure
            }
            Err(payload) => {
                drop(response);
                Failure::new(panic_text(payload.as_ref()))
            }
        };
        self.outbox.fail(&failure.text)
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "with something that is no text",
    };
    format!("the runtime panicked: {message}")
}
