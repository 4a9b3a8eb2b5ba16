//! Why a command could not do its work, and which exit code says so.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// One reason to stop.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// Packages are missing and only root may install them.
    NeedsRoot { command: String },
    /// A program could not be started.
    Start { program: String, source: io::Error },
    /// A program ended badly.
    Ended { command: String, status: ExitStatus },
    /// An operation on a file failed.
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// A stage of a longer run failed.
    Stage { name: &'static str, cause: Box<Failure> },
    /// Something was not as it must be.
    Expectation { what: &'static str, found: String },
    /// The user pressed Ctrl-C, or asked xtask to end.
    Interrupted,
}

impl Failure {
    /// For `map_err` after an operation on a file.
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source }
    }

    /// For `map_err` on the error of a module that has a type of its own.
    pub(crate) fn from_display<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Expectation { what, found: error.to_string() }
    }

    /// 64: bad usage; 2: somebody must install something first; 130: interrupted; 1: all else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::NeedsRoot { .. } => 2,
            Self::Interrupted => 130,
            Self::Stage { cause, .. } => cause.exit_code(),
            Self::Start { .. } | Self::Ended { .. } | Self::Io { .. } | Self::Expectation { .. } => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) => write!(f, "{what}; try `cargo xtask help`"),
            Self::NeedsRoot { command } => {
                write!(
                    f,
                    "packages are missing and only root can install them. Run this, then try again:\n\n    {command}\n"
                )
            }
            Self::Start { program, source } => write!(f, "start {program}: {source}"),
            Self::Ended { command, status } => write!(f, "`{command}` ended with {status}"),
            Self::Io { operation, path, source } => write!(f, "{operation} {}: {source}", path.display()),
            Self::Stage { name, cause } => write!(f, "stage `{name}` failed: {cause}"),
            Self::Expectation { what, found } => write!(f, "{what}: {found}"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}
