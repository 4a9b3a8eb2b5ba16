//! A customer's order comes in and is checked: [`example_boutique::frontend`].

use example_boutique::frontend;
use spry_fn::{Error, Request, Response};

fn accept(request: Request<'_>) -> Result<Response<'_>, Error> {
    // The call's own name is one that no other order has.
    example_boutique::step(request, |new| frontend::accept(new, request.call_id()))
}

spry_fn::handler!(accept);
