//! Function processes from spryd's side: zygotes that are started, instances that they fork, and the end of both.
//!
//! - [`Executor`] is made once: it knows what the kernel allows, where the control groups are, and owns the
//!   `nursery`, the thread that is every function process's parent.
//! - [`Zygote::start`] confines a new process (`crate::sandbox`), has it load the function, and gives it over when it
//!   is ready to fork. A function that can't be loaded is its author's affair ([`StartError::blames_function`]).
//! - [`Zygote::fork`] asks for an instance. A zygote has run its function's code, so nothing it says is
//!   believed: the process must be spryd's child, new, the function's user; it is in its own control group
//!   and has sealed its outbox before it is given over.
//! - [`InstanceProcess`] and [`Zygote`] kill what they stand for when they are dropped. Whatever happens, the
//!   nursery reaps the process, kills what it leaves in its control group, and puts the group away.
//!
//! - [`Layer`] is what zygotes of several functions can begin from: packages, imported.
//! - [`Task`] is neither: a confined tool that does one thing and ends.
//!
//! What the processes do inside is `node/runtime`; what they say is `spry_wire::control`.

mod channel;
mod confine;
mod error;
mod executor;
mod exit;
mod fork;
mod instance;
mod interpreter;
mod kit;
mod layer;
mod nursery;
mod output;
pub mod rewind;
mod spec;
mod start;
mod task;

pub use channel::ChannelError;
pub use error::StartError;
pub use executor::{Executor, ExecutorConfig, ExecutorError, Launch};
pub use exit::{Exit, ExitHow};
pub use fork::{ForkError, ForkRequest};
pub use instance::InstanceProcess;
pub use interpreter::{InterpreterError, check_interpreter, find_interpreter};
pub use layer::{Layer, LayerSpec};
pub(crate) use output::read_some;
pub use spec::{Egress, ProcessLimits, Runtime, ZygoteSpec};
pub use start::Zygote;
pub(crate) use start::line;
pub use task::{Task, TaskSpec};
