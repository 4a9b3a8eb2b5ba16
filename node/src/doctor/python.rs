//! Whether there is a Python that functions can be run with.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Check, Options, Outcome, check, error, no, yes};
use crate::packages::PackagesError;
use crate::zygote::find_interpreter;

/// Prints what is asked for, one thing a line. abi3 modules need a build with a GIL.
const QUESTION: &str = "import sys, sysconfig; print(sys.implementation.name); \
    print('%d.%d.%d' % sys.version_info[:3]); print(int(bool(sysconfig.get_config_var('Py_GIL_DISABLED'))))";

pub(super) fn interpreter(options: &Options) -> Check {
    let user = options.function_uid.map(|uid| (uid, uid));
    let outcome = match find_interpreter(options.python.as_deref(), user) {
        Ok(path) => ask(&path, options.function_uid),
        Err(problem) => no(problem.to_string(), "native functions only"),
    };
    check("python", outcome)
}

/// Whether it can install the packages that functions ask for.
pub(super) fn packages(options: &Options) -> Check {
    let user = options.function_uid.map(|uid| (uid, uid));
    let instead = "functions without packages, or with their packages in their folders";
    let outcome = match find_interpreter(options.python.as_deref(), user) {
        Err(problem) => no(problem.to_string(), "native functions only"),
        Ok(path) => match crate::packages::ask(&path, options.function_uid) {
            Ok(identity) if identity.has_pip => yes(format!("pip of {}", path.display())),
            Ok(_) => no(PackagesError::NoPip(path).to_string(), instead),
            Err(problem) => no(problem.to_string(), instead),
        },
    };
    check("python packages", outcome)
}

fn ask(path: &Path, uid: Option<u32>) -> Outcome {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(path);
    command.args(["-I", "-S", "-c", QUESTION]).stdin(Stdio::null()).current_dir("/").env_clear();
    if let Some(uid) = uid {
        // The function's user, really: access lists and mounts have their say too.
        command.uid(uid).gid(uid);
    }
    let shown = path.display();
    match command.output() {
        Ok(output) if output.status.success() => judge(&String::from_utf8_lossy(&output.stdout), path),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("and says nothing");
            error(format!("{shown} ends with {}: {last}", output.status))
        }
        Err(problem) => {
            no(format!("{shown} can't be run by a function's user: {problem}"), "native functions only")
        }
    }
}

fn judge(answer: &str, path: &Path) -> Outcome {
    let mut lines = answer.lines();
    let (kind, version) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let free_threaded = lines.next() == Some("1");
    let mut numbers = version.split('.').filter_map(|part| part.parse::<u32>().ok());
    let recent =
        matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= (3, 9));
    let shown = path.display();
    let instead = "native functions only";
    match () {
        () if kind != "cpython" => no(format!("{shown} is {kind}, not CPython"), instead),
        () if !recent => no(format!("{shown} is {version}; 3.9 is the oldest that works"), instead),
        () if free_threaded => {
            no(format!("{shown} is a free-threaded build, which has no stable ABI"), instead)
        }
        () => yes(format!("CPython {version}, {shown}, stable ABI")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpython_from_3_9_with_a_gil_will_do() {
        let path = Path::new("/usr/bin/python3");
        assert!(matches!(judge("cpython\n3.11.2\n0\n", path), Outcome::Yes { .. }));
        for bad in ["pypy\n3.10.1\n0\n", "cpython\n3.8.9\n0\n", "cpython\n3.13.0\n1\n", "", "cpython\nx\n0\n"]
        {
            assert!(matches!(judge(bad, path), Outcome::No { .. }), "{bad}");
        }
    }
}
