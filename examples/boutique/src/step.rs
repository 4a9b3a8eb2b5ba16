//! Between a function's bytes and its values: JSON in, JSON out.

use serde::Serialize;
use serde::de::DeserializeOwned;
use spry_fn::{Error, Request, Response};

/// The request's JSON through `work`, as a JSON answer.
pub fn step<I: DeserializeOwned, O: Serialize, E: std::error::Error>(
    request: Request<'_>,
    work: impl FnOnce(I) -> Result<O, E>,
) -> Result<Response<'_>, Error> {
    let input = serde_json::from_slice(request.body())?;
    Ok(Response::json(serde_json::to_string(&work(input)?)?))
}
