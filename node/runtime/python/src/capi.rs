//! The parts of CPython's C API that PyO3 doesn't wrap.

use pyo3::ffi;
use pyo3::prelude::*;
use spry_runtime::Side;

/// `PyBUF_READ` and `PyBUF_WRITE` of CPython's object.h; PyO3 has them from the stable ABI of 3.11 on.
const BUF_READ: std::ffi::c_int = 0x100;
const BUF_WRITE: std::ffi::c_int = 0x200;

/// A read-only `memoryview` of `bytes`, without a copy.
///
/// # Safety
///
/// The memory stays mapped for the life of the process: Python code may keep the view, or a slice of it, for as
/// long as it likes. (What it reads there later may be another request's bytes.)
pub(crate) unsafe fn view<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let start = bytes.as_ptr().cast_mut().cast();
    // SAFETY: BUF_READ makes the view read-only; the caller vouches for the memory. The result is a new reference
    // or null with an exception set.
    unsafe {
        let view = ffi::PyMemoryView_FromMemory(start, bytes.len() as ffi::Py_ssize_t, BUF_READ);
        Bound::from_owned_ptr_or_err(py, view)
    }
}

/// A writable `memoryview` of `bytes`.
///
/// # Safety
///
/// As for [`view`]; and nobody else uses the memory before the view is released.
pub(crate) unsafe fn view_mut<'py>(py: Python<'py>, bytes: &mut [u8]) -> PyResult<Bound<'py, PyAny>> {
    let start = bytes.as_mut_ptr().cast();
    // SAFETY: as in `view`, and the caller vouches for writing.
    unsafe {
        let view = ffi::PyMemoryView_FromMemory(start, bytes.len() as ffi::Py_ssize_t, BUF_WRITE);
        Bound::from_owned_ptr_or_err(py, view)
    }
}

/// Runs `clone` with CPython's own preparations and clean-up around it: the import lock, the list of threads,
/// the functions registered with `os.register_at_fork`.
pub(crate) fn around_fork(_py: Python<'_>, clone: &mut dyn FnMut() -> Side) -> Side {
    // SAFETY: this thread is attached (`_py`), and it is the process's only one, before and after.
    unsafe {
        ffi::PyOS_BeforeFork();
        let side = clone();
        match side {
            Side::Parent => ffi::PyOS_AfterFork_Parent(),
            Side::Child => ffi::PyOS_AfterFork_Child(),
        }
        side
    }
}

/// Writes out the C library's buffers and ends the process, running no exit handler.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: null means all streams; `_exit` doesn't return.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(code)
    }
}
