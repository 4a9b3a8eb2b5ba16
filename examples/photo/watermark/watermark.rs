//! Raw pixels come in and go out with a mark in the lower right corner.

use example_photo::raw::HEADER_LEN;
use example_photo::{mark, raw};
use spry_fn::{Error, Request, Response};

fn watermark(request: Request<'_>) -> Result<Response<'_>, Error> {
    let (header, _) = raw::parse(request.body())?;
    let stretches = mark::stretches(&header);
    if stretches.is_empty() {
        return Ok(Response::pass_through());
    }
    // Nobody may change what another function has made, so this is the one step that copies.
    let mut marked = request.buffer(request.body().len())?;
    marked.extend_from_slice(request.body())?;
    for stretch in stretches {
        stretch.apply(&mut marked[HEADER_LEN..]);
    }
    Ok(Response::buffer(marked))
}

spry_fn::handler!(watermark);
