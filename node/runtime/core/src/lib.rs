//! The part of a runtime that is the same for every language.
//!
//! A runtime is a program that calls [`run`] with its [`Handler`]: the native loader, or Python's extension module.
//! It is started by spryd as a *zygote*: in the function's namespaces, under its final uid, with a control socket
//! as fd 3. It loads the function, then waits for requests to fork. Each fork is an *instance*, a child of
//! spryd (`CLONE_PARENT`), which serves invocations until its end of the bus is closed.
//!
//! ```text
//! zygote      Init ─► Handler::load ─► Ready      Fork ─► clone3 ─► Forked + pidfd      ...
//!                                                          │
//! instance                                                 └─► setup steps ─► Hello ─► receive, call, send ...
//! ```
//!
//! - [`handler`]: what a language implements.
//! - [`request`], [`response`]: one invocation as the handler sees it.
//! - `zygote`, `fork`, `setup`: from the control socket to a running instance.
//! - `layer`: a zygote that begins as what another process was.
//! - `freeze`: between loading and the first fork, so that forks are cheap.
//! - `rewind`: an instance goes back to what it was, instead of ending, where spryd wants that.
//! - `serve`, `outbox`: the invocation loop and the memory that answers lie in.
//! - `input`, `segments`: what a descriptor leads to, and the memory that it lies in.
//!
//! Nothing here trusts the function, and spryd trusts nothing here: once user code is loaded, this is that
//! code's process. What these modules check, they check to give good messages and to fail one invocation
//! instead of the instance.

pub mod handler;
pub mod request;
pub mod response;

mod fork;
mod freeze;
mod input;
mod layer;
mod outbox;
mod rehearsal;
mod rewind;
mod segments;
mod serve;
mod setup;
mod sys;
mod zygote;

pub use handler::{Failure, Handler, LoadError, Side};
pub use request::Request;
pub use response::{Response, ResponseError};
pub use zygote::{begin, run};
