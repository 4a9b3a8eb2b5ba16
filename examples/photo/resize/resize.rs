//! Raw pixels come in, fewer and upright ones go out: `?width=640`.

use example_photo::{query, raw, scale};
use spry_fn::{Error, Request, Response};

fn resize(request: Request<'_>) -> Result<Response<'_>, Error> {
    let width = query::width(request.query())?;
    let (large, rows) = raw::parse(request.body())?;
    let (small, rows) = scale::scale(&large, rows, width);
    let mut out = request.buffer(small.picture_len() as usize)?;
    out.extend_from_slice(&small.to_bytes())?;
    out.extend_from_slice(&rows)?;
    Ok(Response::buffer(out))
}

spry_fn::handler!(resize);
