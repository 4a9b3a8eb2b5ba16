//! Triggers: a schedule that fires, a folder whose files are calls, over a restart.

use std::io::{Read, Write};

use super::daemon::Daemon;
use crate::need_root_and_cc;

const NOTE: &str = "
import spry
def main(request: spry.Request):
    print(request.headers.get('x-spry-trigger'), request.headers.get('x-spry-file'), request.bytes().decode())
    return 'ok'
";

fn apply(daemon: &Daemon, text: &str) -> std::process::Output {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    daemon.spry(&["trigger", "apply", file.path().to_str().expect("UTF-8")])
}

fn ran(daemon: &Daemon, words: &str) -> bool {
    daemon.spry_ok(&["logs", "note", "-n", "1000"]).contains(words)
}

#[test]
fn a_schedule_fires_and_rests_while_it_is_paused() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("note", NOTE, &[]);
    // Six fields: every second.
    let text = "name = 'tick'\ncall = 'note'\nbody = 'tock'\n[cron]\nschedule = '* * * * * *'\nzone = 'Europe/Berlin'\n";
    assert!(apply(&daemon, text).status.success());
    daemon.until("it has fired", |daemon| ran(daemon, "tick None tock"));
    daemon.spry_ok(&["trigger", "pause", "tick"]);
    let state = &daemon.spry_json(&["trigger", "list"])[0];
    assert_eq!((&state["paused"], state.get("next_unix_ms")), (&true.into(), None));
    daemon.spry_ok(&["trigger", "resume", "tick"]);
    daemon.spry_ok(&["trigger", "remove", "tick"]);
    assert!(daemon.spry_json(&["trigger", "list"]).as_array().is_some_and(Vec::is_empty));
    assert_eq!(daemon.spry(&["trigger", "pause", "tick"]).status.code(), Some(2));
    let refused = apply(&daemon, "name = 'x'\ncall = 'nobody'\n[cron]\nschedule = '0 0 * * *'\n");
    assert_eq!(refused.status.code(), Some(2));
    // Whose text is too long hears that, however long it is.
    let long = format!("#{}\n{text}", "x".repeat(3_000_000));
    let said = String::from_utf8_lossy(&apply(&daemon, &long).stderr).into_owned();
    assert!(said.contains("262144 are the most that is read"), "{said}");
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).expect("connected");
    let head = format!("PUT /system/trigger/x HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n", long.len());
    stream.write_all(format!("{head}connection: close\r\n\r\n{long}").as_bytes()).expect("all is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bad_trigger"), "{answer}");
    daemon.stop();
}

#[test]
fn files_in_a_spool_folder_are_calls_also_those_that_came_while_spryd_was_dead() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("note", NOTE, &["limits.payload=1KiB"]);
    let (spool, done) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let put = |name: &str, content: &str| std::fs::write(spool.path().join(name), content).expect("written");
    put("before", "first");
    let text = format!(
        "name = 'inbox'\ncall = 'note'\n[spool]\nfolder = '{}'\ndone = '{}'\n",
        spool.path().display(),
        done.path().display()
    );
    assert!(apply(&daemon, &text).status.success());
    daemon.until("what was there is sent", |daemon| ran(daemon, "inbox before first"));
    put("after", "second");
    std::os::unix::fs::symlink("/etc/passwd", spool.path().join("link")).expect("made");
    put("long", &"x".repeat(2000));
    daemon.until("what arrives is sent", |daemon| ran(daemon, "inbox after second"));
    daemon.until("it is moved on", |_| {
        done.path().join("after").exists() && done.path().join("before").exists()
    });
    daemon.kill();
    put("meanwhile", "third");
    daemon.crash_and_restart();
    daemon.until("what came meanwhile is sent", |daemon| ran(daemon, "inbox meanwhile third"));
    daemon.until("it is moved on", |_| done.path().join("meanwhile").exists());
    assert!(spool.path().join("link").exists() && spool.path().join("long").exists());
    assert!(!ran(&daemon, "root:"));
    daemon.stop();
}
