//! The node's memory is promised, not given away: what is refused, who must go, who is left alone.

use spry_node::units::Size;

use super::client;
use super::daemon::Daemon;
use super::layers::has_layer_for;
use crate::need_root_and_cc;

const NOP: &str = "def main(params): return {'ok': True}\n";
/// At work for a while.
const SLOW: &str =
    "import time\ndef main(params):\n  time.sleep(float(params['s']))\n  return {'ok': True}\n";
const MIB: u64 = 1 << 20;

fn budget(mib: u64, more: &str) -> Daemon {
    // (Layers, which give way, would be in the sums for as long as they are made.)
    Daemon::start(&format!("[node]\nmemory_budget = \"{mib}MiB\"\n[zygotes]\nlayers_memory = 0\n{more}"))
}

fn promised_mib(daemon: &Daemon) -> u64 {
    let status = daemon.spry_json(&["status"]);
    let size = |key: &str| status[key].as_str().and_then(|text| text.parse::<Size>().ok());
    let bytes = |key: &str| size(key).unwrap_or_else(|| panic!("{key} in {status}")).as_bytes();
    assert!(bytes("memory_promised") <= bytes("memory_budget"), "{status}");
    bytes("memory_promised") / MIB
}

fn instances(daemon: &Daemon, name: &str) -> (u64, u64) {
    let view = daemon.spry_json(&["describe", name]);
    let count = |what: &str| view["instances"][what].as_u64().expect("a count");
    (count("idle"), count("busy"))
}

#[test]
fn a_deploy_beyond_the_memory_budget_is_refused_with_numbers_and_changes_nothing() {
    need_root_and_cc!();
    let daemon = budget(160, "");
    daemon.deploy_python("small", NOP, &["limits.memory=32MiB"]);
    assert_eq!(daemon.post("/function/small", b"{}").status, 200);
    assert_eq!(promised_mib(&daemon), 64, "a zygote and an instance");
    let refused = daemon.try_deploy_python("large", NOP, &["limits.memory=96MiB"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("needs 192 MiB") && said.contains("of 160 MiB free"), "{said}");
    assert_eq!(daemon.get("/function/large").status, 404);
    // The neighbour answers, and so does a deploy that fits, with the same name.
    assert_eq!(daemon.post("/function/small", b"{}").status, 200);
    daemon.deploy_python("large", NOP, &["limits.memory=32MiB"]);
    assert_eq!(daemon.post("/function/large", b"{}").status, 200);
    let shown = daemon.spry_ok(&["status"]);
    assert!(shown.contains("128 MiB promised of 160 MiB, 32 MiB free"), "{shown}");
    daemon.stop();
}

#[test]
fn idle_instances_are_pushed_out_for_those_that_are_needed() {
    need_root_and_cc!();
    for policy in ["ttl", "greedy-dual", "histogram", "layered"] {
        // Room for two zygotes and three instances, or one and four.
        let daemon = budget(160, &format!("[keepalive]\npolicy = \"{policy}\"\n"));
        daemon.deploy_python("greedy", SLOW, &["limits.memory=32MiB"]);
        daemon.deploy_python("late", NOP, &["limits.memory=32MiB"]);
        let address = daemon.address;
        let calls: Vec<_> = (0..6)
            .map(|_| {
                std::thread::spawn(move || client::call(address, "POST", "/function/greedy", br#"{"s":1.5}"#))
            })
            .collect();
        for call in calls {
            assert_eq!(call.join().expect("a response").status, 200, "{policy}");
        }
        // (Under `layered` some may have gone by time already: six calls, then none.)
        let by_time = policy == "layered";
        daemon.until("the other's idle zygote gives way", |daemon| {
            (instances(daemon, "greedy").0, promised_mib(daemon)) == (4, 160) || by_time
        });
        assert_eq!(daemon.post("/function/late", b"{}").status, 200, "{policy}");
        let (idle, promised) = (instances(&daemon, "greedy").0, promised_mib(&daemon));
        assert!((idle, promised) == (2, 160) || by_time, "{policy}: two gave way: {idle} {promised}");
        assert_eq!(daemon.post("/function/greedy", br#"{"s":0}"#).status, 200, "{policy}");
        daemon.stop();
    }
}

/// What two functions import, and it takes a while.
const IMPORTS: &str = "import decimal, email.message, html.parser, sqlite3, unittest.mock, xmlrpc.client\n\
                       def main(params): return {'ok': True}\n";

#[test]
fn a_layer_gives_way_when_nothing_that_is_idle_is_worth_less() {
    need_root_and_cc!();
    let daemon = Daemon::start("[node]\nmemory_budget = \"520MiB\"\n[zygotes]\nlayers_memory = \"60MiB\"\n");
    let limit = ["limits.memory=64MiB"];
    for (name, source) in [("old", NOP), ("one", IMPORTS), ("two", IMPORTS)] {
        daemon.deploy_python(name, source, &limit);
    }
    let has_layer = |daemon: &Daemon| has_layer_for(daemon, &["one", "two"]);
    daemon.until("there is a layer", has_layer);
    daemon.deploy_python("new", NOP, &limit);
    // Four zygotes and four instances have no room beside it.
    for name in ["old", "new", "two", "one", "old", "new"] {
        assert_eq!(daemon.post(&format!("/function/{name}"), b"{}").status, 200, "{name}");
        assert!(has_layer(&daemon), "{name}");
    }
    // Where all of it is needed nothing idle stays: instances, then their zygotes, then the layer.
    daemon.deploy_python("large", NOP, &["limits.memory=250MiB"]);
    assert_eq!(daemon.post("/function/large", b"{}").status, 200);
    daemon.until("the layer, too", |daemon| !has_layer(daemon));
    daemon.stop();
}

#[test]
fn without_room_a_call_waits_then_gets_503_and_who_is_at_work_is_left_alone() {
    need_root_and_cc!();
    // Room for two zygotes and one instance.
    let daemon = budget(96, "");
    daemon.deploy_python("busy", SLOW, &["limits.memory=32MiB"]);
    daemon.deploy_python("late", NOP, &["limits.memory=32MiB"]);
    let address = daemon.address;
    let at_work = std::thread::spawn(move || client::call(address, "POST", "/function/busy", br#"{"s":12}"#));
    daemon.until("the instance is at work", |daemon| instances(daemon, "busy").1 == 1);
    let refused = daemon.post("/function/late", b"{}");
    let text = refused.text();
    assert_eq!(refused.status, 503, "{text}");
    assert!(text.contains("needs 32 MiB") && text.contains("of 96 MiB free"), "{text}");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(at_work.join().expect("a response").status, 200);
    // It is idle now, and gives way.
    assert_eq!(daemon.post("/function/late", b"{}").status, 200);
    daemon.stop();
}

#[test]
fn an_idle_zygote_gives_way_too_and_comes_back() {
    need_root_and_cc!();
    // Room for one zygote and one instance.
    let daemon = budget(64, "");
    for name in ["one", "other"] {
        daemon.deploy_python(name, NOP, &["limits.memory=32MiB"]);
    }
    for round in 0..3 {
        for name in ["one", "other"] {
            let response = daemon.post(&format!("/function/{name}"), b"{}");
            assert_eq!(response.status, 200, "round {round}, {name}: {}", response.text());
            assert_eq!(promised_mib(&daemon), 64);
        }
    }
    daemon.stop();
}

#[test]
fn single_use_instances_are_ready_ahead_and_leave_nothing() {
    need_root_and_cc!();
    let daemon = Daemon::start("[zygotes]\nrewind = \"off\"\n");
    daemon.deploy_native("hostile", &["isolation=request"]);
    let call = |daemon: &Daemon| assert_eq!(daemon.get("/function/hostile").status, 200);
    // The instance, its zygote, and the init of their pid namespace.
    let ready = |daemon: &Daemon| instances(daemon, "hostile") == (1, 0) && daemon.children().len() == 3;
    call(&daemon);
    daemon.until("the next one is ready", ready);
    for _ in 0..20 {
        call(&daemon);
    }
    // Bursts make the pool larger; it shrinks when they are over: the larger it was, the longer that takes.
    let address = daemon.address;
    let load = || {
        let clients = (0..8).map(|_| {
            std::thread::spawn(move || {
                let mut connection = client::Connection::open(address);
                for _ in 0..16 {
                    assert_eq!(connection.call("GET", "/function/hostile", &[], b"").status, 200);
                }
            })
        });
        clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().expect("all are answered"));
    };
    load();
    daemon.until("the pool has shrunk", ready);
    let census = |daemon: &Daemon| {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid())).expect("mounts");
        let record = std::fs::read_to_string(daemon.state().join("cgroups")).expect("control groups");
        let groups = record.lines().map(|root| folders(std::path::Path::new(root))).sum::<usize>();
        let files = daemon.open_files();
        let is_inbox = |file: &&std::path::PathBuf| file.to_string_lossy().contains("spry-inbox-hostile");
        let inboxes = files.iter().filter(is_inbox).count();
        Census { files: files.len() - inboxes, inboxes, mounts: mounts.lines().count(), groups }
    };
    let before = census(&daemon);
    load();
    daemon.until("the pool has shrunk again and nothing else is left", |daemon| {
        ready(daemon) && before.covers(&census(daemon))
    });
    daemon.stop();
}

/// What spryd holds.
struct Census {
    files: usize,
    inboxes: usize,
    mounts: usize,
    groups: usize,
}

impl Census {
    /// Inboxes and empty control groups are kept for the next instances, as many as there were at once: of a function 64 at
    /// most (`inbox::own`), and 16 in each of three hierarchies (`cgroup::leaf`). What 128 calls leaked would be more.
    fn covers(&self, now: &Self) -> bool {
        now.files <= self.files
            && now.mounts == self.mounts
            && now.inboxes <= self.inboxes + 64
            && now.groups <= self.groups + 3 * 16
    }
}

fn folders(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let inner = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    inner.map(|path| 1 + folders(&path)).sum()
}
