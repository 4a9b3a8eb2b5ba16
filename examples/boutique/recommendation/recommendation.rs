//! What might please, too: [`example_boutique::recommendation`].

use example_boutique::order::Order;
use example_boutique::recommendation;
use spry_fn::{Error, Request, Response};

fn load() -> Result<(), Error> {
    recommendation::load();
    Ok(())
}

fn recommend(request: Request<'_>) -> Result<Response<'_>, Error> {
    example_boutique::step(request, |order: Order| recommendation::recommend(&order))
}

spry_fn::handler!(recommend, init = load);
