//! A JPEG comes in, a small JPEG goes out: `POST /function/thumbnail?width=320&quality=80`.
//!
//! Whoever calls is not trusted: what isn't a picture, or claims to be a huge one, gets a 400 before any
//! memory is spent on it. The work itself is in `scale.rs`.

mod query;
mod scale;

use query::Query;
use spry_fn::{Error, Request, Response};

fn thumbnail(request: Request<'_>) -> Result<Response<'_>, Error> {
    let made = Query::parse(request.query())
        .map_err(|error| error.to_string())
        .and_then(|query| scale::thumbnail(request.body(), &query).map_err(|error| error.to_string()));
    Ok(match made {
        Ok(jpeg) => Response::new(jpeg).header("content-type", b"image/jpeg".as_slice()),
        Err(reason) => Response::text(reason + "\n").status(400),
    })
}

spry_fn::handler!(thumbnail);
