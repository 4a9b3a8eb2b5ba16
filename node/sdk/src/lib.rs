//! What the author of a native function uses.
//!
//! A function is a `cdylib` with a handler:
//!
//! ```
//! use spry_fn::{Error, Request, Response};
//!
//! fn shout(request: Request<'_>) -> Result<Response<'_>, Error> {
//!     let text = std::str::from_utf8(request.body())?;
//!     Ok(Response::text(text.to_uppercase()))
//! }
//!
//! spry_fn::handler!(shout);
//! # fn main() {}
//! ```
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib"]
//! ```
//!
//! The request lies in shared memory and is borrowed, not copied. A response that is given as bytes is copied
//! once; a [`Buffer`] is written where its reader will find it; [`Response::pass_through`] copies nothing at all.
//!
//! ```
//! # use spry_fn::{Error, Request, Response};
//! fn reversed(request: Request<'_>) -> Result<Response<'_>, Error> {
//!     let mut answer = request.buffer(request.body().len())?;
//!     answer.extend_from_slice(request.body())?;
//!     answer.reverse();
//!     Ok(Response::buffer(answer))
//! }
//! # spry_fn::handler!(reversed);
//! # fn main() {}
//! ```
//!
//! In a chain, a function gets what the one before has answered, where that has written it. A step after a fan-out
//! gets several values ([`Request::parts`]); a step with something to tell the chain's triggers emits it
//! ([`Request::emit`]).
//!
//! An error or a panic fails the invocation (500), and the instance serves the next one. One invocation at a
//! time, on one thread; threads that a function starts must be started by an invocation, not by `init`, since
//! instances are forked from the process in which `init` ran.
//!
//! `include/spry.h` is the same for C; [`abi`] is what both stand on.

pub mod abi;
mod buffer;
mod entry;
mod error;
mod request;
mod response;

pub use buffer::Buffer;
pub use error::Error;
pub use request::Request;
pub use response::Response;

/// Makes a function the handler of this library: `handler!(function)`, or `handler!(function, init = prepare)`
/// with a `fn() -> Result<(), Error>` that runs once, at deployment, before any instance is forked.
///
/// ```
/// use std::sync::OnceLock;
/// use spry_fn::{Error, Request, Response};
///
/// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
///
/// fn prepare() -> Result<(), Error> {
///     let list = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
///     WORDS.get_or_init(|| list.split_whitespace().map(str::to_owned).collect());
///     Ok(())
/// }
///
/// fn count(_: Request<'_>) -> Result<Response<'_>, Error> {
///     Ok(Response::text(WORDS.get().map_or(0, Vec::len).to_string()))
/// }
///
/// spry_fn::handler!(count, init = prepare);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! handler {
    ($function:path) => {
        $crate::handler!(@entry $function);
    };
    ($function:path, init = $init:path) => {
        $crate::handler!(@entry $function);

        /// The runtime calls this once, at deployment.
        #[unsafe(no_mangle)]
        pub extern "C" fn spry_init() -> ::std::ffi::c_int {
            $crate::__entry::init($init)
        }
    };
    (@entry $function:path) => {
        /// Which version of the C ABI this library was built for.
        #[unsafe(no_mangle)]
        pub extern "C" fn spry_abi_version() -> u32 {
            $crate::abi::ABI_VERSION
        }

        /// The runtime calls this for each invocation.
        ///
        /// # Safety
        ///
        /// Only the runtime calls it, with its own request and response.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn spry_handle(
            request: *const $crate::abi::Request,
            response: *mut $crate::abi::Response,
        ) -> ::std::ffi::c_int {
            // SAFETY: the runtime's pointers, passed on.
            unsafe { $crate::__entry::handle(request, response, $function) }
        }
    };
}

/// For [`handler!`] alone.
#[doc(hidden)]
pub mod __entry {
    pub use crate::entry::{handle, init};
}
