//! The function that does nothing: a constant answer of 27 bytes. What is left is the cost of calling it.

use spry_fn::{Error, Request, Response};

fn nop(_: Request<'_>) -> Result<Response<'_>, Error> {
    Ok(Response::json(r#"{"message":"hello, world!"}"#))
}

spry_fn::handler!(nop);
