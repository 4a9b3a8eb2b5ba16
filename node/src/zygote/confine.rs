//! From what a function's process is to be to a process that is confined and on its way to its program.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::channel::Channel;
use super::error::StartError;
use super::executor::{Executor, Launch};
use super::interpreter::check_interpreter;
use super::nursery::Child;
use super::output::{self, Output};
use super::spec::{Egress, ProcessLimits, Runtime, ZygoteSpec};
use crate::cgroup::{Controller, FunctionGroup, GroupLimits};
use crate::sandbox::{
    Confinement, Credentials, Descriptors, Plan, Program, Rlimits, Root, StepFailed, StepReport, filter,
    installation,
};
use crate::sys;

/// Where programs are found from within a function.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Instances that share a function's user: what a per-user count of processes is multiplied by.
const INSTANCES_MAX: u64 = spry_ebpf_common::SLOTS_PER_FUNCTION as u64;
/// Where the watchdog holds memory, it must see the limit passed before allocations fail; this bounds by how much.
const DATA_SLACK: u64 = 2;

/// How the process begins. What it is confined by doesn't depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// As its runtime.
    Runtime,
    /// As the small program that becomes what a layer's process was.
    Layer,
}

/// A process that was started.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) child: Child,
    pub(super) report: StepReport,
    pub(super) channel: Channel,
    pub(super) output: Output,
}

/// Starts it, in a control group of this function's.
pub(super) async fn begin(
    executor: &Arc<Executor>,
    spec: &ZygoteSpec,
    beginning: Beginning,
    group: &Arc<FunctionGroup>,
) -> Result<Begun, StartError> {
    let os = |operation| move |source| StartError::Os { operation, source };
    let credentials = executor.ability.credentials(spec.uid_gid);
    let root = executor.ability.is_root();
    let credentials = credentials.ok_or(StartError::User { wanted: spec.uid_gid, root })?;
    let native = &executor.config.native;
    let (mut launch, mut program) = match &spec.runtime {
        Runtime::Native => (native, native.program.clone()),
        Runtime::Python { interpreter } => {
            (&executor.config.python, check_interpreter(interpreter, spec.uid_gid)?)
        }
    };
    let mut visible = launch.files.clone();
    visible.extend([program.clone(), spec.code.clone()]);
    visible.extend(spec.packages.iter().flat_map(|site| site.folders.clone()));
    if let Runtime::Python { interpreter } = &spec.runtime {
        visible.extend(installation(interpreter));
    }
    let mut environment = environment(spec, launch);
    if beginning == Beginning::Layer {
        // What its environment will be is the layer's; until then no variable of the function's is for it.
        (launch, program) = (native, native.program.clone());
        visible.extend(launch.files.clone());
        visible.push(program.clone());
        environment = launch.env.clone();
    }
    let leaf = group.lease("zygote", &GroupLimits::from(&spec.limits))?;
    let (channel, control) = Channel::pair().map_err(os("make a control socket"))?;
    let (reader, writer) = output::pipe().map_err(os("make a pipe"))?;
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
    let output = Output::new(reader).map_err(os("watch a pipe"))?;
    Ok(Begun { child, report, channel, output })
}

/// Waits until the process runs its program, or a step has failed.
pub(super) async fn confined(mut report: StepReport, child: &Child) -> io::Result<Option<StepFailed>> {
    let init = report.take_init();
    for report in init.into_iter().chain([report]) {
        if let Some(failed) = told(&report, child).await? {
            return Ok(Some(failed));
        }
    }
    Ok(None)
}

/// What it told before it died counts, though its end may be heard of first; what its init tells later doesn't.
async fn told(report: &StepReport, child: &Child) -> io::Result<Option<StepFailed>> {
    let pipe = sys::watch(report.as_fd().try_clone_to_owned()?)?;
    loop {
        let ready = tokio::select! {
            biased;
            ready = pipe.readable() => Some(ready?),
            _ = child.exited_or_lost() => None,
        };
        match report.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match ready {
                Some(mut ready) => ready.clear_ready(),
                None => return Ok(None),
            },
            result => return result,
        }
    }
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
