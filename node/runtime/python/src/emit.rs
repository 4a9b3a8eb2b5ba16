//! `spry.emit`: values for the chain's triggers, while a call goes on.

use std::borrow::Cow;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView, PyString};
use spry_runtime::ResponseError;

use crate::capi;
use crate::json::Json;

/// Gives a copy of a value to the triggers of the chain that this call is part of, and goes on.
///
/// The name is 1 to 64 characters of a-z, 0-9, _ and -. The value is bytes-like, a str, or anything that can be JSON;
/// the content type follows from it unless it is given. What was emitted stays so, even if the call fails.
#[pyfunction]
#[pyo3(signature = (name, value, content_type = None))]
pub(crate) fn emit(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
    content_type: Option<&Bound<'_, PyString>>,
) -> PyResult<()> {
    // All that runs Python code comes first: while the response is borrowed, no other thread may run.
    let (name, given) = (name.to_cow()?, content_type.map(|text| text.to_cow()).transpose()?);
    let (text, bytes);
    let (value, usual): (Cow<'_, [u8]>, _) = if let Ok(value) = value.cast::<PyString>() {
        (into_bytes(value.to_cow()?), "text/plain; charset=utf-8")
    } else if let Ok(value) = value.cast::<PyBytes>() {
        (Cow::Borrowed(value.as_bytes()), "application/octet-stream")
    } else if let Some(view) = view(value) {
        bytes = view.call_method0("tobytes")?.cast_into::<PyBytes>()?;
        (Cow::Borrowed(bytes.as_bytes()), "application/octet-stream")
    } else {
        text = Json::get(py)?.write(value)?;
        (into_bytes(text.to_cow()?), "application/json")
    };
    let content_type = given.as_deref().unwrap_or(usual);
    let emitted = capi::with_response(py, |response| {
        response.map(|response| response.emit(&name, content_type, &value))
    });
    match emitted {
        Ok(emitted) => emitted.map_err(refused),
        Err(why) => Err(PyRuntimeError::new_err(format!("a value can't be emitted: {why}"))),
    }
}

/// A view of what has a buffer.
fn view<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyMemoryView>> {
    if value.is_instance_of::<PyDict>() || value.is_instance_of::<PyList>() {
        return None;
    }
    PyMemoryView::from(value).ok()
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn refused(error: ResponseError) -> PyErr {
    match error {
        ResponseError::Emission(_) | ResponseError::TooLarge { .. } => {
            PyValueError::new_err(error.to_string())
        }
        error => PyRuntimeError::new_err(error.to_string()),
    }
}
