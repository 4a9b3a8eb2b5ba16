//! What the sandbox promises, told by a process that is in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use spry_node::sandbox::{Outcome, probe};
use spry_node::zygote::{ExitHow, StartError, Zygote};

use crate::needs_root;
use crate::process_support::{Stage, UID, fork, read_all, within};

/// `name: value` lines.
fn facts(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

/// The soft and hard columns of a line of `/proc/self/limits`.
fn limit<'a>(text: &'a str, name: &str) -> (&'a str, &'a str) {
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
    let mut columns = line.split_whitespace();
    (columns.next().expect("soft"), columns.next().expect("hard"))
}

#[tokio::test]
async fn a_zygote_is_confined() {
    needs_root!();
    let stage = Stage::new();
    let zygote = stage.start("facts", "idle").await.expect("start");
    let text = zygote.loading_output().to_owned();
    let facts = facts(&text);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(facts[set], "0000000000000000", "{set}");
    }
    assert_eq!(facts["NoNewPrivs"], "1");
    let uid = format!("{UID}\t{UID}\t{UID}\t{UID}");
    assert_eq!((facts["Uid"], facts["Gid"], facts["Groups"]), (&uid[..], &uid[..], ""));
    assert_eq!((facts["SigIgn"], facts["SigBlk"]), ("0000000000000000", "0000000000000000"));
    assert_eq!(facts["oom score"], "500");
    assert_eq!(facts["umask"], "77");
    assert_eq!(facts["leads session"], "true");
    assert_eq!(facts["death signal"], libc::SIGKILL.to_string());
    assert_eq!(facts["net"], "lo");
    assert_eq!(facts["loopback"], "EPERM: Operation not permitted", "no socket at all");
    assert_eq!(facts["cwd"], stage.folder.path().join("code").to_str().expect("text"));
    assert!(facts["host"].starts_with("f-"), "{}", facts["host"]);
    assert_eq!(limit(&text, "Max core file size"), ("0", "0"));
    assert_eq!(limit(&text, "Max open files"), ("1024", "1024"));
    assert_eq!(limit(&text, "Max locked memory").0, "65536");
    assert_eq!(limit(&text, "Max msgqueue size"), ("0", "0"));
    assert_ne!(limit(&text, "Max processes").0, "unlimited");
    let names: Vec<&str> = facts["env"].split(' ').filter_map(|pair| pair.split('=').next()).collect();
    assert_eq!(names, ["GREETING", "HOME", "LANG", "PATH", "SPRY_FUNCTION", "SPRY_TEST_ZYGOTE"]);
    let fds: Vec<(&str, &str)> = facts["fds"].split(' ').filter_map(|fd| fd.split_once('=')).collect();
    let expected = [("0", "/dev/null"), ("1", "pipe:"), ("2", "pipe:"), ("3", "socket:")];
    for ((number, target), (is, starts)) in expected.into_iter().zip(&fds) {
        assert!(*is == number && starts.starts_with(target), "{is}={starts}");
    }
    assert_eq!(fds.len(), 5, "and the folder that is being listed: {fds:?}");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_zygote_sees_what_it_needs_and_no_more() {
    needs_root!();
    let stage = Stage::new();
    let zygote = stage.start("facts", "idle").await.expect("start");
    let text = zygote.loading_output().to_owned();
    let facts = facts(&text);
    let own = |name: &str| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).expect("namespace");
        link.display().to_string()
    };
    for name in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        assert_ne!(facts[&format!("ns {name}")[..]], own(name), "{name}");
    }
    let expected = ["bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "tmp", "usr"];
    let code = stage.folder.path().join("code");
    let ways: Vec<String> = [&code, &std::env::current_exe().expect("own path")]
        .map(|path| path.iter().nth(1).expect("a folder").to_str().expect("text").to_owned())
        .into();
    for name in facts["root"].split(' ') {
        assert!(
            expected.contains(&name) || name.starts_with("lib") || ways.iter().any(|way| way == name),
            "{name}"
        );
    }
    for hidden in ["shadow", "hostname", "ssh", "resolv.conf", "machine-id"] {
        assert!(!facts["etc"].split(' ').any(|name| name == hidden), "/etc/{hidden}");
    }
    let devices: Vec<_> = facts["dev"].split(' ').collect();
    assert_eq!(
        devices,
        ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    );
    assert_eq!(facts["other processes"], "0", "hidden");
    for mount in facts["mounts"].split(' ') {
        let (path, options) = mount.split_once('=').expect("options");
        let has = |wanted: &str| options.split(',').any(|option| option == wanted);
        assert!(has("nosuid"), "{mount}");
        assert!(has("nodev") || path.starts_with("/dev/"), "{mount}");
        assert!(has("ro") || ["/tmp", "/proc"].contains(&path), "{mount}");
    }
    assert!(!text.contains("/sys/fs"), "the old root is gone");
    assert_eq!(facts["write to /tmp"], "done");
    // by the mount or by landlock, whichever is asked first
    let refused = ["Permission denied (os error 13)", "Read-only file system (os error 30)"];
    for place in ["write to /", "write to /usr"] {
        assert!(refused.contains(&facts[place]), "{place}: {}", facts[place]);
    }
    assert_eq!((facts["tmp bytes"], facts["tmp files"]), ("16777216", "4096"));
    assert_ne!(facts["symlink out"], "read");
    assert_eq!((facts["Seccomp"], facts["Seccomp_filters"]), ("2", "1"));
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn what_serves_one_request_can_leave_nothing_in_tmp() {
    needs_root!();
    let stage = Stage::new();
    let mut spec = stage.spec("facts", "idle");
    spec.single_use = true;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    let facts = facts(zygote.loading_output());
    assert_eq!(facts["write to /tmp"], "Read-only file system (os error 30)");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn an_instance_inherits_it_and_is_in_its_own_group() {
    needs_root!();
    let stage = Stage::new();
    let secret = stage.folder.path().join("other");
    fs::create_dir(&secret).expect("folder");
    fs::write(secret.join("main.py"), "SECRET = 1").expect("file");
    chown(&secret, Some(UID + 1), Some(UID + 1)).expect("chown");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).expect("chmod");
    let path = secret.join("main.py");
    let zygote = stage.start("good", &format!("facts {}", path.display())).await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let exit = within("the end", instance.exited()).await;
    assert_eq!(exit.how, ExitHow::Code(0));
    let text =
        within("output", async move { read_all(instance.stdout.try_clone().expect("dup")).await }).await;
    let facts = facts(&text);
    assert_eq!(facts["other code"], "entity not found");
    assert_eq!(facts["CapBnd"], "0000000000000000");
    assert_eq!((facts["NoNewPrivs"], facts["Seccomp"]), ("1", "2"));
    assert_eq!(facts["net"], "lo");
    assert_eq!(facts["oom score"], "500");
    assert_eq!(facts["other processes"], "1", "its zygote, which has the same user; a runtime hides itself");
    // Its group is a promise about instances that are handed over, and those are looked at from outside.
    let zygote = stage.start("good", "idle").await.expect("start");
    for _ in 0..3 {
        let instance = fork(&zygote).await.expect("fork");
        let text = fs::read_to_string(format!("/proc/{}/cgroup", instance.pid)).expect("its groups");
        let groups: Vec<&str> =
            text.lines().filter(|line| line.contains(&format!("spry-{}", stage.node))).collect();
        assert_eq!(groups.len(), stage.control_groups().len(), "one line per hierarchy: {text}");
        assert!(groups.iter().all(|line| line.contains("/instance-")), "{groups:?}");
    }
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn the_hosts_network_is_there_when_asked_for() {
    needs_root!();
    let stage = Stage::new();
    let mut spec = stage.spec("facts", "idle");
    spec.egress = spry_node::zygote::Egress::Host;
    let zygote = Zygote::start(&stage.executor, &spec).await.expect("start");
    let loopback = facts(zygote.loading_output())["loopback"].to_owned();
    assert_ne!(loopback, "EPERM: Operation not permitted");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_failed_step_is_named() {
    needs_root!();
    let stage = Stage::new();
    let mut spec = stage.spec("good", "idle");
    fs::set_permissions(&spec.code, fs::Permissions::from_mode(0o700)).expect("chmod");
    // Several at once, and more than once: while one is started, another one's death may be heard of before its report.
    let start = || Zygote::start(&stage.executor, &spec);
    for _ in 0..5 {
        let (a, b, c, d) = tokio::join!(start(), start(), start(), start());
        for started in [a, b, c, d] {
            let error = started.expect_err("a code folder of root's");
            let StartError::Sandbox(failed) = &error else { panic!("{error:?}") };
            assert_eq!((failed.step, failed.errno), ("enter the code folder", nix::errno::Errno::EACCES));
            assert!(!error.blames_function());
        }
    }
    spec.code = "/".into();
    spec.uid_gid = None;
    let error =
        Zygote::start(&stage.executor, &spec).await.expect_err("root without a user for the function");
    assert!(matches!(error, StartError::User { root: true, .. }), "{error:?}");
    stage.executor.shutdown().await;
}

#[test]
fn probes_answer_in_three_ways_and_leave_nothing() {
    let probes = probe();
    for name in [
        "clone3",
        "pidfd",
        "landlock",
        "seccomp",
        "own root",
        "cgroup namespaces",
        "user namespaces",
        "network namespaces",
        "pid namespaces",
        "memory limit",
    ] {
        assert!(probes.iter().any(|probe| probe.name == name), "{name}: {probes:?}");
    }
    for probe in &probes {
        println!("{probe:?}");
        if let Outcome::No { why, .. } = &probe.outcome {
            assert!(!why.is_empty(), "{probe:?}");
        }
    }
    let mine = format!("spry-probe-{}", std::process::id());
    for hierarchy in spry_node::cgroup::layout::find().expect("layout") {
        assert!(!hierarchy.own.join(&mine).exists());
    }
}
