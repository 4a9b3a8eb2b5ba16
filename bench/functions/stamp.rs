//! The first and the last step of a chain whose hops are timed from within, without the HTTP at both ends.
//!
//! First it answers its input with the time in a header, which travels with it through all that pass it on. When it
//! gets an input with such a header it answers, as text, how many nanoseconds ago that was.
//!
//! With `?make=N` it answers `N` bytes of its own instead, as they lie in its outbox: a large value that nobody has written
//! or copied just before.

use nix::time::{ClockId, clock_gettime};
use spry_fn::{Error, Request, Response};

const HEADER: &str = "x-stamp";

fn now_ns() -> Result<i64, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

fn stamp(request: Request<'_>) -> Result<Response<'_>, Error> {
    if let Some(stamp) = request.header(HEADER) {
        let elapsed = now_ns()? - std::str::from_utf8(stamp)?.parse::<i64>()?;
        return Ok(Response::text(elapsed.to_string()));
    }
    let value = match request.query().strip_prefix("make=") {
        Some(len) => {
            let mut made = request.buffer(len.parse()?)?;
            made.resize(made.capacity())?;
            made
        }
        None => {
            let mut copy = request.buffer(request.body().len())?;
            copy.extend_from_slice(request.body())?;
            copy
        }
    };
    // After the copy: it is no part of a hop.
    Ok(Response::buffer(value).header(HEADER, now_ns()?.to_string().into_bytes()))
}

spry_fn::handler!(stamp);
