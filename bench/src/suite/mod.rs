//! The benchmarks. Each starts what it measures, gives back rows, and leaves nothing behind.

pub mod chain;
pub mod chaos;
pub mod compare;
pub mod density;
pub mod http;
pub mod idle;
pub mod isolation;
pub mod later;
pub mod layers;
pub mod overload;
pub mod redeploy;
pub mod sched;
pub mod soak;

use std::time::{Duration, Instant};

use crate::floor::FloorError;
use crate::load::{LoadError, Target};
use crate::node::{Function, Node, NodeError};
use crate::stop::Stop;

/// How long a request may take before it is an error.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Warm answers in a row before anything is measured.
const WARM_ANSWERS: usize = 20;

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The floor did not run.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// spryd did not run, or refused.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// No load could be made.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A server is gone that should be there.
    #[error("read the process table for {what}: {source}")]
    Process {
        /// Of which server.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The bare bus failed.
    #[error(transparent)]
    PingPong(#[from] crate::pingpong::PingPongError),
    /// A single call failed.
    #[error(transparent)]
    Call(#[from] crate::http1::CallError),
    /// An answer is not what it must be.
    #[error("{what}: {found}")]
    Answer {
        /// Whose.
        what: String,
        /// What it is instead.
        found: String,
    },
    /// The plain loop on SQLite failed.
    #[error("SQLite: {0}")]
    Sqlite(rusqlite::Error),
    /// The kernel doesn't say what BPF programs have used.
    #[error("the kernel's account of BPF programs: {0}")]
    Account(std::io::Error),
    /// perf failed.
    #[error("perf: {0}")]
    Perf(std::io::Error),
    /// Criterion's results can't be read.
    #[error(transparent)]
    Micro(#[from] crate::micro::MicroError),
    /// Nothing could be simulated.
    #[error(transparent)]
    Sim(#[from] crate::sched::SimError),
    /// No case is left after the filters.
    #[error("no case matches {0:?}")]
    NoCase(String),
}

impl SuiteError {
    /// The user ended the run; not a failure of anything.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Load(LoadError::Interrupted) | Self::Node(NodeError::Interrupted))
    }
}

pub(crate) fn process_error(what: &'static str) -> impl FnOnce(std::io::Error) -> SuiteError {
    move |source| SuiteError::Process { what, source }
}

/// Deploys and warms a function; what to ask of it.
pub(crate) fn deploy_and_warm(node: &Node, function: Function, stop: &Stop) -> Result<Target, SuiteError> {
    node.deploy(function, function.name())?;
    warm(node, function, b"warm", stop)
}

/// Warms a deployed function; a request to it with `body` and the answer that is right.
pub(crate) fn warm(node: &Node, function: Function, body: &[u8], stop: &Stop) -> Result<Target, SuiteError> {
    let path = format!("/function/{}", function.name());
    let mut target = match function {
        Function::NativeEcho | Function::PythonEcho => {
            Target::new(node.address, "POST", &path, body, body.into())
        }
        Function::NativeNop | Function::PythonNop | Function::PythonNap => {
            Target::new(node.address, "GET", &path, b"", crate::floor::NOP_JSON.into())
        }
    };
    let got = node.warm(&target, WARM_ANSWERS, stop)?;
    // How a runtime spells a JSON value (spaces) is its own affair; from here on it must spell it the same.
    if matches!(function, Function::PythonNop | Function::PythonNap) && same_json(&got, &target.body) {
        target.body = got.into();
    } else if *target.body != *got {
        let what = format!("another body than expected: {}", String::from_utf8_lossy(&got));
        return Err(NodeError::Warm { path, what }.into());
    }
    Ok(target)
}

fn same_json(a: &[u8], b: &[u8]) -> bool {
    let parse = serde_json::from_slice::<serde_json::Value>;
    matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a == b)
}

/// Waits, unless the user ends the run.
pub(crate) fn pause(time: Duration, stop: &Stop) -> Result<(), SuiteError> {
    let deadline = Instant::now() + time;
    loop {
        if stop.is_set() {
            return Err(LoadError::Interrupted.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn json_is_compared_by_value() {
        assert!(super::same_json(br#"{"message": "hello, world!"}"#, crate::floor::NOP_JSON));
        assert!(!super::same_json(br#"{"message": "hello"}"#, crate::floor::NOP_JSON));
        assert!(!super::same_json(b"", b""));
    }
}
