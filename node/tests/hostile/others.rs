//! Reaching other processes: another function's, the function's own zygote, spryd.

use serde_json::json;

use super::daemon::Daemon;
use super::neighbour::Neighbour;
use super::outcomes_of;
use crate::need_root_and_cc;

const INTRUDER: &str = r#"
import signal

def reach(pid):
    return {
        "ptrace": outcome(lambda: call("ptrace", 16, pid, None, None)),
        "read memory": outcome(lambda: call("process_vm_readv", pid, None, 0, None, 0, 0)),
        "open memory": outcome(lambda: open("/proc/%d/mem" % pid, "rb")),
        "root": outcome(lambda: os.listdir("/proc/%d/root/" % pid)),
        "descriptors": outcome(lambda: os.listdir("/proc/%d/fd" % pid)),
        "namespaces": outcome(lambda: os.open("/proc/%d/ns/mnt" % pid, os.O_RDONLY)),
    }

def main(params):
    found = reach(params["pid"])
    if params["kill"]:
        for name in ["SIGKILL", "SIGSTOP", "SIGTERM"]:
            found[name] = outcome(lambda: os.kill(params["pid"], getattr(signal, name)))
    return {"found": found, "parent": os.getppid(), "self": os.getpid()}
"#;

fn attack(daemon: &Daemon, pid: i32, kill: bool) -> serde_json::Value {
    let body = json!({"pid": pid, "kill": kill}).to_string();
    let response = daemon.post("/function/intruder", body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    let found = response.json();
    for (what, outcome) in found["found"].as_object().expect("outcomes") {
        assert!(
            ["EPERM", "EACCES", "ENOENT", "ESRCH"].contains(&outcome.as_str().expect("text")),
            "{what}: {found}"
        );
    }
    found
}

#[test]
fn another_functions_process_can_not_be_traced_killed_or_read() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("intruder", &outcomes_of(INTRUDER), &[]);
    attack(&daemon, neighbour.pid(), true);
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn spryd_its_parent_can_not_be_signalled_or_read() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("intruder", &outcomes_of(INTRUDER), &[]);
    let found = attack(&daemon, daemon.pid(), true);
    assert_eq!(found["parent"], 0, "spryd isn't to be seen from there");
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

/// They have one user; what one request has taken over must not reach those that come later from the same zygote.
#[test]
fn its_own_zygote_can_not_be_traced_or_read() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("intruder", &outcomes_of(INTRUDER), &["scale.max=1"]);
    let own = attack(&daemon, daemon.pid(), false)["self"].as_i64().expect("a pid");
    // The init of the namespace they live in, which is the host's as to files; the zygote; itself.
    let numbers: Vec<i64> = (1..=own).filter(|pid| daemon.outside("intruder", *pid).is_some()).collect();
    assert!(numbers.len() >= 3 && numbers[0] == 1, "{numbers:?}");
    for number in numbers.into_iter().filter(|number| *number != own) {
        attack(&daemon, number as i32, false);
    }
    daemon.stop();
}

const NUDGER: &str = r#"
import fcntl, resource, signal, socket

def by_a_socket(pid):
    # a signal of one's choice to whoever is said to own it, when there is something to read
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, pid)
    fcntl.fcntl(ours, 10, signal.SIGKILL) # F_SETSIG
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"now")

def signals(pid):
    queue = lambda: call("sigqueue", pid, signal.SIGUSR1, None)
    by_descriptor = lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
    found = {
        "ask": outcome(lambda: os.kill(pid, 0)),
        "stop": outcome(lambda: os.kill(pid, signal.SIGSTOP)),
        "queue": outcome(queue),
        "thread": outcome(lambda: call("syscall", 234, pid, pid, int(signal.SIGKILL))), # tgkill
        "descriptor": outcome(by_descriptor),
        "kill": outcome(lambda: os.kill(pid, signal.SIGKILL)),
    }
    outcome(lambda: by_a_socket(pid)) # nobody is told that it didn't come
    return found

def settings(pid):
    return {
        "nice": outcome(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        "everybody nice": outcome(lambda: os.setpriority(os.PRIO_USER, 0, 19)),
        "its session nice": outcome(lambda: os.setpriority(os.PRIO_PGRP, 0, 19)),
        "cpus": outcome(lambda: os.sched_setaffinity(pid, {0})),
        "limits": outcome(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, 8))),
    }

def own():
    # what anybody may do with himself and with what he has started
    for kill in [lambda child: os.kill(child, signal.SIGKILL), by_a_socket]:
        child = os.fork()
        while child == 0: signal.pause()
        kill(child)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    os.nice(1)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    return os.getpid()

def main(params):
    if "pid" not in params: return {"own": own()}
    if params["pid"] == os.getpid(): return {}
    if params["signals"]:
        os.kill(-1, signal.SIGKILL) # says "done" even if there is nobody whom he may signal
        return signals(params["pid"])
    return settings(params["pid"])
"#;

/// What of a process another could change, as it is from outside: also what it is about to die of.
fn traits(pid: i32) -> String {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it lives");
    let status = text("status");
    let of_status = ["Cpus_allowed:", "SigPnd:", "ShdPnd:"];
    let of_status = status.lines().filter(|line| of_status.iter().any(|name| line.starts_with(name)));
    let of_status = of_status.collect::<Vec<_>>().join(" ");
    let state = status.lines().find(|line| line.starts_with("State:")).expect("a line");
    assert!(!["T (", "Z (", "X ("].iter().any(|ended| state.contains(ended)), "{state}");
    let stat = text("stat");
    let nice = stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(17)).expect("a number");
    format!("{of_status} nice {nice}\n{}", text("limits"))
}

/// Its zygote and the other instances have its user. What one request does to them would be in all that come later.
#[test]
fn its_own_zygote_and_other_instances_can_not_be_signalled_or_held_back() {
    need_root_and_cc!();
    let forked = "[zygotes]\nrewind = \"off\"\n";
    for (config, isolation) in [("", "instance"), ("", "request"), (forked, "request")] {
        let daemon = Daemon::start(config);
        daemon.deploy_python(
            "nudger",
            &outcomes_of(NUDGER),
            &[&format!("isolation={isolation}"), "scale.min=2"],
        );
        let scoped = !daemon.spry_ok(&["doctor"]).contains("can signal each other");
        assert!(scoped || std::env::var_os("SPRY_TEST_ALL").is_none(), "needs Linux 6.12");
        let own = daemon.post("/function/nudger", b"{}").json()["own"].as_i64().expect("a number");
        let outside = |number| Some((number, daemon.outside("nudger", number)?));
        // Without the namespace's init; the zygote is the first.
        let others: Vec<(i64, i32)> = (2..=own).filter_map(outside).collect();
        let (zygote, seen) = others[0];
        let before = traits(seen);
        for (pid, signals) in others.into_iter().flat_map(|(number, _)| [(number, false), (number, scoped)]) {
            let body = json!({"pid": pid, "signals": signals}).to_string();
            let response = daemon.post("/function/nudger", body.as_bytes());
            assert_eq!(response.status, 200, "{isolation}: {}", response.text());
            let found = response.json();
            for (what, outcome) in found.as_object().expect("outcomes") {
                // (Others than the zygote may have ended meanwhile.)
                let gone = pid != zygote && outcome == "ESRCH";
                assert!(outcome == "EPERM" || gone, "{isolation}: {what}: {found}");
            }
            assert_eq!(traits(seen), before, "{isolation}");
        }
        assert_eq!(daemon.outside("nudger", zygote), Some(seen), "{isolation}");
        assert_eq!(daemon.post("/function/nudger", b"{}").status, 200);
        daemon.stop();
    }
}

const KILLER: &str = r#"
import os, signal

def main(params):
    own = os.getpid()
    seen = []
    for pid in range(1, 70000):
        try: os.kill(pid, 0)
        except ProcessLookupError: continue
        except PermissionError: pass
        seen.append(pid)
    listed = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    if params.get("kill"):
        for pid in [1, -1]:
            try: os.kill(pid, signal.SIGKILL)
            except PermissionError: pass # landlock's scope; else the kernel ignores it
            except ProcessLookupError: pass # its zygote is dead already
    return {"own": own, "seen": seen, "listed": listed}
"#;

/// By whatever number: there are its own function's, and no others.
#[test]
fn other_processes_have_no_numbers() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("killer", KILLER, &["scale.max=1"]);
    let found = daemon.post("/function/killer", b"{}").json();
    let own = found["own"].as_i64().expect("a number");
    for list in ["seen", "listed"] {
        let numbers: Vec<i64> =
            found[list].as_array().expect(list).iter().map(|number| number.as_i64().expect("one")).collect();
        assert!(numbers.contains(&own) && numbers.iter().all(|number| *number <= own), "{list}: {found}");
        assert!(numbers.len() <= 3, "init, zygote and itself; {list}: {found}");
    }
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

/// That is what it has started itself; where signals can't be kept in, its zygote too. Nobody else.
#[test]
fn who_kills_all_that_he_can_kills_his_own() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    daemon.deploy_python("killer", KILLER, &["scale.max=1"]);
    for _ in 0..3 {
        let killed = daemon.post("/function/killer", br#"{"kill": true}"#);
        assert_eq!(killed.status, 200, "{}", killed.text());
        let after = daemon.post("/function/killer", b"{}");
        assert_eq!(after.status, 200, "it is served again: {}", after.text());
    }
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}

#[test]
fn the_zygotes_control_socket_can_not_be_confused() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let neighbour = Neighbour::move_in(&daemon);
    // While a function is loaded, its code holds the zygote's control socket.
    for (name, attack) in [
        ("garbage", "os.write(3, b'\\xff garbage')"),
        ("empty", "os.write(3, b'{}')"),
        ("lie", "os.write(3, b'{\"Ready\":{\"runtime\":\"lies\"}}'); os._exit(0)"),
        ("closed", "os.close(3)"),
    ] {
        let source = format!("import os\n{attack}\ndef main(params): return {{}}\n");
        let deployed = daemon.try_deploy_python(name, &source, &[]);
        if deployed.status.success() {
            // It said that it is ready and isn't: the first call tells.
            let response = daemon.post(&format!("/function/{name}"), b"{}");
            assert!(response.status >= 500, "{name}: {} {}", response.status, response.text());
        }
    }
    // An instance has none: what is open is its own.
    let source = "import os\ndef main(params):\n  found = []\n  for fd in range(3, 64):\n    try: found.append(os.readlink(\
                  '/proc/self/fd/%d' % fd).split(':')[0])\n    except OSError: pass\n  return {'sockets': \
                  found.count('socket')}\n";
    daemon.deploy_python("holder", source, &[]);
    let response = daemon.post("/function/holder", b"{}");
    assert_eq!(response.json()["sockets"], 2, "the bus and its own control socket: {}", response.text());
    neighbour.was_undisturbed(&daemon);
    daemon.stop();
}
