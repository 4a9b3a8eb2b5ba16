//! Answers the request's own body. No byte of it is touched: the descriptor goes back as it came.

use spry_fn::{Error, Request, Response};

fn echo(_: Request<'_>) -> Result<Response<'_>, Error> {
    Ok(Response::pass_through())
}

spry_fn::handler!(echo);
