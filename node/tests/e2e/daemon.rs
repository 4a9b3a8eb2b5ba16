//! A `spryd` of a test's own: temporary state, a free port, nothing left behind.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{self, Response};
use super::outside;

/// Between two looks at what is waited for, which wants the processor itself.
const PAUSE: Duration = Duration::from_millis(1);

/// A function that returns its parameters: when it is [let go](Daemon::let_go), if these say that it waits.
pub(crate) const UNTIL_LET_GO: &str = "import signal\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
    def main(params):\n  if params.get('wait'): signal.sigwait([signal.SIGUSR1])\n  return params\n";

/// The Python that the tests are to be run with, if another than the machine's is.
fn named_interpreter() -> Option<String> {
    std::env::var("SPRY_TEST_PYTHON").ok()
}

/// The Python that functions are run with.
pub(crate) fn interpreter() -> String {
    named_interpreter().unwrap_or_else(|| "/usr/bin/python3".to_owned())
}

/// Why the tests can't run here, if they can't.
pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    let has_cc = Command::new("cc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !has_cc.is_ok_and(|status| status.success()) {
        return Some("no C compiler");
    }
    None
}

/// Ends the test early where it can't run; says so.
#[macro_export]
macro_rules! need_root_and_cc {
    () => {
        if let Some(why) = $crate::daemon::missing() {
            assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but: {why}");
            println!("SKIPPED: {why}");
            return;
        }
    };
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    /// Where its state is, if that isn't in `folder`.
    state: Option<PathBuf>,
    config: String,
}

impl Daemon {
    /// Starts one with these lines in its configuration.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_changed(config, |_| {})
    }

    fn start_changed(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::Builder::new().prefix("spry-e2e-").tempdir().expect("a temporary folder");
        // The state folder must be reachable by the functions' users.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(folder.path(), open).expect("open the folder");
        let (child, address) = launch(folder.path(), &folder.path().join("state"), config, change);
        Self { child, address, folder, state: None, config: config.to_owned() }
    }

    /// The same with its state in this folder.
    pub(crate) fn start_on(state: &Path, config: &str) -> Self {
        Self::start_on_with_env(state, config, &[])
    }

    /// The same, with more environment.
    pub(crate) fn start_on_with_env(state: &Path, config: &str, env: &[(&str, String)]) -> Self {
        let folder = tempfile::Builder::new().prefix("spry-e2e-").tempdir().expect("a temporary folder");
        let (child, address) = launch(folder.path(), state, config, |command| {
            command.envs(env.iter().map(|(name, value)| (name, value)));
        });
        Self { child, address, folder, state: Some(state.to_owned()), config: config.to_owned() }
    }

    /// The same, with more environment.
    pub(crate) fn start_with_env(config: &str, env: &[(&str, String)]) -> Self {
        Self::start_changed(config, |command| {
            command.envs(env.iter().map(|(name, value)| (name, value)));
        })
    }

    /// The same, with a listening socket as systemd passes it.
    pub(crate) fn start_with_socket(config: &str, listener: &std::net::TcpListener) -> Self {
        Self::start_changed(config, |command| pass(command, listener))
    }

    /// Starts it again, after its end.
    pub(crate) fn launch_with_socket(&mut self, listener: &std::net::TcpListener) {
        (self.child, self.address) =
            launch(self.folder.path(), &self.state(), &self.config, |command| pass(command, listener));
    }

    /// Another configuration, read with the next start or [`Self::reload`].
    pub(crate) fn configure(&mut self, config: &str) {
        config.clone_into(&mut self.config);
        write_config(&self.folder.path().join("spryd.toml"), config);
    }

    /// SIGHUP.
    pub(crate) fn reload(&self) {
        self.signal(nix::sys::signal::SIGHUP);
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("signal spryd");
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn ended(&mut self) {
        let status = self.child.wait().expect("reap spryd");
        assert!(status.success(), "spryd ended with {status:?}");
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| self.folder.path().join("state"))
    }

    /// Kills it without warning and starts it again on the same state.
    pub(crate) fn crash_and_restart(&mut self) {
        self.kill();
        self.child.wait().expect("reap spryd");
        (self.child, self.address) = launch(self.folder.path(), &self.state(), &self.config, |_| {});
    }

    /// Stops it as systemd would and starts it again on the same state.
    pub(crate) fn stop_and_start_again(&mut self) {
        self.signal(nix::sys::signal::SIGTERM);
        self.ended();
        (self.child, self.address) = launch(self.folder.path(), &self.state(), &self.config, |_| {});
    }

    /// The same, to kill itself when it passes a step for the n-th time. False: what was left to do has brought it there
    /// before it was ready.
    pub(crate) fn crash_and_restart_to_die_at(&mut self, step: &str, nth: u64) -> bool {
        self.kill();
        self.child.wait().expect("reap spryd");
        let (child, address) = try_launch(self.folder.path(), &self.state(), &self.config, |command| {
            command.env("SPRY_CRASH_AT", format!("{step}:{nth}"));
        });
        self.child = child;
        match address {
            Ok(address) => {
                self.address = address;
                true
            }
            Err(line) => {
                let status = self.child.wait().expect("reap spryd");
                assert_eq!(status.signal(), Some(9), "not by its own hand: {status:?} {line:?}");
                false
            }
        }
    }

    /// Kills it, starts it again, and tells it to stop as soon as it can be reached, ready or not.
    pub(crate) fn stop_while_it_starts(&mut self) -> ExitStatus {
        self.kill();
        self.child.wait().expect("reap spryd");
        let _ = std::fs::remove_file(self.socket());
        let mut child =
            command(self.folder.path(), &self.state(), &self.config).spawn().expect("start spryd");
        let started = std::time::Instant::now();
        while !self.socket().exists() {
            assert!(started.elapsed().as_secs() < 60, "watchdog: it makes its control socket");
            std::thread::yield_now();
        }
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("signal spryd");
        child.wait().expect("reap spryd")
    }

    /// Kills it without warning, if it lives.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill spryd");
    }

    /// Waits until it has died by itself; the watchdog panics.
    pub(crate) fn wait_for_death(&mut self) {
        let pidfd = spry_node::sys::pidfd_open(self.pid()).expect("spryd's descriptor");
        let mut died = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut died, PollTimeout::from(60_000_u16)), Ok(1), "watchdog: spryd lives on");
        self.child.wait().expect("reap spryd");
    }

    /// Runs `spry`.
    pub(crate) fn spry(&self, arguments: &[&str]) -> Output {
        self.spry_command(arguments).output().expect("run spry")
    }

    /// The same, to be run.
    pub(crate) fn spry_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spry"));
        command.arg("--control-socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs `spry` and expects that it succeeds; returns what it printed.
    pub(crate) fn spry_ok(&self, arguments: &[&str]) -> String {
        let output = self.spry(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "spry {arguments:?}: {:?}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    /// What `spry … --output json` says.
    pub(crate) fn spry_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--output", "json"];
        all.extend_from_slice(arguments);
        serde_json::from_str(&self.spry_ok(&all)).expect("JSON")
    }

    /// Deploys a Python source text.
    pub(crate) fn deploy_python(&self, name: &str, source: &str, settings: &[&str]) {
        let output = self.try_deploy_python(name, source, settings);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "deploy {name}: {err}");
    }

    /// The same, whatever comes of it.
    pub(crate) fn try_deploy_python(&self, name: &str, source: &str, settings: &[&str]) -> Output {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join(format!("{}.py", name.replace('-', "_")));
        std::fs::write(&file, source).expect("write the function");
        self.try_deploy(&file, name, settings)
    }

    fn try_deploy(&self, path: &Path, name: &str, settings: &[&str]) -> Output {
        let mut arguments = vec!["deploy", path.to_str().expect("a UTF-8 path"), "--name", name];
        for setting in settings {
            arguments.extend_from_slice(&["--set", setting]);
        }
        self.spry(&arguments)
    }

    /// Deploys one of `tests/e2e/functions/*.c` (`a-b` is in `a_b.c`).
    pub(crate) fn deploy_native(&self, name: &str, settings: &[&str]) {
        let output = self.try_deploy(native(name), name, settings);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "deploy {name}: {err}");
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        client::call(self.address, "GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Response {
        client::call(self.address, "POST", path, body)
    }

    /// Processes below spryd: zygotes and instances (zombies too).
    pub(crate) fn children(&self) -> Vec<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let tasks = tasks.map(|tasks| tasks.flatten().collect::<Vec<_>>()).unwrap_or_default();
        let texts =
            tasks.iter().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let pids: Vec<_> = texts.collect();
        pids.iter().flat_map(|text| text.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
    }

    /// What a process of this function's, which calls itself `number`, is called here. (Its namespace is that of a zygote.)
    pub(crate) fn outside(&self, function: &str, number: i64) -> Option<i32> {
        let theirs = self.processes_of(function).filter_map(outside::namespace);
        outside::find(&theirs.collect::<Vec<_>>(), number)
    }

    /// The zygotes and instances of a function.
    pub(crate) fn processes_of(&self, function: &str) -> impl Iterator<Item = i32> {
        self.children().into_iter().filter(move |pid| {
            let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            folder.iter().any(|part| part == function)
        })
    }

    /// Lets the calls of a function go on that wait in [`UNTIL_LET_GO`].
    pub(crate) fn let_go(&self, function: &str) {
        for pid in self.processes_of(function) {
            // (One may have ended meanwhile.)
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR1);
        }
    }

    pub(crate) fn open_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// What its descriptors are of, but for those that it closes meanwhile.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect()
    }

    /// Waits until `condition` holds; the watchdog panics, and says how the node is.
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let started = std::time::Instant::now();
        while !condition(self) {
            if started.elapsed().as_secs() >= 120 {
                panic!("watchdog: {what}\n{}", String::from_utf8_lossy(&self.spry(&["status"]).stdout));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Stops it as systemd would, and checks that nothing is left.
    pub(crate) fn stop(mut self) {
        let children = self.children();
        self.signal(nix::sys::signal::SIGTERM);
        self.ended();
        for pid in children {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} outlived spryd");
        }
        assert!(!self.socket().exists(), "the control socket is left");
        let own = format!("spry-{}", spry_node::daemon::node_name(&self.state()));
        for controller in ["memory", "cpu", "pids", "unified"] {
            let left = find_folder(&Path::new("/sys/fs/cgroup").join(controller), &own, 4);
            assert!(left.is_none(), "a cgroup is left: {left:?}");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find_folder(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    if depth == 0 {
        return None;
    }
    for entry in std::fs::read_dir(folder).ok()?.flatten().filter(|entry| entry.path().is_dir()) {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        if let Some(found) = find_folder(&entry.path(), name, depth - 1) {
            return Some(found);
        }
    }
    None
}

fn launch(
    folder: &Path,
    state: &Path,
    config: &str,
    change: impl FnOnce(&mut Command),
) -> (Child, SocketAddr) {
    let (child, address) = try_launch(folder, state, config, change);
    (child, address.unwrap_or_else(|line| panic!("not the ready line: {line:?}")))
}

fn write_config(file: &Path, config: &str) {
    let python = named_interpreter().map(|path| format!("python.interpreter = {path:?}\n"));
    std::fs::write(file, python.unwrap_or_default() + config).expect("write the configuration");
}

fn command(folder: &Path, state: &Path, config: &str) -> Command {
    let file = folder.join("spryd.toml");
    write_config(&file, config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_spryd"));
    command
        .arg("--config")
        .arg(&file)
        .arg("--state-dir")
        .arg(state)
        .args(["--listen", "127.0.0.1:0"])
        .arg("--control-socket")
        .arg(folder.join("control.sock"))
        .stdout(Stdio::piped());
    command
}

/// Starts one; where it listens, or what it said instead.
fn try_launch(
    folder: &Path,
    state: &Path,
    config: &str,
    change: impl FnOnce(&mut Command),
) -> (Child, Result<SocketAddr, String>) {
    let mut command = command(folder, state, config);
    change(&mut command);
    let mut child = command.spawn().expect("start spryd");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    let mut reader = BufReader::new(stdout);
    reader.read_line(&mut line).expect("spryd says that it is ready");
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
    let address = address.and_then(|address| address.parse().ok());
    // Whatever else it prints must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    (child, address.ok_or(line))
}

/// Makes a command's standard input its descriptor 3, and says so as systemd does.
fn pass(command: &mut Command, listener: &std::net::TcpListener) {
    let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let program = command.get_program().to_owned();
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\" 3<&0 </dev/null";
    *command = Command::new("sh");
    command.arg("-c").arg(script).arg(program).args(arguments).stdout(Stdio::piped());
    command.stdin(std::os::fd::OwnedFd::from(listener.try_clone().expect("another descriptor")));
}

/// Compiles a native test function, once per test run.
fn native(name: &str) -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    static BUILT: std::sync::Mutex<Vec<(String, &'static Path)>> = std::sync::Mutex::new(Vec::new());
    let mut built = BUILT.lock().expect("no test panics while it compiles");
    if let Some((_, path)) = built.iter().find(|(known, _)| known == name) {
        return path;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
    let source = name.replace('-', "_");
    let object = folder.path().join(format!("{source}.so"));
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&object)
        .arg("-I")
        .arg(here.join("sdk/include"))
        .arg(here.join(format!("tests/e2e/functions/{source}.c")))
        .status()
        .expect("run cc");
    assert!(compiled.success(), "{name}.c does not compile");
    let path: &'static Path = Box::leak(object.into_boxed_path());
    built.push((name.to_owned(), path));
    path
}
