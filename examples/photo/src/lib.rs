//! What the four functions of the chain `photo` do; each of them is a few lines around one of these modules.
//!
//! Between them travels a raw picture ([`raw`]): a photograph of 20 megapixels is 60 MB of it, which each function
//! reads where the one before has written it.

pub mod jpeg;
pub mod mark;
pub mod query;
pub mod raw;
pub mod scale;
