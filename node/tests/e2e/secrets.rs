//! Secrets: set by an operator, seen by the functions that list them, and by nobody else.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::daemon::Daemon;

const PASSWORD: &str = "correct horse battery staple";

pub(crate) fn set(daemon: &Daemon, name: &str, value: &[u8]) -> Output {
    let mut spry = Command::new(env!("CARGO_BIN_EXE_spry"))
        .arg("--control-socket")
        .arg(daemon.socket())
        .args(["secret", "set", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run spry");
    // (What it refuses by the name it doesn't read.)
    let _ = spry.stdin.take().expect("piped").write_all(value);
    spry.wait_with_output().expect("it ends")
}

/// Looks everywhere where a secret could be, and must not be, or must not be changed.
const READER: &str = r#"
import os, subprocess
def attempt(what):
    try:
        return repr(what())
    except Exception as error:
        return type(error).__name__
PATH = "/run/secrets/DB"
AT_INIT = open(PATH).read()
print("loaded")
def main(params):
    return {
        "value": open(PATH).read(), "at_init": AT_INIT, "mode": oct(os.stat(PATH).st_mode & 0o7777),
        "own": os.stat(PATH).st_uid == os.getuid(), "all": sorted(os.listdir("/run/secrets")),
        "environment": [name for name, value in os.environ.items() if "horse" in value],
        "write": attempt(lambda: open(PATH, "w")), "make": attempt(lambda: open("/run/secrets/new", "w")),
        "remove": attempt(lambda: os.remove(PATH)), "mode_change": attempt(lambda: os.chmod(PATH, 0o777)),
        "helper": subprocess.run(["cat", PATH], capture_output=True).stdout.decode(),
    }
"#;

const NONE: &str = "import os\ndef main(params):\n    return {\"there\": os.path.exists(\"/run/secrets\")}\n";

#[test]
fn a_function_gets_those_it_lists_as_files_and_nothing_shows_them() {
    crate::need_root_and_cc!();
    let mut daemon = Daemon::start("");
    for (name, value) in [("DB", PASSWORD), ("other", "of another")] {
        let output = set(&daemon, name, value.as_bytes());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for isolation in ["instance", "request"] {
        let isolation = format!("isolation={isolation}");
        daemon.deploy_python("reader", READER, &["secrets=DB", &isolation]);
        let seen = daemon.post("/function/reader", b"{}").json();
        assert_eq!(
            (&seen["value"], &seen["at_init"], &seen["helper"]),
            (&PASSWORD.into(), &PASSWORD.into(), &PASSWORD.into())
        );
        assert_eq!((&seen["mode"], &seen["own"]), (&"0o400".into(), &true.into()), "{seen}");
        assert_eq!(seen["all"], serde_json::json!(["DB"]), "only what it lists");
        assert_eq!(seen["environment"], serde_json::json!([]));
        for refused in ["write", "make", "remove", "mode_change"] {
            assert!(seen[refused].as_str().expect("text").ends_with("Error"), "{refused}: {seen}");
        }
    }
    daemon.deploy_python("none", NONE, &[]);
    assert_eq!(daemon.post("/function/none", b"{}").json()["there"], false);

    for shown in [
        daemon.spry_ok(&["describe", "reader"]),
        daemon.spry_ok(&["--output", "json", "describe", "reader"]),
        daemon.spry_ok(&["secret", "list"]),
        daemon.spry_ok(&["logs", "reader"]),
        daemon.spry_ok(&["--output", "json", "status"]),
    ] {
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
    assert!(daemon.spry_ok(&["secret", "list"]).contains("other"));
    for entry in std::fs::read_dir(daemon.state()).expect("listed").flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        assert!(!bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()), "{:?}", entry.path());
    }
    daemon.crash_and_restart();
    assert_eq!(daemon.post("/function/reader", b"{}").json()["value"], PASSWORD);
    daemon.stop();
}

#[test]
fn one_that_is_missing_is_named_and_one_in_use_stays() {
    crate::need_root_and_cc!();
    let daemon = Daemon::start("");
    let refused = daemon.try_deploy_python("reader", READER, &["secrets=DB"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(words.contains("there is no secret \"DB\"; set it with `spry secret set DB`"), "{words}");

    assert!(set(&daemon, "DB", b"first").status.success());
    daemon.deploy_python("reader", READER, &["secrets=DB"]);
    assert_eq!(daemon.post("/function/reader", b"{}").json()["value"], "first");
    let kept = daemon.spry(&["secret", "remove", "DB"]);
    let words = String::from_utf8_lossy(&kept.stderr).into_owned();
    assert!(kept.status.code() == Some(2) && words.contains("is used by reader"), "{words}");

    // A new value is there with the next start.
    assert!(set(&daemon, "DB", b"\x00\xffsecond").status.success());
    let binary =
        "def main(params):\n    return {\"value\": list(open(\"/run/secrets/DB\", \"rb\").read())}\n";
    daemon.deploy_python("reader", binary, &["secrets=DB"]);
    let value: Vec<u8> = b"\x00\xffsecond".to_vec();
    assert_eq!(daemon.post("/function/reader", b"{}").json()["value"], serde_json::json!(value));

    daemon.spry_ok(&["remove", "reader"]);
    daemon.spry_ok(&["secret", "remove", "DB"]);
    assert_eq!(set(&daemon, "no/name", b"x").status.code(), Some(64));
    assert_eq!(set(&daemon, "long", &vec![b'x'; 65537]).status.code(), Some(64));
    assert_eq!(set(&daemon, "empty", b"").status.code(), Some(64));
    daemon.stop();
}

#[test]
fn as_many_and_as_large_as_there_may_be() {
    crate::need_root_and_cc!();
    let daemon = Daemon::start("");
    let value = "x".repeat(65536);
    let names: Vec<String> = (0..32).map(|number| format!("s{number}")).collect();
    for name in &names {
        assert!(set(&daemon, name, value.as_bytes()).status.success());
    }
    let source = "import os\ndef main(params):\n    \
                  return {\"bytes\": sum(os.stat(\"/run/secrets/\" + n).st_size for n in os.listdir(\"/run/secrets\"))}\n";
    daemon.deploy_python("all", source, &[&format!("secrets={}", names.join(" "))]);
    assert_eq!(daemon.post("/function/all", b"{}").json()["bytes"], 32 * 65536);
    daemon.stop();
}
