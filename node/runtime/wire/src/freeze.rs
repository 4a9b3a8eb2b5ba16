//! What a zygote is to do with its memory once its function is loaded, and what came of it.
//!
//! How and why: `freeze` in the crate spry-runtime, and docs/decisions/0009.

use serde::{Deserialize, Serialize};

/// What private writable memory is turned into, so that forks needn't copy its page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freeze {
    /// Whatever measures better for this kind of zygote.
    #[default]
    Auto,
    /// A file in memory, mapped back privately.
    Memfd,
    /// Huge pages.
    Huge,
    /// It stays as it is.
    Off,
}

impl Freeze {
    /// As written in `spryd.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Memfd => "memfd",
            Self::Huge => "huge",
            Self::Off => "off",
        }
    }
}

/// What is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FreezeWish {
    /// Into what.
    pub how: Freeze,
    /// The zygote's memory limit in bytes (0: none): while a piece is copied it is there twice.
    pub memory_bytes: u64,
    /// However little there is: its instances are rewound ([`crate::rewind`]), which needs it.
    #[serde(default)]
    pub always: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frozen {
    /// Into what; [`Freeze::Off`] when nothing was changed.
    pub how: Freeze,
    /// Bytes of address space that were changed.
    pub bytes: u64,
    /// In how many pieces.
    pub pieces: u32,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Why nothing, or not all, was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Frozen {
    /// Nothing was changed, for this reason.
    pub fn not(why: impl Into<String>) -> Self {
        Self { how: Freeze::Off, why: Some(why.into()), ..Self::default() }
    }
}
