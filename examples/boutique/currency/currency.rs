//! Prices in the customer's currency: [`example_boutique::exchange`].

use example_boutique::exchange;
use spry_fn::{Error, Request, Response};

fn load() -> Result<(), Error> {
    exchange::load();
    Ok(())
}

fn convert(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, exchange::convert_prices)
}

spry_fn::handler!(convert, init = load);
