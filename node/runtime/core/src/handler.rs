//! What a language implements to become a runtime.

use spry_wire::control::Init;
use spry_wire::layer::{Absent, Imports, LayerWish};

use crate::request::Request;
use crate::response::{Response, ResponseError};

/// A loaded function.
///
/// The order of calls: [`load`](Self::load) once, and [`rehearse`](Self::rehearse), before and after memory is frozen; then for
/// every instance [`before_fork`](Self::before_fork), if there is time, and [`around_fork`](Self::around_fork), in the zygote;
/// and in the instance one [`call`](Self::call) per invocation. Where instances are rewound there is no rehearsal, `around_fork`
/// is called once, before the first fork, as if the zygote were the new process, and in the instance
/// [`rewound`](Self::rewound) before each call.
pub trait Handler: Sized {
    /// The runtime's own name and version, e.g. `CPython 3.11.2`.
    fn runtime() -> String;

    /// Loads the function. After it the process must have one thread: the zygote refuses to go on otherwise.
    fn load(init: &Init) -> Result<Self, LoadError>;

    /// Calls `clone`, which returns twice, with whatever the language needs before and after a fork. Output
    /// that the zygote has buffered must be written before, or every instance would write it again.
    fn around_fork(&mut self, clone: &mut dyn FnMut() -> Side) -> Side {
        clone()
    }

    /// Called in the zygote before the first fork, and before each other one that isn't asked for yet: does what must be done for
    /// each, and needn't be done in the new process.
    fn before_fork(&mut self) {}

    /// The threads that loading left behind, by name, for the message of the refusal.
    fn threads(&self) -> Vec<String> {
        crate::sys::other_threads()
    }

    /// What loading has imported beside the function's own modules, where layers can be made of that.
    fn imports(&self, init: &Init) -> Imports {
        let _ = init;
        Imports::default()
    }

    /// Imports what several functions have in common, and nothing of theirs: before [`load`](Self::load), in a process
    /// that becomes a layer. Returns all that is imported then, and what was looked for and isn't there.
    fn preload(wish: &LayerWish) -> Result<(Imports, Absent), LoadError> {
        let _ = wish;
        Err(LoadError::new("this runtime makes no layers"))
    }

    /// As [`around_fork`](Self::around_fork), in such a process: the other side is another zygote.
    fn around_layer(go_on: &mut dyn FnMut() -> Side) -> Side {
        go_on()
    }

    /// Called in an instance before its first call and after each rewinding: makes it differ from what it was after the last one, as forks differ from
    /// one another (generators of random numbers).
    fn rewound(&mut self) {}

    /// Serves one invocation. `Err` (and a panic) fails the invocation and not the instance.
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure>;

    /// Does in the zygote what an instance does around its first call, without what is the function's own: for what is written
    /// meanwhile, see `rehearsal`.
    fn rehearse(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure> {
        let _ = (request, response);
        Ok(())
    }

    /// Writes what the language has buffered of the function's output; the C library's own is written after it.
    fn flush(&mut self) {}
}

/// Which of the two returns of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The zygote; the fork may have failed.
    Parent,
    /// The new instance.
    Child,
}

/// Why a function can't be loaded, in words for its author: what is wrong and what to do about it, or the
/// interpreter's own traceback.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// The text.
    pub message: String,
}

impl LoadError {
    /// A refusal with this text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Why an invocation failed: the first line is the message, the rest the traceback.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The text.
    pub text: String,
}

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

impl From<ResponseError> for Failure {
    fn from(error: ResponseError) -> Self {
        Self { text: error.to_string() }
    }
}
