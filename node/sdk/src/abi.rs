//! The C ABI between a native function and the runtime, as `include/spry.h` states it.
//!
//! Function authors in Rust use the safe types of this crate instead. `tests/layout.rs` compiles the header with a
//! C compiler and compares every offset with the types here.

use std::ffi::{c_char, c_int, c_void};

/// `SPRY_ABI_VERSION`: the version of everything in this module.
pub const ABI_VERSION: u32 = 2;

/// `struct spry_slice`: bytes that somebody else owns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// The first byte. May be anything when `len` is 0.
    pub data: *const u8,
    /// How many bytes.
    pub len: usize,
}

impl Slice {
    /// Borrows `bytes` for as long as the callee may look at them; the type doesn't hold the lifetime.
    pub const fn of(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes; none when the pointer is null.
    ///
    /// # Safety
    ///
    /// `data` is null or points to `len` bytes that nobody writes to during `'a`.
    pub const unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.data.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: not null, and the caller vouches for length and lifetime.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

/// `struct spry_header`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// In lower case.
    pub name: Slice,
    /// Any bytes that HTTP allows.
    pub value: Slice,
}

/// `struct spry_part`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// May be empty.
    pub name: Slice,
    /// The value.
    pub value: Slice,
}

/// `struct spry_request`: valid until the handler returns.
#[repr(C)]
#[derive(Debug)]
pub struct Request {
    /// The runtime's [`ABI_VERSION`].
    pub abi_version: u32,
    /// Entries of `headers`.
    pub header_count: u32,
    /// The headers.
    pub headers: *const Header,
    /// The HTTP method.
    pub method: Slice,
    /// What follows the function's name in the path.
    pub path: Slice,
    /// The query string without `?`.
    pub query: Slice,
    /// The invocation's public name.
    pub call_id: Slice,
    /// When its time runs out, nanoseconds since the Unix epoch.
    pub deadline_unix_ns: u64,
    /// Entries of `parts`.
    pub part_count: usize,
    /// The values of a list, or the body alone.
    pub parts: *const Part,
    /// The body; made of the parts when it is first asked for, if they are a list.
    pub body: unsafe extern "C" fn(*const Request) -> Slice,
    /// The runtime's own.
    pub context: *const c_void,
}

/// `enum spry_error`: what the functions of [`Response`] return.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// Not between 200 and 599.
    BadStatus = 1,
    /// No HTTP header, too many, or too long.
    BadHeader = 2,
    /// Over the payload limit, or over what was reserved.
    TooLarge = 3,
    /// Earlier answers still take the room.
    Full = 4,
    /// Commit without reserve, a null pointer, text that is not UTF-8.
    Misuse = 5,
    /// No name or content type of an emitted value.
    BadName = 6,
    /// More values than one call may emit.
    TooMany = 7,
    /// The call is not part of a chain.
    NoChain = 8,
    /// spryd is gone.
    Closed = 9,
}

/// `struct spry_response`: the runtime's functions for building an answer.
#[repr(C)]
#[derive(Debug)]
pub struct Response {
    /// The runtime's own.
    pub context: *mut c_void,
    /// Sets the HTTP status.
    pub set_status: unsafe extern "C" fn(*mut Response, u16) -> c_int,
    /// Adds a header.
    pub add_header: unsafe extern "C" fn(*mut Response, Slice, Slice) -> c_int,
    /// Copies a body.
    pub set_body: unsafe extern "C" fn(*mut Response, *const c_void, usize) -> c_int,
    /// Room for a body in shared memory, or null.
    pub reserve: unsafe extern "C" fn(*mut Response, usize) -> *mut u8,
    /// Makes the first bytes of that room the body.
    pub commit: unsafe extern "C" fn(*mut Response, usize) -> c_int,
    /// Makes the request's body the response's.
    pub pass_through: unsafe extern "C" fn(*mut Response) -> c_int,
    /// Fails the invocation with a text.
    pub fail: unsafe extern "C" fn(*mut Response, *const c_char, usize),
    /// Emits a value: name, content type, bytes.
    pub emit: unsafe extern "C" fn(*mut Response, Slice, Slice, *const c_void, usize) -> c_int,
}

/// The type of `spry_abi_version`.
pub type AbiVersionFn = unsafe extern "C" fn() -> u32;
/// The type of `spry_init`.
pub type InitFn = unsafe extern "C" fn() -> c_int;
/// The type of `spry_handle`.
pub type HandleFn = unsafe extern "C" fn(*const Request, *mut Response) -> c_int;
