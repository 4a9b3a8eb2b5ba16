//! The same for Python, where what is left is left by the interpreter as well.

use super::daemon::Daemon;
use crate::need_root_and_cc;

const SOURCE: &str = r#"
import builtins, json, os, resource, signal, sys, threading, time

left = []
class Kept: pass

def look():
    return {
        "left": len(left), "attribute": hasattr(Kept, "left"), "builtin": hasattr(builtins, "left"),
        "modules": "colorsys" in sys.modules, "path": len(sys.path), "environ": os.environ.get("LEFT"),
        "recursion": sys.getrecursionlimit(), "trace": sys.gettrace() is None, "stdout": sys.stdout is sys.__stdout__,
        "threads": threading.active_count(), "handler": str(signal.getsignal(signal.SIGUSR1)),
        "cwd": os.getcwd(), "fds": len([fd for fd in range(100) if is_open(fd)]),
        "cpu": time.process_time(), "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
        "interned": sys.getrefcount(left), "hash": hash("left"),
    }

def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True

def leave(what):
    if what == "globals": left.extend(range(100000))
    elif what == "attributes": Kept.left = builtins.left = True
    elif what == "import": import colorsys
    elif what == "environment": os.environ["LEFT"] = "something"; sys.path.append("/left")
    elif what == "interpreter": sys.setrecursionlimit(77777); sys.settrace(lambda *_: None)
    elif what == "stdout": sys.stdout = open(os.devnull, "w")
    elif what == "files": left.extend(open("/etc/passwd") for _ in range(20))
    elif what == "watches":
        import ctypes
        libc = ctypes.CDLL(None)
        assert libc.inotify_add_watch(libc.inotify_init1(0), b"/usr", 0xfff) >= 0
    elif what == "cycles":
        a = []; a.append(a); del a
    elif what == "usage":
        for _ in range(300000): pass
    elif what == "thread": threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    elif what == "handler": signal.signal(signal.SIGUSR1, lambda *_: None)
    elif what == "folder": os.chdir("/usr")
    elif what == "child":
        if os.fork() == 0: time.sleep(1000)

def main(params):
    if params.get("do") == "look": return {"pid": os.getpid(), "found": look()}
    leave(params["do"])
    return {"pid": os.getpid()}
"#;

fn deploy(daemon: &Daemon) {
    daemon.deploy_python("remains", SOURCE, &["isolation=request", "scale.max=1"]);
}

/// Whether it is rewound; where rewinding can't be had, this says so.
fn is_rewound(daemon: &Daemon) -> bool {
    let why = daemon.spry_json(&["describe", "remains"])["rewound"]["why"].clone();
    if why.is_null() {
        return true;
    }
    assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but it isn't rewound: {why}");
    println!("SKIPPED: instances can't be rewound here: {why}");
    false
}

fn nothing_is_left(daemon: &Daemon) {
    let call = |what: &str| {
        let response = daemon.post("/function/remains", format!("{{\"do\": \"{what}\"}}").as_bytes());
        assert_eq!(response.status, 200, "{what}: {}", response.text());
        response.json()
    };
    let clean = call("look")["found"].clone();
    (0..6).for_each(|_| drop(call("look")));
    if !is_rewound(daemon) {
        return;
    }
    let restored = [
        "globals",
        "attributes",
        "import",
        "environment",
        "interpreter",
        "stdout",
        "files",
        "watches",
        "cycles",
        "usage",
    ];
    let replaced = ["thread", "handler", "child"];
    for (what, same) in
        restored.map(|what| (what, true)).into_iter().chain(replaced.map(|what| (what, false)))
    {
        for _ in 0..3 {
            let before = call("look");
            assert_eq!(before["found"], clean, "before {what}");
            assert_eq!(call(what)["pid"], before["pid"], "{what}");
            let after = call("look");
            assert_eq!(after["found"], clean, "after {what}");
            assert_eq!(after["pid"] == before["pid"], same, "{what}");
        }
    }
}

#[test]
fn what_python_leaves() {
    need_root_and_cc!();
    let daemon = Daemon::start("[zygotes]\nrewind = \"auto\"\n");
    deploy(&daemon);
    nothing_is_left(&daemon);
    daemon.stop();
}

/// The same where the zygote has begun as what another process was: its system calls are filtered before that.
#[test]
fn what_python_leaves_in_a_zygote_of_a_layer() {
    need_root_and_cc!();
    let daemon = Daemon::start("[zygotes]\nrewind = \"auto\"\n");
    deploy(&daemon);
    daemon.until("a layer of what it imports", |daemon| {
        daemon.spry_json(&["status"])["layers"].as_array().is_some_and(|layers| !layers.is_empty())
    });
    deploy(&daemon);
    let start = daemon.spry_json(&["describe", "remains"])["start"].clone();
    assert!(start["layer_modules"].as_u64().is_some_and(|count| count > 20), "{start}");
    nothing_is_left(&daemon);
    daemon.stop();
}

/// What makes forks differ makes requests differ that one process serves: numbers drawn at random, and what functions have
/// registered for a new process.
#[test]
fn requests_of_one_process_differ_as_forks_do() {
    need_root_and_cc!();
    let daemon = Daemon::start("[zygotes]\nrewind = \"auto\"\n");
    let hook = "import os\ndrawn = []\nos.register_at_fork(after_in_child=lambda: drawn.append(os.urandom(8).hex()))\n\
                def main(params): return {'pid': os.getpid(), 'drawn': drawn[-1]}\n";
    let numbers = "import os, random\n\
                   def main(params): return {'pid': os.getpid(), 'drawn': random.random()}\n";
    for source in [hook, numbers] {
        daemon.deploy_python("remains", source, &["isolation=request", "scale.max=1"]);
        let call = || daemon.post("/function/remains", b"{}").json();
        (0..6).for_each(|_| drop(call()));
        if is_rewound(&daemon) {
            let answers: Vec<_> = (0..5).map(|_| call()).collect();
            assert!(answers.iter().all(|answer| answer["pid"] == answers[0]["pid"]), "{answers:?}");
            let drawn: Vec<_> = answers.iter().map(|answer| answer["drawn"].to_string()).collect();
            assert!((1..drawn.len()).all(|at| !drawn[..at].contains(&drawn[at])), "{drawn:?}");
        }
    }
    daemon.stop();
}
