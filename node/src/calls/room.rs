//! The room for asynchronous calls that wait, by count and by bytes: for their turn, or for their caller to be told.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::CallsError;

/// Bounds what waits, by count and by bytes.
#[derive(Debug)]
pub(crate) struct Room {
    pub(super) calls: AtomicUsize,
    pub(super) bytes: AtomicU64,
    pub(super) calls_max: usize,
    pub(super) bytes_max: u64,
}

impl Room {
    pub(super) fn take(&self, bytes: u64) -> Result<(), CallsError> {
        let waiting = self.calls.fetch_add(1, Ordering::AcqRel);
        let held = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let refusal = if waiting >= self.calls_max {
            CallsError::Full { waiting }
        } else if held + bytes > self.bytes_max {
            CallsError::TooMuch { bytes: held }
        } else {
            return Ok(());
        };
        self.give_back(bytes);
        Err(refusal)
    }

    pub(super) fn take_anyway(&self, bytes: u64) {
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What was held for a call is held for its answer now.
    pub(super) fn exchange(&self, call_bytes: u64, answer_bytes: u64) {
        self.bytes.fetch_add(answer_bytes, Ordering::AcqRel);
        self.bytes.fetch_sub(call_bytes, Ordering::AcqRel);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.calls.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}
