//! From a request to what the handler is called with.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use spry_runtime::Request;

use crate::CallError;
use crate::capi;
use crate::json::Json;

/// The parsed object for a handler with one parameter: the body's JSON value or form fields; without a body, the
/// query parameters.
pub(crate) fn params<'py>(
    py: Python<'py>,
    request: &Request<'_>,
    json: &Json,
    glue: &Bound<'py, PyModule>,
) -> Result<Bound<'py, PyAny>, CallError> {
    if request.body.is_empty() {
        return Ok(match request.head.query {
            "" => PyDict::new(py).into_any(),
            query => glue.call_method1("params_of_query", (query,))?,
        });
    }
    let kind = request.header("content-type").map_or(&b""[..], media_type);
    if kind.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        let fields = glue.call_method1("params_of_form", (request.body,));
        return fields.map_err(|error| refuse(py, &error, "form"));
    }
    let Ok(text) = std::str::from_utf8(request.body) else {
        return Err(CallError::BadRequest(bad("the body is not JSON: it is not even text in UTF-8")));
    };
    json.parse(py, text).map_err(|error| refuse(py, &error, "JSON"))
}

/// The arguments of `spry.Request` and of the AWS event: everything as Python objects. The view of the body comes
/// separately, since it has to be released after the call.
pub(crate) fn raw<'py>(
    py: Python<'py>,
    request: &Request<'_>,
) -> PyResult<(RawArguments<'py>, Bound<'py, PyAny>)> {
    let head = &request.head;
    let headers = PyList::empty(py);
    for (name, value) in head.headers.clone() {
        headers.append((PyString::new(py, name), latin1(py, value)))?;
    }
    // SAFETY: the body lies in the inbox, which an instance maps for its whole life.
    let body = unsafe { capi::view(py, request.body)? };
    let arguments = (
        PyString::new(py, head.method),
        PyString::new(py, head.path),
        PyString::new(py, head.query),
        headers,
        body.clone(),
        PyString::new(py, head.call_id),
        head.deadline_unix_ns,
    );
    Ok((arguments, body))
}

/// Method, path, query, headers, body, call id, deadline.
pub(crate) type RawArguments<'py> = (
    Bound<'py, PyString>,
    Bound<'py, PyString>,
    Bound<'py, PyString>,
    Bound<'py, PyList>,
    Bound<'py, PyAny>,
    Bound<'py, PyString>,
    u64,
);

/// Header values are bytes; Python's HTTP libraries agree on ISO 8859-1 for them.
fn latin1<'py>(py: Python<'py>, value: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(value) {
        Ok(text) if value.is_ascii() => PyString::new(py, text),
        _ => PyString::new(py, &value.iter().map(|byte| char::from(*byte)).collect::<String>()),
    }
}

fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// A value that can't be parsed is the client's mistake; anything else (no memory, too deep) is not.
fn refuse(py: Python<'_>, error: &PyErr, what: &str) -> CallError {
    if error.is_instance_of::<PyValueError>(py) {
        CallError::BadRequest(bad(&format!("the body is not {what}: {}", error.value(py))))
    } else {
        CallError::Raised(error.clone_ref(py))
    }
}

fn bad(what: &str) -> String {
    format!(
        "{what}. (This function takes a JSON object; one that takes a spry.Request gets any body as it came.)"
    )
}
