//! Package layers: shared where that is right, without a trace of anybody's code, and never what a function fails for.

mod hostile;
mod sharing;

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
