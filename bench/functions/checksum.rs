//! A sealed value comes in, is checked, and goes out sealed once more: [`bench_functions`].

use spry_fn::{Error, Request, Response};

fn checksum(request: Request<'_>) -> Result<Response<'_>, Error> {
    let value = request.body();
    if !bench_functions::is_sealed(value) {
        return Err(Error::new(format!("the seal of these {} bytes is broken", value.len())));
    }
    let mut out = request.buffer(value.len() + bench_functions::SEAL_LEN)?;
    out.extend_from_slice(value)?;
    out.extend_from_slice(&bench_functions::sum(value).to_le_bytes())?;
    Ok(Response::buffer(out))
}

spry_fn::handler!(checksum);
