//! A full disk, a read-only one, a clock that steps, no descriptors left: clear errors, nothing lost, and it goes on when the cause
//! is gone.

mod shim;

use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::client::Connection;
use super::daemon::Daemon;
use super::later::{answer, id_of, later};
use crate::need_root_and_cc;
use shim::Shimmed;

/// A small file system; gone with the value.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(flags: MsFlags) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        mount(Some("spry-test"), folder.path(), Some("tmpfs"), flags, Some("size=12m,mode=0711"))
            .expect("mount a tmpfs");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Calls until one is accepted; its id.
fn accepted_again(daemon: &Daemon, body: &[u8]) -> String {
    let mut id = None;
    daemon.until("calls are accepted again", |daemon| {
        let response = later(daemon.address, "echo", &[], body);
        id = (response.status == 202).then(|| id_of(&response));
        id.is_some()
    });
    id.expect("one was accepted")
}

#[test]
fn a_full_disk_refuses_calls_loses_none_and_heals_by_itself() {
    need_root_and_cc!();
    let disk = Tmpfs::new(MsFlags::empty());
    let runtimes = tempfile::tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(runtimes.path(), open).expect("open the folder");
    let daemon = Daemon::start_on(disk.path(), &format!("runtime_dir = {:?}\n", runtimes.path()));
    daemon.deploy_python("echo", "import spry\ndef main(r: spry.Request): return str(len(r.bytes()))\n", &[]);
    let big = vec![b'x'; 300_000];
    let mut accepted = vec![id_of(&later(daemon.address, "echo", &[("x-delay", "1s")], b"before"))];
    let filler = disk.path().join("filler");
    // As far as it goes; the error is what is wanted.
    let _ = std::fs::write(&filler, vec![0; 16 << 20]);
    let refused = loop {
        // (What room the log of the database still has is used up.)
        let response = later(daemon.address, "echo", &[], &big);
        if response.status != 202 {
            break response;
        }
        accepted.push(id_of(&response));
    };
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "store_failed"));
    assert!(refused.header("retry-after").is_some() && refused.text().contains("full"), "{}", refused.text());
    // What needs no disk goes on.
    assert_eq!(daemon.post("/function/echo", b"abc").text(), "3");
    std::fs::remove_file(&filler).expect("make room");
    accepted.push(accepted_again(&daemon, b"after"));
    for id in &accepted {
        assert_eq!(answer(daemon.address, id).status, 200);
    }
    daemon.stop();
}

#[test]
fn a_read_only_state_folder_is_said_at_the_start() {
    need_root_and_cc!();
    let disk = Tmpfs::new(MsFlags::MS_RDONLY);
    let output = Command::new(env!("CARGO_BIN_EXE_spryd"))
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(disk.path())
        .arg("--control-socket")
        .arg(disk.path().join("control.sock"))
        .output()
        .expect("run spryd");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("Read-only file system") && said.contains(&disk.path().display().to_string()),
        "{said}"
    );
}

#[test]
fn a_state_folder_that_becomes_read_only_refuses_what_must_be_kept_and_heals_by_itself() {
    need_root_and_cc!();
    let shimmed = Shimmed::start();
    let daemon = &shimmed.daemon;
    let echo = "def main(params): return str(params['n'])\n";
    daemon.deploy_python("echo", echo, &[]);
    let mut accepted = vec![id_of(&later(daemon.address, "echo", &[("x-delay", "500ms")], br#"{"n": 1}"#))];
    shimmed.set_read_only(true);
    let refused = later(daemon.address, "echo", &[], br#"{"n": 2}"#);
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "store_failed"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    let deploy = daemon.try_deploy_python("other", echo, &[]);
    assert_eq!(deploy.status.code(), Some(2));
    let said = String::from_utf8_lossy(&deploy.stderr).into_owned();
    assert!(said.contains("Read-only file system") && said.contains("state/staging"), "{said}");
    // What was deployed serves, and what needs no disk goes on.
    assert_eq!(daemon.post("/function/echo", br#"{"n": 3}"#).text(), "3");
    assert_eq!(daemon.get("/healthz").status, 200);
    shimmed.set_read_only(false);
    accepted.push(accepted_again(daemon, br#"{"n": 4}"#));
    for id in &accepted {
        assert_eq!(answer(daemon.address, id).status, 200);
    }
    daemon.deploy_python("other", echo, &[]);
    assert_eq!(daemon.post("/function/other", br#"{"n": 5}"#).text(), "5");
    shimmed.daemon.stop();
}

#[test]
fn a_clock_that_steps_an_hour_back_or_forth_stalls_and_loses_nothing() {
    need_root_and_cc!();
    let shimmed = Shimmed::start();
    let daemon = &shimmed.daemon;
    daemon.deploy_python("echo", "def main(params): return str(params['n'])\n", &[]);
    for (step_s, n) in [(-3600, 1), (0, 2), (3600, 3), (0, 4)] {
        let before = id_of(&later(daemon.address, "echo", &[("x-delay", "300ms")], br#"{"n": 0}"#));
        shimmed.set_clock(step_s);
        let after = id_of(&later(daemon.address, "echo", &[("x-delay", "300ms")], br#"{"n": 0}"#));
        let body = format!("{{\"n\": {n}}}");
        let served = daemon.post("/function/echo", body.as_bytes());
        assert_eq!((served.status, served.text()), (200, n.to_string()), "{step_s}");
        for id in [&before, &after] {
            assert_eq!(answer(daemon.address, id).status, 200, "{step_s}: it ran, and its result is there");
        }
        let id = served.header("x-call-id").expect("an id");
        assert_eq!(
            daemon.spry_json(&["activation", "get", id])["status"],
            200,
            "{step_s}: its record is there"
        );
    }
    assert_eq!(daemon.spry_json(&["activation", "list"]).as_array().map(Vec::len), Some(12));
    // (What was noted by the other clock is neither too old nor from the future.)
    let zygote = daemon.spry_json(&["describe", "echo"])["zygote"].clone();
    assert_eq!(zygote, "ready");
    shimmed.daemon.stop();
}

#[test]
fn without_descriptors_calls_wait_and_none_is_lost() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("quick", "def main(params): return 'ok'\n", &["scale.min=1"]);
    assert_eq!(daemon.post("/function/quick", b"{}").status, 200);
    let limit = |soft: &str| {
        let pid = daemon.pid().to_string();
        Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={soft}:")])
            .status()
            .is_ok_and(|status| status.success())
    };
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("readable");
    let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let before = open_files.and_then(|rest| rest.split_whitespace().next()).expect("a soft limit").to_owned();
    let mut here = Connection::open(daemon.address);
    assert_eq!(here.call("GET", "/healthz", &[], b"").status, 200);
    if !limit("8") {
        assert!(
            std::env::var_os("SPRY_TEST_ALL").is_none(),
            "SPRY_TEST_ALL is set, but prlimit(1) does not work"
        );
        println!("SKIPPED: prlimit(1) does not work");
        return;
    }
    // Who is connected is served; calls are accepted and run.
    let id = id_of(&here.call("POST", "/async-function/quick", &[], b"{}"));
    // Who isn't, waits.
    let waiting = std::thread::spawn({
        let address = daemon.address;
        move || super::client::call(address, "POST", "/async-function/quick", b"{}")
    });
    let got = here.call("GET", &format!("/async-function/{id}?wait=30s"), &[], b"");
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(limit(&before), "the limit can be raised again");
    let late = waiting.join().expect("an answer");
    assert_eq!(answer(daemon.address, &id_of(&late)).status, 200);
    daemon.stop();
}
