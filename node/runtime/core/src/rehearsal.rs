//! A call that nobody has made, in the zygote: what a new instance does before the function's own code runs, on the pages that
//! it does it on.
//!
//! Done once before memory is frozen, it makes what is made at the first call only. Done again after that, it gives the zygote pages
//! of its own where an instance would write to the frozen file's: a fork copies their entries in the page table, for 0.1 us each,
//! and a write in the instance then costs a third of a fault on the file. None of the function's code is called.

use std::os::fd::AsFd;

use shm_bus::Descriptor;
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{self, Writer};
use shm_bus::transport::{BusError, Endpoint};
use spry_wire::control::SegmentSpec;
use spry_wire::frame::{RequestHead, ResponseEncoder};

use crate::handler::Handler;
use crate::input::Input;
use crate::outbox::Outbox;
use crate::segments::{Inbox, Segments};
use crate::serve::answer;

const LABEL: &str = "spry-rehearsal";
/// Bytes of either segment: whole pages of any size.
const LEN: u32 = 64 << 10;
const INBOX: SegmentSpec = SegmentSpec { id: 1, generation: 1, len: LEN };
const OUTBOX: SegmentSpec = SegmentSpec { id: 2, generation: 1, len: LEN };

/// Has `handler` answer a request without the function. What fails here an instance does later, without having done it before.
pub(crate) fn rehearse<H: Handler>(handler: &mut H) {
    let _not_rehearsed = call(handler);
}

fn call<H: Handler>(handler: &mut H) -> Result<(), Box<dyn std::error::Error>> {
    let mut frame = Vec::new();
    let request = RequestHead { call_id: LABEL, method: "GET", path: "/", ..RequestHead::default() };
    request.encode(&mut frame)?;
    let written = Writer::map(segment::create(LABEL, LEN.into())?, LEN.into())?;
    written.write_at(0, &frame)?;
    let file = || written.fd().try_clone_to_owned();
    let released = ReleaseWriter::create(LABEL)?;
    let outbox = segment::create(LABEL, LEN.into())?;
    let mut outbox = Outbox::map(outbox, released.fd().as_fd().try_clone_to_owned()?, &OUTBOX, LEN.into())?;
    // Nothing is asked for on the control socket: the request lies in the inbox.
    let mut input = Input::new(Segments::new(Inbox::map(file()?, &INBOX)?, file()?), LEN.into());
    let descriptor = Descriptor {
        segment: INBOX.id,
        generation: INBOX.generation,
        length: frame.len() as u32,
        invocation: 1,
        ..Descriptor::default()
    };
    outbox.begin(descriptor.invocation);
    outbox.reclaim();
    let mut head = ResponseEncoder::default();
    let answered =
        answer(&descriptor, &mut input, &mut outbox, &mut Nowhere, &mut head, |request, response| {
            handler.rehearse(request, response)
        });
    handler.flush();
    answered.map(drop).map_err(Box::from)
}

/// The bus of an instance that isn't one.
struct Nowhere;

impl Endpoint for Nowhere {
    fn receive(&mut self) -> Result<Option<Descriptor>, BusError> {
        Ok(None)
    }

    fn send(&mut self, _: &Descriptor) -> Result<(), BusError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spry_wire::control::Init;

    use super::*;
    use crate::handler::{Failure, LoadError};
    use crate::request::Request;
    use crate::response::Response;

    struct Counting {
        rehearsed: Vec<String>,
        flushed: u32,
    }

    impl Handler for Counting {
        fn runtime() -> String {
            "a test".to_owned()
        }

        fn load(_: &Init) -> Result<Self, LoadError> {
            Err(LoadError::new("not needed"))
        }

        fn call(&mut self, _: &Request<'_>, _: &mut Response<'_>) -> Result<(), Failure> {
            Err(Failure::new("this is the function's"))
        }

        fn rehearse(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure> {
            self.rehearsed.push(format!("{} {}", request.method(), request.path()));
            response.body(b"well").map_err(Failure::from)
        }

        fn flush(&mut self) {
            self.flushed += 1;
        }
    }

    #[test]
    fn a_request_is_read_and_answered_and_the_function_is_not_called() {
        let mut handler = Counting { rehearsed: Vec::new(), flushed: 0 };
        call(&mut handler).expect("an answer");
        call(&mut handler).expect("another one");
        assert_eq!((handler.rehearsed, handler.flushed), (vec!["GET /".to_owned(); 2], 2));
    }
}
