//! Why there is no zygote, and whose fault it is.

use std::io;
use std::time::Duration;

use super::channel::ChannelError;
use super::exit::Exit;
use super::interpreter::InterpreterError;
use crate::cgroup::CgroupError;
use crate::packages::PackagesError;
use crate::sandbox::{PlanError, StepFailed};
use crate::secrets::SecretError;
use crate::store::StoreError;

/// There is no zygote.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The function can't be loaded: what its author must see.
    #[error("the function can't be loaded: {message}")]
    Code {
        /// The interpreter's traceback, or the loader's message.
        message: String,
        /// What was printed meanwhile.
        output: String,
    },
    /// The process ended while it was loading the function.
    #[error("the process {exit} while it was loading the function")]
    Died {
        /// How.
        exit: Exit,
        /// What was printed before.
        output: String,
    },
    /// Loading took too long.
    #[error("the function wasn't loaded after {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
        /// What was printed meanwhile.
        output: String,
    },
    /// The function's processes can't be given the user that they should have.
    #[error("functions can't run as {wanted:?} when spryd {}", if *.root { "is root: each needs a user of its own" } else { "is not root" })]
    User {
        /// What was asked for.
        wanted: Option<(u32, u32)>,
        /// Whether spryd is root.
        root: bool,
    },
    /// A network of its own is promised, but the kernel or spryd's rights don't allow it.
    #[error("the function must not reach the network, but network namespaces can't be made here")]
    Network,
    /// The interpreter can't be used.
    #[error(transparent)]
    Interpreter(#[from] InterpreterError),
    /// Its packages can't be had.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// Its files can't be read, or aren't those that were deployed.
    #[error(transparent)]
    Files(#[from] StoreError),
    /// Its secrets can't be had.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// Its control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its confinement could not be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its confinement failed in the new process.
    #[error("confine the new process: {0}")]
    Sandbox(#[from] StepFailed),
    /// The process could not be made.
    #[error("{operation}: {source}")]
    Os {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its control socket failed, or it spoke nonsense.
    #[error("talk to the zygote: {source}")]
    Channel {
        /// How.
        source: ChannelError,
        /// What was printed meanwhile.
        output: String,
    },
    /// It could not begin from the layer; it can by itself.
    #[error("the zygote can't begin from its layer: {why}")]
    Layer {
        /// Why.
        why: String,
    },
    /// It answered something that isn't an answer.
    #[error("the zygote answered a request that it wasn't sent")]
    Protocol,
}

impl StartError {
    /// Is it the function's own fault, rather than the node's?
    pub fn blames_function(&self) -> bool {
        matches!(self, Self::Code { .. } | Self::Died { .. } | Self::Timeout { .. } | Self::Protocol)
    }

    /// What the process printed before it failed.
    pub fn output(&self) -> &str {
        match self {
            Self::Code { output, .. }
            | Self::Died { output, .. }
            | Self::Timeout { output, .. }
            | Self::Channel { output, .. } => output,
            _ => "",
        }
    }
}
