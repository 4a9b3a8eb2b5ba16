//! The Python runtime in every other CPython of this machine: which one a node has is its owner's choice.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Tally, cargo_test, run_counted};
use crate::failure::Failure;

/// The oldest that functions can have, and the first that is too new to be looked for in the `PATH`.
const MINORS: std::ops::Range<u32> = 9..30;
/// Where pyenv and uv put them, below the home folder.
const VERSIONS: [&str; 2] = [".pyenv/versions", ".local/share/uv/python"];
/// What the tests have functions run by if they aren't told otherwise.
const SYSTEMS: &str = "/usr/bin/python3";
/// Says the minor version of a CPython, and where it is, if it has the stable ABI.
const ASK: &str = "import sys, sysconfig\nif sys.implementation.name == 'cpython' and \
                   not sysconfig.get_config_var('Py_GIL_DISABLED'):\n  print(sys.version_info[1], sys.executable)";

/// Tests that need nothing but the interpreter.
pub(super) fn run(tally: &mut Tally) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for python in others().values() {
        let words = "--package spry-runtime --test runtime -- --show-output python layers";
        let mut command = cargo_test(words.split(' '));
        command.env("SPRY_TEST_PYTHON", python);
        outcome = outcome.and(run_counted(&mut command, tally));
    }
    outcome
}

/// One of each minor version, but for the system's.
fn others() -> BTreeMap<u32, PathBuf> {
    let named = MINORS.filter_map(|minor| crate::process::find_program(&format!("python3.{minor}")));
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let kept = VERSIONS.iter().filter_map(|folder| fs::read_dir(home.join(folder)).ok()).flatten();
    let kept = kept.flatten().map(|version| version.path().join("bin/python3"));
    let mut found: BTreeMap<u32, PathBuf> = named.chain(kept).filter_map(|path| ask(&path)).collect();
    if let Some((minor, _)) = ask(Path::new(SYSTEMS)) {
        found.remove(&minor);
    }
    found
}

/// The minor version of this interpreter, if it is one that functions can have, and where it really is.
fn ask(path: &Path) -> Option<(u32, PathBuf)> {
    // (What pyenv has in the `PATH` for a version that isn't chosen says so on its standard error.)
    let said = Command::new(path).args(["-I", "-c", ASK]).stderr(Stdio::null()).output().ok()?;
    let (minor, place) = std::str::from_utf8(&said.stdout).ok()?.trim().split_once(' ')?;
    let minor = minor.parse().ok().filter(|minor| MINORS.contains(minor))?;
    Some((minor, place.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_no_python_for_functions_is_left_out() {
        let folder = tempfile::tempdir().expect("tempdir");
        for (says, expected) in [
            ("echo 13 /opt/python", Some((13, "/opt/python".into()))),
            ("echo 8 /opt/python", None),
            ("echo no such version >&2; exit 127", None),
            ("echo", None),
        ] {
            let path = folder.path().join("python3");
            fs::write(&path, format!("#!/bin/sh\n{says}\n")).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
            assert_eq!(ask(&path), expected, "{says}");
        }
        assert_eq!(ask(Path::new("/nonexistent")), None);
    }
}
