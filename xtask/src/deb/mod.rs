//! `cargo xtask deb`: the Debian package, by `dpkg-deb` alone.
//!
//! A folder is laid out as the package is to be, made into a package, and the package is then read back and checked
//! ([`check`]): what isn't whole is not left behind. Nothing in it depends on when or where it was built.

mod check;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts::{self, Profile};
use crate::failure::Failure;
use crate::{process, setup};
use layout::Layout;

/// Where the scripts, units and the default configuration are.
pub(crate) const PACKAGING: &str = "packaging";

/// What a package brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// The node, which needs no library but libc.
    Node,
    /// The node and `spry-scx`, the sched_ext scheduler.
    WithScheduler,
}

/// Builds the package; prints where it is.
pub(crate) fn run(contents: Contents) -> Result<(), Failure> {
    println!("{}", package(contents)?.display());
    Ok(())
}

/// Builds the package; its file.
pub(crate) fn package(contents: Contents) -> Result<PathBuf, Failure> {
    artifacts::build(Profile::Release, &[])?;
    if contents == Contents::WithScheduler {
        setup::scheduler()?;
        artifacts::build_scheduler(Profile::Release)?;
    }
    build(&process::target_dir().join("release"), &process::target_dir().join("deb"), contents)
}

/// Makes the package of the programs in `programs`, in the folder `out`.
fn build(programs: &Path, out: &Path, contents: Contents) -> Result<PathBuf, Failure> {
    let root = out.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(|source| Failure::io("remove", &root, source))?;
    }
    let architecture = process::output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
    let version = version()?;
    let layout = Layout::new(&root, programs, contents);
    layout.make()?;
    layout.control(&version, &architecture)?;
    let package = out.join(format!("spry_{version}_{architecture}.deb"));
    let mut make = Command::new("dpkg-deb");
    make.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&package);
    // Files' times in the archive are the changelog's, not the clock's.
    process::run(make.env("SOURCE_DATE_EPOCH", "1795824000"))?;
    check::package(&package).inspect_err(|_| drop(fs::remove_file(&package)))?;
    Ok(package)
}

/// The workspace's.
fn version() -> Result<String, Failure> {
    let path = process::root().join("Cargo.toml");
    let text = fs::read_to_string(&path).map_err(|source| Failure::io("read", &path, source))?;
    let section = text.split_once("[workspace.package]").map(|(_, rest)| rest).unwrap_or_default();
    let version = section.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.map(str::to_owned).ok_or_else(|| Failure::Expectation {
        what: "the workspace's version",
        found: "Cargo.toml has none".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the programs as `cargo test` built them: the layout is the same, only their size isn't.
    #[test]
    fn a_package_is_made_and_is_whole() {
        let programs = process::target_dir().join("debug");
        let missing = ["spry", "spryd"].iter().any(|name| !programs.join(name).is_file());
        if missing || process::find_program("dpkg-deb").is_none() || process::find_program("strip").is_none()
        {
            assert!(
                std::env::var_os("SPRY_TEST_ALL").is_none(),
                "SPRY_TEST_ALL is set, but no package can be made"
            );
            println!("SKIPPED: needs target/debug/spryd (cargo build -p spry-node), dpkg-deb and strip");
            return;
        }
        let out = std::env::temp_dir().join(format!("spry-deb-{}", std::process::id()));
        fs::create_dir_all(&out).expect("a folder");
        let package = build(&programs, &out, Contents::Node).expect("a package that is whole");
        let file = package.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(file.starts_with(&format!("spry_{}_", version().expect("a version"))), "{file}");
        fs::remove_dir_all(&out).expect("removed");
    }
}
