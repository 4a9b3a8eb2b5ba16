//! Wheels that the tests have functions ask for: made here, or fetched from the real index once for this clone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::daemon::interpreter;

/// Makes a wheel: a zip with the module and what pip wants to know about it.
const MAKE_WHEEL: &str = r#"
import sys, zipfile
folder, name, version, source, *more = sys.argv[1:]
info = f"{name}-{version}.dist-info"
files = {
    f"{name}/__init__.py": open(source).read(),
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    **dict(zip(more[::2], more[1::2])),
}
record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
with zipfile.ZipFile(f"{folder}/{name}-{version}-py3-none-any.whl", "w") as wheel:
    for path, text in {**files, f"{info}/RECORD": record}.items():
        wheel.writestr(path, text)
"#;

/// A folder of packages that functions' installer can read.
pub(crate) fn links() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("spry-links-").tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("opened to all");
    folder
}

pub(crate) fn python(program: &str, arguments: &[&str]) {
    let status = Command::new(interpreter()).args(["-c", program]).args(arguments).status();
    assert!(status.expect("python runs").success());
}

pub(crate) fn wheel(links: &Path, name: &str, version: &str, source: &str) {
    wheel_with(links, name, version, source, &[]);
}

/// With more files: their paths and texts.
pub(crate) fn wheel_with(links: &Path, name: &str, version: &str, source: &str, more: &[(&str, &str)]) {
    let file = links.join("source.py");
    fs::write(&file, source).expect("written");
    let mut arguments = vec![text(links), name, version, text(&file)];
    arguments.extend(more.iter().flat_map(|(path, text)| [*path, *text]));
    python(MAKE_WHEEL, &arguments);
    fs::remove_file(file).expect("removed");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub(crate) fn configuration(links: &Path, more: &str) -> String {
    format!("[packages]\nindex = \"none\"\nfind_links = {:?}\n{more}", text(links))
}

/// Ends the test early where there is no pip to test with; says so.
#[macro_export]
macro_rules! need_pip {
    () => {
        $crate::need_root_and_cc!();
        let has = std::process::Command::new($crate::daemon::interpreter())
            .args(["-I", "-m", "pip", "--version"])
            .output();
        if !has.is_ok_and(|output| output.status.success()) {
            assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but there is no pip");
            println!("SKIPPED: {} has no pip", $crate::daemon::interpreter());
            return;
        }
    };
}

/// A folder with these wheels. What is large is fetched by this user's own pip, once for this clone, so that a run costs the
/// index nothing. None: the index can't be reached, which is said.
pub(crate) fn from_the_index(wanted: &[&str]) -> Option<tempfile::TempDir> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let wheels =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("wheels{}", interpreter().replace('/', "-")));
    fs::create_dir_all(&wheels).expect("made");
    let wheel = |wanted: &str| {
        let start = wanted.replace("==", "-").replace("python-dateutil", "python_dateutil") + "-";
        let mut there = fs::read_dir(&wheels).expect("listed").flatten().map(|entry| entry.path());
        there.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
    };
    let missing: Vec<&&str> = wanted.iter().filter(|wanted| wheel(wanted).is_none()).collect();
    if !missing.is_empty() {
        let words = "-m pip download --only-binary=:all: --no-deps --retries 1 --timeout 20 --quiet";
        let mut pip = Command::new(interpreter());
        pip.args(words.split(' ')).args(["--disable-pip-version-check", "-d", text(&wheels)]).args(missing);
        let fetched = pip.output().expect("pip runs");
        if !fetched.status.success() {
            let why = String::from_utf8_lossy(&fetched.stderr);
            println!("SKIPPED: the package index can't be reached: {}", why.lines().last().unwrap_or(""));
            return None;
        }
    }
    let links = links();
    for wanted in wanted {
        let wheel = wheel(wanted).expect("fetched");
        fs::copy(&wheel, links.path().join(wheel.file_name().expect("a name"))).expect("copied");
    }
    Some(links)
}
