//! Changes of what a name stands for that meet each other, or fail on their way.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use super::chains::{apply, chain_of};
use super::client::Connection;
use super::daemon::Daemon;
use crate::need_root_and_cc;

/// Answers its version, or runs until its process is killed.
fn stays(version: u32) -> String {
    format!(
        "import signal\ndef main(params):\n  if params.get('stay'): signal.pause()\n  return {{'v': {version}}}\n"
    )
}

/// Has a call that stays; returns when it runs, which `busy` knows.
fn occupy(daemon: &Daemon, name: &str, busy: impl Fn() -> bool) -> Connection {
    let mut connection = Connection::open(daemon.address);
    connection.send("POST", &format!("/function/{name}"), &[], b"{\"stay\": true}");
    daemon.until("the call runs", |_| busy());
    connection
}

fn kill(pids: &[i32]) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
    }
}

/// Begins to deploy `f`; returns when that waits for another change of the name (true), or has ended.
fn deploy_beside(daemon: &Daemon, version: u32) -> (bool, Child) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("f.py");
    std::fs::write(&file, stays(version)).expect("write the function");
    let mut deploy = daemon.spry_command(&["deploy", file.to_str().expect("a UTF-8 path"), "--name", "f"]);
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("run spry");
    let said = BufReader::new(deploy.stderr.take().expect("piped"));
    let waits = said.lines().map_while(Result::ok).any(|line| line.contains("waiting: "));
    (waits, deploy)
}

fn deployed(mut deploy: Child) {
    assert!(deploy.wait().expect("reap spry").success());
}

#[test]
fn a_deploy_during_a_removal_waits_for_it_and_stays() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("f", &stays(1), &["limits.timeout=60s"]);
    let mut call = occupy(&daemon, "f", || daemon.spry_json(&["describe", "f"])["instances"]["busy"] == 1);
    let old = daemon.children();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| daemon.spry_ok(&["remove", "f"]));
        daemon.until("it isn't served any more", |daemon| daemon.get("/function/f").status == 404);
        let (waits, deploy) = deploy_beside(&daemon, 2);
        kill(&old);
        assert!(waits, "it was done while the removal was under way");
        assert_eq!(call.receive(false).status, 502);
        removal.join().expect("removed");
        deployed(deploy);
    });
    assert_eq!(daemon.post("/function/f", b"{}").json()["v"], 2);
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/f", b"{}").json()["v"], 2);
    daemon.stop();
}

/// An instance that is born waits here until the test lets it go on.
fn waits_at_birth(version: u32, port: u16) -> String {
    let waits = format!("socket.create_connection(('127.0.0.1', {port})).recv(1)");
    format!(
        "import os, socket\nos.register_at_fork(after_in_child=lambda: {waits})\n\
         def main(params): return {{'v': {version}}}\n"
    )
}

#[test]
fn of_two_deploys_the_one_that_was_stored_last_serves() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("f", &stays(1), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let slow = waits_at_birth(2, listener.local_addr().expect("bound").port());
    std::thread::scope(|scope| {
        let first = || daemon.deploy_python("f", &slow, &["scale.min=1", "network.egress=host"]);
        let first = scope.spawn(first);
        let mut born = None;
        daemon.until("it is stored, and its first instance is born", |_| {
            born = listener.accept().ok();
            born.is_some()
        });
        let (_, second) = deploy_beside(&daemon, 3);
        drop((born, listener));
        first.join().expect("deployed");
        deployed(second);
    });
    assert_eq!(daemon.post("/function/f", b"{}").json()["v"], 3);
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/f", b"{}").json()["v"], 3);
    daemon.stop();
}

#[test]
fn a_removal_that_failed_changes_nothing_and_can_be_asked_for_again() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("f", &stays(1), &[]);
    daemon.deploy_python("step", &stays(1), &[]);
    apply(&daemon, &chain_of("c", &["step"]));
    let database = rusqlite::Connection::open(daemon.state().join("spry.db")).expect("the database opens");
    for (table, name, remove) in [("functions", "f", &["remove"][..]), ("chains", "c", &["chain", "remove"])]
    {
        let remove = [remove, &[name]].concat();
        let full = format!("BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, 'the disk is full'); END");
        database.execute_batch(&format!("CREATE TRIGGER full {full}")).expect("made");
        let failed = daemon.spry(&remove);
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(failed.status.code() == Some(2) && said.contains("the disk is full"), "{said}");
        assert_eq!(daemon.post(&format!("/function/{name}"), b"{}").json()["v"], 1, "it serves as before");
        database.execute_batch("DROP TRIGGER full").expect("dropped");
        daemon.spry_ok(&remove);
        let gone = daemon.spry(&remove);
        let said = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert!(gone.status.code() == Some(2) && said.contains(&format!("named \"{name}\"")), "{said}");
    }
    drop(database);
    daemon.crash_and_restart();
    for name in ["f", "c"] {
        assert_eq!(daemon.post(&format!("/function/{name}"), b"{}").status, 404);
    }
    daemon.stop();
}

#[test]
fn a_chain_that_ends_slowly_holds_up_no_other_change() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("step", &stays(1), &["limits.timeout=60s"]);
    apply(&daemon, &format!("timeout = \"60s\"\n{}", chain_of("c", &["step"])));
    let mut call = occupy(&daemon, "c", || {
        daemon.spry_json(&["chain", "describe", "c"])["functions"][0]["instances"]["busy"] == 1
    });
    let old = daemon.children();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| daemon.spry_ok(&["chain", "remove", "c"]));
        daemon.until("it isn't served any more", |daemon| daemon.post("/function/c", b"{}").status == 404);
        daemon.deploy_python("step", &stays(2), &[]);
        apply(&daemon, &chain_of("other", &["step"]));
        assert!(!removal.is_finished(), "the call was to run all the while");
        kill(&old);
        assert_eq!(call.receive(false).status, 502);
        removal.join().expect("removed");
    });
    assert_eq!(daemon.post("/function/other", b"{}").json()["v"], 2);
    daemon.stop();
}
