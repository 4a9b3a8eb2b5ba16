//! The sources of Rust's own library, which rustup brings only as a component: from Debian's package of the same version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian;
use crate::failure::Failure;
use crate::process::run_step;

/// Debian's package, and what its file's sha256 must be.
const PACKAGE: &str = "rust-src=1.95.0+dfsg1-2~bpo13+1";
pub(crate) const SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
/// An already downloaded file of that package: for machines without Debian's mirrors.
const VARIABLE: &str = "SPRY_RUST_SRC_DEB";
/// Where the package has the library.
const LIBRARY: &str = "./usr/src/rustc-1.95.0/library";

/// Unpacks the library's folders of these names (or, for none, all of it) into `folder`. `state` is a folder for apt's own
/// files.
pub(crate) fn unpack(state: &Path, folder: &Path, parts: &[&str]) -> Result<(), Failure> {
    let package = package(state)?;
    let archive = folder.join("rust-src.tar");
    let tar = fs::File::create(&archive).map_err(|source| Failure::io("create", &archive, source))?;
    run_step(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&package).stdout(tar))?;
    let mut untar = Command::new("tar");
    untar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(folder);
    untar.args(["--no-same-owner", "--strip-components=5"]);
    match parts {
        [] => untar.arg(LIBRARY),
        parts => untar.args(parts.iter().map(|part| format!("{LIBRARY}/{part}"))),
    };
    run_step(&mut untar)?;
    fs::remove_file(&archive).map_err(|source| Failure::io("remove", &archive, source))
}

/// The package's file, checked against [`SHA256`].
fn package(state: &Path) -> Result<PathBuf, Failure> {
    let package = match std::env::var_os(VARIABLE) {
        Some(file) => PathBuf::from(file),
        None => {
            eprintln!("downloading {PACKAGE} (45 MB)");
            debian::download(state, "trixie-backports", PACKAGE).map_err(|cause| {
                let found = format!(
                    "{cause}. Download {PACKAGE} of Debian's trixie-backports yourself and set {VARIABLE} to the file"
                );
                Failure::Expectation { what: "download the sources of Rust's library", found }
            })?
        }
    };
    let sum = debian::sha256(&package)?;
    if sum != SHA256 {
        let found = format!("{} is not {PACKAGE}: its sha256 is {sum}", package.display());
        return Err(Failure::Expectation { what: "check the sources of Rust's library", found });
    }
    Ok(package)
}
