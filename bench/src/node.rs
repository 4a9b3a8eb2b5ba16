//! A spryd of the benchmark's own: temporary state, a free port, a control socket in the same folder.
//!
//! It is started by the thread that measures, and ends with it: by SIGTERM when the handle is dropped
//! (return, error, panic, Ctrl-C), by the kernel's parent-death signal when the benchmark itself is killed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::http1::{self, Head, Start};
use crate::load::Target;
use crate::stop::Stop;
use crate::sys;

/// How long the daemon may take to start, and to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a state that has no event is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Answers that [`Node::first_answer`] waits for.
const ANSWERS: usize = 20;

/// Which programs to run, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// The folder with spryd, spry, the runtimes and the examples' libraries.
    #[arg(long, default_value = "target/release")]
    pub bin_dir: PathBuf,
    /// The folder with the benchmarks' Python functions.
    #[arg(long, default_value = "bench/functions")]
    pub functions_dir: PathBuf,
    /// A configuration for spryd; without it, the defaults.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The bus to use (`sockmap`, `futex`, `broker`); without it, spryd's own choice.
    #[arg(long, conflicts_with = "config")]
    pub transport: Option<String>,
    /// Passed to every `spry deploy`, e.g. `--function-set scale.min=2`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub function_set: Vec<String>,
    /// Where spryd's log is kept after the run; without it, shown only when something fails.
    #[arg(long)]
    pub log: Option<PathBuf>,
}

/// Why spryd, or a command to it, failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or process could not be made.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// spryd ended or did not answer `/healthz`.
    #[error("spryd {what}; its log ends with:\n{log}")]
    Start {
        /// What it did.
        what: String,
        /// The end of its output.
        log: String,
    },
    /// A `spry` command failed.
    #[error("spry {command}: {message}")]
    Command {
        /// Its arguments.
        command: String,
        /// What it wrote to standard error.
        message: String,
    },
    /// A function did not answer rightly, or never warm.
    #[error("warming {path}: {what}")]
    Warm {
        /// The function's path.
        path: String,
        /// What came instead.
        what: String,
    },
    /// The user ended the run.
    #[error("interrupted")]
    Interrupted,
}

fn io(operation: &'static str, object: impl Into<String>) -> impl FnOnce(std::io::Error) -> NodeError {
    let object = object.into();
    move |source| NodeError::Io { operation, object, source }
}

/// A running spryd.
#[derive(Debug)]
pub struct Node {
    /// Where its gateway listens.
    pub address: SocketAddr,
    programs: Programs,
    child: Child,
    socket: PathBuf,
    log: File,
    config: PathBuf,
    /// Dropped, and with it deleted, after the daemon has ended.
    folder: tempfile::TempDir,
}

impl Node {
    /// Starts spryd and waits until it answers.
    pub fn start(programs: &Programs, stop: &Stop) -> Result<Self, NodeError> {
        Self::start_with(programs, "", stop)
    }

    /// The same with these settings (TOML), unless the user has named a configuration.
    pub fn start_with(programs: &Programs, settings: &str, stop: &Stop) -> Result<Self, NodeError> {
        let folder = tempfile::Builder::new().prefix("spry-bench-").tempdir();
        let folder = folder.map_err(io("make", "a temporary folder"))?;
        let socket = folder.path().join("control.sock");
        let log_path = programs.log.clone().unwrap_or_else(|| folder.path().join("spryd.log"));
        let open = || File::options().create(true).append(true).read(true).open(&log_path);
        let log = open().map_err(io("open", log_path.display().to_string()))?;
        let config = match &programs.config {
            Some(path) => path.clone(),
            None => {
                // A file of our own, so that a configuration of the machine's own spryd has no say here.
                let path = folder.path().join("spryd.toml");
                // (What compares transports names them itself.)
                let transport = programs.transport.as_ref().filter(|_| !settings.starts_with("transport"));
                let transport = transport.map(|name| format!("transport = {name:?}\n"));
                let settings = transport.unwrap_or_default() + settings;
                std::fs::write(&path, settings).map_err(io("write", path.display().to_string()))?;
                path
            }
        };
        let address = free_address().map_err(io("find", "a free port"))?;
        let mut command = command(programs, &config, folder.path(), address, &log)?;
        let program = programs.bin_dir.join("spryd");
        let child = sys::end_with_spawner(&mut command).spawn();
        let child = child.map_err(io("start", program.display().to_string()))?;
        let mut node = Self { address, programs: programs.clone(), child, socket, log, folder, config };
        node.wait_until_healthy(stop)?;
        Ok(node)
    }

    /// Kills spryd without warning and starts it again on the same state and address; it isn't waited for.
    pub fn crash_and_restart(&mut self) -> Result<(), NodeError> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(io("end", "spryd"))?;
        let mut again = command(&self.programs, &self.config, self.folder.path(), self.address, &self.log)?;
        self.child = sys::end_with_spawner(&mut again).spawn().map_err(io("start", "spryd"))?;
        Ok(())
    }

    fn wait_until_healthy(&mut self, stop: &Stop) -> Result<(), NodeError> {
        let request = Target::new(self.address, "GET", "/healthz", b"", b"".as_slice().into()).request;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if stop.is_set() {
                return Err(NodeError::Interrupted);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(NodeError::Start { what: format!("ended with {status}"), log: self.log_end() });
            }
            if matches!(http1::call(self.address, &request, Duration::from_secs(1)), Ok((head, _)) if head.status == 200)
            {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(NodeError::Start { what: "did not answer /healthz".to_owned(), log: self.log_end() })
    }

    /// The last lines of what spryd wrote.
    pub fn log_end(&self) -> String {
        let mut log = &self.log;
        let mut bytes = Vec::new();
        let length = log.metadata().map_or(0, |meta| meta.len());
        // A log that can't be read is as good as an empty one here.
        let _ = log.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = log.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The daemon's process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Runs the `spry` command line; its standard output.
    pub fn spry(&self, arguments: &[&str]) -> Result<String, NodeError> {
        let program = self.programs.bin_dir.join("spry");
        let output = Command::new(&program)
            .arg("--control-socket")
            .arg(&self.socket)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(io("run", program.display().to_string()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(NodeError::Command { command: arguments.join(" "), message })
        }
    }

    /// Deploys one of the benchmarks' functions under a name.
    pub fn deploy(&self, function: Function, name: &str) -> Result<(), NodeError> {
        self.deploy_file(&function.path(&self.programs), name, &[])
    }

    /// Deploys one of the benchmarks' functions under a name, with settings (`KEY=VALUE`).
    pub fn deploy_with(&self, function: Function, name: &str, settings: &[&str]) -> Result<(), NodeError> {
        self.deploy_file(&function.path(&self.programs), name, settings)
    }

    /// Deploys a library or a Python file with settings (`KEY=VALUE`); those of the user's come after them.
    pub fn deploy_file(&self, path: &Path, name: &str, settings: &[&str]) -> Result<(), NodeError> {
        if !path.exists() {
            return Err(io("find", path.display().to_string())(std::io::ErrorKind::NotFound.into()));
        }
        let path = path.display().to_string();
        let mut arguments = vec!["deploy", path.as_str(), "--name", name];
        let users = self.programs.function_set.iter().map(String::as_str);
        for set in settings.iter().copied().chain(users) {
            arguments.extend(["--set", set]);
        }
        self.spry(&arguments).map(drop)
    }

    /// Applies a chain.
    pub fn apply_chain(&self, name: &str, toml: &str) -> Result<(), NodeError> {
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, toml).map_err(io("write", path.display().to_string()))?;
        self.spry(&["chain", "apply", &path.display().to_string()]).map(drop)
    }

    /// Calls a function until `in_a_row` answers came from warm instances; the last answer's body.
    pub fn warm(&self, target: &Target, in_a_row: usize, stop: &Stop) -> Result<Vec<u8>, NodeError> {
        let line = target.request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let failed = |what| NodeError::Warm { path: String::from_utf8_lossy(line).into_owned(), what };
        let mut warm = 0;
        for _ in 0..200 + 20 * in_a_row {
            if stop.is_set() {
                return Err(NodeError::Interrupted);
            }
            let answer = http1::call(self.address, &target.request, PATIENCE);
            let (Head { status, start, .. }, body) = answer.map_err(|error| failed(error.to_string()))?;
            if status != target.status {
                return Err(failed(format!("status {status}: {}", String::from_utf8_lossy(&body))));
            }
            warm = if start == Some(Start::Warm) { warm + 1 } else { 0 };
            if warm == in_a_row {
                return Ok(body);
            }
        }
        Err(failed(format!("no {in_a_row} answers in a row said `X-Spry-Start: warm`")))
    }

    /// Calls a function until it has answered a few times, from whatever instances; the last answer's body.
    pub fn first_answer(&self, target: &Target, stop: &Stop) -> Result<Vec<u8>, NodeError> {
        let line = target.request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let failed = |what| NodeError::Warm { path: String::from_utf8_lossy(line).into_owned(), what };
        let mut body = Vec::new();
        for _ in 0..ANSWERS {
            if stop.is_set() {
                return Err(NodeError::Interrupted);
            }
            let answer = http1::call(self.address, &target.request, PATIENCE);
            let (head, found) = answer.map_err(|error| failed(error.to_string()))?;
            if head.status != target.status {
                return Err(failed(format!("status {}: {}", head.status, String::from_utf8_lossy(&found))));
            }
            body = found;
        }
        Ok(body)
    }

    /// Where its temporary files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nobody to signal, and the wait returns at once.
        let _ = nix::sys::signal::kill(self.pid(), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("spryd did not end within {PATIENCE:?} of SIGTERM and is killed");
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn command(
    programs: &Programs,
    config: &Path,
    folder: &Path,
    address: SocketAddr,
    log: &File,
) -> Result<Command, NodeError> {
    let mut command = Command::new(programs.bin_dir.join("spryd"));
    command
        .arg("--config")
        .arg(config)
        .arg("--state-dir")
        .arg(folder.join("state"))
        .arg("--listen")
        .arg(address.to_string())
        .arg("--control-socket")
        .arg(folder.join("control.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(io("open", "the log"))?)
        .stderr(log.try_clone().map_err(io("open", "the log"))?);
    Ok(command)
}

/// A port that was free a moment ago. (spryd can't say which it got when asked for port 0.)
fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// A function that the benchmarks deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `examples/nop`.
    NativeNop,
    /// `examples/echo`.
    NativeEcho,
    /// `bench/functions/nop.py`.
    PythonNop,
    /// `bench/functions/echo.py`.
    PythonEcho,
    /// `bench/functions/nap.py`: at work for 20 ms.
    PythonNap,
}

impl Function {
    /// The name that it is deployed under.
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeNop => "nop",
            Self::NativeEcho => "echo",
            Self::PythonNop => "python-nop",
            Self::PythonEcho => "python-echo",
            Self::PythonNap => "python-nap",
        }
    }

    fn path(self, programs: &Programs) -> PathBuf {
        match self {
            Self::NativeNop => programs.bin_dir.join("libexample_nop.so"),
            Self::NativeEcho => programs.bin_dir.join("libexample_echo.so"),
            Self::PythonNop => programs.functions_dir.join("nop.py"),
            Self::PythonEcho => programs.functions_dir.join("echo.py"),
            Self::PythonNap => programs.functions_dir.join("nap.py"),
        }
    }
}
