//! The commands against a server.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::server::{Server, code, err, out};
use crate::shelf::CALL;

const MAIN: &str = "def main(params):\n    return {}\n";

#[test]
fn deploy_list_describe_remove() {
    let server = Server::start();
    assert!(out(&server.spry(&["list"])).contains("no functions"));
    let file = server.file("hello.py", MAIN);
    let path = file.to_str().expect("plain");

    let output =
        server.spry(&["deploy", path, "--set", "limits.memory=64MiB", "--set", "env.GREETING=a b&c=d"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        err(&output).contains("1 file") && err(&output).contains("starting its zygote"),
        "{}",
        err(&output)
    );
    assert!(out(&output).starts_with("hello version 1 is ready"), "{}", out(&output));
    let stored = server.store.function("hello").expect("answers").expect("stored");
    assert_eq!(stored.manifest.env["GREETING"], "a b&c=d");
    assert_eq!(std::fs::read_to_string(stored.code.join("hello.py")).expect("code"), MAIN);

    let again = server.spry(&["deploy", path]);
    assert!(out(&again).contains("hello version 2 is ready, replacing version 1"), "{}", out(&again));
    assert!(stored.code.exists(), "the old version is kept");
    let back = server.spry(&["rollback", "hello"]);
    assert!(out(&back).starts_with("hello version 1 is ready, replacing version 2"), "{}", err(&back));
    let described = out(&server.spry(&["describe", "hello"]));
    assert!(described.contains("2, ") && described.contains("1 (serves), "), "{described}");
    let none = server.spry(&["rollback", "hello"]);
    assert_eq!(code(&none), 2);
    assert!(err(&none).contains("no earlier version of \"hello\" is kept; there is 2"), "{}", err(&none));
    assert_eq!(code(&server.spry(&["rollback", "hello", "--to", "2"])), 0);

    let named = server.spry(&["--output", "json", "deploy", path, "--name", "other"]);
    let deployed: serde_json::Value = serde_json::from_slice(&named.stdout).expect("JSON");
    assert_eq!(deployed["function"]["name"], "other");
    assert_eq!(err(&named), "", "JSON output is for programs");

    let list = out(&server.spry(&["list"]));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert!(lines[0].starts_with("NAME ") && lines[1].starts_with("hello") && lines[2].starts_with("other"));
    assert!(!list.contains('\u{1b}'), "no colour in a pipe");

    let described = out(&server.spry(&["describe", "hello"]));
    for part in ["memory 128MiB", "python", "hello:main", "0 to 8, idle ones end after 10m", "sha256"] {
        assert!(described.contains(part), "{part} is missing from\n{described}");
    }
    assert_eq!(code(&server.spry(&["remove", "hello"])), 0);
    let gone = server.spry(&["describe", "hello"]);
    assert_eq!(code(&gone), 2);
    assert!(err(&gone).contains("no function named \"hello\""), "{}", err(&gone));
    assert_eq!(code(&server.spry(&["remove", "hello"])), 2);
}

#[test]
fn a_folder_is_deployed_with_its_manifest() {
    let server = Server::start();
    server.file("fn/spry.toml", "name='folder'\nruntime='python'\nhandler='pkg.mod:main'\n[scale]\nmax=2\n");
    server.file("fn/pkg/__init__.py", "");
    let module = server.file("fn/pkg/mod.py", MAIN);
    server.file("fn/.git/config", "not a part of it");
    let folder = module.parent().and_then(|pkg| pkg.parent()).expect("the folder").to_owned();
    let output = server.spry(&["deploy", folder.to_str().expect("plain")]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let stored = server.store.function("folder").expect("answers").expect("stored");
    assert!(stored.code.join("pkg/mod.py").is_file() && !stored.code.join(".git").exists());
    assert_eq!(stored.manifest.scale.max, 2);

    server.file("fn/spry.toml", "name='folder'\nruntime='python'\nhandler='pkg.mod:main'\nsize=3\n");
    let output = server.spry(&["deploy", folder.to_str().expect("plain")]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("unknown field `size`"), "{}", err(&output));
    assert_eq!(server.store.function("folder").expect("answers").expect("still there").version, 1);
}

#[test]
fn broken_code_prints_the_traceback_and_exits_1() {
    let server = Server::start();
    let good = server.file("hello.py", MAIN);
    assert_eq!(code(&server.spry(&["deploy", good.to_str().expect("plain")])), 0);
    let broken = server.file("hello.py", "def main(params):\n\treturn {}\n");
    let output = server.spry(&["deploy", broken.to_str().expect("plain")]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("Traceback (most recent call last):\nTabError"), "{}", err(&output));
    assert!(out(&output).is_empty());
    assert_eq!(server.store.function("hello").expect("answers").expect("still there").version, 1);
}

#[test]
fn uploads_over_the_limit_and_through_links_are_refused() {
    let server = Server::start();
    let file = server.file("big/main.py", MAIN);
    server.file("big/blob", &"x".repeat(2 << 20));
    let folder = file.parent().expect("has one");
    let output = server.spry(&["deploy", folder.to_str().expect("plain"), "--name", "big"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("upload.size"), "{}", err(&output));
    std::fs::remove_file(folder.join("blob")).expect("removed");
    std::os::unix::fs::symlink("/etc/shadow", folder.join("link")).expect("linked");
    let output = server.spry(&["deploy", folder.to_str().expect("plain"), "--name", "big"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("\"link\" -> \"/etc/shadow\" is absolute"), "{}", err(&output));
    assert_eq!(server.store.functions().expect("answers"), []);
}

#[test]
fn invoke_separates_results_from_errors() {
    let server = Server::start();
    let output = server.spry(&["invoke", "hello", "-d", "{}", "-H", "X-Test: yes", "--path", "/a/b?c=d"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(out(&output), "POST /function/hello/a/b Some(\"yes\")");
    assert_eq!(err(&output), "");
    assert!(out(&server.spry(&["invoke", "hello"])).starts_with("GET "));
    assert!(out(&server.spry(&["invoke", "hello", "-X", "PUT"])).starts_with("PUT "));

    let verbose = server.spry(&["invoke", "hello", "-v"]);
    assert!(err(&verbose).contains(CALL) && err(&verbose).contains("exec;dur=0.5"), "{}", err(&verbose));
    assert!(!out(&verbose).contains(CALL));

    for (path, exit) in [("/raise", 1), ("/killed", 1), ("/full", 2), ("/absent", 2)] {
        let output = server.spry(&["invoke", "hello", "--path", path]);
        assert_eq!(code(&output), exit, "{path}");
        assert_eq!(err(&output), format!("spry: it said no (call {CALL})\n"), "{path}");
        assert_eq!(out(&output), "", "{path}");
    }
    let teapot = server.spry(&["invoke", "hello", "--path", "/teapot"]);
    assert_eq!((code(&teapot), out(&teapot).as_str()), (1, "short and stout"));
}

#[test]
fn invoke_reads_stdin_and_files() {
    let server = Server::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_spry"))
        .arg("--control-socket")
        .arg(&server.socket)
        .args(["invoke", "hello", "-d", "@-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spry runs");
    child.stdin.take().expect("piped").write_all(b"{\"a\":1}").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 0);
    assert!(out(&output).starts_with("POST "));
    let file = server.file("data.json", "{}");
    assert_eq!(code(&server.spry(&["invoke", "hello", "-d", &format!("@{}", file.display())])), 0);
}

#[test]
fn logs_and_activations() {
    let server = Server::start();
    let logs = server.spry(&["logs", "hello"]);
    assert_eq!(code(&logs), 0, "{}", err(&logs));
    let text = out(&logs);
    assert_eq!(
        text.lines().next(),
        Some("2025-11-21T04:30:00.123Z out line 0 \u{fffd}[31m"),
        "no terminal codes of a function's get through"
    );
    assert_eq!(text.lines().count(), 2);
    let json = out(&server.spry(&["--output", "json", "logs", "hello", "-n", "1"]));
    let line: serde_json::Value = serde_json::from_str(&json).expect("one line, one object");
    assert_eq!((line["number"].as_u64(), line["stream"].as_str()), (Some(1), Some("stderr")));
    assert_eq!(code(&server.spry(&["logs", "absent"])), 2);

    let list = out(&server.spry(&["activation", "list", "hello"]));
    assert!(list.contains(CALL) && list.contains("forked") && list.contains("function_failed"), "{list}");
    assert!(out(&server.spry(&["activation", "list", "other"])).contains("no calls"));
    let call = out(&server.spry(&["activation", "get", CALL]));
    assert!(call.contains("queue 0.00 ms, start 1.25 ms, exec 0.50 ms") && call.contains("line 1"), "{call}");
    assert_eq!(out(&server.spry(&["activation", "logs", CALL])).lines().count(), 2);
    assert_eq!(code(&server.spry(&["activation", "get", "absent"])), 2);
}

#[test]
fn following_prints_lines_as_they_come() {
    let server = Server::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_spry"))
        .arg("--control-socket")
        .arg(&server.socket)
        .args(["logs", "hello", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spry runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("not the end").expect("text");
    assert!(next().contains("line 0") && next().contains("line 1"));
    server.shelf.write_line();
    assert!(next().contains("line 2"));
    server.shelf.write_line();
    assert!(next().contains("line 3"));
    // Its reader leaves: the next line ends it, quietly.
    drop(lines);
    server.shelf.write_line();
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn status_and_doctor_ask_the_daemon() {
    let server = Server::start();
    let status = server.spry(&["status"]);
    assert_eq!(code(&status), 0, "{}", err(&status));
    for part in ["up 1 min 1 s", "broker", "1.5 GiB promised"] {
        assert!(out(&status).contains(part), "{part} is missing from\n{}", out(&status));
    }
    let doctor = server.spry(&["doctor"]);
    assert_eq!((code(&doctor), err(&doctor).as_str()), (0, ""));
}
