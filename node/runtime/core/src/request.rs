//! One invocation as the handler gets it.

use std::cell::{Cell, OnceCell};

use shm_bus::Descriptor;
use spry_ebpf_common::CHAIN_BIT;
use spry_wire::frame::{Headers, Joining, Origin, Part, Parts, RequestView, Shape, Text};

use crate::input::{Memory, Piece};

/// A decoded request. Bodies lie in shared memory, which this process can only read.
///
/// In a chain, what was asked (method, path, query, call id, deadline) is what the client asked of the chain; the
/// body is what the step before has made of it.
#[derive(Debug)]
pub struct Request<'a> {
    head: Head<'a>,
    memory: &'a Memory,
    pieces: &'a [Piece],
    joined: OnceCell<Vec<u8>>,
    kept: Cell<bool>,
}

/// What the frames say that a request is made of.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// The descriptor that came in.
    pub(crate) descriptor: Descriptor,
    /// Where the client's request lies.
    pub(crate) origin: Origin,
    /// The client's request.
    pub(crate) request: RequestView<'a>,
    /// The input's own headers, when it isn't the client's request.
    pub(crate) own: Option<Headers<'a>>,
    pub(crate) shape: Shape,
    /// The parts of a view or list, for their names.
    pub(crate) names: Parts<'a>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(head: Head<'a>, memory: &'a Memory, pieces: &'a [Piece]) -> Self {
        Self { head, memory, pieces, joined: OnceCell::new(), kept: Cell::new(false) }
    }

    /// The HTTP method.
    pub fn method(&self) -> &'a str {
        self.head.request.method.as_str()
    }

    /// What follows the function's or the chain's name in the path.
    pub fn path(&self) -> &'a str {
        self.head.request.path.as_str()
    }

    /// The query string without `?`.
    pub fn query(&self) -> &'a str {
        self.head.request.query.as_str()
    }

    /// The invocation's public name.
    pub fn call_id(&self) -> &'a str {
        self.head.request.call_id.as_str()
    }

    /// When the time runs out: nanoseconds since the Unix epoch.
    pub fn deadline_unix_ns(&self) -> u64 {
        self.head.request.deadline_unix_ns
    }

    /// What the client asked, as it lies in its frame. Its headers are those of the client alone: see [`Self::pairs`].
    pub fn asked(&self) -> &RequestView<'a> {
        &self.head.request
    }

    /// Names (in lower case) and values: those of the input, then those of the client's request, except what says
    /// something about the client's body and what the input says itself.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.pairs().map(|(name, value)| (name.as_str(), value))
    }

    /// The same, the names not yet as `str`.
    pub fn pairs(&self) -> impl Iterator<Item = (Text<'a>, &'a [u8])> + use<'a> {
        let own = self.head.own.clone();
        let said = own.clone();
        let first = self.head.request.headers.pairs().filter(move |(name, _)| {
            said.as_ref().is_none_or(|own| {
                !name.as_bytes().starts_with(b"content-") && own.get(name.as_str()).is_none()
            })
        });
        own.into_iter().flat_map(|own| own.pairs()).chain(first)
    }

    /// The value of the first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The body. A list is joined when it is first asked for; everything else lies where its writer put it.
    pub fn body(&self) -> &[u8] {
        match (self.head.shape, self.pieces) {
            (Shape::View, [piece]) => self.memory.bytes(*piece),
            (Shape::View, _) => unreachable!("a view has one part"),
            (Shape::List(joining), pieces) => self.joined.get_or_init(|| {
                let mut joined = Vec::new();
                joining.join(pieces.iter().map(|piece| self.memory.bytes(*piece)), &mut joined);
                joined
            }),
        }
    }

    /// How a list becomes the body; `None` when the body is no list.
    pub fn joining(&self) -> Option<Joining> {
        match self.head.shape {
            Shape::List(joining) => Some(joining),
            Shape::View => None,
        }
    }

    /// The values of a list, in order, by name; of anything else the body alone.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let (memory, mut names) = (self.memory, self.head.names.clone());
        self.pieces.iter().map(move |piece| {
            let name = names.next().map_or("", |Part { name, .. }| name);
            (name, memory.bytes(*piece))
        })
    }

    /// Whether this invocation is a step of a chain.
    pub fn in_chain(&self) -> bool {
        self.head.descriptor.route & CHAIN_BIT != 0
    }

    /// Whether body and parts lie in the inbox alone, which stays mapped whatever happens.
    pub fn stays_mapped(&self) -> bool {
        self.joining().is_none() && self.pieces.iter().all(Piece::is_in_inbox)
    }

    /// Keeps all that this request's slices point to for as long as the process lives: for languages in which a
    /// function may hold on to a view of it, where it doesn't stay anyway ([`Self::stays_mapped`]).
    pub fn keep(&self) {
        self.kept.set(true);
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.get()
    }

    pub(crate) fn call(&self) -> Call {
        Call { descriptor: self.head.descriptor, origin: self.head.origin }
    }
}

/// What an answer says about the invocation that it belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// As it came in.
    pub(crate) descriptor: Descriptor,
    /// Where the client's request lies.
    pub(crate) origin: Origin,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.kept.get() {
            std::mem::forget(self.joined.take());
        }
    }
}
