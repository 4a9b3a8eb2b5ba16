//! The parts of CPython's C API that PyO3 doesn't wrap, and the one pointer that Python code finds a response by.

use std::cell::{RefCell, RefMut};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use spry_runtime::{Response, Side};

/// `PyBUF_READ` and `PyBUF_WRITE` of CPython's object.h; PyO3 has them from the stable ABI of 3.11 on.
const BUF_READ: std::ffi::c_int = 0x100;
const BUF_WRITE: std::ffi::c_int = 0x200;

/// A read-only `memoryview` of `bytes`, without a copy.
///
/// # Safety
///
/// The memory stays mapped while the view, or a slice of it, is in use: Python code may keep either for as long as
/// it likes. (What it reads there later may be another request's bytes.)
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

/// The response to the call that is being served, for [`emit`](crate::emit::emit).
#[derive(Debug)]
pub(crate) struct Serving<'call, 'a>(RefCell<&'call mut Response<'a>>);

/// The innermost [`Serving`], or null. Changed and followed by attached threads only.
static SERVING: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

impl<'call, 'a> Serving<'call, 'a> {
    /// Runs `act`, during which [`with_response`] finds this response.
    pub(crate) fn run<R>(
        _py: Python<'_>,
        response: &'call mut Response<'a>,
        act: impl FnOnce(&Self) -> R,
    ) -> R {
        struct Over;
        impl Drop for Over {
            fn drop(&mut self) {
                SERVING.store(ptr::null_mut(), Ordering::Relaxed);
            }
        }
        let serving = Self(RefCell::new(response));
        SERVING.store((&raw const serving).cast_mut().cast(), Ordering::Relaxed);
        let _over = Over;
        act(&serving)
    }

    /// The response, to be answered with. While it is borrowed, nothing can be emitted.
    pub(crate) fn response(&self) -> RefMut<'_, &'call mut Response<'a>> {
        self.0.borrow_mut()
    }
}

/// Runs `act` on the response to the call that is being served, or on the words why there is none. `act` calls nothing
/// of Python's.
pub(crate) fn with_response<R>(
    _py: Python<'_>,
    act: impl FnOnce(Result<&mut Response<'_>, &'static str>) -> R,
) -> R {
    let serving = SERVING.load(Ordering::Relaxed).cast::<Serving<'_, '_>>();
    // SAFETY: only `run` sets the pointer, and it resets it before what it points to goes. This thread is attached
    // (`_py`) from here to the end of `act`, so that `run`, whose thread is attached at its end, can't get there
    // meanwhile, and no other thread can be at the cell.
    match unsafe { serving.as_ref() } {
        None => act(Err("spry.emit is for the time in which a call is served")),
        Some(serving) => match serving.0.try_borrow_mut() {
            Ok(mut response) => act(Ok(&mut response)),
            Err(_) => act(Err("the answer is being written already")),
        },
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
