//! Python's JSON scanner and encoder, made once.
//!
//! `json.loads` and `json.dumps` do the same work anew at each call: they guess an encoding, match white space
//! with regular expressions, make an encoder object. The C functions inside are called directly here; for whatever
//! the scanner doesn't take, `json.loads` is called after all, to raise its own error.

use std::sync::OnceLock;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

static PREPARED: OnceLock<Json> = OnceLock::new();

#[derive(Debug)]
pub(crate) struct Json {
    scan: Py<PyAny>,
    encode: Py<PyAny>,
    markers: Py<PyDict>,
    loads: Py<PyAny>,
}

impl Json {
    /// Prepares it, once.
    pub(crate) fn prepare(py: Python<'_>, glue: &Bound<'_, PyModule>) -> PyResult<&'static Self> {
        let (scan, encode, markers) = glue.call_method0("make_json")?.extract()?;
        let loads = py.import("json")?.getattr("loads")?.unbind();
        Ok(PREPARED.get_or_init(|| Self { scan, encode, markers, loads }))
    }

    /// What was prepared.
    pub(crate) fn get(_: Python<'_>) -> PyResult<&'static Self> {
        PREPARED.get().ok_or_else(|| PyRuntimeError::new_err("the function is still being loaded"))
    }

    /// Does both once, with nobody's values: what the interpreter and the linker look up for the first call only is looked up then, and
    /// not by each instance.
    pub(crate) fn warm(&self, py: Python<'_>) {
        // Only a function that has taken `json` apart makes it fail, and hears of it when it is called.
        let _passed = self.parse(py, br#"{"text": "", "number": 1}"#).and_then(|value| self.write(&value));
    }

    /// Parses bytes, which may be changing: they are read once, when they become a Python string. What is no UTF-8 is a
    /// `UnicodeDecodeError`.
    pub(crate) fn parse<'py>(&self, py: Python<'py>, mut bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] | [rest @ .., b' ' | b'\t' | b'\n' | b'\r'] =
            bytes
        {
            bytes = rest;
        }
        let text = PyString::from_bytes(py, bytes)?;
        if let Ok(scanned) = self.scan.bind(py).call1((&text, 0)) {
            let (value, end): (Bound<'py, PyAny>, usize) = scanned.extract()?;
            if end == text.len()? {
                return Ok(value);
            }
        }
        self.loads.bind(py).call1((text,))
    }

    /// Writes a value down, compactly, in ASCII.
    pub(crate) fn write<'py>(&self, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
        let py = value.py();
        let pieces = match self.encode.bind(py).call1((value, 0)) {
            Ok(pieces) => pieces,
            Err(error) => {
                self.markers.bind(py).clear();
                return Err(error);
            }
        };
        if let Ok(pieces) = pieces.cast::<PyTuple>()
            && pieces.len() == 1
        {
            return Ok(pieces.get_item(0)?.cast_into::<PyString>()?);
        }
        Ok(PyString::new(py, "").call_method1("join", (pieces,))?.cast_into::<PyString>()?)
    }
}
