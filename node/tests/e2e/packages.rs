//! Python packages: installed when a function is deployed, shared, kept apart from everything else, and removed.
//!
//! Most of it needs no network: the packages are made here, and spryd looks for them in a folder. The tests that
//! ask the real index are skipped where that can't be reached; what it fetches is kept under `target/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::daemon::Daemon;
use crate::need_pip;
use crate::wheels::{configuration, from_the_index, links, python, text, wheel, wheel_with};

/// Makes a source package that builds itself, without any other: its module says what the build could do.
const MAKE_SOURCE: &str = r#"
import io, sys, tarfile
folder, state, socket = sys.argv[1:]
backend = '''
import os, signal, socket, zipfile
def attempt(what):
    try:
        return repr(what())
    except Exception as error:
        return type(error).__name__
def connect():
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(SOCKET)
def linger():
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 1024)
        signal.pause()
def build_wheel(folder, settings=None, metadata=None):
    seen = {
        "uid": os.getuid(),
        "token": attempt(lambda: open(STATE + "/api-token").read()),
        "functions": attempt(lambda: os.listdir(STATE + "/functions")),
        "sets": attempt(lambda: os.listdir(STATE + "/packages")),
        "socket": attempt(connect),
        "usr": attempt(lambda: open("/usr/spry-was-here", "w")),
        "code": attempt(lambda: open(STATE + "/packages/spry-was-here", "w")),
        "root": attempt(lambda: os.setuid(0)),
        "shadow": attempt(lambda: open("/etc/shadow").read()),
        "kill": attempt(lambda: os.kill(1, 0)),
    }
    linger()
    name = "tattler-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("tattler.py", "SEEN = " + repr(seen))
        wheel.writestr("tattler-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tattler\\nVersion: 1.0\\n")
        wheel.writestr("tattler-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tattler-1.0.dist-info/RECORD", "tattler.py,,\\n")
    return name
'''
files = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": f"STATE, SOCKET = {state!r}, {socket!r}\n" + backend,
    "PKG-INFO": "Metadata-Version: 2.1\nName: tattler\nVersion: 1.0\n",
}
with tarfile.open(f"{folder}/tattler-1.0.tar.gz", "w:gz") as archive:
    for path, text in files.items():
        info = tarfile.TarInfo(f"tattler-1.0/{path}")
        info.size = len(text.encode())
        archive.addfile(info, io.BytesIO(text.encode()))
"#;

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names of what is in the folder of package sets, the unfinished too.
fn sets(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.state().join("packages")).expect("listed").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

const USER: &str =
    "import tiny\ndef main(params):\n    return {\"value\": tiny.VALUE, \"file\": tiny.__file__}\n";

#[test]
fn a_set_is_installed_once_shared_kept_over_a_crash_and_removed_with_its_last_function() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    wheel(links.path(), "tiny", "2.0", "VALUE = 2\n");
    let mut daemon = Daemon::start(&configuration(links.path(), ""));

    let first = daemon.try_deploy_python("first", USER, &["packages=Tiny==1.0"]);
    assert!(first.status.success(), "{}", err(&first));
    for said in ["installing tiny==1.0 …", "Successfully installed tiny-1.0", "starting its zygote"] {
        assert!(err(&first).contains(said), "no {said:?} in {}", err(&first));
    }
    let answer = daemon.post("/function/first", b"{}").json();
    assert_eq!(answer["value"], 1);
    let file = PathBuf::from(answer["file"].as_str().expect("a path"));
    assert!(file.starts_with(daemon.state().join("packages")), "{}", file.display());
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o644);

    let second = daemon.try_deploy_python("second", USER, &["packages=tiny==1.0"]);
    assert!(second.status.success() && !err(&second).contains("installing"), "{}", err(&second));
    let newer = daemon.try_deploy_python("newer", USER, &["packages=tiny>1"]);
    assert!(newer.status.success(), "{}", err(&newer));
    assert_eq!(daemon.post("/function/newer", b"{}").json()["value"], 2);
    assert_eq!(sets(&daemon).len(), 4, "two distributions, and two lists: {:?}", sets(&daemon));

    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/second", b"{}").json()["value"], 1);
    // What is gone from the disk is installed again when it is needed.
    fs::remove_dir_all(daemon.state().join("packages")).expect("removed");
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/newer", b"{}").json()["value"], 2);

    daemon.spry_ok(&["remove", "first"]);
    assert_eq!(daemon.post("/function/second", b"{}").json()["value"], 1);
    daemon.spry_ok(&["remove", "newer"]);
    daemon.until("the set of one removed function goes", |daemon| sets(daemon).len() == 2);
    daemon.deploy_python("second", "def main(params):\n    return {}\n", &[]);
    daemon.until("the set of a version that was replaced goes", |daemon| sets(daemon).is_empty());
    daemon.stop();
}

/// Says where each of these modules is, which distributions there are, and where modules are looked for.
fn teller(modules: &str) -> String {
    format!(
        "import importlib.metadata, os, sys, {modules}\n\
         def main(params):\n    \
         files = {{name: sys.modules[name].__file__ for name in '{modules}'.split(', ')}}\n    \
         there = {{one.metadata['Name']: one.version for one in importlib.metadata.distributions()}}\n    \
         mine = [folder for folder in sys.path if '/packages/' in folder]\n    \
         return {{'files': files, 'there': there, 'mine': mine, 'hook': hasattr(sys, 'hook')}}\n"
    )
}

#[test]
fn what_two_sets_have_in_common_lies_once_and_is_found_at_the_same_place() {
    need_pip!();
    let links = links();
    wheel_with(links.path(), "tiny", "1.0", "VALUE = 1\n", &[("common/of_tiny.py", "")]);
    wheel_with(links.path(), "left", "2.0", "", &[("common/of_left.py", ""), ("other.py", "import tiny\n")]);
    wheel(links.path(), "right", "3.0", "");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    daemon.deploy_python(
        "one",
        &teller("tiny, left, other, common.of_tiny, common.of_left"),
        &["packages=tiny left"],
    );
    daemon.deploy_python("two", &teller("right, tiny"), &["packages=right tiny"]);
    assert_eq!(sets(&daemon).len(), 5, "three distributions, and two lists: {:?}", sets(&daemon));
    let [one, two] = ["one", "two"].map(|name| daemon.post(&format!("/function/{name}"), b"{}").json());
    assert_eq!(one["files"]["tiny"], two["files"]["tiny"]);
    assert_eq!(one["mine"][1], two["mine"][1], "in the same order: {one} {two}");
    assert_eq!(
        (one["mine"].as_array().map(Vec::len), two["mine"].as_array().map(Vec::len)),
        (Some(2), Some(2))
    );
    for (name, version) in [("tiny", "1.0"), ("left", "2.0"), ("right", "3.0")] {
        for (told, has) in [(&one, name != "right"), (&two, name != "left")] {
            assert_eq!(told["there"][name] == version, has, "{name}: {told}");
        }
    }
    assert_eq!(
        daemon.spry_json(&["describe", "one"])["installed"]["distributions"],
        serde_json::json!(["left==2.0", "tiny==1.0"])
    );
    let told = daemon.spry_ok(&["describe", "one"]);
    assert!(told.contains("left==2.0, tiny==1.0"), "{told}");
    // Compiled once, for where it lies; nobody compiles it again.
    let tiny = PathBuf::from(one["mine"][1].as_str().expect("a path"));
    let compiled = tiny.join("tiny/__pycache__");
    let compiled = fs::read_dir(&compiled).unwrap_or_else(|error| panic!("{}: {error}", compiled.display()));
    let compiled: Vec<PathBuf> = compiled.flatten().map(|entry| entry.path()).collect();
    assert_eq!(compiled.len(), 1, "{compiled:?}");
    let code = fs::read(&compiled[0]).expect("read");
    let source = tiny.join("tiny/__init__.py").into_os_string().into_encoded_bytes();
    assert!(code.windows(source.len()).any(|part| part == source), "it knows where it is going to lie");
    daemon.spry_ok(&["remove", "one"]);
    daemon.until("what only it had goes", |daemon| sets(daemon).len() == 3);
    assert_eq!(daemon.post("/function/two", b"{}").json()["files"]["tiny"], two["files"]["tiny"]);
    daemon.stop();
}

/// What isn't made to be taken apart works as it did, and says why.
#[test]
fn a_set_that_can_not_be_split_lies_in_one_folder() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    wheel_with(links.path(), "hook", "1.0", "", &[("hook.pth", "import sys; sys.hook = True\n")]);
    wheel_with(links.path(), "within", "1.0", "", &[("tiny/plugin.py", "VALUE = 2\n")]);
    let mut daemon = Daemon::start(&configuration(links.path(), ""));
    for (name, packages, modules, says) in [
        ("one", "packages=tiny hook", "tiny, hook", "hook.pth is for every process that has the set"),
        ("two", "packages=tiny within", "tiny, tiny.plugin", "tiny is of tiny-1.0 and within-1.0"),
    ] {
        let deployed = daemon.try_deploy_python(name, &teller(modules), &[packages]);
        assert!(deployed.status.success() && err(&deployed).contains(says), "{}", err(&deployed));
        assert_eq!(daemon.spry_json(&["describe", name])["installed"]["whole"], says);
        assert!(daemon.spry_ok(&["describe", name]).contains(says));
        let told = daemon.post(&format!("/function/{name}"), b"{}").json();
        assert_eq!(told["mine"].as_array().map(Vec::len), Some(1), "{told}");
        assert_eq!(told["hook"], name == "one", "its .pth file is read");
    }
    assert_eq!(sets(&daemon).len(), 2, "{:?}", sets(&daemon));
    // And so does one that could be, if the node's owner says so.
    daemon.configure(&configuration(links.path(), "split = false\n"));
    daemon.stop_and_start_again();
    daemon.deploy_python("three", &teller("tiny"), &["packages=tiny"]);
    let installed = daemon.spry_json(&["describe", "three"])["installed"].clone();
    assert_eq!(installed, serde_json::json!({"distributions": [], "whole": "`packages.split` is off"}));
    let told = daemon.post("/function/three", b"{}").json();
    assert!(told["mine"][0].as_str().is_some_and(|folder| folder.ends_with("/site")), "{told}");
    daemon.stop();
}

/// A state folder as it was before distributions had folders of their own.
#[test]
fn what_an_earlier_version_installed_goes_on_serving_and_goes_with_its_last_function() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    let mut daemon = Daemon::start(&configuration(links.path(), ""));
    daemon.deploy_python("one", USER, &["packages=tiny"]);
    let shelf = daemon.state().join("packages");
    let list = sets(&daemon).into_iter().find(|name| name.ends_with(".list")).expect("a list");
    let text = fs::read_to_string(shelf.join(&list)).expect("read");
    let folder = shelf.join(text.lines().nth(1).expect("a distribution"));
    let set = shelf.join(list.trim_end_matches(".list"));
    fs::create_dir(&set).expect("made");
    fs::rename(&folder, set.join("site")).expect("moved");
    fs::remove_file(shelf.join(&list)).expect("removed");
    daemon.crash_and_restart();
    let answer = daemon.post("/function/one", b"{}").json();
    assert_eq!(answer["file"], text_of(&set.join("site/tiny/__init__.py")));
    let told = daemon.spry_ok(&["describe", "one"]);
    assert!(told.contains("it was installed by an earlier version of spry"), "{told}");
    let again = daemon.try_deploy_python("two", USER, &["packages=tiny"]);
    assert!(again.status.success() && !err(&again).contains("installing"), "{}", err(&again));
    daemon.spry_ok(&["remove", "one"]);
    daemon.spry_ok(&["remove", "two"]);
    daemon.until("it goes", |daemon| sets(daemon).is_empty());
    daemon.deploy_python("one", USER, &["packages=tiny"]);
    assert_eq!(sets(&daemon).len(), 2, "now it is split: {:?}", sets(&daemon));
    daemon.stop();
}

fn text_of(path: &Path) -> serde_json::Value {
    text(path).into()
}

#[test]
fn a_function_can_not_change_its_packages_and_sees_no_others() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    wheel(links.path(), "other", "1.0", "VALUE = 'secret'\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let source = r#"
import os, tiny
def attempt(what):
    try:
        return repr(what())
    except Exception as error:
        return type(error).__name__
def main(params):
    folder = os.path.dirname(os.path.dirname(tiny.__file__))
    sets = os.path.dirname(folder)
    return {
        "write": attempt(lambda: open(tiny.__file__, "a")),
        "make": attempt(lambda: open(folder + "/new.py", "w")),
        "remove": attempt(lambda: os.remove(tiny.__file__)),
        "mode": attempt(lambda: os.chmod(tiny.__file__, 0o777)),
        "sets": len(os.listdir(sets)),
        "other": attempt(lambda: __import__("other")),
        "environment": attempt(lambda: os.environ["SPRY_PACKAGES"]),
    }
"#;
    daemon.deploy_python("one", "import other\ndef main(params):\n    return {}\n", &["packages=other"]);
    daemon.deploy_python("two", source, &["packages=tiny"]);
    let seen = daemon.post("/function/two", b"{}").json();
    for attempt in ["write", "make", "remove"] {
        assert!(
            ["'OSError'", "OSError", "PermissionError"].contains(&seen[attempt].as_str().expect("text")),
            "{seen}"
        );
    }
    assert_ne!(seen["mode"], "None", "{seen}");
    assert_eq!(seen["sets"], 1, "only its own is in its root: {seen}");
    assert_eq!(seen["other"], "ModuleNotFoundError");
    assert_eq!(seen["environment"], "KeyError");
    daemon.stop();
}

#[test]
fn packages_that_can_not_be_had_change_nothing_and_pips_own_words_say_why() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    wheel(links.path(), "large", "1.0", &format!("VALUE = {:?}\n", "x".repeat(2 << 20)));
    python(MAKE_SOURCE, &[text(links.path()), "/none", "/none"]);
    let daemon = Daemon::start(&configuration(links.path(), "size = \"1MiB\"\n"));
    daemon.deploy_python("f", USER, &["packages=tiny"]);
    for (wanted, says) in [
        ("packages=absent-package", "No matching distribution found for absent-package"),
        ("packages=tiny>1", "No matching distribution found for tiny>1"),
        ("packages=large", "over the limit of 1MiB"),
        ("packages=tattler", "No matching distribution found for tattler"),
        ("packages=tiny tiny<1", "conflicting"),
    ] {
        let refused = daemon.try_deploy_python("f", USER, &[wanted]);
        assert_eq!(refused.status.code(), Some(1), "{wanted}: {}", err(&refused));
        assert!(err(&refused).contains(says), "{wanted}: {}", err(&refused));
        assert_eq!(daemon.post("/function/f", b"{}").json()["value"], 1, "{wanted}");
    }
    assert_eq!(daemon.spry_json(&["describe", "f"])["version"], 1);
    daemon.until("nothing is left of what failed", |daemon| sets(daemon).len() == 2);
    daemon.stop();
}

#[test]
fn installing_for_too_long_is_ended() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\n");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let index = format!("http://{}/simple", silent.local_addr().expect("bound"));
    let daemon = Daemon::start(&format!("[packages]\nindex = {index:?}\ntimeout = \"1s\"\n"));
    let refused = daemon.try_deploy_python("f", USER, &["packages=tiny"]);
    assert!(err(&refused).contains("weren't installed after 1 s"), "{}", err(&refused));
    daemon.until("nothing is left", |daemon| sets(daemon).is_empty());
    daemon.stop();
}

#[test]
fn a_package_that_is_built_runs_confined() {
    need_pip!();
    let links = links();
    let mut daemon = Daemon::start(&configuration(links.path(), "build = true\n"));
    python(MAKE_SOURCE, &[text(links.path()), text(&daemon.state()), text(&daemon.socket())]);
    daemon.deploy_python("neighbour", "def main(params):\n    return {}\n", &[]);
    let source = "import tattler\ndef main(params):\n    return tattler.SEEN\n";
    let deployed = daemon.try_deploy_python("f", source, &["packages=tattler"]);
    assert!(deployed.status.success(), "{}", err(&deployed));
    let seen = daemon.post("/function/f", b"{}").json();
    assert_ne!(seen["uid"], 0);
    for attempt in ["token", "functions", "socket", "usr", "code", "root", "shadow", "kill"] {
        let outcome = seen[attempt].as_str().expect("text");
        assert!(outcome.ends_with("Error") || outcome.ends_with("Exception"), "{attempt}: {seen}");
    }
    // The sets that others use aren't in its root; its own work folder is.
    assert!(!seen["sets"].as_str().expect("text").contains("site"), "{seen}");
    let uid = seen["uid"].as_u64().expect("a number") as u32;
    daemon.until("what it left running is ended", |_| !any_process_of(uid));
    daemon.crash_and_restart();
    assert_eq!(daemon.get("/function/neighbour").status, 200);
    daemon.stop();
}

fn any_process_of(uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let processes = fs::read_dir("/proc").expect("listed").flatten();
    let mut numbers = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    numbers.any(|entry| entry.metadata().is_ok_and(|process| process.uid() == uid))
}

#[test]
fn numpy_from_the_index() {
    need_pip!();
    let Some(shared) = from_the_index(&["numpy==2.2.6", "six==1.17.0"]) else { return };
    let daemon = Daemon::start(&configuration(shared.path(), ""));
    let source = "import numpy, six\ndef main(params):\n    \
                  return {\"sum\": int(numpy.arange(10).sum()), \"six\": six.__version__}\n";
    let deployed =
        daemon.try_deploy_python("sum", source, &["packages=numpy==2.2.6 six", "limits.memory=256MiB"]);
    assert!(deployed.status.success(), "{}", err(&deployed));
    assert_eq!(daemon.post("/function/sum", b"{}").json(), serde_json::json!({"sum": 45, "six": "1.17.0"}));
    // The example, twice: then its zygote finds NumPy imported.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/percentiles");
    daemon.spry_ok(&["deploy", text(&example)]);
    let answer = daemon.post("/function/percentiles", br#"{"values": [1, 2, 3, 4, 100]}"#).json();
    assert_eq!((&answer["count"], &answer["percentiles"]["50"]), (&5.into(), &3.0.into()), "{answer}");
    let layer_of_numpy = |daemon: &Daemon| {
        let status = daemon.spry_json(&["status"]);
        let layers = status["layers"].as_array().expect("a list").iter();
        let functions = layers.map(|layer| layer["functions"].to_string() + &layer["problem"].to_string());
        // (Its set is another than that of `sum`, and NumPy the same.)
        functions.collect::<Vec<_>>().contains(&"[\"percentiles\",\"sum\"]null".to_owned())
    };
    daemon.until("a layer with NumPy", layer_of_numpy);
    daemon.spry_ok(&["deploy", text(&example)]);
    let start = daemon.spry_json(&["describe", "percentiles"])["start"].clone();
    assert!(start["layer_modules"].as_u64().is_some_and(|count| count > 100), "{start}");
    let answer = daemon.post("/function/percentiles", br#"{"values": [1, 2, 3, 4, 100]}"#).json();
    assert_eq!(answer["percentiles"]["50"], 3.0, "{answer}");
    let refused = daemon.post("/function/percentiles", br#"{"values": []}"#).json();
    assert!(refused["error"].is_string(), "{refused}");
    daemon.stop();

    // What is small comes from the index itself, as on a node that nobody has configured.
    let daemon = Daemon::start("");
    let source = "import six\ndef main(params):\n    return {\"six\": six.__version__}\n";
    let deployed = daemon.try_deploy_python("small", source, &["packages=six==1.17.0"]);
    assert!(deployed.status.success(), "{}", err(&deployed));
    assert_eq!(daemon.post("/function/small", b"{}").json(), serde_json::json!({"six": "1.17.0"}));
    daemon.stop();
}
