//! Three answers become one order with a total: [`example_boutique::checkout`].

use example_boutique::checkout;
use spry_fn::{Error, Request, Response};

fn add_up(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, checkout::add_up)
}

spry_fn::handler!(add_up);
