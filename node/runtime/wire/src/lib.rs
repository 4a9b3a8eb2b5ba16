//! What spryd, zygotes and instances say to each other.
//!
//! - [`frame`]: how an HTTP request and its response lie in a segment. Read by untrusted and trusted
//!   code alike, so decoding checks everything and never panics.
//! - [`control`]: the messages of the control sockets (seqpacket, one message a packet, fds beside it).
//! - [`freeze`]: what becomes of a zygote's memory between the two.
//! - [`layer`]: what several functions have in common.
//! - [`rewind`]: how an instance goes back to what it was before its request.
//! - [`output`]: what tells an instance that it has printed something.
#![deny(unsafe_code)]

pub mod control;
pub mod frame;
pub mod freeze;
pub mod layer;
pub mod output;
pub mod rewind;
mod sys;
