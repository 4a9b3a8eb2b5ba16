//! The machine that the package is installed on: its commands, its journal, and the node with what is deployed there.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::client::{self, Response};

/// Far beyond what anything here takes, in an emulated machine that shares its cores.
const WATCHDOG: Duration = Duration::from_secs(90);
/// Where `spryd.socket` listens.
pub(crate) const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
/// The group of the service.
pub(crate) const GROUP: &str = "/sys/fs/cgroup/system.slice/spryd.service";
/// The file's name before anything was installed, in the guest.
const FILES_BEFORE: &str = "/root/files-before";

/// Greets, and says who does.
const HELLO: &str = "import os\ndef main(params): return {'hello': params.get('name'), 'pid': os.getpid()}\n";

/// Ends the test where it would change somebody's machine.
#[macro_export]
macro_rules! need_a_guest {
    () => {
        if std::env::var_os("SPRY_TEST_SYSTEMD").is_none() {
            println!("SKIP needs a guest of its own (cargo xtask vm test)");
            return;
        }
    };
}

/// What a program printed; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {:?}\n{out}\n{err}\n{}",
        output.status,
        journal()
    );
    out.into_owned()
}

/// The same, whatever comes of it.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("start {program}: {error}"))
}

pub(crate) fn spry(arguments: &[&str]) -> String {
    run("spry", arguments)
}

/// A property of a unit.
pub(crate) fn property(unit: &str, name: &str) -> String {
    run("systemctl", &["show", unit, "--property", name, "--value"]).trim().to_owned()
}

pub(crate) fn main_pid() -> i32 {
    property("spryd", "MainPID").parse().expect("a pid")
}

/// What the daemon has said since the machine started.
pub(crate) fn journal() -> String {
    let output = try_run("journalctl", &["--unit=spryd", "--boot", "--no-pager", "--output=cat"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` holds; the watchdog panics.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < WATCHDOG, "watchdog: {what}\n{}", journal());
        // Who is waited for wants the processor.
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The node, installed and with two functions, `hello` (Python) and `echo` (native), if it isn't there yet.
pub(crate) fn node() {
    if !Path::new("/usr/bin/spryd").exists() {
        if !Path::new(FILES_BEFORE).exists() {
            let list: Vec<String> = files().into_iter().collect();
            fs::write(FILES_BEFORE, list.join("\n")).expect("written");
        }
        install();
    }
    if !spry(&["list"]).contains("hello") {
        deploy_python("hello", HELLO, &[]);
        let native = std::env::var("SPRY_TEST_NATIVE").expect("the lane names a native function");
        spry(&["deploy", &native, "--name", "echo"]);
    }
}

/// As an operator installs it. The package starts the service.
pub(crate) fn install() {
    let package = std::env::var("SPRY_TEST_PACKAGE").expect("the lane names the package");
    run("dpkg", &["--install", &package]);
    assert_eq!(property("spryd", "ActiveState"), "active", "{}", journal());
}

pub(crate) fn deploy_python(name: &str, source: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(format!("{name}.py"));
    fs::write(&file, source).expect("write the function");
    let mut arguments = vec!["deploy", file.to_str().expect("a UTF-8 path"), "--name", name];
    for setting in settings {
        arguments.extend_from_slice(&["--set", setting]);
    }
    spry(&arguments);
}

pub(crate) fn post(path: &str, body: &[u8]) -> Response {
    client::call(ADDRESS, "POST", path, body)
}

/// A process of a function's.
pub(crate) fn a_process() -> i32 {
    let threads = fs::read_dir(format!("/proc/{}/task", main_pid())).expect("its threads").flatten();
    let children =
        threads.map(|thread| fs::read_to_string(thread.path().join("children")).expect("children"));
    let first = children.collect::<String>().split(' ').next().map(str::parse);
    first.expect("one").expect("a number")
}

/// Calls both functions; the number that the process that said hello has in its namespace.
pub(crate) fn both_serve() -> i64 {
    let echo = post("/function/echo", b"as it came");
    assert_eq!((echo.status, echo.text().as_str()), (200, "as it came"), "{}", journal());
    let hello = post("/function/hello", b"{\"name\": \"Ada\"}");
    assert_eq!(hello.status, 200, "{}\n{}", hello.text(), journal());
    assert_eq!(hello.json()["hello"], "Ada");
    hello.json()["pid"].as_i64().expect("a number")
}

/// What was there before the first installation.
pub(crate) fn files_before() -> BTreeSet<String> {
    fs::read_to_string(FILES_BEFORE).expect("the list").lines().map(str::to_owned).collect()
}

/// All files of the root file system, but for what systemd, dpkg and apt write as they like.
pub(crate) fn files() -> BTreeSet<String> {
    let busy = [
        "/tmp",
        "/var/tmp",
        "/var/log",
        "/var/cache",
        "/var/backups",
        "/var/lib/apt",
        "/var/lib/dpkg",
        "/var/lib/systemd/timers",
        "/spry",
    ];
    let listed = run("find", &["/", "-xdev"]);
    let ours =
        |file: &&str| *file != FILES_BEFORE && !busy.iter().any(|folder| Path::new(file).starts_with(folder));
    listed.lines().filter(ours).map(str::to_owned).collect()
}
