//! From a request to what the handler is called with.

use pyo3::exceptions::{PyUnicodeDecodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMemoryView, PyString};
use spry_runtime::Request;
use spry_wire::frame::Joining;

use crate::CallError;
use crate::capi;
use crate::json::Json;

/// The parsed object for a handler with one parameter: the body's JSON value or form fields; without a body, the
/// query parameters. Of a list, the list of its JSON values.
pub(crate) fn params<'py>(
    py: Python<'py>,
    request: &Request<'_>,
    json: &Json,
    glue: &Bound<'py, PyModule>,
) -> Result<Bound<'py, PyAny>, CallError> {
    match request.joining() {
        Some(Joining::Json) => return list(py, request, json),
        Some(Joining::Framed) => {
            return Err(CallError::BadRequest(bad("the input is a list of values that are not all JSON")));
        }
        None => {}
    }
    if request.body().is_empty() {
        return Ok(match request.query() {
            "" => PyDict::new(py).into_any(),
            query => glue.call_method1("params_of_query", (query,))?,
        });
    }
    let kind = request.header("content-type").map_or(&b""[..], media_type);
    if kind.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        let fields = glue.call_method1("params_of_form", (request.body(),));
        return fields.map_err(|error| refuse(py, &error, "the body", "form"));
    }
    json.parse(py, request.body()).map_err(|error| refuse(py, &error, "the body", "JSON"))
}

fn list<'py>(py: Python<'py>, request: &Request<'_>, json: &Json) -> Result<Bound<'py, PyAny>, CallError> {
    let values = PyList::empty(py);
    for (at, (_, value)) in request.parts().enumerate() {
        let value = json.parse(py, value);
        values
            .append(value.map_err(|error| refuse(py, &error, &format!("value {at} of the list"), "JSON"))?)?;
    }
    Ok(values.into_any())
}

/// The views of shared memory that a handler gets.
#[derive(Debug, Default)]
pub(crate) struct Views<'py>(Vec<View<'py>>);

#[derive(Debug)]
struct View<'py> {
    given: Bound<'py, PyAny>,
    /// What it is a view of, where slices of it must be noticed.
    under: Option<Bound<'py, PyAny>>,
}

impl<'py> Views<'py> {
    /// A slice of a view goes on living when the view is released, and nobody is told. In the inbox it may: it shows only
    /// what this function is sent. Other memory has to stay for it, so there the view that the handler gets is one of
    /// another view, by way of a `PickleBuffer`: that other one can be released when all that came of it is gone.
    fn add(
        &mut self,
        request: &Request<'_>,
        bytes: &[u8],
        pickle_buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = pickle_buffer.py();
        // SAFETY: the bytes stay where they are until the call's end; if a view of them is in use then, they are kept for
        // ever (`release`).
        let plain = unsafe { capi::view(py, bytes)? };
        let view = if request.stays_mapped() {
            View { given: plain, under: None }
        } else {
            let given = PyMemoryView::from(&pickle_buffer.call1((&plain,))?)?.into_any();
            View { given, under: Some(plain) }
        };
        let given = view.given.clone();
        self.0.push(view);
        Ok(given)
    }

    /// Releases them: a view that the function has kept must not show the next request. Memory of which something is
    /// still in use stays.
    pub(crate) fn release(self, request: &Request<'_>) {
        for View { given, under } in self.0 {
            let released = given.call_method0("release").is_ok();
            if under.is_some_and(|under| !released || under.call_method0("release").is_err()) {
                request.keep();
            }
        }
    }
}

/// The arguments of `spry.Request` and of the AWS event: everything as Python objects, and the views among them. The body
/// of a list is joined if `join`, else left to who wants it.
pub(crate) fn raw<'py>(
    py: Python<'py>,
    request: &Request<'_>,
    join: bool,
    pickle_buffer: &Bound<'py, PyAny>,
) -> PyResult<(RawArguments<'py>, Views<'py>)> {
    let headers = PyList::empty(py);
    for (name, value) in request.headers() {
        headers.append((PyString::new(py, name), latin1(py, value)))?;
    }
    let mut views = Views::default();
    let mut view = |bytes: &[u8]| views.add(request, bytes, pickle_buffer);
    let is_list = request.joining().is_some();
    let body = if is_list && !join { None } else { Some(view(request.body())?) };
    let mut parts = None;
    if is_list || request.parts().next().is_some_and(|(name, _)| !name.is_empty()) {
        let list = PyList::empty(py);
        for (name, value) in request.parts() {
            list.append((PyString::new(py, name), view(value)?))?;
        }
        parts = Some(list);
    }
    let arguments = (
        PyString::new(py, request.method()),
        PyString::new(py, request.path()),
        PyString::new(py, request.query()),
        headers,
        body,
        PyString::new(py, request.call_id()),
        request.deadline_unix_ns(),
        parts,
    );
    Ok((arguments, views))
}

/// Method, path, query, headers, body, call id, deadline, parts.
pub(crate) type RawArguments<'py> = (
    Bound<'py, PyString>,
    Bound<'py, PyString>,
    Bound<'py, PyString>,
    Bound<'py, PyList>,
    Option<Bound<'py, PyAny>>,
    Bound<'py, PyString>,
    u64,
    Option<Bound<'py, PyList>>,
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
fn refuse(py: Python<'_>, error: &PyErr, whose: &str, what: &str) -> CallError {
    if error.is_instance_of::<PyUnicodeDecodeError>(py) {
        CallError::BadRequest(bad(&format!("{whose} is not {what}: it is not even text in UTF-8")))
    } else if error.is_instance_of::<PyValueError>(py) {
        CallError::BadRequest(bad(&format!("{whose} is not {what}: {}", error.value(py))))
    } else {
        CallError::Raised(error.clone_ref(py))
    }
}

fn bad(what: &str) -> String {
    format!(
        "{what}. (This function takes a JSON object; one that takes a spry.Request gets any body as it came.)"
    )
}
