//! The programs that run inside function processes, carried in spryd's own file.
//!
//! `build.rs` builds them. At its start spryd writes them to its runtime folder ([`extract`]), under names that
//! contain the hash of their bytes: zygotes of an older spryd keep the file that they were started from, and a
//! file that somebody has changed or cut short isn't used.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The native loader: an executable that is a zygote for `.so` functions.
pub static NATIVE_LOADER: &[u8] = include_bytes!(env!("SPRY_NATIVE_LOADER"));

/// Python's extension module, for any CPython from 3.9 on.
pub static PYTHON_MODULE: &[u8] = include_bytes!(env!("SPRY_PYTHON_MODULE"));

/// The program text that imports the extension module; to be given to the interpreter after
/// [`PYTHON_OPTIONS`].
pub const PYTHON_BOOTSTRAP: &str = include_str!("../runtime/python/src/bootstrap.py");

/// The interpreter's options: no user site-packages (the node's own are used), nothing written beside the
/// code, UTF-8 whatever the locale.
pub const PYTHON_OPTIONS: [&str; 5] = ["-s", "-B", "-X", "utf8", "-c"];

/// Where the bootstrap finds the folder of the extension module.
pub const PYTHON_DIR_VARIABLE: &str = "SPRY_RUNTIME_DIR";

/// The name that the extension module has within its folder.
const PYTHON_FILE: &str = "_spry.abi3.so";

/// Readable and executable for every function's uid, writable for spryd.
const MODE: u32 = 0o755;

/// Where the runtimes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// The native loader.
    pub native_loader: PathBuf,
    /// The folder with the extension module, for [`PYTHON_DIR_VARIABLE`].
    pub python_dir: PathBuf,
}

/// Why a runtime can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct ExtractError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes both runtimes below `dir` (made if needed). What is there already and holds the right bytes is left alone.
pub fn extract(dir: &Path) -> Result<Extracted, ExtractError> {
    let native_loader = dir.join(format!("spry-native-{}", name_of(NATIVE_LOADER)));
    let python_dir = dir.join(format!("python-{}", name_of(PYTHON_MODULE)));
    make_dir(dir)?;
    make_dir(&python_dir)?;
    place(&native_loader, NATIVE_LOADER)?;
    place(&python_dir.join(PYTHON_FILE), PYTHON_MODULE)?;
    Ok(Extracted { native_loader, python_dir })
}

fn name_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn make_dir(path: &Path) -> Result<(), ExtractError> {
    fs::create_dir_all(path).map_err(failed("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed("set the mode of", path))
}

/// Makes `path` hold `bytes`: written beside it and renamed, so that nobody ever sees a part.
fn place(path: &Path, bytes: &[u8]) -> Result<(), ExtractError> {
    let intact = fs::symlink_metadata(path).is_ok_and(|file| {
        file.is_file()
            && file.permissions().mode() & 0o7777 == MODE
            && fs::read(path).is_ok_and(|is| is == bytes)
    });
    if intact {
        return Ok(());
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What was written so far is of no use; that it couldn't be written is the news.
        let _not_there = fs::remove_file(&beside);
    }
    written.map_err(failed("write", path))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ExtractError {
    let path = path.to_owned();
    move |source| ExtractError { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_executable_and_mended() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = extract(&dir.path().join("runtime")).expect("extract");
        let module = first.python_dir.join(PYTHON_FILE);
        assert_eq!(fs::read(&first.native_loader).expect("read"), NATIVE_LOADER);
        assert_eq!(fs::read(&module).expect("read"), PYTHON_MODULE);
        assert!(NATIVE_LOADER.starts_with(b"\x7fELF") && PYTHON_MODULE.starts_with(b"\x7fELF"));

        fs::write(&module, b"cut short").expect("damage");
        fs::set_permissions(&first.native_loader, Permissions::from_mode(0o600)).expect("damage");
        assert_eq!(extract(&dir.path().join("runtime")).expect("extract again"), first);
        assert_eq!(fs::read(&module).expect("read"), PYTHON_MODULE);
        for file in [&module, &first.native_loader] {
            assert_eq!(fs::metadata(file).expect("metadata").permissions().mode() & 0o777, MODE);
        }
        let entries = fs::read_dir(&first.python_dir).expect("list").count();
        assert_eq!(entries, 1, "nothing is left beside the module");
    }

    #[test]
    fn the_reason_is_named() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        let error = extract(file.path()).expect_err("a file is no folder").to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
