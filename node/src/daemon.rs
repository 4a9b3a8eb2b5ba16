//! Starting and stopping `spryd`: every part made in order, wired to the others, and taken apart again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use shm_bus::ids::PortIndex;
use shm_bus::transport::{self, BusError, Kind, Selected};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use crate::budget::Budget;
use crate::calls::{self, Calls};
use crate::config::{Config, TransportChoice};
use crate::control::Control;
use crate::control::token::{ApiToken, TokenError};
use crate::dispatch::{Bus, Dispatcher, QueueLimits, ToWorker};
use crate::embedded::{self, ExtractError};
use crate::gateway::{self, Connection, WorkerSpec};
use crate::inbox::NodeBytes;
use crate::keeper::{self, Keeper};
use crate::node::{Fixed, Node, transport_name};
use crate::packages::{Packages, PackagesError};
use crate::records::Recorder;
use crate::sandbox::Outcome;
use crate::secrets::Secrets;
use crate::store::fault::Seam;
use crate::store::{Options, Store, StoreError};
use crate::triggers::Triggers;
use crate::zygote::{Executor, ExecutorConfig, ExecutorError, Launch};

/// Why spryd can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    Os {
        /// What was being done, and to what.
        operation: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another daemon answers at the control socket.
    #[error("another spryd answers at {}; stop it, or name another socket with --control-socket", .0.display())]
    AlreadyRunning(PathBuf),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control API's token can't be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Processes can't be made.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The runtimes can't be written.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// The folder with Python packages can't be opened.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// No transport works, or the one that was asked for doesn't.
    #[error("the bus: {0}; `spry doctor` tells more")]
    Bus(#[from] BusError),
    /// A worker's thread did not come up.
    #[error("a gateway worker did not start: {0}")]
    Worker(String),
}

fn os(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartupError {
    let operation = operation.into();
    move |source| StartupError::Os { operation, source }
}

/// Connections at once; more are closed as they come.
const CONNECTIONS_MAX: usize = 8192;
/// After a failed accept (no descriptors left, mostly) the next is tried this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs the daemon until it is told to stop. The calling thread becomes the keeper's.
pub fn run(config: Config) -> Result<(), StartupError> {
    crate::sys::keep_dead_children();
    raise_open_files();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(os("event loop"))?;
    LocalSet::new().block_on(&runtime, serve(config))
}

async fn serve(config: Config) -> Result<(), StartupError> {
    // The store first: its lock keeps a second daemon from touching anything else.
    let store = Arc::new(Store::open(Options {
        state_dir: config.state_dir.clone(),
        uid_base: config.uid_base,
        upload: config.upload,
    })?);
    let calls = Calls::open(calls::Parts {
        state_dir: &config.state_dir,
        settings: config.asynchronous.clone(),
        defaults: config.defaults.asynchronous,
        clock: Arc::new(crate::activation::unix_ms),
        seam: Seam::of_environment(),
    })?;
    let recorder = Recorder::open(&config.state_dir, config.activations)?;
    let triggers: Arc<OnceLock<Arc<Triggers>>> = Arc::default();
    let token = ApiToken::load_or_create(&config.api_token_file)?;
    let listener = bind(config.listen)?;
    let control = bind_control(&config.control_socket)?;
    let listen = listener.local_addr().map_err(os("the listener's address"))?;
    let Selected { transport, passed_over } = open_transport(config.transport, config.workers + 1)?;
    for (kind, why) in &passed_over {
        tracing::warn!(transport = transport_name(*kind), %why, "a better transport can't be used");
    }
    let executor = executor(&config)?;
    let packages = Packages::open(&config, Arc::clone(&executor))?;
    let (to_keeper, mailbox) = unbounded_channel();
    let limits = QueueLimits { function: config.queue.per_function, node: config.queue.node };
    let functions = spry_ebpf_common::DEFAULT_FUNCTIONS as usize;
    let bus = Bus::new(transport, functions, to_keeper.clone(), limits, Arc::clone(&executor));
    let cgroup = limits_in_words(&executor);
    let fixed =
        Fixed { listen, passed_over, cgroup, config: config.clone(), recorder: Arc::clone(&recorder) };
    let budget = Budget::new(config.memory_budget.as_bytes());
    let node = Node::new(fixed, Arc::clone(&bus), Arc::clone(&budget), to_keeper);
    let engine: Arc<dyn crate::api::Engine> = node.clone();
    let doctor = crate::doctor::Options::of(&config);
    let secrets = Arc::new(Secrets::new(Arc::clone(&store), config.secret_key_file.clone()));
    let control_api =
        Control::new(engine, Arc::clone(&store), Arc::clone(&secrets), token, config.defaults, doctor);
    let control_api =
        Arc::new(control_api.with_calls(Arc::clone(&calls)).with_triggers(Arc::clone(&triggers)));
    let connections = Arc::new(AtomicUsize::new(0));
    let shared = Shared {
        bus: Arc::clone(&bus),
        node: Arc::clone(&node),
        control: control_api,
        calls: Arc::clone(&calls),
        connections: Arc::clone(&connections),
    };
    let (workers, threads) = start_workers(&config, &shared)?;
    let mailboxes: Vec<_> = workers.iter().map(|worker| worker.mailbox.clone()).collect();
    let seed = crate::sys::random_u64().map_err(os("draw random bits"))?;
    let dispatcher = Dispatcher::new(Arc::clone(&bus), PortIndex(workers.len() as u8), None, seed)?;
    let keeper = Keeper::new(keeper::Parts {
        node: Arc::clone(&node),
        bus,
        executor,
        store,
        packages,
        secrets,
        dispatcher: Rc::clone(&dispatcher),
        workers,
        node_bytes: NodeBytes::new(config.queue.memory.as_bytes()),
        budget,
        keepalive: config.keepalive,
    });
    tokio::task::spawn_local(serve_or_say("the keeper's bus port", dispatcher.serve_port()));
    tokio::task::spawn_local(serve_or_say("the bus's fault reports", Rc::clone(&keeper).serve_faults()));
    tokio::task::spawn_local(Rc::clone(&keeper).run(mailbox));
    keeper.restore().await;
    // Not before what they call is there.
    calls.start(mailboxes.clone(), node.clone()).map_err(os("start to run asynchronous calls"))?;
    let started = Triggers::start(Arc::clone(&calls), node.clone()).map_err(os("start the triggers"))?;
    triggers.set(started).unwrap_or_else(|_| unreachable!("set once, here"));
    let doors = Doors { mailboxes: mailboxes.clone(), connections, next: AtomicUsize::new(0) };
    announce(&node, listen, &config);
    wait_for_end(&doors, &listener, &control).await?;
    tracing::info!("stopping");
    if let Some(triggers) = triggers.get().cloned() {
        let _ = tokio::task::spawn_blocking(move || triggers.close()).await;
    }
    calls.stop();
    drop((listener, control));
    let _ = std::fs::remove_file(&config.control_socket);
    for mailbox in &mailboxes {
        let _ = mailbox.send(ToWorker::Shutdown);
    }
    // Workers may need the keeper (a death, a flush) until their last request has ended.
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
    let _ = joined.await;
    let _ = tokio::task::spawn_blocking(move || calls.close()).await;
    keeper.close().await;
    let _ = tokio::task::spawn_blocking(move || recorder.close()).await;
    tracing::info!("stopped");
    Ok(())
}

/// What makes function processes; the runtimes are written to the state folder for it.
fn executor(config: &Config) -> Result<Arc<Executor>, StartupError> {
    let folder = config.runtime_dir.clone().unwrap_or_else(|| config.state_dir.join("runtime"));
    let runtimes = embedded::extract(&folder)?;
    let native = Launch { program: runtimes.native_loader, ..Launch::default() };
    let mut arguments: Vec<OsString> = embedded::PYTHON_OPTIONS.iter().map(OsString::from).collect();
    arguments.push(embedded::PYTHON_BOOTSTRAP.into());
    let folder = runtimes.python_dir.display().to_string();
    let env = BTreeMap::from([(embedded::PYTHON_DIR_VARIABLE.to_owned(), folder)]);
    let python = Launch { arguments, env, files: vec![runtimes.python_dir], ..Launch::default() };
    let mut wanted = ExecutorConfig::new(node_name(&config.state_dir), native, python);
    wanted.cgroup_record = Some(config.state_dir.join("cgroups"));
    Ok(Executor::new(wanted)?)
}

/// Names a state folder, for things that outlive a crash (control groups).
pub fn node_name(state_dir: &Path) -> String {
    let path = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn limits_in_words(executor: &Executor) -> String {
    let words = executor.report().into_iter().filter(|probe| probe.name.ends_with(" limit")).map(|probe| {
        let how = match probe.outcome {
            Outcome::Yes { detail } => detail,
            Outcome::No { instead, .. } => instead.to_owned(),
            Outcome::Error { what } => what,
        };
        format!("{}: {how}", probe.name)
    });
    words.collect::<Vec<_>>().join("; ")
}

async fn serve_or_say(what: &'static str, served: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = served.await {
        tracing::error!(%error, "{what} can't be waited for");
    }
}

fn announce(node: &Node, listen: SocketAddr, config: &Config) {
    let transport = transport_name(node.bus().transport.kind());
    tracing::info!(%listen, transport, workers = config.workers, "ready");
    println!(
        "spryd is ready: http://{listen} (control socket {}, transport {transport})",
        config.control_socket.display()
    );
    // Under systemd (Type=notify), whoever waits for the service may go on now.
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Ok(sender) = std::os::unix::net::UnixDatagram::unbound()
    {
        let _ = sender.send_to(b"READY=1", socket);
    }
}

struct Doors {
    mailboxes: Vec<UnboundedSender<ToWorker>>,
    connections: Arc<AtomicUsize>,
    next: AtomicUsize,
}

impl Doors {
    /// Deals connections out in turn.
    fn hand_over(&self, connection: Connection) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return tracing::warn!(limit = CONNECTIONS_MAX, "a connection was closed: there are too many");
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.mailboxes.len();
        let _ = self.mailboxes[turn].send(ToWorker::Connection(connection));
    }
}

async fn wait_for_end(doors: &Doors, http: &TcpListener, control: &UnixListener) -> Result<(), StartupError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(os("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(os("wait for SIGINT"))?;
    loop {
        let accepted = tokio::select! {
            accepted = http.accept() => accepted.and_then(|(stream, _)| stream.into_std()).map(Connection::Tcp),
            accepted = control.accept() => accepted.and_then(|(stream, _)| stream.into_std()).map(Connection::Unix),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match accepted {
            Ok(connection) => doors.hand_over(connection),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every worker gets.
struct Shared {
    bus: Arc<Bus>,
    node: Arc<Node>,
    control: Arc<Control>,
    calls: Arc<Calls>,
    connections: Arc<AtomicUsize>,
}

type Threads = Vec<std::thread::JoinHandle<()>>;

fn start_workers(config: &Config, shared: &Shared) -> Result<(Vec<keeper::Worker>, Threads), StartupError> {
    let cpus = allowed_cpus();
    let (mut workers, mut threads) = (Vec::new(), Vec::new());
    for index in 0..config.workers {
        let (mailbox, letters) = unbounded_channel();
        // With more workers than cores, or unknown cores, the kernel places them.
        let cpu = (config.workers <= cpus.len()).then(|| cpus[index]);
        let spec = WorkerSpec {
            port: PortIndex(index as u8),
            cpu,
            bus: Arc::clone(&shared.bus),
            mailbox: letters,
            node: Arc::clone(&shared.node),
            control: Arc::clone(&shared.control),
            calls: Arc::clone(&shared.calls),
            connections: Arc::clone(&shared.connections),
        };
        let (ready, wait) = std::sync::mpsc::channel();
        let name = format!("gateway-{index}");
        let thread = std::thread::Builder::new().name(name).spawn(move || gateway::run(spec, ready));
        threads.push(thread.map_err(os("start a gateway worker"))?);
        wait.recv().unwrap_or_else(|_| Err("it ended at once".into())).map_err(StartupError::Worker)?;
        workers.push(keeper::Worker { mailbox, cpu });
    }
    Ok((workers, threads))
}

fn allowed_cpus() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = nix::sched::CpuSet::count();
    set.map_or_else(
        |_| Vec::new(),
        |set| (0..count).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
    )
}

fn open_transport(choice: TransportChoice, ports: usize) -> Result<Selected, BusError> {
    let preferred = match choice {
        TransportChoice::Auto => None,
        TransportChoice::Sockmap => Some(Kind::Sockmap),
        TransportChoice::Futex => Some(Kind::Futex),
        TransportChoice::Broker => Some(Kind::Broker),
    };
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    transport::select(preferred, transport::Config { ports, ..transport::Config::default() })
}

fn bind(listen: SocketAddr) -> Result<TcpListener, StartupError> {
    let listener = std::net::TcpListener::bind(listen).map_err(os(format!("listen on {listen}")))?;
    listener.set_nonblocking(true).map_err(os("set up the listener"))?;
    TcpListener::from_std(listener).map_err(os("set up the listener"))
}

/// Binds the control socket, in place of one that a dead daemon has left.
fn bind_control(path: &Path) -> Result<UnixListener, StartupError> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(os(format!("make the folder {}", folder.display())))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(StartupError::Os { operation: format!("{shown} is there and is no socket"), source });
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(StartupError::AlreadyRunning(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(os(format!("remove the dead socket {shown}")))?;
    }
    // From its first moment on, nobody else may connect.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    listener.map_err(os(format!("listen on {shown}")))
}

/// Every instance costs a handful of descriptors.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
