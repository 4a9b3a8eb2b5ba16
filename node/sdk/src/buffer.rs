//! Room for a response body in shared memory.

use std::cell::Cell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::abi;
use crate::error::Error;

/// A response body being written where its reader will find it. Made by [`Request::buffer`](crate::Request::buffer).
///
/// Like a `Vec` that can't grow beyond its capacity: it starts empty, and is appended to by [`io::Write`]
/// or [`Self::extend_from_slice`], or resized and then written as a slice.
#[derive(Debug)]
pub struct Buffer<'a> {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// The request's note that its one buffer is taken: two could overlap.
    taken: &'a Cell<bool>,
}

impl<'a> Buffer<'a> {
    /// # Safety
    ///
    /// `response` is valid until the end of the lifetime that the caller gives to the buffer, and
    /// `taken` is true exactly while a buffer from it is alive.
    pub(crate) unsafe fn reserve(
        response: *mut abi::Response,
        taken: &'a Cell<bool>,
        capacity: usize,
    ) -> Result<Self, Error> {
        if taken.get() {
            return Err(Error::new("a request has one response buffer at a time: drop the other one first"));
        }
        // SAFETY: `response` is valid; its functions are the runtime's.
        let start = unsafe { ((*response).reserve)(response, capacity) };
        let start = NonNull::new(start).ok_or_else(|| {
            Error::new(format!(
                "no room for a response body of {capacity} bytes: it is over the function's payload limit, or \
                 earlier answers are still being sent"
            ))
        })?;
        taken.set(true);
        Ok(Self { start, len: 0, capacity, taken })
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends; the error says that it doesn't fit, and nothing was written.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let at = self.len;
        self.resize(at + bytes.len())?;
        self[at..].copy_from_slice(bytes);
        Ok(())
    }

    /// Makes the body `len` bytes long. New bytes are not zeroed: they hold what an earlier answer of this very
    /// instance left there.
    pub fn resize(&mut self, len: usize) -> Result<(), Error> {
        if len > self.capacity {
            return Err(Error::new(format!("{len} bytes don't fit into a buffer of {}", self.capacity)));
        }
        self.len = len;
        Ok(())
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.taken.set(false);
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the runtime gave `capacity` bytes of its own mapping, initialised, and lends them to nobody
        // else; `len` is at most that.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl io::Write for Buffer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.capacity - self.len);
        if len == 0 && !bytes.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("the buffer's {} bytes are full", self.capacity),
            ));
        }
        let at = self.len;
        self.len += len;
        self[at..].copy_from_slice(&bytes[..len]);
        Ok(len)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
