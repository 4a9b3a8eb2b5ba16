//! Starting and stopping `spryd`: every part made in order, wired to the others, and taken apart again.

mod life;
mod notify;
mod reload;
mod scheduling;
mod sockets;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use shm_bus::ids::PortIndex;
use shm_bus::transport::{self, BusError, Kind, Selected};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;

use crate::access::Access;
use crate::budget::Budget;
use crate::calls::{self, Calls};
use crate::config::{Config, Flags, TransportChoice};
use crate::control::Control;
use crate::control::token::{ApiToken, TokenError};
use crate::dispatch::{Bus, Dispatcher, QueueLimits, ToWorker};
use crate::embedded::{self, ExtractError};
use crate::gateway::{self, Unsent, WorkerSpec, tls};
use crate::inbox::NodeBytes;
use crate::keeper::{self, Keeper};
use crate::log;
use crate::node::{Fixed, Node, transport_name};
use crate::packages::{Packages, PackagesError};
use crate::records::Recorder;
use crate::sandbox::Outcome;
use crate::secrets::Secrets;
use crate::store::fault::Seam;
use crate::store::{Options, Store, StoreError};
use crate::trace;
use crate::triggers::Triggers;
use crate::zygote::{Executor, ExecutorConfig, ExecutorError, Launch};
use life::{Doors, Signals};
use notify::Notifier;
use reload::Reload;
use sockets::{Inherited, Sockets};

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
    /// systemd passed what can't be used.
    #[error("the descriptor {number} that systemd passed can't be used: {why}")]
    Inherited {
        /// Which.
        number: i32,
        /// Why.
        why: String,
    },
    /// HTTP can't be encrypted as it should be.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
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

/// Runs the daemon until it is told to stop. The calling thread becomes the keeper's.
/// `flags` and `level` are for `SIGHUP`: what the configuration was read with, and the log that runs.
pub fn run(config: Config, flags: Flags, level: log::Level) -> Result<(), StartupError> {
    // Before anything else is opened: what systemd passed has the first numbers.
    let inherited = Inherited::take()?;
    crate::sys::keep_dead_children();
    raise_open_files();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(os("event loop"))?;
    LocalSet::new().block_on(&runtime, serve(config, flags, level, inherited))
}

async fn serve(
    config: Config,
    flags: Flags,
    level: log::Level,
    inherited: Inherited,
) -> Result<(), StartupError> {
    let mut signals = Signals::catch()?;
    let notifier = Rc::new(Notifier::from_env());
    // The store first: its lock keeps a second daemon from touching anything else.
    let store = Arc::new(Store::open(Options {
        state_dir: config.state_dir.clone(),
        uid_base: config.uid_base,
        upload: config.upload,
        versions: config.versions,
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
    let sockets = Sockets::open(inherited, &config)?;
    let listen = sockets.address()?;
    let Selected { transport, passed_over } = open_transport(config.transport, config.workers + 2)?;
    for (kind, why) in &passed_over {
        tracing::warn!(transport = transport_name(*kind), %why, "a better transport can't be used");
    }
    let executor = executor(&config)?;
    let packages = Packages::open(&config, Arc::clone(&executor))?;
    let (cores, signals_in_words) = scheduling::open(&config, &executor)?;
    let (to_keeper, mailbox) = unbounded_channel();
    let limits = QueueLimits { function: config.queue.per_function, node: config.queue.node };
    let functions = spry_ebpf_common::DEFAULT_FUNCTIONS as usize;
    let bus = Bus::new(transport, functions, to_keeper.clone(), limits, Arc::clone(&executor), cores);
    let fixed = Fixed {
        listen,
        passed_over,
        cgroup: limits_in_words(&executor),
        signals: signals_in_words,
        config: config.clone(),
        recorder: Arc::clone(&recorder),
    };
    let budget = Budget::new(config.memory_budget.as_bytes());
    let node = Node::new(fixed, Arc::clone(&bus), Arc::clone(&budget), to_keeper);
    let engine: Arc<dyn crate::api::Engine> = node.clone();
    let doctor = crate::doctor::Options::of(&config);
    let secrets = Arc::new(Secrets::new(Arc::clone(&store), config.secret_key_file.clone()));
    let access = Arc::new(Access::new(token, &store.tokens()?, config.rate));
    access.set_control(config.control);
    let (kept, defaults) = (Arc::clone(&secrets), config.defaults);
    let control_api = Control::new(engine, Arc::clone(&store), kept, access, defaults, doctor);
    let control_api =
        Arc::new(control_api.with_calls(Arc::clone(&calls)).with_triggers(Arc::clone(&triggers)));
    let door = config.tls.as_ref().map(tls::Door::open).transpose()?;
    let (exporter, spans) = start_tracing(&config, &bus)?;
    let node_bytes = NodeBytes::new(config.queue.memory.as_bytes());
    let shared = Shared {
        bus: Arc::clone(&bus),
        node: Arc::clone(&node),
        control: Arc::clone(&control_api),
        calls: Arc::clone(&calls),
        unsent: Unsent::new(Arc::clone(&node_bytes)),
        tls: door.clone(),
        spans,
    };
    let (workers, threads) = start_workers(&config, &shared)?;
    drop(shared);
    let mailboxes: Vec<_> = workers.iter().map(|worker| worker.mailbox.clone()).collect();
    let seed = crate::sys::random_u64().map_err(os("draw random bits"))?;
    let dispatcher = Dispatcher::new(Arc::clone(&bus), PortIndex(workers.len() as u8), None, seed)?;
    let scheduling = scheduling::start(&bus, workers.len() + 1)?;
    let keeper = Keeper::new(keeper::Parts {
        node: Arc::clone(&node),
        bus,
        executor,
        store,
        packages,
        secrets,
        dispatcher: Rc::clone(&dispatcher),
        workers,
        node_bytes,
        budget,
        keepalive: config.keepalive,
    });
    tokio::task::spawn_local(serve_or_say("the keeper's bus port", dispatcher.serve_port()));
    tokio::task::spawn_local(serve_or_say("the bus's fault reports", Rc::clone(&keeper).serve_faults()));
    tokio::task::spawn_local(Rc::clone(&keeper).run(mailbox));
    keeper.restore().await;
    tokio::task::spawn_local(Rc::clone(&keeper).keep_uses());
    // Not before what they call is there.
    calls.start(mailboxes.clone(), node.clone()).map_err(os("start to run asynchronous calls"))?;
    let started = Triggers::start(Arc::clone(&calls), node.clone()).map_err(os("start the triggers"))?;
    triggers.set(started).unwrap_or_else(|_| unreachable!("set once, here"));
    tokio::task::spawn_local(life::watchdog(Rc::clone(&keeper), Rc::clone(&notifier)));
    let doors = Doors::new(mailboxes.clone());
    announce(&node, listen, &config, &notifier);
    let control_socket = sockets.owns_control.then(|| config.control_socket.clone());
    let mut reload =
        Reload { flags, level, node: Arc::clone(&node), control: control_api, door, control_socket };
    life::live(&doors, &sockets, &mut signals, &notifier, &mut reload).await;
    tracing::info!("stopping");
    if let Some(triggers) = triggers.get().cloned() {
        let _ = tokio::task::spawn_blocking(move || triggers.close()).await;
    }
    calls.stop();
    notifier.stopping();
    let owns_control = sockets.owns_control;
    drop(sockets);
    if owns_control {
        let _ = std::fs::remove_file(&config.control_socket);
    }
    let grace = node.config().grace.as_duration();
    for mailbox in &mailboxes {
        let _ = mailbox.send(ToWorker::Shutdown { grace });
    }
    // Workers may need the keeper (a death, a flush) until their last request has ended.
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
    let _ = joined.await;
    let _ = tokio::task::spawn_blocking(move || calls.close()).await;
    keeper.close().await;
    drop(scheduling);
    let _ = tokio::task::spawn_blocking(move || recorder.close()).await;
    if let Some(exporter) = exporter {
        let _ = tokio::task::spawn_blocking(|| exporter.finish()).await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// What makes function processes; the runtimes are written to a folder for it.
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
    wanted.arrangement = config.scheduler.arrangement();
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

fn announce(node: &Node, listen: SocketAddr, config: &Config, notifier: &Notifier) {
    let transport = transport_name(node.bus().transport.kind());
    tracing::info!(%listen, transport, workers = config.workers, "ready");
    // Nobody need listen: a closed pipe there is no reason not to serve.
    let _ = writeln!(
        std::io::stdout(),
        "spryd is ready: http://{listen} (control socket {}, transport {transport})",
        config.control_socket.display()
    );
    // Under systemd (Type=notify), whoever waits for the service may go on now.
    notifier.ready(&format!("serving on {listen}"));
}

/// What every worker gets.
struct Shared {
    bus: Arc<Bus>,
    node: Arc<Node>,
    control: Arc<Control>,
    calls: Arc<Calls>,
    unsent: Arc<Unsent>,
    tls: Option<Arc<tls::Door>>,
    spans: Option<trace::Sink>,
}

/// The thread that tells a collector of calls, when there is one to be told.
fn start_tracing(
    config: &Config,
    bus: &Bus,
) -> Result<(Option<trace::Exporter>, Option<trace::Sink>), StartupError> {
    let Some(wanted) = &config.trace else { return Ok((None, None)) };
    let started = trace::Exporter::start(wanted.endpoint.clone(), wanted.sample);
    let (exporter, sink, counts) = started.map_err(os("start the trace exporter"))?;
    let _ = bus.totals.spans.set(counts);
    Ok((Some(exporter), Some(sink)))
}

type Threads = Vec<std::thread::JoinHandle<()>>;

fn start_workers(config: &Config, shared: &Shared) -> Result<(Vec<keeper::Worker>, Threads), StartupError> {
    let cpus = crate::sys::allowed_cpus();
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
            unsent: Arc::clone(&shared.unsent),
            tls: shared.tls.clone(),
            spans: shared.spans.clone(),
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

/// Every instance costs a handful of descriptors.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
