//! Who gets in: tokens, scopes, functions that ask for a token, rates, TLS, and who is at the control socket.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::client::{Connection, Response};
use super::daemon::Daemon;
use crate::need_root_and_cc;
use crate::secrets::set;

const ECHO: &str = "import spry\ndef main(request: spry.Request):\n  return {k.lower(): v for k, v in dict(request.headers).items()}\n";

fn call(daemon: &Daemon, method: &str, path: &str, token: Option<&str>) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    Connection::open(daemon.address).call(method, path, &headers, b"")
}

/// A function's folder with one file in it, as it is uploaded.
fn archive(source: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(source.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "main.py", source.as_bytes()).expect("appended");
    archive.into_inner().expect("whole")
}

fn create(daemon: &Daemon, arguments: &[&str]) -> (String, String) {
    let all = [&["token", "create"], arguments].concat();
    let made = daemon.spry_json(&all);
    let text = |key: &str| made[key].as_str().expect("text").to_owned();
    (text("token"), text("id"))
}

#[test]
fn tokens_open_what_their_scopes_say_until_they_are_revoked() {
    need_root_and_cc!();
    let mut daemon = Daemon::start("");
    daemon.deploy_python("open", ECHO, &[]);
    daemon.deploy_python("closed", ECHO, &["access.token=true"]);
    daemon.deploy_python("other", ECHO, &["access.token=true"]);
    let (invoke, id) = create(&daemon, &["--scope", "invoke", "--function", "closed", "--note", "the till"]);
    let (deploy, _) = create(&daemon, &["--scope", "deploy", "--expires", "1h"]);
    let status = |daemon: &Daemon, method: &str, path: &str, token: Option<&str>| {
        call(daemon, method, path, token).status
    };
    let refused = call(&daemon, "GET", "/function/closed", None);
    assert_eq!((refused.status, refused.error_code().as_str()), (401, "unauthorised"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"spry\""));
    assert_eq!(status(&daemon, "GET", "/function/open", None), 200);
    assert_eq!(status(&daemon, "GET", "/function/closed", Some("spry_guess")), 401);
    assert_eq!(status(&daemon, "GET", "/function/other", Some(&invoke)), 403);
    assert_eq!(status(&daemon, "GET", "/function/closed", Some(&deploy)), 403);
    let served = call(&daemon, "GET", "/function/closed", Some(&invoke));
    assert_eq!(served.status, 200, "{}", served.text());
    assert!(served.json().get("authorization").is_none(), "the function sees no token");
    let open = call(&daemon, "GET", "/function/open", Some(&invoke));
    assert!(open.json().get("authorization").is_none(), "nor does one that asks for none");
    assert_eq!(
        call(&daemon, "GET", "/function/open", Some("its-own")).json()["authorization"],
        "Bearer its-own"
    );
    // The control API.
    assert_eq!(status(&daemon, "GET", "/system/functions", Some(&invoke)), 403);
    assert_eq!(status(&daemon, "GET", "/system/functions", Some(&deploy)), 200);
    assert_eq!(status(&daemon, "GET", "/system/tokens", Some(&deploy)), 403);
    let first = std::fs::read_to_string(daemon.state().join("api-token")).expect("the first token");
    assert_eq!(status(&daemon, "GET", "/system/tokens", Some(first.trim())), 200);
    assert_eq!(status(&daemon, "GET", "/function/closed", Some(first.trim())), 200);
    // Nothing that is stored gives a token away.
    let list = daemon.spry_ok(&["token", "list"]);
    assert!(list.contains(&id) && list.contains("the till"), "{list}");
    assert!(!list.contains(&invoke[20..]), "{list}");
    for file in ["spry.db", "spry.db-wal"] {
        let bytes = std::fs::read(daemon.state().join(file)).unwrap_or_default();
        let secret = &invoke.as_bytes()[invoke.len() - 64..];
        assert!(!bytes.windows(64).any(|window| window == secret), "{file} holds a token");
    }
    daemon.crash_and_restart();
    assert_eq!(status(&daemon, "GET", "/function/closed", Some(&invoke)), 200, "tokens survive");
    daemon.spry_ok(&["token", "revoke", &id]);
    assert_eq!(status(&daemon, "GET", "/function/closed", Some(&invoke)), 401);
    assert_eq!(daemon.spry(&["token", "revoke", &id]).status.code(), Some(2));
    for bad in [
        &["--scope", "invoke", "--function", "No Name"][..],
        &["--scope", "invoke", "--expires", "soon"],
        &["--scope", "invoke", "--expires", "0s"],
    ] {
        assert_eq!(daemon.spry(&[&["token", "create"], bad].concat()).status.code(), Some(2), "{bad:?}");
    }
    daemon.stop();
}

#[test]
fn a_chain_is_as_closed_as_its_functions() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    daemon.deploy_python("open", "def main(params): return params\n", &[]);
    daemon.deploy_python("closed", "def main(params): return params\n", &["access.token=true"]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("chain.toml");
    let chain = "name = \"both\"\n[[step]]\nfunction = \"open\"\n[[step]]\nfunction = \"closed\"\n";
    std::fs::write(&file, chain).expect("written");
    daemon.spry_ok(&["chain", "apply", file.to_str().expect("UTF-8")]);
    assert_eq!(daemon.post("/function/both", b"{}").status, 401);
    let (token, _) = create(&daemon, &["--scope", "invoke", "--function", "both"]);
    assert_eq!(call(&daemon, "POST", "/function/both", Some(&token)).status, 200);
    daemon.stop();
}

#[test]
fn a_token_for_some_functions_leads_to_no_others() {
    need_root_and_cc!();
    let daemon = Daemon::start("");
    let plain = "def main(params): return params\n";
    daemon.deploy_python("own", plain, &[]);
    daemon.deploy_python("payroll", plain, &["access.token=true"]);
    let (token, _) = create(
        &daemon,
        &["--scope", "deploy", "--scope", "invoke", "--function", "own", "--function", "chain"],
    );
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let ask = |method: &str, path: &str, body: &[u8]| {
        Connection::open(daemon.address).call(method, path, &headers, body)
    };
    let apply = |function: &str| {
        let text = format!("name = \"chain\"\n[[step]]\nfunction = \"{function}\"\n");
        ask("PUT", "/system/chain/chain", text.as_bytes())
    };
    // By way of a chain.
    let refused = apply("payroll");
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "forbidden"));
    assert!(refused.text().contains("payroll"), "{}", refused.text());
    let applied = apply("own");
    assert_eq!(applied.status, 200, "{}", applied.text());
    // By way of a secret, of a new version or of an old one.
    assert!(set(&daemon, "KEY", b"1234").status.success());
    let deploy = |settings: &str| ask("POST", &format!("/system/function/own{settings}"), &archive(plain));
    let refused = deploy("?set=secrets%3DKEY");
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "forbidden"));
    assert!(refused.text().contains("KEY"), "{}", refused.text());
    // What the whole node's bearer has given it, it keeps; what they took back, no old version brings back.
    daemon.deploy_python("own", plain, &["secrets=KEY"]);
    let deployed = deploy("?set=secrets%3DKEY");
    assert_eq!(deployed.status, 200, "{}", deployed.text());
    assert_eq!(deploy("").status, 200);
    assert_eq!(ask("POST", "/system/function/own/rollback", b"").status, 403);
    assert_eq!(deploy("?set=secrets%3DKEY").status, 403);
    daemon.stop();
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    need_root_and_cc!();
    let daemon = Daemon::start("[rate]\nper_second = 0.01\nburst = 5\n");
    daemon.deploy_python("open", "def main(params): return {}\n", &[]);
    let (token, _) = create(&daemon, &["--scope", "invoke"]);
    let mut connection = Connection::open(daemon.address);
    for _ in 0..5 {
        assert_eq!(connection.call("POST", "/function/open", &[], b"{}").status, 200);
    }
    let refused = connection.call("POST", "/function/open", &[], b"{}");
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limited"));
    let wait: u32 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=100).contains(&wait), "{wait}");
    assert_eq!(connection.call("GET", "/healthz", &[], b"").status, 200);
    // A token has a rate of its own, and the control socket none.
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(connection.call("POST", "/function/open", &headers, b"{}").status, 200);
    daemon.spry_ok(&["list"]);
    daemon.stop();
}

/// A copy of `spry` that other users can run, wherever this was built.
fn spry_for_all() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("spry");
    std::fs::copy(env!("CARGO_BIN_EXE_spry"), &program).expect("copy spry");
    for path in [folder.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("open it");
    }
    (folder, program)
}

/// Runs `spry list` as this user.
fn list_as(spry: &Path, daemon: &Daemon, uid: u32, gid: u32) -> std::process::Output {
    Command::new(spry)
        .arg("--control-socket")
        .arg(daemon.socket())
        .arg("list")
        .uid(uid)
        .gid(gid)
        .output()
        .expect("run spry")
}

#[test]
fn the_control_socket_asks_the_kernel_who_is_there() {
    need_root_and_cc!();
    let (_folder, spry) = spry_for_all();
    let daemon = Daemon::start("[control]\nowner = \"54321\"\ngroup = \"54322\"\n");
    let mode = std::fs::metadata(daemon.socket()).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    for (uid, gid, may) in [(54_321, 1, true), (7, 54_322, true), (7, 7, false)] {
        let output = list_as(&spry, &daemon, uid, gid);
        assert_eq!(output.status.success(), may, "{uid}:{gid}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Whatever the file's mode says (systemd may have made it): the kernel's word counts.
    std::fs::set_permissions(daemon.socket(), PermissionsExt::from_mode(0o666)).expect("open it");
    let output = list_as(&spry, &daemon, 7, 7);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("user 7 may not use the control socket"), "{err}");
    daemon.stop();
}

#[test]
fn a_reload_gives_the_control_socket_to_others_and_takes_it_back() {
    need_root_and_cc!();
    let (_folder, spry) = spry_for_all();
    let mut daemon = Daemon::start("");
    let whose = |daemon: &Daemon| {
        let file = std::fs::metadata(daemon.socket()).expect("there");
        (file.uid(), file.gid(), file.permissions().mode() & 0o777)
    };
    let before = whose(&daemon);
    assert_eq!(before.2, 0o600);
    assert!(!list_as(&spry, &daemon, 7, 54_322).status.success());
    daemon.configure("[control]\ngroup = \"54322\"\n");
    daemon.reload();
    daemon.until("it is the group's", |daemon| whose(daemon) == (before.0, 54_322, 0o660));
    let output = list_as(&spry, &daemon, 7, 54_322);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.configure("");
    daemon.reload();
    daemon.until("it is as it was", |daemon| whose(daemon) == before);
    assert!(!list_as(&spry, &daemon, 7, 54_322).status.success());
    daemon.stop();
}
