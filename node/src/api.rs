//! What the control API shows and asks for: the types, serialised as documented in `docs/control-api.md`, and
//! [`Engine`], which the node's core implements and [`crate::control`] serves.
//!
//! The names of fields and the words of enums are a contract with scripts: add, don't rename. Times are
//! milliseconds; instants are milliseconds since the Unix epoch.

mod activation;
mod chain;
mod token;
mod usage;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spry_wire::freeze::Frozen;

use crate::calls;
use crate::manifest::{Egress, Isolation, Limits, Name, Requirement, Runtime, Scale};
use crate::progress::Progress;
use crate::records::{self, Filter, StoredResult};
use crate::secrets::SecretName;
use crate::store::{PlannedChain, Recalled, Staged, StoreError};
use crate::units::Size;
pub use activation::{
    ActivationView, LaterState, LaterView, LogLine, LogPage, LogStream, StartKind, StepTime,
};
pub use chain::{
    Applied, ApplyError, BranchView, CaseView, ChainView, MemberView, OnView, StageView, StepView,
    TriggerView,
};
pub use token::{TokenMade, TokenView, TokenWanted};
pub use usage::{ProcessUsage, Usage, UsageView};

/// What an [`Engine`]'s methods return: a future that may move between threads.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The node's core, seen from the control API. Shared by all threads that serve it.
pub trait Engine: Send + Sync + 'static {
    /// Starts the staged version's zygote, commits it ([`crate::store::Store::commit`]), moves traffic to it, lets
    /// the old version drain and prunes those beyond what is kept. On an error nothing has changed: dropping `staged`
    /// cleans up. What is being done meanwhile is said to `progress`.
    fn deploy(&self, staged: Staged, progress: Progress) -> Reply<'_, Result<Deployed, DeployError>>;
    /// The same with a version that is kept ([`crate::store::Store::roll_back`]).
    fn roll_back(&self, recalled: Recalled, progress: Progress) -> Reply<'_, Result<Deployed, DeployError>>;
    /// Takes the function out of service, ends its processes, then removes it from the store.
    fn remove<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>>;
    /// All functions, by name.
    fn functions(&self) -> Reply<'_, Vec<FunctionView>>;
    /// One function.
    fn function<'a>(&'a self, name: &'a str) -> Reply<'a, Option<FunctionView>>;
    /// Starts what the chain needs, commits it ([`crate::store::Store::commit_chain`]), serves it in the place of
    /// the one of its name, and changes the chains that go through it. On an error nothing has changed.
    fn apply_chain(&self, planned: PlannedChain) -> Reply<'_, Result<Applied, ApplyError>>;
    /// Takes the chain out of service, ends its processes, then removes it from the store.
    fn remove_chain<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>>;
    /// All chains, by name.
    fn chains(&self) -> Reply<'_, Vec<ChainView>>;
    /// One chain.
    fn chain<'a>(&'a self, name: &'a str) -> Reply<'a, Option<ChainView>>;
    /// The node.
    fn status(&self) -> Reply<'_, StatusView>;
    /// What functions and chains use.
    fn usage(&self) -> Reply<'_, Result<UsageView, Unavailable>>;
    /// Invocations that fit, the newest first, at most `limit`; without their logs.
    fn activations(&self, filter: Filter, limit: usize) -> Reply<'_, Vec<ActivationView>>;
    /// One invocation by its call id, with its logs.
    fn activation<'a>(&'a self, call_id: &'a str) -> Reply<'a, Option<ActivationView>>;
    /// What a synchronous call answered, if that is kept.
    fn result<'a>(&'a self, call_id: &'a str) -> Reply<'a, Option<StoredResult>>;
    /// A function's output lines with numbers from `since` on, oldest first, at most `limit`. With `since` `None`:
    /// the newest `limit`. While there are none, waits up to `wait` for one. `None`: no such function.
    fn logs<'a>(
        &'a self,
        name: &'a str,
        since: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Reply<'a, Option<LogPage>>;
}

/// The node failed to look (a bug: its log says more).
#[derive(Debug, thiserror::Error)]
#[error("the node could not look at itself")]
pub struct Unavailable;

/// A deploy that took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    /// The function, as it is now.
    pub function: FunctionView,
    /// What its zygote is, e.g. `CPython 3.11.2`.
    pub runtime_version: String,
    /// From the start of the zygote to its readiness.
    pub zygote_ms: f64,
    /// The version that it took over from.
    pub replaced: Option<u64>,
}

/// Why a deploy did not take; whatever served before still does.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The function's code can't be loaded: its author's fault. The message is the interpreter's traceback, or
    /// the loader's words.
    #[error("{0}")]
    Code(String),
    /// It took too long to initialise: its author's fault.
    #[error("the function was not ready within {} s", .0.as_secs_f64())]
    InitTimeout(Duration),
    /// The zygote died while it loaded the function: its author's fault.
    #[error("the zygote died while it loaded the function: {0}")]
    ZygoteDied(String),
    /// The packages that it asks for can't be installed: its author's fault.
    #[error("{0}")]
    Packages(String),
    /// A secret that it asks for isn't there.
    #[error("{0}")]
    SecretMissing(String),
    /// The runtime isn't there or can't be used on this node: the operator's to mend.
    #[error("the {runtime} runtime can't be used on this node: {why}")]
    Runtime {
        /// Which.
        runtime: Runtime,
        /// Why.
        why: String,
    },
    /// The node has no room.
    #[error("the node has no room: {0}")]
    NoRoom(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A process could not be set up.
    #[error("{step}: {source}")]
    Os {
        /// Which step.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a function or a chain could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none of that name.
    #[error("no function named \"{0}\" is deployed")]
    NoSuchFunction(String),
    /// There is no chain of that name.
    #[error("no chain named \"{0}\" is applied")]
    NoSuchChain(String),
    /// The store refused: it is in use ([`StoreError::InUse`]), most often.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a function can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionState {
    /// It serves.
    Ready,
    /// Its zygote is being started.
    Starting,
    /// Its code can't be loaded; calls fail until it is deployed again.
    Broken,
    /// It is being removed.
    Removing,
}

/// Whether a function's zygote is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZygoteState {
    /// Not started; the next call starts it.
    None,
    /// It is loading the function.
    Starting,
    /// It forks instances.
    Ready,
    /// It could not load the function.
    Failed,
}

/// Instances by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Instances {
    /// Waiting for a request.
    pub idle: u32,
    /// Serving one.
    pub busy: u32,
    /// Being forked.
    pub starting: u32,
}

impl Instances {
    /// All of them.
    pub fn total(self) -> u32 {
        self.idle + self.busy + self.starting
    }
}

/// Calls since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Calls {
    /// Answered by the function.
    pub ok: u64,
    /// Ended in an error.
    pub failed: u64,
    /// Waited for the zygote.
    pub cold: u64,
    /// Waited for a fork.
    pub forked: u64,
    /// Met an idle instance.
    pub warm: u64,
}

/// A deployed function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionView {
    /// Its name.
    pub name: String,
    /// Counts its deploys.
    pub version: u64,
    /// Of the uploaded code.
    pub sha256: String,
    /// What runs it.
    pub runtime: Runtime,
    /// What is called.
    pub handler: String,
    /// What separates requests.
    pub isolation: Isolation,
    /// What an instance may use.
    pub limits: Limits,
    /// How many instances.
    pub scale: Scale,
    /// The names of its environment variables; values may be confidential.
    pub env: Vec<String>,
    /// What it can reach.
    pub egress: Egress,
    /// The Python packages that it asks for.
    #[serde(default)]
    pub packages: Vec<Requirement>,
    /// What was installed for that; none until its zygote was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installed>,
    /// The names of the secrets that it gets.
    #[serde(default)]
    pub secrets: Vec<SecretName>,
    /// Whether it serves.
    pub state: FunctionState,
    /// Why it doesn't, when it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its processes.
    pub instances: Instances,
    /// Its zygote.
    pub zygote: ZygoteState,
    /// What its zygote has done to its memory, so that forks are cheap; none when there is no zygote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// How its zygote began; none when there is no zygote, and where nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<ZygoteStart>,
    /// With `isolation = "request"`: whether its instances are rewound after each request; none when there is no zygote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewound: Option<Rewound>,
    /// Requests that wait.
    pub queued: u64,
    /// What became of its calls.
    pub calls: Calls,
    /// When this version was deployed.
    pub deployed_unix_ms: u64,
    /// The versions that are kept, the newest first; empty in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<VersionView>,
}

/// Python packages as they lie on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The distributions, each of them shared by all who have it; empty where all lie in one folder.
    pub distributions: Vec<String>,
    /// Why they lie in one folder, which only those share that ask for the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// How a zygote began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZygoteStart {
    /// From the wish to a loaded function.
    pub took_ms: f64,
    /// Modules that it found imported, in the layer that it began from; none: it began by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_modules: Option<u32>,
    /// How long it took when it began by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone_ms: Option<f64>,
    /// Why it didn't begin from the layer that there was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl ZygoteStart {
    /// Of one that began by itself, though there may have been a layer.
    pub fn alone(took: std::time::Duration, problem: Option<String>) -> Self {
        Self { took_ms: took.as_secs_f64() * 1e3, layer_modules: None, alone_ms: None, problem }
    }
}

/// Packages that are imported once for several functions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerView {
    /// The packages that its functions ask for.
    pub packages: Vec<String>,
    /// Whose zygotes begin from it.
    pub functions: Vec<String>,
    /// Modules that are imported in it.
    pub modules: u32,
    /// Memory that it holds.
    pub memory: Size,
    /// How long it took to make.
    pub took_ms: f64,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a function's instances go back to what they were after each request, instead of ending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often instances have gone back, since spryd started.
    #[serde(default)]
    pub rewinds: u64,
    /// How many were ended instead.
    #[serde(default)]
    pub replaced: u64,
}

/// A version of a function that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// Its number.
    pub version: u64,
    /// Of the uploaded code.
    pub sha256: String,
    /// Of its files.
    pub size: Size,
    /// When it was deployed.
    pub deployed_unix_ms: u64,
    /// Whether it is the one that serves.
    pub current: bool,
}

/// A transport that is better than the one in use, and why it isn't used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// spryd's version.
    pub version: String,
    /// Its pid.
    pub pid: u32,
    /// Since its start.
    pub uptime_ms: u64,
    /// Where HTTP is served.
    pub listen: String,
    /// Where state is kept.
    pub state_dir: String,
    /// `sockmap`, `futex` or `broker`.
    pub transport: String,
    /// The better transports and why they are not used.
    pub passed_over: Vec<PassedOver>,
    /// Whether HTTP is served over TLS.
    pub tls: bool,
    /// Gateway workers.
    pub workers: u32,
    /// `v2`, `hybrid`, `v1` or `none`, and what it can limit, in words.
    pub cgroup: String,
    /// Who goes first, and by what.
    pub scheduler: SchedulerView,
    /// Functions deployed.
    pub functions: u32,
    /// Instances of all functions.
    pub instances: Instances,
    /// Requests that wait.
    pub queued: u64,
    /// The sum of the memory limits of all function processes that there are or that are being started.
    pub memory_promised: Size,
    /// What that sum may be at most (`node.memory_budget`).
    #[serde(default)]
    pub memory_budget: Size,
    /// The policy that says when idle processes go.
    #[serde(default)]
    pub keepalive: String,
    /// What functions import is imported once: in these.
    #[serde(default)]
    pub layers: Vec<LayerView>,
    /// Memory that these may hold at most.
    #[serde(default)]
    pub layers_memory: Size,
    /// Calls of all functions since the start.
    pub calls: Calls,
    /// Records of calls.
    #[serde(default)]
    pub records: records::Counts,
    /// Asynchronous calls.
    #[serde(default)]
    pub later: calls::Counts,
}

/// The scheduler, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchedulerView {
    /// `eevdf`, `sfs`, `alps`, `srpt` or `srpt+`.
    pub policy: String,
    /// `posix` or `sched_ext`; `none` where the policy leaves all to the kernel.
    pub backend: String,
    /// How the backend does it here, and why not better, in words.
    pub how: String,
    /// Where CPU times and blocking are known from, in words.
    pub signals: String,
    /// How often a better way was left for a worse one (`sched_ext` for `posix`).
    #[serde(default)]
    pub fallbacks: u64,
    /// Invocations that it keeps back.
    pub held: u64,
    /// Those that it has let in, very short functions not counted.
    pub begun: u64,
}

/// The body of every error: `{"error":{"code","message","call_id"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The call, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}
