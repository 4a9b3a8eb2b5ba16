//! Exit codes and words where no daemon is needed, or none is there.

use std::path::Path;

use crate::server::{code, err, out, spry};

const NOWHERE: &str = "/nonexistent/control.sock";

#[test]
fn bad_usage_exits_64_and_help_0() {
    let run = |arguments: &[&str]| spry(Path::new(NOWHERE), arguments);
    for arguments in [
        &["--frobnicate"][..],
        &["unknown-command"],
        &["describe"],
        &["list", "--output", "yaml"],
        &["describe", "a/b"],
        &["describe", ".."],
        &["activation", "get", "x y"],
        &["deploy", "/nonexistent/function"],
        &["deploy", "/", "--name", "Not A Name"],
        &["deploy", "/", "--set", "novalue"],
        &["invoke", "f", "-d", "@/nonexistent/file"],
        &["invoke", "f", "-H", "no header"],
        &["invoke", "f", "-X", "not a method"],
        &["invoke", "f", "--path", "rest"],
        &["chain"],
        &["chain", "apply"],
        &["chain", "apply", "/nonexistent/chain.toml"],
        &["chain", "describe", ".."],
        &["chain", "remove", "a/b"],
        &["--output", "dot", "list"],
        &["chain", "list", "--output", "dot"],
        &["check-config", "/nonexistent/chain.toml"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", err(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["deploy", "--help"], &["--version"]] {
        let output = run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(!out(&output).is_empty());
    }
    assert_eq!(code(&std::process::Command::new(env!("CARGO_BIN_EXE_spry")).output().expect("runs")), 64);
}

#[test]
fn help_names_what_is_here_and_nothing_else() {
    let help = out(&spry(Path::new(NOWHERE), &["--help"]));
    for command in [
        "deploy",
        "invoke",
        "list",
        "describe",
        "remove",
        "chain",
        "logs",
        "activation",
        "dead",
        "trigger",
        "status",
        "doctor",
        "check-config",
    ] {
        assert!(help.contains(&format!("  {command}")), "{command} is missing from\n{help}");
    }
}

#[test]
fn a_daemon_that_is_not_there_exits_2_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let dead = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bound"));
    for socket in [Path::new(NOWHERE), &dead] {
        for arguments in [
            &["list"][..],
            &["status"],
            &["invoke", "f"],
            &["remove", "f"],
            &["logs", "f", "-f"],
            &["chain", "list"],
        ] {
            let output = spry(socket, arguments);
            assert_eq!(code(&output), 2, "{arguments:?}");
            let said = err(&output);
            assert!(said.contains(&format!("spryd is not running at {}", socket.display())), "{said}");
            assert!(said.contains("--control-socket"), "{said}");
        }
    }
}

#[test]
fn a_socket_that_says_something_else_exits_2() {
    use std::io::Write;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("spry comes");
        stream.write_all(b"220 this is a mail server\r\n").expect("it reads");
    });
    let output = spry(&path, &["list"]);
    server.join().expect("it ended");
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("did not answer"), "{}", err(&output));
}

#[test]
fn doctor_works_without_a_daemon() {
    let output = spry(Path::new(NOWHERE), &["doctor"]);
    assert!(err(&output).contains("spryd is not running"), "{}", err(&output));
    assert!(out(&output).contains("memfd seals") && out(&output).contains("\nspry can run here."));
    assert_eq!(code(&output), 0);
    let json = spry(Path::new(NOWHERE), &["--output", "json", "doctor"]);
    let report: spry_node::doctor::Report = serde_json::from_slice(&json.stdout).expect("a report");
    assert!(report.usable && report.checks.len() > 10);
}

#[test]
fn check_config_names_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spryd.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("written");
        spry(Path::new(NOWHERE), &["check-config", path.to_str().expect("plain")])
    };
    let good = check("workers = 2\n");
    assert_eq!((code(&good), out(&good).contains("is valid")), (0, true), "{}", err(&good));
    let bad = check("workers = 99\n");
    assert_eq!(code(&bad), 2);
    assert!(err(&bad).contains("workers is 99, but must be between 1 and 32"), "{}", err(&bad));
    assert!(err(&check("colour = 1\n")).contains("unknown field `colour`"));
}

#[test]
fn check_config_knows_each_kind_of_file_by_what_is_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("any.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("written");
        spry(Path::new(NOWHERE), &["check-config", path.to_str().expect("plain")])
    };
    let nightly = "name = 'nightly'\ncall = 'report'\n[cron]\nschedule = '30 3 * * *'\n";
    let good = check(nightly);
    assert_eq!(code(&good), 0, "{}", err(&good));
    assert!(out(&good).contains("is valid: trigger nightly of report"), "{}", out(&good));
    let bad = check(&nightly.replace("30 3", "30 25"));
    assert_eq!((code(&bad), out(&bad).as_str()), (2, ""));
    assert!(err(&bad).contains("any.toml: trigger: cron.schedule is"), "{}", err(&bad));
    assert!(err(&check("name = 'photo'\n")).contains("`step` is missing"));
    assert!(err(&check("stat_dir = '/x'\n")).contains("unknown field `stat_dir`"));
}

#[test]
fn check_config_knows_a_chain_when_it_sees_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        spry(Path::new(NOWHERE), &["check-config", path.to_str().expect("plain")])
    };
    let good = "name = 'photo'\n[[step]]\nfunction = 'decode'\n[[step]]\nfunction = 'encode'\n";
    for name in ["chain.toml", "photo.toml"] {
        let output = check(name, good);
        assert_eq!(code(&output), 0, "{}", err(&output));
        assert!(out(&output).contains("is valid: chain photo of 2 steps"), "{}", out(&output));
        let bad = check(name, &good.replace("'encode'", "'encode'\nretry = 11"));
        assert_eq!((code(&bad), out(&bad).as_str()), (2, ""));
        let says = format!("{name}: step 2: retry is 11, but must be between 0 and 10");
        assert!(err(&bad).contains(&says), "{}", err(&bad));
    }
    assert!(err(&check("chain.toml", "name = [")).contains("chain.toml: TOML parse error at line 1"));
    assert!(err(&check("chain.toml", &"#".repeat(1 << 20))).contains("262144 are the most"));
}
