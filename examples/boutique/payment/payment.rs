//! Charges the card: [`example_boutique::payment`].

use std::time::SystemTime;

use example_boutique::payment::{self, Month};
use spry_fn::{Error, Request, Response};

fn charge(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, |order| payment::charge(order, Month::of(SystemTime::now())))
}

spry_fn::handler!(charge);
