//! Python's JSON scanner and encoder, made once.
//!
//! `json.loads` and `json.dumps` do the same work anew at each call: they guess an encoding, match white space
//! with regular expressions, make an encoder object. The C functions inside are called directly here; for whatever
//! the scanner doesn't take, `json.loads` is called after all, to raise its own error.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

#[derive(Debug)]
pub(crate) struct Json {
    scan: Py<PyAny>,
    encode: Py<PyAny>,
    markers: Py<PyDict>,
    loads: Py<PyAny>,
}

impl Json {
    pub(crate) fn new(py: Python<'_>, glue: &Bound<'_, PyModule>) -> PyResult<Self> {
        let (scan, encode, markers) = glue.call_method0("make_json")?.extract()?;
        let loads = py.import("json")?.getattr("loads")?.unbind();
        Ok(Self { scan, encode, markers, loads })
    }

    /// Parses a text.
    pub(crate) fn parse<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
        let text = PyString::new(py, text.trim_matches([' ', '\t', '\n', '\r']));
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
