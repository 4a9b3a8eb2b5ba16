//! The Python runtime: an extension module that turns the interpreter it is imported into into a zygote.
//!
//! spryd starts the node's (or the function's own) interpreter with `bootstrap.py`, which imports this
//! module and calls its `main`. The module is built for the stable ABI of CPython 3.9, so that one file serves
//! every interpreter since.
//!
//! - `python`: the [`Handler`](spry_runtime::Handler): loading, forking, one call after the other.
//! - `arguments`: from a request to what the handler is called with.
//! - `answer`: from what it returned to a response.
//! - `emit`: what a function says before its answer.
//! - `json`: Python's own C scanner and encoder, prepared once.
//! - `capi`: where there are no safe words: memory views, the fork hooks, the response that `spry.emit` finds.
//! - `spry.py`: what function authors import. `glue.py`: what is shorter in Python, off the warm path.
//!   `watch.py`: what importing looks for while a layer is made.

mod answer;
mod arguments;
mod capi;
mod emit;
mod json;
mod python;

use pyo3::prelude::*;

/// The extension module.
#[pymodule]
mod _spry {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::emit::emit;
    use crate::python::Python as Runtime;

    /// Does what must be done before any code of the function runs.
    #[pyfunction]
    fn begin() {
        spry_runtime::begin();
    }

    /// Becomes a zygote. Never returns.
    #[pyfunction]
    fn main(py: Python<'_>) {
        // Every call into Python attaches again; a thread that the function has started runs meanwhile.
        py.detach(|| spry_runtime::run::<Runtime>())
    }
}

/// Something went wrong between Python and a response.
#[derive(Debug)]
enum CallError {
    /// The request isn't what the handler takes: 400 with this message.
    BadRequest(String),
    /// The function raised.
    Raised(PyErr),
    /// The function returned what can't be answered.
    Nonsense(String),
    /// The response wasn't taken.
    Response(spry_runtime::ResponseError),
}

impl From<PyErr> for CallError {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl From<spry_runtime::ResponseError> for CallError {
    fn from(error: spry_runtime::ResponseError) -> Self {
        Self::Response(error)
    }
}
