//! The seam at which tests make the store's steps fail: each step of a deploy, of an apply and of a removal
//! passes it first. In production it lets everything through and costs a comparison.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::StoreError;

/// The steps that change the disk, in the order of a deploy and then of a removal; then those of chains and of asynchronous calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the file that takes the upload.
    UploadCreate,
    /// Writing a piece of it.
    UploadWrite,
    /// Unpacking it.
    Unpack,
    /// Reading the manifest from it.
    ReadManifest,
    /// Giving the files to the function's group.
    Own,
    /// Making the files durable.
    Sync,
    /// Moving the folder to its place.
    Place,
    /// Before the transaction that makes it current.
    BeforeCommit,
    /// After it: the deploy is durable, but the caller doesn't know yet.
    AfterCommit,
    /// Before an earlier version becomes the current one.
    BeforeRollback,
    /// After it, but the caller doesn't know yet.
    AfterRollback,
    /// The rows of old versions are gone, their folders are not.
    Prune,
    /// Removing a function's rows.
    RemoveRow,
    /// Removing its folder.
    RemoveFolder,
    /// Before the transaction that applies a chain.
    BeforeApply,
    /// After it: the chain is durable, but the caller doesn't know yet.
    AfterApply,
    /// Removing a chain.
    RemoveChain,
    /// Before the transaction that takes a batch of asynchronous calls.
    CallsBegin,
    /// Before a call's row is written.
    CallAccept,
    /// Before the row of a cancelled call is deleted.
    CallCancel,
    /// Before a call's end is written.
    CallEnd,
    /// Before a failed call's next time is written.
    CallPostpone,
    /// Before a callback's state is written.
    CallBack,
    /// Before a dead letter is moved or dropped.
    CallDead,
    /// Before what is stored of a trigger is changed.
    CallTrigger,
    /// With the batch written, before it is on disk.
    CallsBeforeCommit,
    /// It is on disk, but nobody knows yet.
    CallsAfterCommit,
}

/// Those of asynchronous calls, by name: what the crash test kills spryd at.
pub const CALL_STEPS: [(&str, Step); 10] = [
    ("calls-begin", Step::CallsBegin),
    ("call-accept", Step::CallAccept),
    ("call-cancel", Step::CallCancel),
    ("call-end", Step::CallEnd),
    ("call-postpone", Step::CallPostpone),
    ("call-back", Step::CallBack),
    ("call-dead", Step::CallDead),
    ("call-trigger", Step::CallTrigger),
    ("calls-before-commit", Step::CallsBeforeCommit),
    ("calls-after-commit", Step::CallsAfterCommit),
];

type Check = dyn Fn(Step) -> std::io::Result<()> + Send + Sync;

/// Decides whether a step may go ahead. The default lets all pass.
#[derive(Clone, Default)]
pub struct Seam(Option<Arc<Check>>);

impl Seam {
    /// Asks `check` before each step.
    pub fn new(check: impl Fn(Step) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(check)))
    }

    /// In debug builds, what `SPRY_CRASH_AT=STEP:N` says: the process kills itself when it passes that step for the n-th
    /// time, as `kill -9` would. In release builds, nothing.
    pub fn of_environment() -> Self {
        #[cfg(debug_assertions)]
        if let Some((at, nth)) = std::env::var("SPRY_CRASH_AT").ok().as_deref().and_then(crash_at) {
            let passes = std::sync::atomic::AtomicU64::new(0);
            return Self::new(move |step| {
                if step == at && passes.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == nth {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
                }
                Ok(())
            });
        }
        Self::default()
    }

    pub(crate) fn pass(&self, step: Step) -> Result<(), StoreError> {
        let Some(check) = &self.0 else { return Ok(()) };
        let path = PathBuf::from(format!("{step:?}"));
        check(step).map_err(|source| StoreError::Os { operation: "pass the step", path, source })
    }
}

#[cfg(debug_assertions)]
fn crash_at(text: &str) -> Option<(Step, u64)> {
    let (name, nth) = text.split_once(':')?;
    let (_, step) = CALL_STEPS.iter().find(|(known, _)| *known == name)?;
    Some((*step, nth.parse().ok()?))
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Seam(checked)" } else { "Seam" })
    }
}
