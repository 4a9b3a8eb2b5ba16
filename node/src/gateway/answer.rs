//! From an instance's answer to an HTTP response. Everything that is decided on is copied first: the
//! instance may still be writing.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use shm_bus::Descriptor;
use shm_bus::segment::Region;
use spry_ebpf_common::{flags, status};
use spry_wire::frame::{HEAD_MAX, ResponseHead};

use super::Refusal;
use crate::inbox::Block;
use crate::instance::Instance;

/// Answers up to this length are copied, and the instance gets its block back at once.
const COPY_MAX: u32 = 16 * 1024;
/// A failure's text is cut to this length.
const FAILURE_MAX: u32 = 64 * 1024;

/// A function's result, ready to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status that the function chose.
    pub status: StatusCode,
    /// Its headers, checked.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer: the refusal, and the whole text of a failure (for the log).
#[derive(Debug)]
pub(super) struct Failed {
    /// What the client is told.
    pub refusal: Refusal,
    /// What the function's author is told.
    pub text: Option<String>,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, text: None }
    }
}

/// Reads the answer that `descriptor` names, in the instance's outbox or in the request's own block.
pub(super) fn read(
    descriptor: &Descriptor,
    instance: &Arc<Instance>,
    request: Block,
) -> Result<Answer, Failed> {
    let outbox = instance.outbox_name;
    if (descriptor.segment, descriptor.generation) != (outbox.id, outbox.generation) {
        return passed_through(descriptor, request);
    }
    let block = OutboxBlock { instance: Arc::clone(instance), offset: descriptor.offset };
    let (offset, length) = (u64::from(descriptor.offset), u64::from(descriptor.length));
    let outside = |error| Refusal::BadAnswer(format!("it lies outside its outbox: {error}"));
    if descriptor.flags & status::MASK != status::OK {
        let length = u64::from(descriptor.length.min(FAILURE_MAX));
        let text = instance.outbox.copy(offset, length).map_err(outside)?;
        return Err(failure(String::from_utf8_lossy(&text).into_owned()));
    }
    if descriptor.length <= COPY_MAX {
        let whole = Bytes::from(instance.outbox.copy(offset, length).map_err(outside)?);
        drop(block);
        if descriptor.flags & flags::BARE != 0 {
            return Ok(bare(whole));
        }
        let (status, headers, at) = head(&whole)?;
        return Ok(Answer { status, headers, body: whole.slice(at..) });
    }
    let region = instance.outbox.region(offset, length).map_err(outside)?;
    if descriptor.flags & flags::BARE != 0 {
        return Ok(bare(Bytes::from_owner(InOutbox { region, _block: block })));
    }
    let copied = instance.outbox.copy(offset, length.min(HEAD_MAX as u64)).map_err(outside)?;
    let (status, headers, at) = head(&copied)?;
    let body = Bytes::from_owner(InOutbox { region, _block: block });
    Ok(Answer { status, headers, body: body.slice(at.min(body.len())..) })
}

fn passed_through(descriptor: &Descriptor, request: Block) -> Result<Answer, Failed> {
    let allowed = descriptor.flags & flags::BARE != 0 && descriptor.flags & status::MASK == status::OK;
    let bytes = if allowed { request.into_bytes(descriptor) } else { None };
    match bytes {
        Some(bytes) => Ok(bare(bytes)),
        None => {
            Err(Refusal::BadAnswer("it names memory that is neither its own nor the request's".into()).into())
        }
    }
}

fn bare(body: Bytes) -> Answer {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Answer { status: StatusCode::OK, headers, body }
}

/// Decodes a copied head; the third value says where the body starts.
fn head(frame: &[u8]) -> Result<(StatusCode, HeaderMap, usize), Refusal> {
    let (head, at) = ResponseHead::decode(frame).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 4);
    let status = super::headers::take_over(&head, &mut headers)?;
    Ok((status, headers, at))
}

fn failure(text: String) -> Failed {
    let first = text.lines().next().unwrap_or_default();
    let message = if first.is_empty() { "the function failed without saying why" } else { first };
    Failed { refusal: Refusal::FunctionFailed { message: message.to_owned() }, text: Some(text) }
}

/// An answer's block in an outbox; the instance gets it back when this is dropped.
struct OutboxBlock {
    instance: Arc<Instance>,
    offset: u32,
}

impl Drop for OutboxBlock {
    fn drop(&mut self) {
        self.instance.release.post(self.offset);
    }
}

struct InOutbox {
    region: Region,
    _block: OutboxBlock,
}

impl AsRef<[u8]> for InOutbox {
    fn as_ref(&self) -> &[u8] {
        self.region.as_ref()
    }
}
