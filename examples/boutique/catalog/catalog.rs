//! Names, prices and weights of what is ordered: [`example_boutique::catalog`].

use std::sync::LazyLock;

use example_boutique::catalog;
use spry_fn::{Error, Request, Response};

/// Once, at deployment: every instance is forked with the catalog in its memory.
fn load() -> Result<(), Error> {
    LazyLock::force(&catalog::PRODUCTS);
    Ok(())
}

fn look_up(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, catalog::look_up)
}

spry_fn::handler!(look_up, init = load);
