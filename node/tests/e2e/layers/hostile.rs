//! What a function, or a package, can't do by a layer.

use super::*;

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
