//! The segments that an instance reads: its inbox, mapped from the start, and others, mapped when an input lies in
//! one.
//!
//! In a chain an input lies where the function before has written it. spryd is asked for that segment once, on the
//! control socket, and says no to what isn't of this chain; what it hands over is mapped read-only and kept, up to
//! [`MAPPED_MAX`] of them, the least recently used going first. Whatever names a place there (a descriptor, a part of
//! a list) may be a lie: a place is checked against the length that was mapped, whose seals say that it can't shrink.

use std::os::fd::{AsFd, OwnedFd};

use shm_bus::segment::{Reader, SegmentError, SegmentName};
use spry_wire::control::{self, ControlError, FromInstance, SegmentSpec, ToInstance};

use crate::outbox::Outbox;

/// Segments that stay mapped beside the inbox, at most.
pub(crate) const MAPPED_MAX: usize = 64;

/// [`Mapped::used`] of what must never be unmapped.
const FOR_EVER: u64 = u64::MAX;

/// Why a segment can't be read. It fails the invocation whose input it is, and no other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("the input lies in a segment that this function may not see: {0}")]
    Refused(String),
    #[error("the input lies in a segment that can't be mapped: {0}")]
    Broken(#[from] SegmentError),
    #[error("the input's segment was granted, but {0} descriptors came with it instead of one")]
    Descriptors(usize),
    #[error("the input's segment can't be asked for: {0}")]
    Asking(#[from] ControlError),
    #[error("the input's segment can't be asked for: spryd has closed the control socket")]
    Closed,
}

/// What [`Segments::find`] found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A segment that stays mapped during this invocation.
    Mapped(Source),
    /// One for which there is no room: this invocation alone uses as many as may stay.
    Passing(Reader),
}

/// Which of the mapped segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Inbox,
    Other(usize),
}

/// All segments that this instance has mapped to read.
#[derive(Debug)]
pub(crate) struct Segments {
    inbox: Reader,
    inbox_name: SegmentName,
    others: Vec<Mapped>,
    control: OwnedFd,
    /// Counts invocations.
    now: u64,
}

#[derive(Debug)]
struct Mapped {
    name: SegmentName,
    reader: Reader,
    /// The invocation that used it last, or [`FOR_EVER`].
    used: u64,
}

impl Segments {
    /// Maps the inbox. On `control`, spryd is asked for others.
    pub(crate) fn new(inbox: Inbox, control: OwnedFd) -> Self {
        let Inbox { reader, name } = inbox;
        Self { inbox: reader, inbox_name: name, others: Vec::new(), control, now: 0 }
    }

    /// Begins the next invocation: what the one before has used may be unmapped.
    pub(crate) fn begin(&mut self) {
        self.now += 1;
    }

    /// Finds a segment, or has it mapped.
    pub(crate) fn find(&mut self, name: SegmentName, outbox: &Outbox) -> Result<Found, MapError> {
        if name == self.inbox_name {
            return Ok(Found::Mapped(Source::Inbox));
        }
        if let Some(index) = self.others.iter().position(|mapped| mapped.name == name) {
            let mapped = &mut self.others[index];
            mapped.used = mapped.used.max(self.now);
            return Ok(Found::Mapped(Source::Other(index)));
        }
        self.map(name, outbox)
    }

    /// Has a segment mapped that isn't.
    #[cold]
    fn map(&mut self, name: SegmentName, outbox: &Outbox) -> Result<Found, MapError> {
        let reader = if name == outbox.name() { outbox.reader()? } else { self.ask(name)? };
        let index = if self.others.len() < MAPPED_MAX {
            self.others.len()
        } else {
            let unused = self.others.iter().enumerate().filter(|(_, mapped)| mapped.used < self.now);
            match unused.min_by_key(|(_, mapped)| mapped.used) {
                Some((index, _)) => index,
                None => return Ok(Found::Passing(reader)),
            }
        };
        let mapped = Mapped { name, reader, used: self.now };
        match self.others.get_mut(index) {
            Some(least_recent) => *least_recent = mapped,
            None => self.others.push(mapped),
        }
        Ok(Found::Mapped(Source::Other(index)))
    }

    /// One of the segments that were found in this invocation.
    pub(crate) fn reader(&self, source: Source) -> &Reader {
        match source {
            Source::Inbox => &self.inbox,
            Source::Other(index) => &self.others[index].reader,
        }
    }

    /// Never unmaps what this invocation has used.
    pub(crate) fn keep_used(&mut self) {
        let used = self.others.iter_mut().filter(|mapped| mapped.used == self.now);
        used.for_each(|mapped| mapped.used = FOR_EVER);
    }

    fn ask(&self, name: SegmentName) -> Result<Reader, MapError> {
        let question = FromInstance::Map { segment: name.id, generation: name.generation };
        control::send(self.control.as_fd(), &question, &[])?;
        match control::receive(self.control.as_fd())? {
            Some((ToInstance::Segment { len }, fds)) => match &fds[..] {
                [fd] => Ok(Reader::map(fd, u64::from(len))?),
                fds => Err(MapError::Descriptors(fds.len())),
            },
            Some((ToInstance::Refused { why }, _)) => Err(MapError::Refused(why)),
            Some((ToInstance::Plan, _)) | None => Err(MapError::Closed),
        }
    }
}

/// The requests' segment, read-only.
#[derive(Debug)]
pub(crate) struct Inbox {
    reader: Reader,
    name: SegmentName,
}

impl Inbox {
    pub(crate) fn map(fd: OwnedFd, spec: &SegmentSpec) -> Result<Self, SegmentError> {
        let name = SegmentName { id: spec.id, generation: spec.generation };
        Ok(Self { reader: Reader::map(fd, u64::from(spec.len))?, name })
    }
}
