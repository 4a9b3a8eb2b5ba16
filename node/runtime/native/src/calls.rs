//! The runtime's half of the C ABI: what a function's pointers point to.
//!
//! Arguments come from the function's own code in the function's own process: nothing is at stake but that
//! process. They are checked where a mistake is likely and can be told (null, ranges, text), not
//! where only malice would get it wrong.

use std::ffi::{c_char, c_int, c_void};

use spry_fn::abi::{self, Code, HandleFn, Header, Part, Slice};
use spry_runtime::{Failure, Request, Response, ResponseError};
use spry_wire::frame::Text;

/// What `spry_response.context` points to during one call.
struct Context<'call, 'a> {
    response: &'call mut Response<'a>,
    failure: Option<String>,
}

/// Memory for the lists of a request, used again for each.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    headers: Vec<Header>,
    parts: Vec<Part>,
}

/// Calls `spry_handle` for one request.
pub(crate) fn call(
    handle: HandleFn,
    lists: &mut Lists,
    request: &Request<'_>,
    response: &mut Response<'_>,
) -> Result<(), Failure> {
    let Lists { headers, parts } = lists;
    headers.clear();
    let header = |(name, value): (Text<'_>, &[u8])| Header { name: slice(name), value: Slice::of(value) };
    headers.extend(request.pairs().map(header));
    parts.clear();
    parts.extend(
        request
            .parts()
            .map(|(name, value)| Part { name: Slice::of(name.as_bytes()), value: Slice::of(value) }),
    );
    let asked = request.asked();
    let raw_request = abi::Request {
        abi_version: abi::ABI_VERSION,
        header_count: headers.len() as u32,
        headers: headers.as_ptr(),
        method: slice(asked.method),
        path: slice(asked.path),
        query: slice(asked.query),
        call_id: slice(asked.call_id),
        deadline_unix_ns: asked.deadline_unix_ns,
        part_count: parts.len(),
        parts: parts.as_ptr(),
        body,
        context: (&raw const *request).cast(),
    };
    let mut context = Context { response, failure: None };
    let mut raw_response = abi::Response {
        context: (&raw mut context).cast(),
        set_status,
        add_header,
        set_body,
        reserve,
        commit,
        pass_through,
        fail,
        emit,
    };
    // SAFETY: `handle` has the type that the library's ABI version vouches for; both structures and all they
    // point to live until it returns.
    let code = unsafe { handle(&raw const raw_request, &raw mut raw_response) };
    match context.failure {
        Some(text) => Err(Failure::new(text)),
        None if code != 0 => Err(Failure::new(format!("the function returned {code}"))),
        None => Ok(()),
    }
}

/// Runs `act` on the response behind `raw`.
///
/// # Safety
///
/// `raw` is what `call` gave to the function that is running now.
unsafe fn with(
    raw: *mut abi::Response,
    act: impl FnOnce(&mut Response<'_>) -> Result<(), ResponseError>,
) -> c_int {
    // SAFETY: by the caller; `call` doesn't touch the context while the function runs, and the function has one
    // thread in here at a time (spry.h).
    let context = unsafe { &mut *(*raw).context.cast::<Context<'_, '_>>() };
    let code = match act(context.response) {
        Ok(()) => Code::Ok,
        Err(ResponseError::Status(_)) => Code::BadStatus,
        Err(ResponseError::Header(_) | ResponseError::Head(_)) => Code::BadHeader,
        Err(ResponseError::TooLarge { .. }) => Code::TooLarge,
        Err(ResponseError::Full { .. }) => Code::Full,
        Err(ResponseError::Commit { reserved: 0, .. }) => Code::Misuse,
        Err(ResponseError::Commit { .. }) => Code::TooLarge,
        Err(ResponseError::Emission(_)) => Code::BadName,
        Err(ResponseError::Emissions) => Code::TooMany,
        Err(ResponseError::NoChain) => Code::NoChain,
        Err(ResponseError::Bus(_)) => Code::Closed,
    };
    code as c_int
}

fn slice(text: Text<'_>) -> Slice {
    Slice::of(text.as_bytes())
}

unsafe extern "C" fn body(raw: *const abi::Request) -> Slice {
    // SAFETY: called by the function that `call` runs, with what `call` gave it.
    let request = unsafe { &*(*raw).context.cast::<Request<'_>>() };
    Slice::of(request.body())
}

unsafe extern "C" fn set_status(raw: *mut abi::Response, status: u16) -> c_int {
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, |response| response.status(status)) }
}

unsafe extern "C" fn add_header(raw: *mut abi::Response, name: Slice, value: Slice) -> c_int {
    // SAFETY: the function vouches for its slices (spry.h).
    let (name, value) = unsafe { (name.bytes(), value.bytes()) };
    let Ok(name) = std::str::from_utf8(name) else { return Code::BadHeader as c_int };
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, |response| response.header(name, value)) }
}

unsafe extern "C" fn set_body(raw: *mut abi::Response, data: *const c_void, len: usize) -> c_int {
    if data.is_null() && len != 0 {
        return Code::Misuse as c_int;
    }
    // SAFETY: the function vouches for its bytes (spry.h).
    let bytes = unsafe { Slice { data: data.cast(), len }.bytes() };
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, |response| response.body(bytes)) }
}

unsafe extern "C" fn reserve(raw: *mut abi::Response, len: usize) -> *mut u8 {
    let mut start = std::ptr::null_mut();
    let act = |response: &mut Response<'_>| response.reserve(len).map(|bytes| start = bytes.as_mut_ptr());
    // SAFETY: called by the function that `call` runs. The room stays where it is until the function commits
    // it, gives another body, or returns.
    let code = unsafe { with(raw, act) };
    debug_assert_eq!(code == 0, !start.is_null());
    start
}

unsafe extern "C" fn commit(raw: *mut abi::Response, len: usize) -> c_int {
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, |response| response.commit(len)) }
}

unsafe extern "C" fn pass_through(raw: *mut abi::Response) -> c_int {
    let act = |response: &mut Response<'_>| {
        response.pass_through();
        Ok(())
    };
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, act) }
}

unsafe extern "C" fn fail(raw: *mut abi::Response, text: *const c_char, len: usize) {
    // SAFETY: the function vouches for its text (spry.h).
    let text = unsafe { Slice { data: text.cast(), len }.bytes() };
    // SAFETY: as in `with`.
    let context = unsafe { &mut *(*raw).context.cast::<Context<'_, '_>>() };
    context.failure = Some(String::from_utf8_lossy(text).into_owned());
}

unsafe extern "C" fn emit(
    raw: *mut abi::Response,
    name: Slice,
    content_type: Slice,
    data: *const c_void,
    len: usize,
) -> c_int {
    if data.is_null() && len != 0 {
        return Code::Misuse as c_int;
    }
    // SAFETY: the function vouches for its slices and bytes (spry.h).
    let (name, content_type, value) =
        unsafe { (name.bytes(), content_type.bytes(), Slice { data: data.cast(), len }.bytes()) };
    let (Ok(name), Ok(content_type)) = (std::str::from_utf8(name), std::str::from_utf8(content_type)) else {
        return Code::BadName as c_int;
    };
    // SAFETY: called by the function that `call` runs.
    unsafe { with(raw, |response| response.emit(name, content_type, value)) }
}
