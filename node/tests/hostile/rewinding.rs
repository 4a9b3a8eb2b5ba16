//! What a request leaves in its process, kind by kind: the next one finds it as the first did. Either it was put back, in
//! the same process, or another process has taken its place (docs/decisions/0010 has the list). No request fails for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::client::{Connection, Response};
use super::daemon::Daemon;
use crate::need_root_and_cc;

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// The same process serves on, as it was.
    Restored,
    /// Another one takes its place.
    Replaced,
}

/// Where rewinding can't be had, this says so and the tests end: forks are tested elsewhere.
pub(crate) fn rewinds(daemon: &Daemon, name: &str) -> bool {
    let described = daemon.spry_json(&["describe", name]);
    if described["rewound"]["why"].is_null() {
        return true;
    }
    let why = &described["rewound"]["why"];
    assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but: {why}");
    println!("SKIPPED: instances can't be rewound here: {why}");
    false
}

struct Scene {
    daemon: Daemon,
    /// What the first request found.
    clean: String,
}

/// What it looks like while it dies is not what the next one will.
#[test]
fn an_instance_that_is_killed_at_its_birth_does_not_end_rewinding() {
    need_root_and_cc!();
    const BIRTHS: usize = 100;
    let Some(Scene { daemon, .. }) = Scene::set() else { return };
    let pid = split(&daemon.get("/function/remains?look")).0;
    let number = pid.strip_prefix("pid ").and_then(|number| number.parse().ok()).expect("a process");
    let first = daemon.outside("remains", number).expect("it is there");
    let others: Vec<i32> = daemon.children().into_iter().filter(|pid| *pid != first).collect();
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let caller = std::thread::spawn({
        let (stop, served, address) = (Arc::clone(&stop), Arc::clone(&served), daemon.address);
        move || {
            while !stop.load(Ordering::Relaxed) {
                let status = Connection::open(address).call("GET", "/function/remains?look", &[], b"").status;
                assert!(matches!(status, 200 | 502), "{status}");
                served.fetch_add(usize::from(status == 200), Ordering::Relaxed);
            }
        }
    });
    let kill_one = || {
        let mut instance = 0;
        daemon.until("there is an instance", |daemon| {
            let found = daemon.children().into_iter().find(|pid| !others.contains(pid));
            instance = found.unwrap_or_default();
            found.is_some()
        });
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(instance), nix::sys::signal::SIGKILL);
        daemon.until("it is reaped", |daemon| !daemon.children().contains(&instance));
    };
    for _ in 0..BIRTHS {
        // The one that serves, and the one that is born in its place.
        kill_one();
        kill_one();
        let before = served.load(Ordering::Relaxed);
        daemon.until("another serves", |_| served.load(Ordering::Relaxed) > before);
    }
    stop.store(true, Ordering::Relaxed);
    caller.join().expect("it is answered");
    let described = daemon.spry_json(&["describe", "remains"]);
    assert_eq!(described["rewound"]["why"], serde_json::Value::Null, "{described}");
    daemon.stop();
}

fn split(response: &Response) -> (String, String) {
    let text = response.text();
    let (pid, rest) = text.split_once('\n').expect("two lines");
    (pid.to_owned(), rest.to_owned())
}

impl Scene {
    fn set() -> Option<Self> {
        let daemon = Daemon::start("[zygotes]\nrewind = \"auto\"\n");
        daemon.deploy_native("remains", &["isolation=request", "limits.timeout=10s", "scale.max=1"]);
        let first = daemon.get("/function/remains?look");
        assert_eq!(first.status, 200, "{}", first.text());
        let scene = Self { daemon, clean: split(&first).1 };
        // Past the third request its plan is the one that it keeps.
        (0..6).for_each(|_| drop(scene.look("before anything")));
        rewinds(&scene.daemon, "remains").then_some(scene)
    }

    /// The process that answers, which has found nothing.
    fn look(&self, after: &str) -> String {
        let response = self.daemon.get("/function/remains?look");
        assert_eq!(response.status, 200, "after {after}: {}", response.text());
        let (pid, found) = split(&response);
        assert_eq!(found, self.clean, "after {after}");
        pid
    }

    fn leaves(&self, what: &str, becomes: Becomes) {
        for _ in 0..3 {
            let before = self.look(what);
            let response = self.daemon.get(&format!("/function/remains?{what}"));
            assert_eq!(response.status, 200, "{what}: {}", response.text());
            let (by, said) = split(&response);
            assert_eq!((&by, &*said), (&before, "left\n"), "{what}");
            let after = self.look(what);
            assert_eq!(before == after, becomes == Becomes::Restored, "{what}: {before}, then {after}");
        }
    }
}

/// One test by name for each thing that can be left.
macro_rules! left_behind {
    ($($name:ident: $($what:literal),+ => $becomes:ident;)+) => {$(
        #[test]
        fn $name() {
            need_root_and_cc!();
            let Some(scene) = Scene::set() else { return };
            $(scene.leaves($what, Becomes::$becomes);)+
            scene.daemon.stop();
        }
    )+};
}

left_behind! {
    globals: "global" => Restored;
    the_heap: "heap", "brk" => Restored;
    thread_local_variables: "thread-local" => Restored;
    the_stack_below: "stack" => Restored;
    registers_of_all_kinds: "registers" => Restored;
    open_files: "open" => Restored;
    locks_and_leases: "locks" => Restored;
    what_waits_for_events: "events" => Restored;
    a_signal_that_comes_when_a_descriptor_is_closed: "signal-at-close" => Restored;
    an_interrupted_wait: "interrupted-wait" => Replaced;
    users_and_groups: "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid" => Replaced;
    the_contracts_descriptors: "replace-input", "replace-output", "close-input" => Replaced;
    the_contracts_descriptors_flags: "flags", "flags-by-another-name", "close-on-exec", "pipe-size" => Replaced;
    timers: "timer", "alarm" => Replaced;
    signal_handlers: "handler", "alternate-stack" => Replaced;
    the_signal_mask: "mask" => Restored;
    pending_signals: "pending" => Restored;
    new_mappings: "mapping", "shared-mapping", "mapping-in-exchange" => Restored;
    a_mapping_that_cannot_be_unmapped: "sealed-mapping" => Replaced;
    known_mappings_can_not_be_changed: "unmap", "protect", "replace-mapping", "move", "stub", "guard", "empty" => Restored;
    advice_and_locks: "advice", "huge-pages", "lock", "key" => Replaced;
    threads: "thread" => Replaced;
    children: "child", "child-that-shares" => Replaced;
    the_working_directory: "folder" => Replaced;
    the_umask: "umask" => Replaced;
    limits_and_scheduling: "limit", "priority", "affinity", "name" => Replaced;
    the_process_group: "group", "session" => Replaced;
    more_filters: "another-filter", "another-listener" => Replaced;
    the_robust_list: "robust-list" => Replaced;
    its_own_pages_in_proc: "own-proc" => Restored;
    restartable_sequences: "rseq" => Restored;
    the_outbox: "outbox" => Restored;
    a_large_answer: "large-outbox", "sparse-outbox" => Replaced;
    resource_usage: "usage" => Restored;
    what_spryd_has_written: "answered-usage" => Restored;
    a_forged_stub: "forged-stub" => Restored;
}

/// What is written after the answer is read before the next request, and kept. (A race: without the reading this fails three times out of four.) Both wait for the one process all the time: else
/// whoever reads what comes of itself would have read it by then.
#[test]
fn unread_output() {
    const TIMES: usize = 200;
    need_root_and_cc!();
    let Some(scene) = Scene::set() else { return };
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            for _ in 0..TIMES {
                let response = scene.daemon.get("/function/remains?late-output");
                assert_eq!(response.status, 200, "{}", response.text());
                assert_eq!(split(&response).1, "left\n");
            }
        });
        while !writes.is_finished() {
            scene.look("late output");
        }
    });
    // (One or another was replaced by one that knows which pages such requests write to.)
    let rewinds = scene.daemon.spry_json(&["describe", "remains"])["rewound"]["rewinds"].as_u64();
    assert!(rewinds >= Some(TIMES as u64), "{rewinds:?}");
    scene.daemon.until("it is in the log", |daemon| daemon.spry_ok(&["logs", "remains"]).contains("late"));
    scene.daemon.stop();
}

/// Requests lie in a segment of which each process can read all.
#[test]
fn an_earlier_request() {
    need_root_and_cc!();
    let Some(scene) = Scene::set() else { return };
    for len in [100, 8 << 10, 200 << 10] {
        let daemon = &scene.daemon;
        assert_eq!(daemon.post("/function/remains?nothing", &vec![b'Z'; len]).status, 200);
        assert_eq!(split(&daemon.post("/function/remains?inbox", b"z")).1, "left\n", "{len}");
    }
    scene.daemon.stop();
}

/// Who goes to the stub by himself is ended with his request, one way or another, and nobody else notices.
#[test]
fn going_to_the_stub_by_itself() {
    need_root_and_cc!();
    let Some(scene) = Scene::set() else { return };
    for what in ["rewind-itself", "middle-of-the-stub", "stub-with-other-arguments"] {
        let before = scene.look(what);
        let response = scene.daemon.get(&format!("/function/remains?{what}"));
        assert!(matches!(response.status, 502 | 504), "{what}: {} {}", response.status, response.text());
        assert_ne!(scene.look(what), before, "{what}");
    }
    scene.daemon.stop();
}

/// What its load has done would carry from one request to the next: it isn't rewound, and `spry describe` says why.
fn is_not_rewound(name: &str, for_this: &str) {
    let Some(scene) = Scene::set() else { return };
    let daemon = scene.daemon;
    daemon.deploy_native(name, &["isolation=request"]);
    let mut pids = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let response = daemon.get(&format!("/function/{name}?global"));
        assert_eq!(response.status, 200, "{}", response.text());
        pids.insert(split(&response).0);
    }
    assert_eq!(pids.len(), 4, "each request has a process of its own");
    let why = daemon.spry_json(&["describe", name])["rewound"]["why"].to_string();
    assert!(why.contains(for_this), "{why}");
    daemon.stop();
}

/// What is mapped and empty costs nobody anything: it is rewound like any other.
#[test]
fn a_load_that_maps_without_end() {
    need_root_and_cc!();
    let Some(scene) = Scene::set() else { return };
    let daemon = scene.daemon;
    daemon.deploy_native("remains-vast", &["isolation=request", "scale.max=1"]);
    for _ in 0..6 {
        let response = daemon.get("/function/remains-vast?global");
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let described = daemon.spry_json(&["describe", "remains-vast"]);
    assert!(described["rewound"]["why"].is_null(), "{described}");
    assert!(described["rewound"]["rewinds"].as_u64() > Some(0), "{described}");
    daemon.stop();
}

#[test]
fn a_load_that_shares_memory() {
    need_root_and_cc!();
    is_not_rewound("remains-shared", "is shared");
}

#[test]
fn a_load_that_filters_what_rewinds() {
    need_root_and_cc!();
    is_not_rewound("remains-filtered", "a filter of its own");
}

#[test]
fn a_load_that_shows_its_memory() {
    need_root_and_cc!();
    is_not_rewound("remains-shown", "PR_SET_DUMPABLE");
}

#[test]
fn a_load_that_gives_instances_a_twin() {
    need_root_and_cc!();
    is_not_rewound("remains-twin", "made a process or a thread before it served");
}

/// A function whose every request leaves something isn't rewound any more after a while, and served all the same.
#[test]
fn who_always_leaves_something_is_forked() {
    need_root_and_cc!();
    let Some(scene) = Scene::set() else { return };
    for _ in 0..20 {
        assert_eq!(scene.daemon.get("/function/remains?umask").status, 200);
    }
    scene.daemon.until("it is given up", |daemon| {
        assert_eq!(daemon.get("/function/remains?umask").status, 200);
        !daemon.spry_json(&["describe", "remains"])["rewound"]["why"].is_null()
    });
    let pid = || split(&scene.daemon.get("/function/remains?look")).0;
    assert_ne!(pid(), pid(), "each request has a process of its own");
    scene.daemon.stop();
}
