//! Starting a zygote: a confined process that loads its function and says that it is ready.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, ChannelError};
use super::executor::{Executor, Launch};
use super::exit::Exit;
use super::fork::Link;
use super::interpreter::{InterpreterError, check_interpreter};
use super::nursery::Child;
use super::output::{self, Output};
use super::spec::{Egress, ProcessLimits, Runtime, ZygoteSpec};
use crate::cgroup::{CgroupError, Controller, FunctionGroup, GroupLimits};
use crate::packages::PackagesError;
use crate::sandbox::{
    Confinement, Credentials, Descriptors, Plan, PlanError, Program, Rlimits, Root, StepFailed, StepReport,
    filter, installation,
};
use crate::secrets::SecretError;
use crate::store::StoreError;
use crate::sys;
use parking_lot::Mutex;
use spry_wire::control::{FromZygote, Init, ToZygote};
use spry_wire::freeze::{FreezeWish, Frozen};

/// Where programs are found from within a function.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Tells Python's bootstrap where the function's packages are.
const PACKAGES_VARIABLE: &str = "SPRY_PACKAGES";
/// Instances that share a function's user: what a per-user count of processes is multiplied by.
const INSTANCES_MAX: u64 = spry_ebpf_common::SLOTS_PER_FUNCTION as u64;
/// Where the watchdog holds memory, it must see the limit passed before allocations fail; this bounds by how much.
const DATA_SLACK: u64 = 2;

/// There is no zygote.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The function can't be loaded: what its author must see.
    #[error("the function can't be loaded: {message}")]
    Code {
        /// The interpreter's traceback, or the loader's message.
        message: String,
        /// What was printed meanwhile.
        output: String,
    },
    /// The process ended while it was loading the function.
    #[error("the process {exit} while it was loading the function")]
    Died {
        /// How.
        exit: Exit,
        /// What was printed before.
        output: String,
    },
    /// Loading took too long.
    #[error("the function wasn't loaded after {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
        /// What was printed meanwhile.
        output: String,
    },
    /// The function's processes can't be given the user that they should have.
    #[error("functions can't run as {wanted:?} when spryd {}", if *.root { "is root: each needs a user of its own" } else { "is not root" })]
    User {
        /// What was asked for.
        wanted: Option<(u32, u32)>,
        /// Whether spryd is root.
        root: bool,
    },
    /// A network of its own is promised, but the kernel or spryd's rights don't allow it.
    #[error("the function must not reach the network, but network namespaces can't be made here")]
    Network,
    /// The interpreter can't be used.
    #[error(transparent)]
    Interpreter(#[from] InterpreterError),
    /// Its packages can't be had.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// Its files can't be read, or aren't those that were deployed.
    #[error(transparent)]
    Files(#[from] StoreError),
    /// Its secrets can't be had.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// Its control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its confinement could not be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its confinement failed in the new process.
    #[error("confine the new process: {0}")]
    Sandbox(#[from] StepFailed),
    /// The process could not be made.
    #[error("{operation}: {source}")]
    Os {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its control socket failed, or it spoke nonsense.
    #[error("talk to the zygote: {source}")]
    Channel {
        /// How.
        source: ChannelError,
        /// What was printed meanwhile.
        output: String,
    },
    /// It answered something that isn't an answer.
    #[error("the zygote answered a request that it wasn't sent")]
    Protocol,
}

impl StartError {
    /// Is it the function's own fault, rather than the node's?
    pub fn blames_function(&self) -> bool {
        matches!(self, Self::Code { .. } | Self::Died { .. } | Self::Timeout { .. } | Self::Protocol)
    }

    /// What the process printed before it failed.
    pub fn output(&self) -> &str {
        match self {
            Self::Code { output, .. }
            | Self::Died { output, .. }
            | Self::Timeout { output, .. }
            | Self::Channel { output, .. } => output,
            _ => "",
        }
    }
}

/// A process that has loaded its function and forks instances of it. Dropping it kills it; its instances live on.
#[derive(Debug)]
pub struct Zygote {
    pub(super) executor: Arc<Executor>,
    pub(super) child: Child,
    pub(super) link: tokio::sync::Mutex<Link>,
    pub(super) group: Arc<FunctionGroup>,
    pub(super) limits: ProcessLimits,
    /// The user that its instances must have, where functions have users of their own.
    pub(super) uid: Option<u32>,
    runtime: String,
    frozen: Frozen,
    loading_output: String,
    output: Mutex<Option<OwnedFd>>,
}

impl Zygote {
    /// Starts one and waits until it has loaded its function.
    pub async fn start(executor: &Arc<Executor>, spec: &ZygoteSpec) -> Result<Self, StartError> {
        let os = |operation| move |source| StartError::Os { operation, source };
        let credentials = executor.ability.credentials(spec.uid_gid);
        let root = executor.ability.is_root();
        let credentials = credentials.ok_or(StartError::User { wanted: spec.uid_gid, root })?;
        let (launch, program) = match &spec.runtime {
            Runtime::Native => (&executor.config.native, executor.config.native.program.clone()),
            Runtime::Python { interpreter } => {
                (&executor.config.python, check_interpreter(interpreter, spec.uid_gid)?)
            }
        };
        let group = executor.tree.function(&spec.name)?;
        let leaf = group.lease("zygote", &GroupLimits::from(&spec.limits))?;
        let (channel, control) = Channel::pair().map_err(os("make a control socket"))?;
        let (reader, writer) = output::pipe().map_err(os("make a pipe"))?;
        let environment = environment(spec, launch);
        let mut visible = launch.files.clone();
        visible.extend([program.clone(), spec.code.clone()]);
        visible.extend(spec.packages.clone());
        if let Runtime::Python { interpreter } = &spec.runtime {
            visible.extend(installation(interpreter));
        }
        let plan = Plan::new(Confinement {
            ability: &executor.ability,
            credentials,
            private_network: spec.egress == Egress::None,
            hostname: &spec.name,
            control_groups: leaf.open_procs()?,
            limits: rlimits(executor, &spec.limits, credentials),
            root: Root {
                visible: &visible,
                writable: None,
                secrets: &spec.secrets,
                tmp_bytes: spec.limits.tmpfs_bytes,
                tmp_writable: !spec.single_use,
                host_network: spec.egress == Egress::Host,
                own_proc: executor.ability.has_own_proc(),
                user: spec.uid_gid.unwrap_or_else(own_user),
            },
            filter: filter::Profile {
                python: matches!(spec.runtime, Runtime::Python { .. }),
                host_network: spec.egress == Egress::Host,
            },
            program: Program {
                path: &program,
                arguments: &launch.arguments,
                environment: &environment,
                directory: &spec.code,
            },
            descriptors: Descriptors {
                input: executor.null.as_fd(),
                output: writer.as_fd(),
                control: control.as_fd(),
            },
        })?;
        drop((control, writer)); // the plan has copies
        let spawned = executor.nursery.spawn(plan, leaf, GroupLimits::from(&spec.limits)).await;
        let (child, report) = spawned.map_err(os("start a process"))?;
        let mut output = Output::new(reader).map_err(os("watch a pipe"))?;
        let loading = load(&child, report, &channel, &mut output, spec);
        let loaded = tokio::time::timeout(executor.config.start_timeout, loading).await;
        let (runtime, frozen) = match loaded {
            Ok(Ok(ready)) => ready,
            Ok(Err(failure)) => {
                child.kill();
                let exit = child.exited_or_lost().await;
                output.drain_now();
                return Err(failure.explain(exit, output.text()));
            }
            Err(_) => {
                child.kill();
                output.drain_now();
                let after = executor.config.start_timeout;
                return Err(StartError::Timeout { after, output: output.text() });
            }
        };
        output.drain_now();
        executor.nursery.place_ahead(child.pid, group.lease("instance", &GroupLimits::from(&spec.limits))?);
        Ok(Self {
            executor: executor.clone(),
            child,
            link: tokio::sync::Mutex::new(Link::new(channel)),
            group,
            limits: spec.limits,
            uid: spec.uid_gid.map(|(uid, _)| uid),
            runtime,
            frozen,
            loading_output: output.text(),
            output: Mutex::new(Some(output.into_pipe())),
        })
    }

    /// What runs the function, e.g. `CPython 3.11.2`.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// What it has done to its memory, as it says (it is the function's process: for people to read).
    pub fn frozen(&self) -> &Frozen {
        &self.frozen
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// What was printed while the function was loaded.
    pub fn loading_output(&self) -> &str {
        &self.loading_output
    }

    /// The pipe with what it prints from now on, once (non-blocking). If nobody reads it, a zygote that
    /// prints more than a pipe holds waits.
    pub fn take_output(&self) -> Option<OwnedFd> {
        self.output.lock().take()
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Exit {
        self.child.exited_or_lost().await
    }

    /// Its end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        *self.child.exit.borrow()
    }

    /// Kills it.
    pub fn kill(&self) {
        self.child.kill();
    }
}

/// Why loading failed, before it is known what became of the process.
enum LoadFailure {
    Sandbox(StepFailed),
    Code(String),
    Died,
    Channel(ChannelError),
    Protocol,
}

impl LoadFailure {
    fn explain(self, exit: Exit, output: String) -> StartError {
        match self {
            Self::Sandbox(failed) => StartError::Sandbox(failed),
            Self::Code(message) => StartError::Code { message, output },
            Self::Died => StartError::Died { exit, output },
            Self::Channel(source) => StartError::Channel { source, output },
            Self::Protocol => StartError::Protocol,
        }
    }
}

async fn load(
    child: &Child,
    report: StepReport,
    channel: &Channel,
    output: &mut Output,
    spec: &ZygoteSpec,
) -> Result<(String, Frozen), LoadFailure> {
    let conversation = async {
        if let Some(failed) =
            confined(report).await.map_err(|error| LoadFailure::Channel(ChannelError::Wait(error)))?
        {
            return Err(LoadFailure::Sandbox(failed));
        }
        let init = Init {
            name: spec.name.clone(),
            handler: spec.handler.clone(),
            code: spec.code.to_string_lossy().into_owned(),
            freeze: FreezeWish { how: spec.freeze, memory_bytes: spec.limits.memory_bytes },
        };
        let failed = |error| match error {
            ChannelError::Closed => LoadFailure::Died,
            error => LoadFailure::Channel(error),
        };
        channel.send(&ToZygote::Init(init), &[]).await.map_err(failed)?;
        match channel.receive::<FromZygote>().await.map_err(failed)? {
            (FromZygote::Ready { runtime, frozen }, fds) if fds.is_empty() => {
                tracing::debug!(function = spec.name, ?frozen, "a zygote is ready");
                Ok((runtime, legible(frozen)))
            }
            (FromZygote::Failed { message }, _) => Err(LoadFailure::Code(message)),
            _ => Err(LoadFailure::Protocol),
        }
    };
    let drained = async {
        output.drain().await;
        std::future::pending::<()>().await; // it may close its output and go on
    };
    tokio::select! {
        // what it said before it died counts
        biased;
        result = conversation => result,
        () = drained => unreachable!("never ends"),
        _ = child.exited_or_lost() => Err(LoadFailure::Died),
    }
}

/// Waits until the process runs its program, or a step has failed.
pub(super) async fn confined(report: StepReport) -> io::Result<Option<StepFailed>> {
    let pipe = sys::watch(report.as_fd().try_clone_to_owned()?)?;
    loop {
        let mut ready = pipe.readable().await?;
        match report.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            result => return result,
        }
    }
}

/// What a hostile process says of itself is shown to people: a line of text.
fn legible(frozen: Frozen) -> Frozen {
    let line = |why: String| why.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect();
    Frozen { why: frozen.why.map(line), ..frozen }
}

pub(super) fn own_user() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn environment(spec: &ZygoteSpec, launch: &Launch) -> BTreeMap<String, String> {
    let base = [("PATH", PATH), ("LANG", "C.UTF-8"), ("HOME", "/"), ("SPRY_FUNCTION", &spec.name)];
    let mut all: BTreeMap<String, String> =
        base.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    all.extend(spec.env.clone());
    all.extend(launch.env.clone());
    if let Some(packages) = &spec.packages {
        all.insert(PACKAGES_VARIABLE.to_owned(), packages.display().to_string());
    }
    all
}

/// What control groups don't hold is held here, as well as rlimits can.
pub(super) fn rlimits(executor: &Executor, limits: &ProcessLimits, credentials: Credentials) -> Rlimits {
    let tree = &executor.tree;
    // counted per user (and user namespace): with neither, the limit would count all that this user runs
    let per_user = u64::from(limits.processes) * (INSTANCES_MAX + 1);
    let processes = match credentials {
        Credentials::Inherited => None,
        _ if tree.has(Controller::Pids) => Some(per_user.max(4096)),
        _ => Some(per_user),
    };
    let data_bytes = (!tree.has(Controller::Memory)).then_some(limits.memory_bytes * DATA_SLACK);
    Rlimits { open_files: limits.open_files, processes, data_bytes }
}
