//! Raw pixels come in, a JPEG goes out: `?quality=85`.

use example_photo::{jpeg, query, raw};
use spry_fn::{Error, Request, Response};

fn encode(request: Request<'_>) -> Result<Response<'_>, Error> {
    let quality = query::quality(request.query())?;
    let (header, rows) = raw::parse(request.body())?;
    let mut out = Vec::new();
    jpeg::encode(&header, rows, quality, &mut out)?;
    Ok(Response::new(out).header("content-type", b"image/jpeg".as_slice()))
}

spry_fn::handler!(encode);
