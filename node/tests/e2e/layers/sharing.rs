//! Who shares what: functions with packages in common, and with packages of their own beside.

use super::*;

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
