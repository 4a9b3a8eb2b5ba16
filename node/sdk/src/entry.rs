//! Between the C entry points that [`handler!`](crate::handler) makes and the author's function.

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_int;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi;
use crate::error::Error;
use crate::request::Request;
use crate::response::Response;

/// Runs `function` for one request. Returns what `spry_handle` returns.
///
/// # Safety
///
/// The pointers are those that the runtime passed to `spry_handle`.
#[inline]
pub unsafe fn handle<F>(request: *const abi::Request, response: *mut abi::Response, function: F) -> c_int
where
    F: for<'a> FnOnce(Request<'a>) -> Result<Response<'a>, Error>,
{
    let buffer_taken = Cell::new(false);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the runtime's pointers are valid until `spry_handle` returns, which is after this call.
        let request = unsafe { Request::new(&*request, response, &buffer_taken) };
        let answer = function(request)?;
        // SAFETY: as above, and `answer` was made for this request.
        unsafe { answer.give(response) }
    }));
    // Standard output keeps an unfinished line back; it belongs to this invocation's log.
    let flushed = std::io::stdout().flush();
    debug_assert!(flushed.is_ok());
    let text = match outcome {
        Ok(Ok(())) => return abi::Code::Ok as c_int,
        Ok(Err(error)) => error.text().to_owned(),
        Err(payload) => panic_text(payload.as_ref()),
    };
    // SAFETY: `response` is valid and `fail` copies the text.
    unsafe { ((*response).fail)(response, text.as_ptr().cast(), text.len()) };
    1
}

/// Runs the author's `init`. Returns what `spry_init` returns.
pub fn init(function: impl FnOnce() -> Result<(), Error>) -> c_int {
    let text = match catch_unwind(AssertUnwindSafe(function)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.text().to_owned(),
        Err(payload) => panic_text(payload.as_ref()),
    };
    eprintln!("{text}");
    1
}

#[cold]
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "with something that is no text",
    };
    format!("the function panicked: {message}")
}
