//! The two programs, a function, and what the kernel says of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{self, Connection, Response};

/// Far beyond what anything here takes, in an emulated machine that shares its cores.
const WATCHDOG: Duration = Duration::from_secs(90);
/// Where spryd looks for the scheduler's maps.
pub(crate) const PINS: &str = spry_sched::backend::PIN_DIR;
/// The class, as the kernel numbers it.
const SCHED_EXT: i32 = 7;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A guest for the length of a test; none elsewhere, which is said.
pub(crate) fn guest() -> Option<MutexGuard<'static, ()>> {
    if std::env::var_os("SPRY_TEST_SCHED_EXT").is_none() {
        println!("SKIP needs a guest with sched_ext (cargo xtask vm test)");
        return None;
    }
    assert!(Path::new("/sys/kernel/sched_ext").is_dir(), "this kernel should have sched_ext");
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

fn program(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("SPRY_TEST_PROGRAMS").expect("the lane says where they are")).join(name)
}

/// Waits until `condition` holds; the watchdog panics.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < WATCHDOG, "watchdog: {what}");
        // Who is waited for wants the processor.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running `spry-scx`. Dropped: ended, and its maps with it.
pub(crate) struct Loader {
    child: Child,
    _out: BufReader<std::process::ChildStdout>,
}

impl Loader {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(program("spry-scx")).stdout(Stdio::piped()).spawn().expect("spry-scx");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("its first line");
        assert!(line.starts_with("spry-scx: scheduling"), "{line:?}");
        Self { child, _out: out }
    }

    /// SIGKILL: its maps stay where they are.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("reaped");
        until("the kernel is without it", || state() == "disabled");
    }

    /// Waits until it has ended by itself; its exit status.
    pub(crate) fn ended(mut self) -> Option<i32> {
        self.child.wait().expect("reaped").code()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
            kill(pid, Signal::SIGTERM).expect("it runs");
            self.child.wait().expect("reaped");
        }
    }
}

pub(crate) fn state() -> String {
    fs::read_to_string("/sys/kernel/sched_ext/state").unwrap_or_default().trim().to_owned()
}

/// A running `spryd` with a policy, and its log.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// With `burn` deployed under each of these names.
    pub(crate) fn start(functions: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(folder.path(), open).expect("functions' users pass through it");
        let config = folder.path().join("spryd.toml");
        fs::write(&config, "workers = 2\n[scheduler]\npolicy = \"srpt+\"\n").expect("written");
        let mut command = Command::new(program("spryd"));
        command.arg("--config").arg(&config).arg("--state-dir").arg(folder.path().join("state"));
        command.args(["--listen", "127.0.0.1:0"]).arg("--control-socket").arg(folder.path().join("socket"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spryd");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("nobody panics with it").push(line);
            }
        });
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("the ready line");
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        let Some(address) = address.and_then(|address| address.parse().ok()) else {
            panic!("spryd did not start: {line:?}, {:?}", log.lock().expect("nobody panics with it"));
        };
        let node = Self { child, address, folder, log };
        for name in functions {
            node.deploy(name, &["scale.max=16"]);
        }
        node
    }

    /// Deploys `burn` under this name.
    pub(crate) fn deploy(&self, name: &str, settings: &[&str]) {
        let library = std::env::var("SPRY_TEST_BURN").expect("the lane names the function");
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = ["deploy", &library, "--name", name].into_iter().chain(settings).collect();
        self.spry(&arguments);
    }

    /// Runs `spry`, which must succeed; what it prints.
    pub(crate) fn spry(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("spry"));
        command.arg("--control-socket").arg(self.folder.path().join("socket")).args(arguments);
        let output = command.output().expect("spry");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "spry {arguments:?}: {out}{err}\n{}", self.log().join("\n"));
        out.into_owned()
    }

    /// The scheduler, as `spry status` has it too.
    pub(crate) fn scheduler(&self) -> serde_json::Value {
        let token = fs::read_to_string(self.folder.path().join("state/api-token")).expect("the first token");
        let token = format!("Bearer {}", token.trim());
        let headers = [("authorization", token.as_str())];
        let response = Connection::open(self.address).call("GET", "/system/status", &headers, b"");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["scheduler"].clone()
    }

    /// Waits until this backend is in use, and its description says this; the description.
    pub(crate) fn until_uses(&self, backend: &str, says: &str) -> String {
        let mut now = self.scheduler();
        until(&format!("{backend}: … {says} …"), || {
            now = self.scheduler();
            now["backend"] == backend && now["how"].as_str().is_some_and(|how| how.contains(says))
        });
        now["how"].as_str().expect("a text").to_owned()
    }

    pub(crate) fn metrics(&self) -> String {
        client::call(self.address, "GET", "/metrics", b"").text()
    }

    /// Burns so many microseconds of CPU time, sleeps, burns …
    pub(crate) fn burn(&self, function: &str, us: &str) -> Response {
        let response = client::call(self.address, "POST", &format!("/function/{function}"), us.as_bytes());
        assert_eq!(response.status, 200, "{}\n{}", response.text(), self.log().join("\n"));
        response
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Zygotes and instances, each with whether it is in SCHED_EXT.
    fn processes(&self) -> Vec<(i32, bool)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it lives").flatten();
        let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let texts: Vec<String> = texts.collect();
        let pids = texts.iter().flat_map(|text| text.split_whitespace()).filter_map(|pid| pid.parse().ok());
        // (Inits of pid namespaces have nothing to be scheduled for.)
        let init =
            |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|name| name == b"spry-init\0");
        pids.filter(|pid| !init(*pid)).filter_map(|pid| Some((pid, is_extensible(pid)?))).collect()
    }

    /// Waits until all of them are in SCHED_EXT, or none; how many. (Under load some are just being born.)
    pub(crate) fn until_all(&self, extensible: bool) -> usize {
        let mut processes = Vec::new();
        until(if extensible { "all are in SCHED_EXT" } else { "none is in SCHED_EXT" }, || {
            processes = self.processes();
            processes.iter().all(|(_, class)| *class == extensible)
        });
        processes.len()
    }

    /// SIGTERM, to the end.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("reaped");
        assert!(status.success(), "{status:?}\n{}", self.log().join("\n"));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Whether a process is in SCHED_EXT; nothing when it has ended.
pub(crate) fn is_extensible(pid: i32) -> Option<bool> {
    // SAFETY: takes a number, returns one.
    let class = unsafe { libc::sched_getscheduler(pid) };
    (class >= 0).then_some(class == SCHED_EXT)
}

/// Calls that never stop coming.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) done: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// A caller for each of these: a function, and what it is to burn.
    pub(crate) fn start(address: SocketAddr, calls: &[(&'static str, &'static str)]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let caller = |&(function, us): &(&'static str, &'static str)| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || {
                let (path, mut failed) = (format!("/function/{function}"), Vec::new());
                let mut connection = Connection::open(address);
                while !stop.load(Ordering::Relaxed) {
                    let response = connection.call("POST", &path, &[], us.as_bytes());
                    if response.status != 200 {
                        failed.push(format!("{}: {}", response.status, response.text()));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        };
        let callers = calls.iter().map(caller).collect();
        Self { stop, done, callers }
    }

    /// Waits for so many more answers.
    pub(crate) fn goes_on(&self, count: usize) {
        let from = self.done.load(Ordering::Relaxed);
        until("calls are answered", || self.done.load(Ordering::Relaxed) >= from + count);
    }

    /// The end of it: what has failed.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.into_iter().flat_map(|caller| caller.join().expect("it calls")).collect()
    }
}
