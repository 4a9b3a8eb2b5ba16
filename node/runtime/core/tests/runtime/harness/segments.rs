//! Segments that an instance asks spryd for.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use shm_bus::segment::{Writer, create};
use spry_wire::control::{self, FromInstance, ToInstance};
use spry_wire::frame::{Origin, Place, ResponseHead};

/// What the harness says to a question, by the segment that it is about.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    grants: HashMap<(u32, u32), Grant>,
    /// All questions since the last look.
    asked: Vec<(u32, u32)>,
}

/// The answer to a question; without one on the shelf, it is a refusal.
#[derive(Debug)]
pub(crate) enum Grant {
    /// A message that says `len`, and so many copies of the descriptor beside it.
    Segment { fd: OwnedFd, len: u32, copies: usize },
    /// No answer at all: the socket is closed.
    Close,
}

impl Shelf {
    pub(crate) fn put(&mut self, name: (u32, u32), grant: Grant) {
        self.grants.insert(name, grant);
    }

    /// Which segments it has asked for since the last time.
    pub(crate) fn asked(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.asked)
    }

    /// Answers one question.
    pub(super) fn serve(&mut self, control: BorrowedFd<'_>) {
        let question = control::receive::<FromInstance>(control).expect("receive from the instance");
        let Some((FromInstance::Map { segment, generation }, _)) = question else { return };
        let name = (segment, generation);
        self.asked.push(name);
        match self.grants.get(&name) {
            Some(Grant::Segment { fd, len, copies }) => {
                let fds = vec![fd.as_fd(); *copies];
                control::send(control, &ToInstance::Segment { len: *len }, &fds).expect("send a segment");
            }
            Some(Grant::Close) => {
                nix::sys::socket::shutdown(
                    std::os::fd::AsRawFd::as_raw_fd(&control),
                    nix::sys::socket::Shutdown::Both,
                )
                .expect("shutdown");
            }
            None => {
                let why = "nobody has granted it".to_owned();
                control::send(control, &ToInstance::Refused { why }, &[]).expect("send a refusal");
            }
        }
    }
}

/// The outbox of some other function of the chain.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) name: (u32, u32),
    pub(crate) writer: Writer,
    next: u32,
}

impl Foreign {
    pub(crate) fn new(id: u32, len: u64) -> Self {
        let fd = create("spry-test-foreign", len).expect("create");
        Self { name: (id, 7), writer: Writer::map(fd, len).expect("map"), next: 0 }
    }

    /// Puts bytes behind those that are there.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Place {
        let offset = self.next;
        self.writer.write_at(u64::from(offset), bytes).expect("room");
        self.next = (offset + bytes.len() as u32).next_multiple_of(64);
        let (segment, generation) = self.name;
        Place { segment, generation, offset, length: bytes.len() as u32 }
    }

    /// Puts a response there.
    pub(crate) fn respond(&mut self, origin: Origin, headers: &[(&str, &[u8])], body: &[u8]) -> Place {
        let mut frame = Vec::new();
        ResponseHead { status: 200, origin, headers: headers.to_vec() }.encode(&mut frame).expect("encode");
        frame.extend_from_slice(body);
        self.put(&frame)
    }

    /// What spryd says when it is asked for it and all is well.
    pub(crate) fn grant(&self) -> Grant {
        let fd = self.writer.fd().try_clone_to_owned().expect("dup");
        Grant::Segment { fd, len: self.writer.len() as u32, copies: 1 }
    }
}
