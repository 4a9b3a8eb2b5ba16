//! What an interpreter is, as far as packages depend on it.

use std::path::Path;
use std::process::{Command, Stdio};

use super::PackagesError;

/// Asked of the interpreter itself, one answer a line: a package with compiled parts is made for all of the first three.
const QUESTION: &str = "import sys, sysconfig, importlib.util
print(sys.implementation.cache_tag, sysconfig.get_config_var('SOABI'))
print('%d.%d' % sys.version_info[:2])
print(sysconfig.get_platform())
print(importlib.util.find_spec('pip') is not None)";

/// See [`ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Kind, version and platform: where these are the same, so are the packages.
    pub kind: String,
    /// Whether it can install any.
    pub has_pip: bool,
}

impl Identity {
    /// What the interpreter marks the names of compiled modules with: `cpython-311`.
    pub(super) fn tag(&self) -> &str {
        self.kind.split_ascii_whitespace().next().unwrap_or_default()
    }
}

/// Runs the interpreter, as `uid` where spryd can, and asks. Blocks for some ten milliseconds.
pub fn ask(interpreter: &Path, uid: Option<u32>) -> Result<Identity, PackagesError> {
    use std::os::unix::process::CommandExt;
    let failed = |why: String| PackagesError::Ask { interpreter: interpreter.to_owned(), why };
    let mut command = Command::new(interpreter);
    command.args(["-I", "-B", "-c", QUESTION]).stdin(Stdio::null()).current_dir("/").env_clear();
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [kind @ .., pip] if output.status.success() && kind.len() == 3 => {
            Ok(Identity { kind: kind.join("\n"), has_pip: *pip == "True" })
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("it says nothing").to_owned();
            Err(failed(format!("{}, {last}", output.status)))
        }
    }
}
