//! From an instance's answer to an HTTP response. Everything that is decided on is copied first: the
//! instance may still be writing.
//!
//! What comes back is a frame of any kind. An instance writes responses; a request, a view or a list is what spryd
//! has sent out itself, passed through: its body is the result. Where bytes lie, and what keeps them there until
//! they have been sent, is the caller's knowledge ([`read`]'s `find`).

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use shm_bus::Descriptor;
use shm_bus::segment::{Region, SegmentError};
use spry_ebpf_common::status;
use spry_wire::frame::{self, Frame, FrameError, Headers, Joining, LIST_HEAD_MAX, PartsView, Place, Shape};

use super::Refusal;
use crate::chain::{Chain, Holdings};
use crate::inbox::Block;
use crate::instance::Instance;

/// Answers up to this length are copied, and the instance gets its block back at once.
pub(super) const COPY_MAX: usize = 16 * 1024;
/// A failure's text is cut to this length.
const FAILURE_MAX: usize = 64 * 1024;

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
pub struct Failed {
    /// What the client is told.
    pub refusal: Refusal,
    /// What the function's author is told.
    pub text: Option<String>,
}

impl Failed {
    /// The same, of a chain's step.
    pub(crate) fn at_step(self, step: &str) -> Self {
        let refusal = match self.refusal {
            Refusal::Step { .. } => self.refusal,
            refusal => Refusal::Step { step: step.to_owned(), refusal: Box::new(refusal) },
        };
        Self { refusal, ..self }
    }
}

impl Answer {
    /// What the client gets.
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let bodiless = self.status == StatusCode::NO_CONTENT || self.status == StatusCode::NOT_MODIFIED;
        let body = if bodiless { Full::default() } else { Full::new(self.body) };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, text: None }
    }
}

/// Bytes of an answer, as they lie.
#[derive(Debug)]
pub(super) struct Held<K> {
    bytes: Region,
    writer: Writer,
    _keep: K,
}

impl<K> Held<K> {
    /// Bytes by that writer. `keep` is dropped when they have been sent: it keeps their place from being used again.
    pub(super) fn new(bytes: Region, writer: Writer, keep: K) -> Self {
        Self { bytes, writer, _keep: keep }
    }
}

/// Who wrote a frame, and so which kinds it may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// This process: a request, a view or a list, that nobody has changed since.
    Spryd,
    /// An instance: a response, or the text of a failure.
    Instance,
}

impl<K> AsRef<[u8]> for Held<K> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Reads the answer that `descriptor` names. `find` says what lies at a place: the answer's own, and those of the parts
/// of a view or a list. A list is joined to a body of at most `limit_bytes`.
pub(super) fn read<K: Send + 'static>(
    descriptor: &Descriptor,
    limit_bytes: u64,
    mut find: impl FnMut(&Place) -> Result<Held<K>, Refusal>,
) -> Result<Answer, Failed> {
    let held = find(&place(descriptor))?;
    let failed = descriptor.flags & status::MASK != status::OK;
    match held.writer {
        Writer::Instance if failed => {
            let text = held.as_ref();
            Err(failure(String::from_utf8_lossy(&copied(&text[..text.len().min(FAILURE_MAX)])).into_owned()))
        }
        Writer::Instance => Ok(response(held)?),
        Writer::Spryd if failed => {
            Err(Refusal::BadAnswer("it failed with its own input as the reason".into()).into())
        }
        Writer::Spryd => Ok(passed_through(held, limit_bytes, find)?),
    }
}

/// Where the memory of one call to one function is: the outbox of its instance, and the request's own block.
pub(super) fn of_call(
    instance: &Arc<Instance>,
    request: Block,
) -> impl FnMut(&Place) -> Result<Held<Kept>, Refusal> {
    let instance = Arc::clone(instance);
    let mut request = Some(request);
    move |place| {
        // (A copy of it is what the instance has, in an inbox of its own.)
        if let Some(block) = request.take_if(|block| block.is_laid_at(place, instance.own_inbox)) {
            let bytes = block.region().map_err(outside)?;
            return Ok(Held::new(bytes, Writer::Spryd, Kept::Request(block)));
        }
        let outbox = instance.outbox_name;
        if (place.segment, place.generation) != (outbox.id, outbox.generation) {
            return Err(Refusal::BadAnswer(
                "it names memory that is neither its own nor the request's".into(),
            ));
        }
        let bytes = instance.outbox.region(u64::from(place.offset), u64::from(place.length));
        let block = OutboxBlock { instance: Arc::clone(&instance), offset: place.offset };
        Ok(Held::new(bytes.map_err(outside)?, Writer::Instance, Kept::Outbox(block)))
    }
}

/// The result of a chain, which lies anywhere in its domain.
pub(super) fn of_chain(result: Place, holdings: Holdings, chain: &Chain) -> Result<Answer, Failed> {
    let holdings = Arc::new(holdings);
    let named = Descriptor {
        segment: result.segment,
        generation: result.generation,
        offset: result.offset,
        length: result.length,
        ..Descriptor::default()
    };
    let limit_bytes = chain.plan.payload_bytes;
    read(&named, limit_bytes, |place| {
        // A frame with its head, or a value: whoever named it may have meant a whole segment.
        if u64::from(place.length) > limit_bytes.saturating_add(LIST_HEAD_MAX as u64) {
            return Err(Refusal::ValueTooLarge { len: place.length.into(), limit_bytes });
        }
        let found = chain.domain.region(place);
        let (bytes, by_spryd) = found.map_err(|error| Refusal::BadAnswer(error.to_string()))?;
        let writer = if by_spryd { Writer::Spryd } else { Writer::Instance };
        Ok(Held::new(bytes, writer, Arc::clone(&holdings)))
    })
}

/// The text of a step that has failed.
pub(crate) fn failure_in(instance: &Arc<Instance>, descriptor: &Descriptor) -> Failed {
    let outbox = instance.outbox_name;
    if (descriptor.segment, descriptor.generation) != (outbox.id, outbox.generation) {
        return Refusal::BadAnswer("it failed with its own input as the reason".into()).into();
    }
    let length = descriptor.length.min(FAILURE_MAX as u32);
    match instance.outbox.copy(u64::from(descriptor.offset), u64::from(length)) {
        Ok(text) => failure(String::from_utf8_lossy(&text).into_owned()),
        Err(error) => outside(error).into(),
    }
}

/// What [`of_call`] keeps.
#[derive(Debug)]
#[expect(dead_code, reason = "kept to be dropped")]
pub(super) enum Kept {
    Request(Block),
    Outbox(OutboxBlock),
}

/// An answer's block in an outbox; the instance gets it back when this is dropped.
#[derive(Debug)]
pub(super) struct OutboxBlock {
    instance: Arc<Instance>,
    offset: u32,
}

impl Drop for OutboxBlock {
    fn drop(&mut self) {
        self.instance.release.post(self.offset);
    }
}

fn response<K: Send + 'static>(held: Held<K>) -> Result<Answer, Refusal> {
    if held.as_ref().len() <= COPY_MAX {
        let whole = Bytes::from(copied(held.as_ref()));
        drop(held);
        let (status, headers, body_at) = response_head(&whole)?;
        return Ok(Answer { status, headers, body: whole.slice(body_at..) });
    }
    let mut head = Vec::new();
    frame::copy_head(held.as_ref(), &mut head).map_err(malformed)?;
    let (status, headers, body_at) = response_head(&head)?;
    Ok(Answer { status, headers, body: Bytes::from_owner(held).slice(body_at..) })
}

/// Decodes a copied head; the third value says where the body starts.
fn response_head(copied: &[u8]) -> Result<(StatusCode, HeaderMap, usize), Refusal> {
    let (Frame::Response(head), body_at) = Frame::decode(copied).map_err(malformed)? else {
        return Err(Refusal::BadAnswer("it is no response".into()));
    };
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 4);
    let status = super::headers::take_over(head.status, head.headers, &mut headers)?;
    Ok((status, headers, body_at))
}

fn passed_through<K: Send + 'static>(
    held: Held<K>,
    limit_bytes: u64,
    mut find: impl FnMut(&Place) -> Result<Held<K>, Refusal>,
) -> Result<Answer, Refusal> {
    let mut copy = Vec::new();
    frame::copy_head(held.as_ref(), &mut copy).map_err(malformed)?;
    let (head, body_at) = Frame::decode(&copy).map_err(malformed)?;
    match head {
        // What the client said about its body, it said to the function.
        Frame::Request(_) => Ok(bare(Bytes::from_owner(held).slice(body_at..), &Headers::default())),
        Frame::Response(_) => Err(Refusal::BadAnswer("a response lies among the requests".into())),
        Frame::Parts(PartsView { shape: Shape::List(joining), headers, parts, .. }) => {
            let body = joined(joining, parts.map(|part| find(&part.place)), limit_bytes)?;
            Ok(bare(body, &headers))
        }
        Frame::Parts(PartsView { shape: Shape::View, headers, parts, .. }) => {
            let mut values = parts.map(|part| find(&part.place));
            let value = values.next().expect("decoding checked that a view has a part")?;
            Ok(bare(Bytes::from_owner(value), &headers))
        }
    }
}

fn joined<K>(
    joining: Joining,
    parts: impl Iterator<Item = Result<Held<K>, Refusal>>,
    limit_bytes: u64,
) -> Result<Bytes, Refusal> {
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let len = joining.len(parts.iter().map(|part| part.bytes.len() as u32));
    if len > limit_bytes {
        return Err(Refusal::BadAnswer(format!(
            "its list of {len} bytes is over the payload limit of {limit_bytes} bytes"
        )));
    }
    let mut body = Vec::with_capacity(len as usize);
    joining.join(parts.iter().map(AsRef::as_ref), &mut body);
    Ok(Bytes::from(body))
}

/// A body without a response around it, of the content type that `headers` say, if they do.
fn bare(body: Bytes, headers: &Headers<'_>) -> Answer {
    let said = headers.get(CONTENT_TYPE.as_str()).and_then(|value| HeaderValue::from_bytes(value).ok());
    let content_type = said.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, content_type);
    Answer { status: StatusCode::OK, headers, body }
}

/// The place that a descriptor names.
pub(super) fn place(descriptor: &Descriptor) -> Place {
    let Descriptor { segment, generation, offset, length, .. } = *descriptor;
    Place { segment, generation, offset, length }
}

pub(super) fn copied(bytes: &[u8]) -> Vec<u8> {
    let mut copy = vec![0; bytes.len()];
    shm_bus::copy::copy(&mut copy, bytes);
    copy
}

fn outside(error: SegmentError) -> Refusal {
    Refusal::BadAnswer(format!("it lies outside its outbox: {error}"))
}

fn malformed(error: FrameError) -> Refusal {
    Refusal::BadAnswer(error.to_string())
}

fn failure(text: String) -> Failed {
    let first = text.lines().next().unwrap_or_default();
    let message = if first.is_empty() { "the function failed without saying why" } else { first };
    Failed { refusal: Refusal::FunctionFailed { message: message.to_owned() }, text: Some(text) }
}
