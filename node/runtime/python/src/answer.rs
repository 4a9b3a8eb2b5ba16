//! From what a handler returned to a response.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyString};
use spry_runtime::Response;

use crate::CallError;
use crate::capi;
use crate::json::Json;

const NO_CONTENT: u16 = 204;

/// Writes answers; knows the types that a handler may return.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) json: &'static Json,
    response_type: Py<PyAny>,
}

impl Writer {
    pub(crate) fn new(json: &'static Json, response_type: Py<PyAny>) -> Self {
        Self { json, response_type }
    }

    /// Answers with `value`. `body_view` is the view of the request's body, if one was made: returning it passes
    /// the body through.
    pub(crate) fn write(
        &self,
        value: &Bound<'_, PyAny>,
        body_view: Option<&Bound<'_, PyAny>>,
        response: &mut Response<'_>,
    ) -> Result<(), CallError> {
        let py = value.py();
        // (Asking what else it is writes to more pages, all of which a rewinding copies back.)
        if !value.is_exact_instance_of::<PyDict>() && value.is_instance(self.response_type.bind(py))? {
            return self.write_response(value, body_view, response);
        }
        if value.is_none() {
            return Ok(response.status(NO_CONTENT)?);
        }
        if body_view.is_some_and(|view| value.is(view)) {
            response.pass_through();
            return Ok(());
        }
        let content_type = self.write_body(value, body_view, response)?.ok_or_else(|| nonsense(value))?;
        Ok(response.header("content-type", content_type.as_bytes())?)
    }

    /// An answer with status 400 in the contract's form.
    pub(crate) fn refuse(
        &self,
        py: Python<'_>,
        message: &str,
        call_id: &str,
        response: &mut Response<'_>,
    ) -> Result<(), CallError> {
        let error = PyDict::new(py);
        error.set_item("code", "bad_request")?;
        error.set_item("message", message)?;
        error.set_item("call_id", call_id)?;
        let whole = PyDict::new(py);
        whole.set_item("error", error)?;
        response.clear();
        response.status(400)?;
        self.write(whole.as_any(), None, response)
    }

    fn write_response(
        &self,
        value: &Bound<'_, PyAny>,
        body_view: Option<&Bound<'_, PyAny>>,
        response: &mut Response<'_>,
    ) -> Result<(), CallError> {
        let status = value.getattr("status")?;
        let status = status.extract::<u16>().map_err(|_| {
            CallError::Nonsense(format!("the response's status is {}, no number", shown(&status)))
        })?;
        response.status(status)?;
        let typed = self.write_headers(&value.getattr("headers")?, response)?;
        let body = value.getattr("body")?;
        if body.is_none() {
            return Ok(());
        }
        let content_type = self.write_body(&body, body_view, response)?.ok_or_else(|| {
            CallError::Nonsense(format!(
                "the response's body is {}, which is not {ALLOWED}",
                shown_type(&body)
            ))
        })?;
        if !typed {
            response.header("content-type", content_type.as_bytes())?;
        }
        Ok(())
    }

    /// Adds a dict's or a list's headers. Whether one of them is a content type.
    fn write_headers(
        &self,
        headers: &Bound<'_, PyAny>,
        response: &mut Response<'_>,
    ) -> Result<bool, CallError> {
        if headers.is_none() {
            return Ok(false);
        }
        let pairs =
            if headers.is_instance_of::<PyDict>() { headers.call_method0("items")? } else { headers.clone() };
        let mut typed = false;
        for pair in pairs.try_iter()? {
            let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair?.extract().map_err(|_| {
                CallError::Nonsense(
                    "the response's headers are neither a dict nor a list of pairs".to_owned(),
                )
            })?;
            let (name, value) = (name.str()?, value.str()?);
            let name = name.to_cow()?.to_ascii_lowercase();
            response.header(&name, value.to_cow()?.as_bytes())?;
            typed |= name == "content-type";
        }
        Ok(typed)
    }

    /// Writes a body and says of which type it is; `None` when it is nothing that can be one.
    fn write_body(
        &self,
        value: &Bound<'_, PyAny>,
        body_view: Option<&Bound<'_, PyAny>>,
        response: &mut Response<'_>,
    ) -> Result<Option<&'static str>, CallError> {
        if value.is_instance_of::<PyDict>() || value.is_instance_of::<PyList>() {
            response.body(self.json.write(value)?.to_cow()?.as_bytes())?;
            return Ok(Some("application/json"));
        }
        if let Ok(text) = value.cast::<PyString>() {
            response.body(text.to_cow()?.as_bytes())?;
            return Ok(Some("text/plain; charset=utf-8"));
        }
        if let Ok(bytes) = value.cast::<PyBytes>() {
            response.body(bytes.as_bytes())?;
        } else if body_view.is_some_and(|view| value.is(view)) {
            response.pass_through();
        } else if value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>() {
            copy(value, response)?;
        } else {
            return Ok(None);
        }
        Ok(Some("application/octet-stream"))
    }
}

/// Copies what has a buffer into the outbox, by way of Python's own memory views: the stable ABI of Python 3.9 has
/// no other way to a buffer.
fn copy(value: &Bound<'_, PyAny>, response: &mut Response<'_>) -> Result<(), CallError> {
    let py = value.py();
    let source = PyMemoryView::from(value)?;
    if !source.getattr("c_contiguous")?.is_truthy()? {
        return copy(&source.call_method0("tobytes")?, response);
    }
    let len: usize = source.getattr("nbytes")?.extract()?;
    if len == 0 {
        return Ok(response.body(&[])?);
    }
    let room = response.reserve(len)?;
    // SAFETY: the outbox stays mapped, and this view is released before anybody else gets at the room.
    let target = unsafe { capi::view_mut(py, room)? };
    let copied = source
        .call_method1("cast", ("B",))
        .and_then(|source| target.set_item(pyo3::types::PySlice::full(py), source));
    target.call_method0("release")?;
    copied?;
    Ok(response.commit(len)?)
}

const ALLOWED: &str = "a dict, list, str, bytes, spry.Response or None";

fn nonsense(value: &Bound<'_, PyAny>) -> CallError {
    CallError::Nonsense(format!("the function returned {}, which is not {ALLOWED}", shown_type(value)))
}

fn shown_type(value: &Bound<'_, PyAny>) -> String {
    value
        .get_type()
        .qualname()
        .map_or_else(|_| "something".to_owned(), |name| format!("something of type {name}"))
}

fn shown(value: &Bound<'_, PyAny>) -> String {
    value.repr().map_or_else(|_| "something without a repr".to_owned(), |text| text.to_string())
}
