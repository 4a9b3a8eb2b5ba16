//! Who goes first on a real node: order and counts, not times.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::client::Connection;
use super::daemon::Daemon;
use crate::need_root_and_cc;

const SRPT_PLUS: &str = "[scheduler]\npolicy = \"srpt+\"\n";

/// Uses `ms` of CPU time; or waits, without using any, until another call says `go`.
const WORK: &str = "import os, time
def main(params):
  if params.get('go'):
    open('/tmp/go', 'w').close()
  elif params.get('wait'):
    while not os.path.exists('/tmp/go'):
      time.sleep(0.05)
  else:
    end = time.process_time() + params['ms'] / 1000
    while time.process_time() < end:
      pass
  return {'done': True}
";

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Nothing is kept back, nothing has begun.
fn none_is_left(daemon: &Daemon) {
    let status = daemon.spry_json(&["status"]);
    let scheduler = &status["scheduler"];
    assert_eq!((&scheduler["held"], &scheduler["begun"]), (&0.into(), &0.into()), "{status}");
}

/// A number from the metrics page.
fn metric(daemon: &Daemon, name: &str) -> u64 {
    let page = Connection::open(daemon.address).call("GET", "/metrics", &[], b"").text();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{page}"))
}

/// This many calls at once; counts those that have ended.
fn call_at_once(
    daemon: &Daemon,
    path: &'static str,
    body: &'static str,
    count: usize,
) -> (Vec<std::thread::JoinHandle<u16>>, Arc<AtomicUsize>) {
    let (address, ended) = (daemon.address, Arc::new(AtomicUsize::new(0)));
    let call = |_| {
        let ended = Arc::clone(&ended);
        std::thread::spawn(move || {
            let status = Connection::open(address).call("POST", path, &[], body.as_bytes()).status;
            ended.fetch_add(1, Ordering::SeqCst);
            status
        })
    };
    ((0..count).map(call).collect(), ended)
}

#[test]
fn short_functions_overtake_long_ones_and_these_are_kept_back() {
    need_root_and_cc!();
    let daemon = Daemon::start(SRPT_PLUS);
    daemon.deploy_python("long", WORK, &["scale.max=64"]);
    daemon.deploy_python("short", WORK, &[]);
    for _ in 0..2 {
        assert_eq!(daemon.post("/function/long", b"{\"ms\": 400}").status, 200);
        assert_eq!(daemon.post("/function/short", b"{\"ms\": 2}").status, 200);
    }
    let before = metric(&daemon, "spry_scheduled_total");
    let count = 3 * cores();
    let (long, ended) = call_at_once(&daemon, "/function/long", "{\"ms\": 400}", count);
    daemon.until("all are known to the policy", |daemon| {
        metric(daemon, "spry_scheduled_total") >= before + count as u64
    });
    let short = daemon.post("/function/short", b"{\"ms\": 2}");
    assert_eq!(short.status, 200);
    assert!(ended.load(Ordering::SeqCst) < count, "a short call waited for all the long ones");
    assert!(long.into_iter().all(|call| call.join().expect("an answer") == 200));
    assert!(metric(&daemon, "spry_held_total") > 0);
    // Nothing is left of them, and no process stays at the back.
    daemon.until("all are over", |daemon| metric(daemon, "spry_scheduled_invocations{place=\"back\"}") == 0);
    none_is_left(&daemon);
    daemon.stop();
}

#[test]
fn functions_that_wait_for_something_else_keep_nobody_from_beginning() {
    need_root_and_cc!();
    for signals in ["true", "false"] {
        let daemon = Daemon::start(&format!("{SRPT_PLUS}signals = {signals}\n"));
        daemon.deploy_python("waits", WORK, &["scale.max=64"]);
        let count = 3 * cores() + 1;
        let (calls, ended) = call_at_once(&daemon, "/function/waits", "{\"wait\": true}", count);
        daemon.until("all have begun", |daemon| daemon.spry_json(&["status"])["scheduler"]["begun"] == count);
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        assert_eq!(daemon.post("/function/waits", b"{\"go\": true}").status, 200);
        assert!(calls.into_iter().all(|call| call.join().expect("an answer") == 200));
        daemon.stop();
    }
}

#[test]
fn under_every_policy_all_calls_are_answered_and_status_names_it() {
    need_root_and_cc!();
    for policy in ["eevdf", "sfs", "alps", "srpt", "srpt+"] {
        let daemon = Daemon::start(&format!("[scheduler]\npolicy = \"{policy}\"\n"));
        daemon.deploy_python("work", WORK, &["scale.max=16"]);
        let (short, _) = call_at_once(&daemon, "/function/work", "{\"ms\": 1}", 8);
        let (long, _) = call_at_once(&daemon, "/function/work", "{\"ms\": 30}", 8);
        assert!(short.into_iter().chain(long).all(|call| call.join().expect("an answer") == 200), "{policy}");
        let shown = daemon.spry_ok(&["status"]);
        assert!(shown.contains(&format!("{policy} by ")), "{shown}");
        let timing = daemon.post("/function/work", b"{\"ms\": 20}");
        let timing = timing.header("server-timing").expect("timings").to_owned();
        let cpu = timing.split(", ").find_map(|part| part.strip_prefix("cpu;dur="));
        let cpu: f64 = cpu.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("no cpu in {timing}"));
        assert!(cpu >= 19.0, "{timing}");
        daemon.stop();
    }
}

#[test]
fn sched_ext_where_there_is_none_is_said_and_replaced() {
    need_root_and_cc!();
    let daemon = Daemon::start(&format!("{SRPT_PLUS}backend = \"sched_ext\"\n"));
    daemon.deploy_python("work", WORK, &[]);
    assert_eq!(daemon.post("/function/work", b"{\"ms\": 1}").status, 200);
    let shown = daemon.spry_ok(&["status"]);
    assert!(shown.contains("srpt+ by posix: ") && shown.contains("; not sched_ext: "), "{shown}");
    assert_eq!(daemon.spry_json(&["status"])["scheduler"]["fallbacks"], 0);
    assert_eq!(metric(&daemon, "spry_scheduler_fallbacks_total"), 0);
    daemon.stop();
}

#[test]
fn an_invocation_whose_process_dies_leaves_no_place_behind() {
    need_root_and_cc!();
    let daemon = Daemon::start(SRPT_PLUS);
    let source = "import os\ndef main(params): os._exit(3)\n";
    daemon.deploy_python("dies", source, &[]);
    for _ in 0..3 * cores() {
        assert_eq!(daemon.post("/function/dies", b"{}").status, 502);
    }
    daemon.deploy_python("lives", WORK, &[]);
    assert_eq!(daemon.post("/function/lives", b"{\"ms\": 1}").status, 200);
    none_is_left(&daemon);
    daemon.stop();
}
