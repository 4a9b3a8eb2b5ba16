//! Each product of an order once: [`example_boutique::cart`].

use example_boutique::cart;
use spry_fn::{Error, Request, Response};

fn gather(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, cart::gather)
}

spry_fn::handler!(gather);
