//! Values of a call as spryd sees them: frames somewhere in the chain's domain, looked at by copies of their heads, and named
//! in views and lists where they lie.
//!
//! Whoever wrote a frame may still be writing to it. Everything that is decided on is decided on a private copy, and every
//! place is checked against its segment when it is read.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use shm_bus::segment::Reader;
use spry_wire::frame::{
    EMISSION_HEAD_MAX, Emission, Frame, FrameError, Joining, LIST_HEAD_MAX, ListHead, Origin, Part as Named,
    Place, RequestHead, Shape, ViewHead,
};

use super::fields::Fields;
use super::served::Chain;
use super::{Domain, Scope, split};
use crate::gateway::Refusal;
use crate::gateway::call_id::CallId;
use crate::inbox::{Block, Inbox};

/// Most heads are shorter than this: so much is copied at first.
const HEAD_USUAL: u32 = 4096;
const OCTETS: &str = "application/octet-stream";

/// One value's own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where they lie.
    pub place: Place,
    /// Whether they say that they are JSON.
    pub is_json: bool,
}

/// What one call needs to read and write values.
pub struct Values {
    domain: Arc<Domain>,
    origin: Origin,
    payload_max: u64,
    keeps: Rc<Scope>,
}

/// What a frame holds.
enum Opened {
    One(Part),
    List(Joining, Vec<Place>),
}

impl Values {
    /// For a call whose request lies at `request`.
    pub fn new(chain: &Chain, request: Place, keeps: Rc<Scope>) -> Self {
        let origin = Origin { offset: request.offset, length: request.length };
        Self { domain: Arc::clone(&chain.domain), origin, payload_max: chain.plan.payload_bytes, keeps }
    }

    /// For one element of a list in the same call: what it takes can go before the call has ended ([`Self::leave`]).
    pub fn within(&self) -> Self {
        let (domain, keeps) = (Arc::clone(&self.domain), self.keeps.within());
        Self { domain, keeps, ..*self }
    }

    /// What keeps them.
    pub fn keeps(&self) -> &Rc<Scope> {
        &self.keeps
    }

    /// The value in the frame that an element came to. It stays; all else that the element took goes if that is worth a
    /// copy of the value: the blocks of an outbox are few, and a list may be long.
    pub fn leave(self, frame: Place) -> Result<Part, Refusal> {
        let part = self.part(frame)?;
        self.check_size(part.place.length.into())?;
        if let Some(outer) = self.keeps.better_copied(part.place.length.into())
            // (Without room for it, all stays.)
            && let Ok(copy) = copy_to_inbox(&self.domain, part.place)
        {
            let place = copy.place();
            outer.keep(copy);
            return Ok(Part { place, ..part });
        }
        self.keeps.hand_over();
        Ok(part)
    }

    /// What the value in a frame has at these JSON pointers; `None` when it isn't JSON.
    pub fn fields<'p>(
        &self,
        frame: Place,
        pointers: impl Iterator<Item = &'p str>,
    ) -> Result<Option<Fields>, Refusal> {
        let text = self.read(self.part(frame)?.place)?;
        Ok(Fields::read(&text, pointers))
    }

    /// The value in a frame. A list is joined for it.
    pub fn part(&self, frame: Place) -> Result<Part, Refusal> {
        match self.open(frame)? {
            Opened::One(part) => Ok(part),
            Opened::List(joining, places) => {
                let len = joining.len(places.iter().map(|place| place.length));
                self.check_size(len)?;
                let values: Result<Vec<Vec<u8>>, Refusal> =
                    places.iter().map(|place| self.read(*place)).collect();
                let mut joined = Vec::with_capacity(len as usize);
                joining.join(values?.iter().map(Vec::as_slice), &mut joined);
                Ok(Part { place: self.write(&joined)?, is_json: joining == Joining::Json })
            }
        }
    }

    /// The elements of the value in a frame, and what they are.
    pub fn elements(&self, frame: Place) -> Result<(Vec<Place>, &'static str), Refusal> {
        let part = match self.open(frame)? {
            Opened::List(joining, places) => return Ok((places, element_type(joining))),
            Opened::One(part) => part,
        };
        let bytes = self.read(part.place)?;
        let (ranges, joining) = match part.is_json {
            true => (split::json_array(&bytes)?, Joining::Json),
            false => match split::json_array(&bytes) {
                Ok(ranges) => (ranges, Joining::Json),
                Err(_) => (split::frames(&bytes)?, Joining::Framed),
            },
        };
        let element = |range: std::ops::Range<usize>| Place {
            offset: part.place.offset + range.start as u32,
            length: range.len() as u32,
            ..part.place
        };
        Ok((ranges.into_iter().map(element).collect(), element_type(joining)))
    }

    /// A frame that stands for one value.
    pub fn view(&self, place: Place, content_type: &str) -> Result<Place, Refusal> {
        let headers = vec![("content-type", content_type.as_bytes())];
        let head = ViewHead { origin: self.origin, headers, part: Named { name: "", place } };
        self.write_head(|out| head.encode(out))
    }

    /// A frame that stands for several values, with their names.
    pub fn list<'a>(&self, parts: impl Iterator<Item = (&'a str, Part)> + Clone) -> Result<Place, Refusal> {
        let joining =
            if parts.clone().all(|(_, part)| part.is_json) { Joining::Json } else { Joining::Framed };
        let parts: Vec<Named<'a>> = parts.map(|(name, part)| Named { name, place: part.place }).collect();
        self.check_size(joining.len(parts.iter().map(|part| part.place.length)))?;
        let head = ListHead { origin: self.origin, joining, parts };
        self.write_head(|out| head.encode(out))
    }

    /// What an `on_error` function gets.
    pub fn error(&self, step: &str, refusal: &Refusal) -> Result<Place, Refusal> {
        let (_, code) = refusal.status();
        let error =
            serde_json::json!({ "error": { "step": step, "code": code, "message": refusal.to_string() } });
        let place = self.write(error.to_string().as_bytes())?;
        self.view(place, Joining::Json.content_type())
    }

    fn open(&self, frame: Place) -> Result<Opened, Refusal> {
        let mut head = self.copy(Place { length: frame.length.min(HEAD_USUAL), ..frame })?;
        if matches!(Frame::decode(&head), Err(FrameError::Truncated(_))) && frame.length > HEAD_USUAL {
            head = self.copy(Place { length: frame.length.min(LIST_HEAD_MAX as u32), ..frame })?;
        }
        let unreadable = |error| Refusal::BadAnswer(format!("it is no frame: {error}"));
        let (decoded, body_at) = Frame::decode(&head).map_err(unreadable)?;
        let is_json = decoded.headers().get("content-type").is_some_and(is_json);
        if let Frame::Parts(parts) = &decoded {
            let mut places = parts.parts.clone().map(|part| part.place);
            return Ok(match (parts.shape, places.next()) {
                (Shape::View, Some(place)) => Opened::One(Part { place, is_json }),
                (Shape::List(joining), first) => {
                    Opened::List(joining, first.into_iter().chain(places).collect())
                }
                (Shape::View, None) => unreachable!("a view was decoded with one part"),
            });
        }
        // The head lies within the frame: so much of it was copied.
        let body_at = body_at as u32;
        let place = Place { offset: frame.offset + body_at, length: frame.length - body_at, ..frame };
        Ok(Opened::One(Part { place, is_json }))
    }

    /// A value. Who says where it lies may be lying, and a segment is far larger than a value may be.
    fn read(&self, place: Place) -> Result<Vec<u8>, Refusal> {
        self.check_size(u64::from(place.length))?;
        self.copy(place)
    }

    fn copy(&self, place: Place) -> Result<Vec<u8>, Refusal> {
        let (region, _) =
            self.domain.region(&place).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
        let mut bytes = vec![0; region.as_ref().len()];
        shm_bus::copy::copy(&mut bytes, region.as_ref());
        Ok(bytes)
    }

    fn check_size(&self, len: u64) -> Result<(), Refusal> {
        if len <= self.payload_max {
            return Ok(());
        }
        Err(Refusal::ValueTooLarge { len, limit_bytes: self.payload_max })
    }

    fn write_head(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), FrameError>,
    ) -> Result<Place, Refusal> {
        let mut out = Vec::new();
        encode(&mut out).map_err(|error| Refusal::BadValue(error.to_string()))?;
        self.write(&out)
    }

    fn write(&self, bytes: &[u8]) -> Result<Place, Refusal> {
        let block = write(self.domain.inbox(), bytes)?;
        let place = block.place();
        self.keeps.keep(block);
        Ok(place)
    }
}

/// A request that no client has sent, for a call that a trigger starts.
pub(super) fn bare_request(chain: &Chain, call_id: CallId) -> Result<Block, Refusal> {
    let deadline = (SystemTime::now() + chain.plan.timeout).duration_since(UNIX_EPOCH).unwrap_or_default();
    let head = RequestHead {
        deadline_unix_ns: deadline.as_nanos() as u64,
        call_id: call_id.as_str(),
        method: "POST",
        ..RequestHead::default()
    };
    let mut out = Vec::new();
    head.encode(&mut out).map_err(Refusal::HeadTooLarge)?;
    write(chain.domain.inbox(), &out)
}

/// What was emitted at `place` of this outbox: its name, its content type, the value.
pub(super) fn emission(outbox: &Reader, place: Place) -> Result<(String, String, Part), String> {
    let length = u64::from(place.length).min(EMISSION_HEAD_MAX as u64);
    let head = outbox.copy(u64::from(place.offset), length).map_err(|error| error.to_string())?;
    let (emission, value_at) = Emission::decode(&head).map_err(|error| error.to_string())?;
    let value_at = value_at as u32; // within the copy, so within the block
    let place = Place { offset: place.offset + value_at, length: place.length - value_at, ..place };
    let is_json = is_json(emission.content_type().as_bytes());
    Ok((emission.name().to_owned(), emission.content_type().to_owned(), Part { place, is_json }))
}

/// A copy of what lies at `place`, in the inbox.
pub(super) fn copy_to_inbox(domain: &Domain, place: Place) -> Result<Block, Refusal> {
    let (region, _) = domain.region(&place).map_err(|error| Refusal::BadAnswer(error.to_string()))?;
    write(domain.inbox(), region.as_ref())
}

fn write(inbox: &Arc<Inbox>, bytes: &[u8]) -> Result<Block, Refusal> {
    let block = inbox.allocate(bytes.len());
    let mut block = block.ok_or(Refusal::NodeFull { what: "waiting values of this chain" })?;
    block.append(bytes).map_err(|_| Refusal::NodeFull { what: "memory for requests" })?;
    Ok(block)
}

fn is_json(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    kind.eq_ignore_ascii_case(b"application/json") || kind.to_ascii_lowercase().ends_with(b"+json")
}

fn element_type(joining: Joining) -> &'static str {
    match joining {
        Joining::Json => Joining::Json.content_type(),
        Joining::Framed => OCTETS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_content_type() {
        for text in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(text.as_bytes()), "{text}");
        }
        for text in ["", "text/plain", "application/jsonp", "application/octet-stream"] {
            assert!(!is_json(text.as_bytes()), "{text}");
        }
    }
}
