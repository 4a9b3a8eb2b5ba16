//! Versions of a function: going back to one, files that a crash tore, and the order in which zygotes come back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::client::Connection;
use super::daemon::Daemon;
use crate::need_root_and_cc;

fn text(version: u64) -> String {
    format!("def main(params): return {{'version': {version}}}\n")
}

fn code(daemon: &Daemon, name: &str, version: u64) -> PathBuf {
    daemon.state().join(format!("functions/{name}/{version}/code/{name}.py"))
}

#[test]
fn an_earlier_version_serves_again_and_no_request_is_lost() {
    need_root_and_cc!();
    let daemon = Daemon::start("[versions]\nkeep = 3\n");
    for version in 1..=4 {
        daemon.deploy_python("fn", &text(version), &[]);
    }
    // (4 has taken over; when 3 has run dry, 1 is too many.)
    daemon.until("the fourth last is swept", |daemon| !code(daemon, "fn", 1).exists());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut connection = Connection::open(daemon.address);
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let answer = connection.call("GET", "/function/fn", &[], b"");
                assert_eq!(answer.status, 200, "{}", answer.text());
                let version = answer.json()["version"].as_u64().expect("a number");
                if seen.last() != Some(&version) {
                    seen.push(version);
                }
            }
            seen
        });
        let said = daemon.spry_ok(&["rollback", "fn"]);
        assert!(said.starts_with("fn version 3 is ready, replacing version 4"), "{said}");
        daemon.spry_ok(&["rollback", "fn", "--to", "2"]);
        daemon.until("version 2 answers", |daemon| daemon.get("/function/fn").json()["version"] == 2);
        stop.store(true, Ordering::Relaxed);
        let seen = caller.join().expect("no request failed");
        assert!(seen.is_sorted_by(|one, next| one > next), "4, then 3, then 2: {seen:?}");
    });
    let described = daemon.spry_json(&["describe", "fn"]);
    let versions: Vec<_> = described["versions"].as_array().expect("a list").iter().collect();
    let shown: Vec<_> =
        versions.iter().map(|one| (one["version"].as_u64(), one["current"] == true)).collect();
    assert_eq!(shown, [(Some(4), false), (Some(3), false), (Some(2), true)]);
    assert!(daemon.spry_ok(&["describe", "fn"]).contains("2 (serves)"));
    let refused = daemon.spry(&["rollback", "fn", "--to", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no version 1 of \"fn\" is kept; there is 4, 3"), "{said}");
    daemon.deploy_python("fn", &text(5), &[]);
    assert_eq!(daemon.spry_json(&["describe", "fn"])["version"], 5, "a number comes once");
    daemon.stop();
}

#[test]
fn a_rollback_that_fails_changes_nothing() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("fn", &text(1), &[]);
    daemon.deploy_python("fn", &text(2), &[]);
    std::fs::write(code(&daemon, "fn", 1), "def main(params): return {'version': 666}\n").expect("altered");
    let refused = daemon.spry(&["rollback", "fn"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the files of version 1 of \"fn\"") && said.contains("not those"), "{said}");
    assert_eq!(daemon.get("/function/fn").json()["version"], 2);
    assert_eq!(daemon.spry_json(&["describe", "fn"])["version"], 2);
    daemon.stop();
}

#[test]
fn files_that_a_crash_tore_are_not_served_and_the_others_are() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    for name in ["whole", "cut", "zeros", "gone"] {
        daemon.deploy_python(name, &text(1), &[]);
        daemon.deploy_python(name, &text(2), &[]);
    }
    daemon.kill();
    let file = std::fs::File::options().write(true).open(code(&daemon, "cut", 2)).expect("there");
    file.set_len(7).expect("cut");
    let length = std::fs::metadata(code(&daemon, "zeros", 2)).expect("there").len();
    std::fs::write(code(&daemon, "zeros", 2), vec![0; length as usize]).expect("zeroed");
    std::fs::remove_file(code(&daemon, "gone", 2)).expect("removed");
    daemon.crash_and_restart();
    for name in ["cut", "zeros", "gone"] {
        let answer = daemon.get(&format!("/function/{name}"));
        assert_eq!((answer.status, answer.error_code().as_str()), (503, "start_failed"), "{}", answer.text());
        assert!(answer.text().contains("not those that were deployed"), "{}", answer.text());
        let view = daemon.spry_json(&["describe", name]);
        assert_eq!(view["state"], "broken", "{view}");
        assert!(view["problem"].as_str().is_some_and(|text| text.contains("spry rollback")), "{view}");
    }
    let list = daemon.spry_ok(&["list"]);
    assert_eq!(list.matches("broken").count(), 3, "{list}");
    assert_eq!(daemon.get("/function/whole").json()["version"], 2, "the others are as they were");
    daemon.spry_ok(&["rollback", "cut"]);
    assert_eq!(daemon.get("/function/cut").json()["version"], 1);
    daemon.deploy_python("zeros", &text(3), &[]);
    assert_eq!(daemon.get("/function/zeros").json()["version"], 3);
    daemon.stop();
}

/// Answers when its zygote was loaded.
const LOADED: &str = "import time\nloaded = time.monotonic_ns()\ndef main(params): return str(loaded)\n";

#[test]
fn zygotes_come_back_in_the_order_of_their_last_use() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    for name in ["a", "b", "c", "d", "never"] {
        daemon.deploy_python(name, LOADED, &[]);
    }
    let order = ["c", "a", "d", "b"];
    for name in order.iter().rev() {
        assert_eq!(daemon.get(&format!("/function/{name}")).status, 200);
        // The next use is in another millisecond.
        let now = spry_node::activation::unix_ms();
        daemon.until("the clock goes on", |_| spry_node::activation::unix_ms() > now + 1);
    }
    daemon.stop_and_start_again();
    let zygote = |daemon: &Daemon, name: &str| daemon.spry_json(&["describe", name])["zygote"].clone();
    daemon.until("all are back", |daemon| order.iter().all(|name| zygote(daemon, name) == "ready"));
    assert_eq!(zygote(&daemon, "never"), "none", "nobody has used it");
    let loaded = order.map(|name| daemon.get(&format!("/function/{name}")).text());
    let loaded = loaded.map(|text| text.parse::<u64>().expect("nanoseconds"));
    assert!(loaded.is_sorted(), "{order:?} were loaded at {loaded:?}");
    daemon.stop();
}
