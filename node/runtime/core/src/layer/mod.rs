//! Package layers: a process that has imported packages is written down, and others begin as what it was.
//!
//! Importing NumPy takes a hundred times as long as everything else about a zygote's start. So a process that has
//! imported what several functions import, and none of their own code, writes its memory to a sealed file (`take`).
//! A function's zygote begins as a small program, confined like every zygote of that function; it maps that file
//! privately, puts everything else where it was, and goes on where the other process stood (`restore`).
//!
//! ```text
//!  layer      exec Python ─► import packages ─► take ─► sealed file ─► exit
//!                                                │
//!  zygote     exec small program ─► restore ◄────┘ ─► Init ─► load the function ─► Ready
//!             (already the function's user, namespaces, root, filter, control group)
//! ```
//!
//! It is a fork across a sandbox's border: no process with rights has to be there, none of the layer's processes lives
//! on, and what a function's process is confined by doesn't depend on whether it began so (docs/decisions/0013).
//! What was read from the file is as trustworthy as the packages, which the function's process runs anyway.
//!
//! `table` is the file's own description. Where the machine's code isn't known (`sys::switch`), there are no layers.

pub(crate) mod restore;
pub(crate) mod smaps;
mod table;
pub(crate) mod take;
mod writer;

/// Where zygotes keep `/proc/self/pagemap`, which they can't open any more once they are hidden from their own user:
/// the same number in all, since one goes on as what another was.
pub(crate) const PAGEMAP_FD: i32 = 9;

/// Where zygotes whose instances are rewound keep `/proc/self/smaps` and `/proc/self/statm`, for the same reason.
pub(crate) const MAPPINGS_FD: i32 = 10;
/// See [`MAPPINGS_FD`].
pub(crate) const SIZES_FD: i32 = 11;

/// How a layer's file is called in `/proc/PID/maps`.
pub(crate) const FILE_NAME: &std::ffi::CStr = c"spry-layer";
/// The same, as the kernel shows it.
pub(crate) const SHOWN_NAME: &str = "/memfd:spry-layer";
