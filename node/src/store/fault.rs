//! The seam at which tests make the store's steps fail: each step of a deploy, of an apply and of a removal
//! passes it first. In production it lets everything through and costs a comparison.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::StoreError;

/// The steps that change the disk, in the order of a deploy and then of a removal; then those of chains.
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
}

type Check = dyn Fn(Step) -> std::io::Result<()> + Send + Sync;

/// Decides whether a step may go ahead. The default lets all pass.
#[derive(Clone, Default)]
pub struct Seam(Option<Arc<Check>>);

impl Seam {
    /// Asks `check` before each step.
    pub fn new(check: impl Fn(Step) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(check)))
    }

    pub(super) fn pass(&self, step: Step) -> Result<(), StoreError> {
        let Some(check) = &self.0 else { return Ok(()) };
        let path = PathBuf::from(format!("{step:?}"));
        check(step).map_err(|source| StoreError::Os { operation: "pass the step", path, source })
    }
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Seam(checked)" } else { "Seam" })
    }
}
