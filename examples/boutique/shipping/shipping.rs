//! What it costs to send the order: [`example_boutique::shipping`].

use example_boutique::shipping;
use spry_fn::{Error, Request, Response};

fn load() -> Result<(), Error> {
    shipping::load();
    Ok(())
}

fn quote(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, shipping::quote)
}

spry_fn::handler!(quote, init = load);
