//! One invocation as the handler gets it: slices into the inbox.

use shm_bus::Descriptor;
use spry_wire::frame::{FrameError, RequestView};

/// A decoded request. Everything in it lies in the inbox, which this process can only read.
#[derive(Debug)]
pub struct Request<'a> {
    /// Method, path, query, headers, deadline, call id.
    pub head: RequestView<'a>,
    /// The body, at a multiple of [`spry_wire::frame::ALIGN`] from the frame's start.
    pub body: &'a [u8],
    /// The place of the whole frame, for passing it on.
    pub(crate) frame: Descriptor,
}

impl<'a> Request<'a> {
    /// Decodes `frame`, which `descriptor` names.
    pub(crate) fn decode(frame: &'a [u8], descriptor: &Descriptor) -> Result<Self, FrameError> {
        let (head, body_at) = RequestView::decode(frame)?;
        let body = &frame[body_at..];
        Ok(Self { head, body, frame: *descriptor })
    }

    /// The value of the first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.head.headers.clone().find_map(|(found, value)| (found == name).then_some(value))
    }
}
