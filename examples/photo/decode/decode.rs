//! A JPEG comes in, its pixels go out: [`example_photo::raw`].

use example_photo::jpeg::Picture;
use example_photo::raw::HEADER_LEN;
use spry_fn::{Error, Request, Response};

fn decode(request: Request<'_>) -> Result<Response<'_>, Error> {
    let picture = Picture::open(request.body())?;
    let header = picture.header();
    let len = header.picture_len() as usize;
    // Decoded where the next step reads it.
    let mut raw = request.buffer(len)?;
    raw.extend_from_slice(&header.to_bytes())?;
    raw.resize(len)?;
    picture.decode(&mut raw[HEADER_LEN..])?;
    Ok(Response::buffer(raw))
}

spry_fn::handler!(decode);
