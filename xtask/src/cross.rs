//! Building for arm64 on x86-64.
//!
//! rustup's toolchain compiles for any machine, but has the library for this one only; so cargo compiles the library first, from
//! Debian's package of its sources, with the crates that it needs in it. Debian's cross compiler links, and compiles the C
//! code of our dependencies. All of it lies in a target folder of its own: the unstable option that this takes (the compiler
//! is the stable one) would have the usual builds begin anew.

use std::path::PathBuf;
use std::process::Command;

use crate::failure::Failure;
use crate::process::{self, step};
use crate::{rust_src, setup};

/// The other machine, as rustc calls it.
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// What it takes is there.
pub(crate) struct Cross {
    library: PathBuf,
}

impl Cross {
    /// Gets what is missing.
    pub(crate) fn ready() -> Result<Self, Failure> {
        setup::packages()?;
        setup::cross()?;
        let folder = folder();
        let library = folder.join("rust-src");
        step(&library, rust_src::SHA256, || rust_src::unpack(&folder.join("apt"), &library, &[]))?;
        Ok(Self { library })
    }

    /// A cargo command for the other machine; the first of `args` is what to do.
    ///
    /// Somewhat optimised, with all checks of a debug build, and without what only debuggers read: emulated processors are slow, and
    /// their memory holds all that they are given.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = process::cargo(args.iter().copied());
        cargo.args(["--target", TARGET]);
        cargo.env("CARGO_TARGET_DIR", folder());
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        // As `-Z build-std`, for the cargo that a build script calls as well.
        cargo.env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort").env("RUSTC_BOOTSTRAP", "1");
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", &self.library);
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo.env("CARGO_INCREMENTAL", "0");
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo
    }

    /// What a debug build has made, by its name.
    pub(crate) fn built(&self, name: &str) -> PathBuf {
        folder().join(TARGET).join("debug").join(name)
    }
}

fn folder() -> PathBuf {
    process::target_dir().join("arm64")
}
