//! The life of functions and processes: scale up and down, redeploy under load, deaths, restarts, what is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::client::{self, Connection};
use super::daemon::Daemon;
use crate::need_root_and_cc;

const PID: &str = "import os\ndef main(params): return {'pid': os.getpid(), 'v': VERSION}\n";

fn pid_source(version: u32) -> String {
    format!("VERSION = {version}\n{PID}")
}

#[test]
fn the_first_call_forks_and_the_next_is_warm() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("who", &pid_source(1), &[]);
    let first = daemon.post("/function/who", b"{}");
    let second = daemon.post("/function/who", b"{}");
    assert_eq!((first.header("x-spry-start"), second.header("x-spry-start")), (Some("forked"), Some("warm")));
    assert_eq!(first.json()["pid"], second.json()["pid"]);
    daemon.stop();
}

/// A zygote keeps to one core while it forks.
#[test]
fn a_new_instance_may_run_on_every_core() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source = "import os\ndef main(params): return {'cores': sorted(os.sched_getaffinity(0))}\n";
    daemon.deploy_python("cores", source, &["isolation=request"]);
    daemon.deploy_python("forked", source, &[]);
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("this thread's cores");
    let mine: Vec<u64> = (0..nix::sched::CpuSet::count())
        .filter(|core| mine.is_set(*core).unwrap_or(false))
        .map(|core| core as u64)
        .collect();
    for function in ["cores", "forked"] {
        let answer = daemon.post(&format!("/function/{function}"), b"{}").json();
        assert_eq!(answer["cores"], serde_json::json!(mine), "{function}");
    }
    daemon.stop();
}

#[test]
fn with_isolation_request_every_call_has_a_process_of_its_own_if_it_is_not_rewound() {
    need_root_and_cc!();
    let daemon = Daemon::start("[zygotes]\nrewind = \"off\"\n");
    daemon.deploy_python("who", &pid_source(1), &["isolation=request"]);
    daemon.deploy_native("hostile", &["isolation=request"]);
    let address = daemon.address;
    for path in ["/function/who", "/function/hostile"] {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut connection = Connection::open(address);
                    let calls = (0..20).map(|_| connection.call("POST", path, &[], b"{}"));
                    calls.map(|response| (response.status, response.text())).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut answers: Vec<_> =
            clients.into_iter().flat_map(|client| client.join().expect("answers")).collect();
        assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        answers.sort();
        answers.dedup();
        assert_eq!(answers.len(), 60, "a process served twice");
    }
    daemon.stop();
}

/// A request that is sent to an instance at its birth is answered once, whatever becomes of the instance, and its time runs
/// out like any other's.
#[test]
fn requests_in_hand_at_birth() {
    need_root_and_cc!();
    let source = "import os, signal\n\
                  def main(params):\n    \
                  if params['do'] == 'end': os._exit(3)\n    \
                  if params['do'] == 'fail': raise ValueError(params['n'])\n    \
                  if params['do'] == 'hang': signal.pause()\n    \
                  print(params['n'])\n    \
                  return {'n': params['n'], 'pid': os.getpid()}\n";
    let daemon = Daemon::start("[zygotes]\nrewind = \"off\"\n");
    let mut hung = 0;
    for (name, isolation) in [("kept", "isolation=instance"), ("used", "isolation=request")] {
        daemon.deploy_python(
            name,
            source,
            &[isolation, "scale.max=8", "scale.idle=200ms", "limits.timeout=5s"],
        );
        for round in 0..4 {
            let calls: Vec<_> =
                ["answer", "end", "fail", "answer", if round == 0 { "hang" } else { "answer" }]
                    .into_iter()
                    .enumerate()
                    .map(|(index, what)| {
                        let (address, n) = (daemon.address, round * 100 + index);
                        let path = format!("/function/{name}");
                        let body = format!("{{\"do\": \"{what}\", \"n\": {n}}}");
                        let call =
                            move || Connection::open(address).call("POST", &path, &[], body.as_bytes());
                        (what, n, std::thread::spawn(call))
                    })
                    .collect();
            for (what, n, call) in calls {
                let answer = call.join().expect("an answer");
                let code = if answer.status == 200 { String::new() } else { answer.error_code() };
                match what {
                    "answer" => assert_eq!(answer.json()["n"], n, "{}", answer.text()),
                    "end" => assert_eq!((answer.status, code.as_str()), (502, "process_exited")),
                    "fail" => assert_eq!(answer.status, 500, "{}", answer.text()),
                    _ => {
                        assert_eq!(answer.status, 504, "{}", answer.text());
                        hung += 1;
                    }
                }
            }
            // The next round finds none, either.
            daemon.until("everything idle has ended", |daemon| daemon.children().is_empty());
        }
    }
    assert_eq!(hung, 2);
    daemon.stop();
}

#[test]
fn parallel_calls_scale_up_to_max_and_idle_instances_end() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let source = "import os, time\ndef main(params):\n  time.sleep(0.3)\n  return {'pid': os.getpid()}\n";
    daemon.deploy_python("slow", source, &["scale.max=3", "scale.idle=500ms"]);
    let address = daemon.address;
    let calls: Vec<_> = (0..9)
        .map(|_| std::thread::spawn(move || client::call(address, "POST", "/function/slow", b"{}")))
        .collect();
    let mut pids: Vec<_> = calls
        .into_iter()
        .map(|call| call.join().expect("a response"))
        .map(|response| (response.status, response.json()["pid"].as_i64().expect("a pid")))
        .collect();
    assert!(pids.iter().all(|(status, _)| *status == 200));
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() > 1 && pids.len() <= 3, "{pids:?}");
    // The instances go, and the zygote after them.
    daemon.until("everything idle has ended", |daemon| daemon.children().is_empty());
    let again = daemon.post("/function/slow", b"{}");
    assert_eq!((again.status, again.header("x-spry-start")), (200, Some("cold")));
    daemon.stop();
}

#[test]
fn a_redeploy_under_load_loses_no_request() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("who", &pid_source(0), &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let address = daemon.address;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                let mut connection = Connection::open(address);
                loop {
                    let is_last = stop.load(Ordering::Relaxed);
                    let response = connection.call("POST", "/function/who", &[], b"{}");
                    assert_eq!(response.status, 200, "{}", response.text());
                    served.fetch_add(1, Ordering::Relaxed);
                    if is_last {
                        return response.json()["v"].as_u64().expect("a version");
                    }
                }
            })
        })
        .collect();
    for version in 1..=6 {
        daemon.deploy_python("who", &pid_source(version), &[]);
        // The new version serves as soon as the deploy has returned.
        assert_eq!(daemon.post("/function/who", b"{}").json()["v"], version);
        let seen = served.load(Ordering::Relaxed);
        daemon.until("requests go on", |_| served.load(Ordering::Relaxed) > seen + 50);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.join().expect("no request failed"), 6, "sent after the last deploy");
    }
    let folder = daemon.state().join("functions/who");
    // (As many as are kept, 5, and not the first.)
    daemon.until("old versions are gone", |_| std::fs::read_dir(&folder).is_ok_and(|left| left.count() == 5));
    daemon.stop();
}

#[test]
fn killing_instances_and_zygotes_under_load_costs_only_their_own_requests() {
    need_root_and_cc!();
    const KILLS: usize = 40;
    let daemon = Daemon::start("");
    daemon.deploy_python("who", &pid_source(0), &[]);
    daemon.deploy_native("hostile", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    // Of each function.
    let served = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let address = daemon.address;
    let clients: Vec<_> =
        [("/function/who", 0), ("/function/who", 0), ("/function/hostile", 1), ("/function/hostile", 1)]
            .into_iter()
            .map(|(path, function)| {
                let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
                std::thread::spawn(move || {
                    let mut connection = Connection::open(address);
                    let mut failed = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let response = connection.call("POST", path, &[], b"{}");
                        match response.status {
                            200 => _ = served[function].fetch_add(1, Ordering::Relaxed),
                            502 => failed += 1,
                            other => panic!("{other}: {}", response.text()),
                        }
                    }
                    failed
                })
            })
            .collect();
    for round in 0..KILLS {
        let count = || [0, 1].map(|function: usize| served[function].load(Ordering::Relaxed));
        let before = count();
        let mut children = Vec::new();
        // Of both: one whose processes are killed again and again before they serve anybody is told that it can't be started.
        daemon.until("requests are served", |daemon| {
            children = daemon.children();
            let now = count();
            !children.is_empty() && (0..2).all(|function| now[function] > before[function] + round % 5)
        });
        let pid = children[round % children.len()];
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        daemon.until("the killed process is reaped", |daemon| !daemon.children().contains(&pid));
    }
    stop.store(true, Ordering::Relaxed);
    let failed: usize = clients.into_iter().map(|client| client.join().expect("only 200 and 502")).sum();
    // With an init everybody of its function dies, and two at most are called, or sent what they find at their birth.
    let served: usize = served.iter().map(|of_one| of_one.load(Ordering::Relaxed)).sum();
    assert!(failed <= 2 * KILLS, "{served} served, {failed} failed, {KILLS} killed");
    for path in ["/function/who", "/function/hostile"] {
        assert_eq!(daemon.post(path, b"{}").status, 200);
    }
    daemon.stop();
}

#[test]
fn what_was_deployed_is_served_after_a_crash() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("who", &pid_source(7), &[]);
    daemon.deploy_python("gone", &pid_source(8), &[]);
    daemon.spry_ok(&["remove", "gone"]);
    assert_eq!(daemon.post("/function/who", b"{}").status, 200);
    let orphans = daemon.children();
    assert!(!orphans.is_empty());
    daemon.crash_and_restart();
    let after = daemon.post("/function/who", b"{}");
    assert_eq!((after.status, after.json()["v"].as_u64()), (200, Some(7)));
    assert_eq!(after.header("x-spry-start"), Some("cold"));
    assert_eq!(daemon.get("/function/gone").status, 404);
    daemon.until("the dead daemon's processes are gone", |_| {
        orphans.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    daemon.stop();
}

#[test]
fn a_stop_before_it_is_ready_is_an_ordinary_stop() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("f", "def main(params): return {}\n", &["scale.min=1"]);
    for _ in 0..5 {
        let status = daemon.stop_while_it_starts();
        assert!(status.success(), "{status:?}");
    }
    daemon.crash_and_restart();
    daemon.stop();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_spryd"))
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(daemon.state())
        .arg("--control-socket")
        .arg(daemon.socket().with_extension("other"))
        .output()
        .expect("run spryd");
    assert!(!second.status.success());
    let err = String::from_utf8_lossy(&second.stderr);
    assert!(err.contains(&daemon.pid().to_string()), "it names the other's pid: {err}");
    daemon.stop();
}

#[test]
fn the_command_line_works_as_the_contract_says() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("who", &pid_source(1), &["env.GREETING=hi"]);
    assert!(daemon.spry_ok(&["list"]).contains("who"));
    let described = daemon.spry_json(&["describe", "who"]);
    assert_eq!((described["name"].as_str(), described["version"].as_u64()), (Some("who"), Some(1)));
    let body: serde_json::Value =
        serde_json::from_str(&daemon.spry_ok(&["invoke", "who", "-d", "{}"])).expect("JSON");
    assert_eq!(body["v"], 1);
    assert_eq!(daemon.spry_json(&["status"])["functions"], 1);
    assert_eq!(daemon.spry(&["invoke", "nobody"]).status.code(), Some(2));
    assert_eq!(daemon.spry(&["invoke"]).status.code(), Some(64));
    assert_eq!(daemon.spry(&["describe", "nobody"]).status.code(), Some(2));
    daemon.deploy_python("bad", "def main(params): raise KeyError('x')", &[]);
    let failed = daemon.spry(&["invoke", "bad", "-d", "{}"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stdout.is_empty() && String::from_utf8_lossy(&failed.stderr).contains("KeyError"));
    daemon.spry_ok(&["remove", "who"]);
    assert_eq!(daemon.get("/function/who").status, 404);
    daemon.stop();
}

#[test]
fn a_thousand_calls_and_many_deaths_leave_nothing() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_native("hostile", &[]);
    for _ in 0..5 {
        daemon.get("/function/hostile");
    }
    let (fds, processes) = (daemon.open_fds(), daemon.children().len());
    let mut connection = Connection::open(daemon.address);
    for round in 0..1000 {
        let path = if round % 20 == 0 { "/function/hostile?kill" } else { "/function/hostile" };
        let response = connection.call("GET", path, &[], b"");
        assert_eq!(response.status, if round % 20 == 0 { 502 } else { 200 }, "{}", response.text());
    }
    drop(connection);
    daemon.until("descriptors are as before", |daemon| daemon.open_fds() <= fds);
    daemon.until("processes are as before", |daemon| daemon.children().len() <= processes);
    daemon.stop();
}
