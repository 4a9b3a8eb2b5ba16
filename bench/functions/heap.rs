//! A function with as much memory as `HEAP_MIB` says, written to while it is loaded: what a fork costs beside it.
//!
//! It answers with the time at its first instruction, as text: nanoseconds of `CLOCK_MONOTONIC`.

use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};
use spry_fn::{Error, Request, Response};

/// Blocks as programs have them: from the heap, not by `mmap`.
const BLOCK: usize = 64 << 10;

static HELD: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

fn prepare() -> Result<(), Error> {
    let mebibytes: usize = std::env::var("HEAP_MIB")?.parse()?;
    let blocks = (mebibytes << 20) / BLOCK;
    HELD.get_or_init(|| (0..blocks).map(|block| vec![block as u8 | 1; BLOCK]).collect());
    Ok(())
}

fn heap(_: Request<'_>) -> Result<Response<'_>, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Response::text((now.tv_sec() * 1_000_000_000 + now.tv_nsec()).to_string()))
}

spry_fn::handler!(heap, init = prepare);
