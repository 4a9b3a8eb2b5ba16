//! Package layers: shared where that is right, without a trace of anybody's code, and never what a function fails for.

use std::collections::BTreeMap;
use std::fs;

use crate::daemon::Daemon;
use crate::need_pip;
use crate::wheels::{configuration, links, wheel, wheel_with};

const USER: &str = "import tiny\ndef main(params):\n    return {\"value\": tiny.VALUE}\n";

/// The layers that there are: whose they are.
fn layers(daemon: &Daemon) -> Vec<Vec<String>> {
    let status = daemon.spry_json(&["status"]);
    let layers = status["layers"].as_array().expect("a list").iter();
    let made = layers.filter(|layer| layer.get("problem").is_none());
    made.map(|layer| serde_json::from_value(layer["functions"].clone()).expect("names")).collect()
}

fn problems(daemon: &Daemon) -> Vec<String> {
    let status = daemon.spry_json(&["status"]);
    let layers = status["layers"].as_array().expect("a list").iter();
    layers.filter_map(|layer| Some(layer.get("problem")?.as_str()?.to_owned())).collect()
}

fn has_layer(daemon: &Daemon, functions: &[&str]) -> bool {
    layers(daemon).iter().any(|layer| layer == functions)
}

/// Whether there is one for all of these, and perhaps others.
pub(crate) fn has_layer_for(daemon: &Daemon, functions: &[&str]) -> bool {
    let is_for = |layer: &Vec<String>| functions.iter().all(|name| layer.iter().any(|one| one == name));
    layers(daemon).iter().any(is_for)
}

/// Deploys the same code again, whose imports are known by now.
fn again(daemon: &Daemon, name: &str, source: &str, settings: &[&str]) -> serde_json::Value {
    daemon.deploy_python(name, source, settings);
    daemon.spry_json(&["describe", name])["start"].clone()
}

/// The zygote of a function without instances, when that of the version before has gone.
fn zygote(daemon: &Daemon, name: &str) -> i32 {
    let mut found = Vec::new();
    daemon.until("one zygote", |daemon| {
        let theirs = daemon.processes_of(name);
        found = theirs.filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok()).collect();
        found.len() == 1
    });
    found[0]
}

/// What confines a process, as the kernel tells it; without what differs between two processes of one function.
fn confinement(pid: i32) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let wanted = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "Threads",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Cpus_allowed",
        "FDSize",
    ];
    for (key, value) in status.lines().filter_map(|line| line.split_once(':')) {
        if wanted.contains(&key) {
            all.insert(key.to_owned(), value.trim().to_owned());
        }
    }
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read");
    all.insert("limits".to_owned(), read("limits"));
    all.insert("oom".to_owned(), read("oom_score_adj"));
    let mounts = read("mountinfo");
    let mounts = mounts.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let code = |path: &str| path.replace("/2/code", "/1/code");
        format!("{} {} {}", code(words[3]), code(words[4]), words[5])
    });
    // The one of the two has its small program in its root, besides.
    let mounts: Vec<String> = mounts.filter(|line| !line.contains("/runtime/")).collect();
    all.insert("mounts".to_owned(), mounts.join("\n"));
    for namespace in ["net", "mnt", "ipc", "uts", "cgroup", "user", "pid"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{namespace}")).expect("a link");
        let shared = if link(&pid.to_string()) == link("self") { "the host's" } else { "its own" };
        all.insert(format!("{namespace} namespace"), shared.to_owned());
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten().map(|entry| {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        let kind = link.to_string_lossy().split(':').next().unwrap_or_default().to_owned();
        format!("{} {kind}", entry.file_name().to_string_lossy())
    });
    let mut fds: Vec<String> = fds.collect();
    fds.sort();
    all.insert("descriptors".to_owned(), fds.join(", "));
    all
}

#[test]
fn functions_share_what_they_have_in_common_and_are_confined_as_without() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\nimport decimal, sqlite3\n");
    wheel(links.path(), "tiny", "2.0", "VALUE = 2\nimport decimal, sqlite3\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let (first, newer) = (["packages=tiny==1.0"], ["packages=tiny==2.0"]);
    daemon.deploy_python("one", USER, &first);
    let alone = confinement(zygote(&daemon, "one"));
    assert_eq!(daemon.spry_json(&["describe", "one"])["start"].get("layer_modules"), None);
    daemon.deploy_python("two", USER, &first);
    daemon.deploy_python("newer", USER, &newer);
    // Of what they have in common: the third has another version, of which nothing is in it.
    daemon.until("a layer for all", |daemon| has_layer(daemon, &["newer", "one", "two"]));
    for (name, settings, value) in [("one", &first, 1), ("two", &first, 1), ("newer", &newer, 2)] {
        let start = again(&daemon, name, USER, settings);
        assert!(start["layer_modules"].as_u64().is_some_and(|count| count > 50), "{start}");
        if name == "one" {
            assert_eq!(confinement(zygote(&daemon, "one")), alone, "nothing else than by itself");
        }
        let maps = fs::read_to_string(format!("/proc/{}/maps", zygote(&daemon, name))).expect("maps");
        assert!(maps.contains("/memfd:spry-layer"), "{maps}");
        assert_eq!(daemon.post(&format!("/function/{name}"), b"{}").json()["value"], value);
    }
    let told = daemon.spry_ok(&["describe", "one"]);
    assert!(told.contains("began from a layer of") && told.contains("(by itself: "), "{told}");
    let told = daemon.spry_ok(&["status"]);
    assert!(told.contains("modules of the standard library for newer, one, two: "), "{told}");
    let metrics = String::from_utf8_lossy(&daemon.get("/metrics").body).into_owned();
    assert!(metrics.contains("spry_package_layers 1"), "{metrics}");

    for name in ["one", "two", "newer"] {
        daemon.spry_ok(&["remove", name]);
    }
    daemon.until("a layer that nobody needs goes", |daemon| layers(daemon).is_empty());
    daemon.until("and its memory comes back", |daemon| {
        daemon.spry_json(&["status"])["memory_promised"] == "0B"
    });
    daemon.stop();
}

/// The layer that a function's processes have mapped: its file's number.
fn layer_of(daemon: &Daemon, name: &str) -> String {
    let maps =
        daemon.processes_of(name).filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).ok());
    let maps: String = maps.collect();
    let mut lines = maps.lines().filter(|line| line.contains("/memfd:spry-layer"));
    let line = lines.next().unwrap_or_else(|| panic!("{name} has no layer: {maps}"));
    line.split_ascii_whitespace().nth(4).expect("an inode").to_owned()
}

/// What they have in common is imported once, and each finds the rest of its own as it would by itself.
#[test]
fn functions_with_different_packages_share_what_is_of_those_that_both_have() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\nimport decimal, sqlite3, xml.dom.minidom, ssl\n");
    wheel(links.path(), "aside", "1.0", "VALUE = 2\n");
    wheel(links.path(), "zest", "1.0", "VALUE = 3\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let source = |other: &str| {
        format!(
            "import tiny, sys\ndef main(params):\n    import {other}\n    \
             return {{'values': [tiny.VALUE, {other}.VALUE], 'file': tiny.__file__, 'path': sys.path[1:],\n            \
             'others': sorted(set(sys.modules) & {{'aside', 'zest'}})}}\n"
        )
    };
    let functions = [("one", "aside", 2, "packages=tiny aside"), ("two", "zest", 3, "packages=tiny zest")];
    let mut alone = BTreeMap::new();
    for (name, other, ..) in functions {
        let packages = format!("packages=tiny {other}");
        daemon.deploy_python(name, &source(other), &[&packages]);
        alone.insert(name, daemon.post(&format!("/function/{name}"), b"{}").json());
    }
    daemon.until("a layer for both", |daemon| has_layer(daemon, &["one", "two"]));
    let told = daemon.spry_ok(&["status"]);
    assert!(told.contains("modules of tiny==1.0 for one, two: "), "made among what both have: {told}");
    for (name, other, value, packages) in functions {
        let start = again(&daemon, name, &source(other), &[packages]);
        assert!(start["layer_modules"].as_u64().is_some_and(|count| count > 50), "{start}");
        let told = daemon.post(&format!("/function/{name}"), b"{}").json();
        assert_eq!(told, alone[name], "as by itself");
        assert_eq!(told["values"], serde_json::json!([1, value]));
    }
    assert_eq!(alone["one"]["file"], alone["two"]["file"]);
    assert_eq!(layer_of(&daemon, "one"), layer_of(&daemon, "two"), "one file, mapped by both");
    daemon.stop();
}

/// A function that has what importing looked for, and would have found, begins by itself or from a layer where it was found.
#[test]
fn what_importing_would_have_found_is_in_no_layer_without_it() {
    need_pip!();
    let links = links();
    let looks = [
        ("1.0", "try:\n    import extra\n    VALUE = 'there'\nexcept ImportError:\n    pass\n"),
        ("2.0", "import importlib.util\nif importlib.util.find_spec('extra'): VALUE = 'there'\n"),
        (
            "3.0",
            "import importlib.metadata as m\ntry:\n    m.version('Extra')\n    VALUE = 'there'\n\
             except m.PackageNotFoundError:\n    pass\n",
        ),
        (
            "4.0",
            "import importlib.metadata as m\n\
             if any(one.metadata['Name'] == 'extra' for one in m.distributions()): VALUE = 'there'\n",
        ),
        ("5.0", "import sys\nif any('/extra-' in folder for folder in sys.path): VALUE = 'there'\n"),
        (
            "6.0",
            "import common\nif any('/extra-' in folder for folder in common.__path__): VALUE = 'there'\n",
        ),
    ];
    for (version, look) in looks {
        let source = format!(
            "VALUE = 'not there'\nimport decimal, sqlite3, xml.dom.minidom, ssl, importlib.metadata\n{look}"
        );
        wheel_with(links.path(), "tiny", version, &source, &[("common/of_tiny.py", "")]);
    }
    wheel_with(links.path(), "extra", "1.0", "", &[("common/of_extra.py", "")]);
    wheel(links.path(), "zest", "1.0", "");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    for (version, _) in looks {
        let settings = |other: &str| format!("packages=tiny=={version} {other}");
        let functions = [("with", "extra", "there"), ("without", "zest", "not there")];
        let value = |name: &str| daemon.post(&format!("/function/{name}"), b"{}").json()["value"].clone();
        for (name, other, expected) in functions {
            daemon.deploy_python(name, USER, &[&settings(other)]);
            assert_eq!(value(name), expected, "{version}, by itself");
        }
        daemon.until("layers", |daemon| has_layer(daemon, &["with"]) && has_layer(daemon, &["without"]));
        assert!(!has_layer(&daemon, &["with", "without"]), "{version}");
        for (name, other, expected) in functions {
            let start = again(&daemon, name, USER, &[&settings(other)]);
            assert!(start.get("layer_modules").is_some(), "{version}: {start}");
            assert_eq!(value(name), expected, "{version}, from a layer");
        }
        assert_ne!(layer_of(&daemon, "with"), layer_of(&daemon, "without"));
        for (name, ..) in functions {
            daemon.spry_ok(&["remove", name]);
        }
        daemon.until("forgotten", |daemon| layers(daemon).is_empty());
        // Its own code has what is looked for.
        let own = match version {
            "1.0" => Some(("extra.py", "")),
            "3.0" | "4.0" => Some(("extra-1.0.dist-info/METADATA", "Name: extra\nVersion: 1.0\n")),
            _ => None,
        };
        if let Some((file, text)) = own {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
            fs::write(folder.path().join("main.py"), USER).expect("written");
            let manifest = format!(
                "name = \"own\"\nruntime = \"python\"\nhandler = \"main:main\"\npackages = [\"tiny=={version}\"]\n"
            );
            fs::write(folder.path().join("spry.toml"), manifest).expect("written");
            // (Of a layer that it would be given if it hadn't.)
            daemon.deploy_python("plain", USER, &[&format!("packages=tiny=={version}")]);
            assert_eq!(value("plain"), "not there");
            daemon.until("a layer", |daemon| layers(daemon).iter().flatten().any(|name| name == "plain"));
            for _ in 0..2 {
                daemon.spry_ok(&["deploy", folder.path().to_str().expect("UTF-8")]);
                assert_eq!(value("own"), "there", "{version}");
            }
            daemon.spry_ok(&["remove", "own"]);
            daemon.spry_ok(&["remove", "plain"]);
            daemon.until("forgotten", |daemon| layers(daemon).is_empty());
        }
    }
    daemon.stop();
}

/// Where a set lies in one folder, that is what its functions share.
#[test]
fn who_has_the_same_folder_shares_what_is_of_it() {
    need_pip!();
    let links = links();
    let (uses, hook) =
        ("VALUE = 1\nimport decimal, sqlite3, xml.dom.minidom, ssl\n", "import sys; sys.hook = 1\n");
    wheel_with(links.path(), "tiny", "1.0", uses, &[("tiny.pth", hook)]);
    wheel(links.path(), "zest", "1.0", "");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let source = "import tiny, sys\ndef main(params):\n    return {'value': sys.hook}\n";
    let both = "packages=tiny zest";
    for (name, packages) in [("one", "packages=tiny"), ("two", "packages=tiny"), ("other", both)] {
        daemon.deploy_python(name, source, &[packages]);
    }
    daemon.until("two layers", |daemon| has_layer(daemon, &["one", "two"]) && has_layer(daemon, &["other"]));
    assert!(daemon.spry_ok(&["status"]).contains("modules of tiny, zest for other: "));
    for (name, packages) in [("one", "packages=tiny"), ("other", both)] {
        assert!(again(&daemon, name, source, &[packages]).get("layer_modules").is_some());
        assert_eq!(daemon.post(&format!("/function/{name}"), b"{}").json()["value"], 1);
    }
    daemon.stop();
}

#[test]
fn nothing_of_a_function_is_in_the_layer_of_another() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\nSEEN = []\nimport decimal\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let poison = "import tiny, sys\ntiny.VALUE = 'poison'\ntiny.SEEN.append('poison')\nsys.poison = 1\n\
                  def main(params):\n    tiny.SEEN.append(1)\n    return {'value': tiny.VALUE}\n";
    let clean = "import tiny, sys\ndef main(params):\n    \
                 return {'value': tiny.VALUE, 'seen': tiny.SEEN, 'sys': hasattr(sys, 'poison'),\n            \
                 'main': [m for m in sys.modules if m == 'poison']}\n";
    let settings = ["packages=tiny"];
    daemon.deploy_python("poison", poison, &settings);
    daemon.until("its layer", |daemon| has_layer(daemon, &["poison"]));
    assert!(again(&daemon, "poison", poison, &settings).get("layer_modules").is_some());
    assert_eq!(daemon.post("/function/poison", b"{}").json()["value"], "poison");
    daemon.deploy_python("clean", clean, &settings);
    daemon.until("it is shared", |daemon| has_layer(daemon, &["clean", "poison"]));
    assert!(again(&daemon, "clean", clean, &settings).get("layer_modules").is_some());
    let seen = daemon.post("/function/clean", b"{}").json();
    assert_eq!(seen, serde_json::json!({"value": 1, "seen": [], "sys": false, "main": []}));
    daemon.stop();
}

/// Who has a module of a package's name in its own code gets its own, and no layer with the other.
#[test]
fn a_function_gets_only_what_it_would_have_imported() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "import decimal\nVALUE = decimal.__name__, decimal.__file__\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let settings = ["packages=tiny"];
    daemon.deploy_python("usual", USER, &settings);
    daemon.until("a layer", |daemon| has_layer(daemon, &["usual"]));
    // Its own file is called as the standard library's module is.
    let source = "import tiny\nMINE = True\ndef main(params):\n    return {'value': tiny.VALUE[1]}\n";
    for _ in 0..2 {
        daemon.deploy_python("decimal", source, &["packages=tiny", "handler=decimal:main"]);
        let answer = daemon.post("/function/decimal", b"{}").json();
        let file = answer["value"].as_str().expect("a path").to_owned();
        assert!(file.contains("/functions/"), "its own: {file}");
    }
    daemon.stop();
}

/// A package that behaves differently while a layer is made: whatever it does, its functions go on without one.
#[test]
fn a_package_that_spoils_its_layer_spoils_nothing_else() {
    need_pip!();
    let links = links();
    let spoil = |what: &str| {
        format!(
            "import os\nVALUE = 1\nif os.environ.get('SPRY_FUNCTION', '').startswith('_layer'):\n    {what}\n"
        )
    };
    for (version, what) in [
        ("1.0", "os.kill(os.getpid(), 9)"),
        ("2.0", "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"),
        ("3.0", "FILE = open('/dev/null')"),
        ("4.0", "os.write(3, b'nonsense')"),
        ("5.0", "import wave, colorsys"),
        ("6.0", "os._exit(0)"),
    ] {
        wheel(links.path(), "tiny", version, &spoil(what));
    }
    let daemon = Daemon::start(&configuration(links.path(), ""));
    for (version, says) in [
        ("1.0", "was killed by SIGKILL"),
        ("2.0", "importing starts threads"),
        ("3.0", "importing leaves 1 files open"),
        ("4.0", "malformed"),
        ("5.0", "importing brings more than the functions import: "),
        ("6.0", "exited with code 0"),
    ] {
        let settings = format!("packages=tiny=={version}");
        daemon.deploy_python("f", USER, &[&settings]);
        daemon.until("there is none", |daemon| !problems(daemon).is_empty());
        let found = problems(&daemon);
        assert!(found.iter().any(|problem| problem.contains(says)), "{version}: {found:?}");
        let start = again(&daemon, "f", USER, &[&settings]);
        assert_eq!(start.get("layer_modules"), None, "{start}");
        assert_eq!(daemon.post("/function/f", b"{}").json()["value"], 1);
        daemon.spry_ok(&["remove", "f"]);
        daemon.until("forgotten", |daemon| problems(daemon).is_empty());
    }
    daemon.stop();
}

#[test]
fn hostile_code_on_a_layer_reaches_neither_the_layer_nor_a_neighbour() {
    need_pip!();
    let links = links();
    wheel(links.path(), "tiny", "1.0", "VALUE = 1\nimport decimal, ctypes, signal\n");
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let settings = ["packages=tiny"];
    let neighbour = "import tiny, decimal, ctypes, signal, os\nPID = os.getpid()\n\
                     def main(params):\n    return {'value': tiny.VALUE, 'pid': PID}\n";
    daemon.deploy_python("neighbour", neighbour, &settings);
    daemon.until("a layer", |daemon| has_layer(daemon, &["neighbour"]));
    assert!(again(&daemon, "neighbour", neighbour, &settings).get("layer_modules").is_some());
    let pid = daemon.post("/function/neighbour", b"{}").json()["pid"].as_i64().expect("a number");
    let pid = daemon.outside("neighbour", pid).expect("its zygote");
    let source = format!(
        r#"
import tiny, decimal, ctypes, signal, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what):
    try:
        return repr(what())
    except BaseException as error:
        return type(error).__name__
def call(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    return "refused" if result == -1 and ctypes.get_errno() else str(result)
def ranges():
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "/memfd:spry-layer" in line and " rw-p " in line:
                start, end = line.split()[0].split("-")
                yield int(start, 16), int(end, 16)
NEIGHBOUR, SPRYD = {pid}, {spryd}
def hostile():
    start, end = max(ranges(), key=lambda r: r[1] - r[0])
    size = end - start
    return {{
        "descriptors": sorted(fd for fd in range(1024) if attempt(lambda: os.fstat(fd)) not in ("OSError",)),
        "empty": call("madvise", ctypes.c_void_p(start), ctypes.c_size_t(size), 4),
        "map": attempt(lambda: open(f"/proc/self/map_files/{{start:x}}-{{end:x}}", "rb")),
        "pagemap": attempt(lambda: open("/proc/self/pagemap", "rb")),
        "mem": attempt(lambda: open("/proc/self/mem", "r+b")),
        "kill": attempt(lambda: os.kill(NEIGHBOUR, 0)),
        "kill spryd": attempt(lambda: os.kill(SPRYD, 0)),
        "ptrace": call("ptrace", 16, NEIGHBOUR, None, None),
        "neighbour": attempt(lambda: open(f"/proc/{{NEIGHBOUR}}/maps").read(10)),
        "setns": call("unshare", 0x10000000),
        "root": attempt(lambda: os.setuid(0)),
        "write": attempt(lambda: open(tiny.__file__, "a")),
    }}
SEEN = hostile() if any(ranges()) else {{}}
tiny.VALUE = 666
def main(params):
    return SEEN
"#,
        spryd = daemon.pid()
    );
    daemon.deploy_python("hostile", &source, &settings);
    assert_eq!(
        daemon.post("/function/hostile", b"{}").json(),
        serde_json::json!({}),
        "by itself there is no layer"
    );
    daemon.until("it is shared", |daemon| has_layer(daemon, &["hostile", "neighbour"]));
    assert!(again(&daemon, "hostile", &source, &settings).get("layer_modules").is_some());
    let seen = daemon.post("/function/hostile", b"{}").json();
    assert_eq!(seen["descriptors"], serde_json::json!([0, 1, 2, 3, 9]), "{seen}");
    for (attempt, outcomes) in [
        ("empty", &["refused"][..]),
        ("map", &["PermissionError", "FileNotFoundError"]),
        ("pagemap", &["PermissionError", "FileNotFoundError"]),
        ("mem", &["PermissionError", "FileNotFoundError"]),
        ("kill", &["PermissionError", "ProcessLookupError"]),
        ("kill spryd", &["PermissionError", "ProcessLookupError"]),
        ("ptrace", &["refused"]),
        ("neighbour", &["PermissionError", "FileNotFoundError"]),
        ("setns", &["refused"]),
        ("root", &["PermissionError"]),
        ("write", &["OSError", "PermissionError"]),
    ] {
        let outcome = seen[attempt].as_str().expect("text");
        assert!(outcomes.contains(&outcome), "{attempt}: {seen}");
    }
    assert_eq!(daemon.post("/function/neighbour", b"{}").json()["value"], 1);
    assert!(again(&daemon, "neighbour", neighbour, &settings).get("layer_modules").is_some());
    assert_eq!(daemon.post("/function/neighbour", b"{}").json()["value"], 1);
    daemon.stop();
}

/// What a layer was mapped from is replaced under it: the next start does without, and a layer of the new files is made.
#[test]
fn a_layer_whose_files_have_changed_is_made_anew() {
    need_pip!();
    let daemon = Daemon::start("");
    let source = "import decimal\ndef main(params):\n    return {'value': str(decimal.Decimal(1))}\n";
    daemon.deploy_python("f", source, &[]);
    daemon.until("a layer", |daemon| has_layer(daemon, &["f"]));
    let module = daemon.state().join("runtime");
    let files = walk(&module);
    let module = files.iter().find(|path| path.ends_with("_spry.abi3.so")).expect("the runtime's module");
    let bytes = fs::read(module).expect("read");
    let modes = fs::metadata(module).expect("there").permissions();
    fs::remove_file(module).expect("removed");
    fs::write(module, bytes).expect("written");
    fs::set_permissions(module, modes).expect("chmod");
    let start = again(&daemon, "f", source, &[]);
    assert!(start["problem"].as_str().is_some_and(|problem| problem.contains("has changed")), "{start}");
    assert_eq!(daemon.post("/function/f", b"{}").json()["value"], "1");
    daemon.until("another", |daemon| {
        has_layer(daemon, &["f"]) && again(daemon, "f", source, &[]).get("layer_modules").is_some()
    });
    assert_eq!(daemon.post("/function/f", b"{}").json()["value"], "1");
    daemon.stop();
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("listed").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn after_a_crash_it_is_known_what_to_make_a_layer_of() {
    need_pip!();
    let mut daemon = Daemon::start("");
    let source = "import decimal\ndef main(params):\n    return {'value': str(decimal.Decimal(1))}\n";
    daemon.deploy_python("one", source, &[]);
    daemon.deploy_python("two", &source.replace("value", "other"), &[]);
    daemon.until("a layer", |daemon| has_layer(daemon, &["one", "two"]));
    daemon.until("it is written down", |daemon| {
        let text = fs::read(daemon.state().join("imports.json")).unwrap_or_default();
        serde_json::from_slice::<Vec<serde_json::Value>>(&text).is_ok_and(|both| both.len() == 2)
    });
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/one", b"{}").json()["value"], "1");
    daemon.until("a layer", |daemon| has_layer(daemon, &["one", "two"]));
    // A crash may leave nonsense, too.
    fs::write(daemon.state().join("imports.json"), b"{").expect("written");
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/two", b"{}").json()["other"], "1");
    daemon.stop();
}

#[test]
fn without_memory_for_them_there_are_none() {
    need_pip!();
    let daemon = Daemon::start("[zygotes]\nlayers_memory = 0\n");
    let source = "import decimal\ndef main(params):\n    return {}\n";
    daemon.deploy_python("f", source, &[]);
    assert_eq!(again(&daemon, "f", source, &[]).get("layer_modules"), None);
    assert!(daemon.spry_ok(&["status"]).contains("switched off (zygotes.layers_memory)"));
    assert!(!daemon.state().join("imports.json").exists());
    daemon.stop();
}

/// A layer that is being made, and one that nobody shares, give their memory to whoever needs it.
#[test]
fn a_functions_need_goes_before_a_layers() {
    need_pip!();
    let links = links();
    // In the layer importing takes as long as it may.
    let slow = "import os, time\nVALUE = 1\nif os.environ.get('SPRY_FUNCTION', '').startswith('_layer'):\n    time.sleep(1000)\n";
    wheel(links.path(), "tiny", "1.0", slow);
    let daemon = Daemon::start(&configuration(links.path(), "[node]\nmemory_budget = \"512MiB\"\n"));
    daemon.deploy_python("f", USER, &["packages=tiny", "limits.memory=128MiB"]);
    daemon.until("the layer is being made", |daemon| {
        daemon.spry_json(&["status"])["memory_promised"] == "384MiB"
    });
    let large =
        daemon.try_deploy_python("large", "def main(params):\n    return {}\n", &["limits.memory=160MiB"]);
    assert!(large.status.success(), "{}", String::from_utf8_lossy(&large.stderr));
    assert_eq!(daemon.post("/function/large", b"{}").status, 200);
    assert!(layers(&daemon).is_empty() && problems(&daemon).is_empty());
    assert_eq!(daemon.post("/function/f", b"{}").status, 200);
    daemon.stop();
}
