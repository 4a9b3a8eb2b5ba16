//! A confined process that does one thing and ends: a tool that spryd runs on behalf of a function (pip, mostly).
//!
//! It is held as a function is (user, root, filter, control group, landlock), with one folder that it may write to, and
//! what it prints is told line by line while it works. Dropping a [`Task`] kills it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;

use super::confine::{confined, own_user, rlimits};
use super::error::StartError;
use super::executor::Executor;
use super::exit::Exit;
use super::nursery::Child;
use super::spec::ProcessLimits;
use super::{check_interpreter, output};
use crate::cgroup::{FunctionGroup, GroupLimits};
use crate::sandbox::{Confinement, Descriptors, Plan, Program, Root, filter};
use crate::sys;

/// Bytes of one line at most; what is longer is cut into several.
const LINE_MAX: usize = 1024;

/// What a task is made from.
#[derive(Debug)]
pub struct TaskSpec<'a> {
    /// Names its control group and host. Not a function's name.
    pub name: &'a str,
    /// The program, which the user must be able to run.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// Its whole environment.
    pub environment: &'a BTreeMap<String, String>,
    /// What it sees beside the system's programs.
    pub visible: &'a [PathBuf],
    /// Where it starts, and all that it may write to.
    pub folder: &'a Path,
    /// Whom it runs as, where spryd can say.
    pub uid_gid: Option<(u32, u32)>,
    /// What it may use.
    pub limits: ProcessLimits,
    /// Whether it reaches the network.
    pub network: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Task {
    child: Child,
    pipe: AsyncFd<OwnedFd>,
    read: Vec<u8>,
    ended: bool,
    _group: Arc<FunctionGroup>,
}

impl Task {
    /// Starts one.
    pub async fn start(executor: &Arc<Executor>, spec: &TaskSpec<'_>) -> Result<Self, StartError> {
        let os = |operation| move |source| StartError::Os { operation, source };
        let credentials = executor.ability.credentials(spec.uid_gid);
        let root = executor.ability.is_root();
        let credentials = credentials.ok_or(StartError::User { wanted: spec.uid_gid, root })?;
        let program = check_interpreter(spec.program, spec.uid_gid)?;
        let group = executor.tree.function(spec.name)?;
        let leaf = group.lease("task", &GroupLimits::from(&spec.limits))?;
        let (reader, writer) = output::pipe().map_err(os("make a pipe"))?;
        let plan = Plan::new(Confinement {
            ability: &executor.ability,
            credentials,
            private_network: !spec.network,
            hostname: spec.name,
            control_groups: leaf.open_procs()?,
            limits: rlimits(executor, &spec.limits, credentials),
            root: Root {
                visible: spec.visible,
                writable: Some(spec.folder),
                secrets: &[],
                tmp_bytes: spec.limits.tmpfs_bytes,
                tmp_writable: true,
                host_network: spec.network,
                own_proc: executor.ability.has_own_proc(),
                user: spec.uid_gid.unwrap_or_else(own_user),
            },
            filter: filter::Profile { python: true, host_network: spec.network },
            program: Program {
                path: &program,
                arguments: spec.arguments,
                environment: spec.environment,
                directory: spec.folder,
            },
            descriptors: Descriptors {
                input: executor.null.as_fd(),
                output: writer.as_fd(),
                control: executor.null.as_fd(),
            },
        })?;
        drop(writer); // the plan has a copy
        let spawned = executor.nursery.spawn(plan, leaf, GroupLimits::from(&spec.limits)).await;
        let (child, report) = spawned.map_err(os("start a process"))?;
        if let Some(failed) = confined(report, &child).await.map_err(os("wait for a process"))? {
            return Err(StartError::Sandbox(failed));
        }
        let pipe = sys::watch(reader).map_err(os("watch a pipe"))?;
        Ok(Self { child, pipe, read: Vec::new(), ended: false, _group: group })
    }

    /// The next line that it prints; `None` when nothing can come any more.
    pub async fn line(&mut self) -> Option<String> {
        // Many lines may come of one reading, and others are to have their turn.
        consume_budget().await;
        loop {
            if let Some(line) = self.cut() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            let mut bytes = [0; 8 * 1024];
            match output::read_some(&self.pipe, &mut bytes).await {
                Ok(len @ 1..) => self.read.extend_from_slice(&bytes[..len]),
                Ok(0) | Err(_) => self.ended = true,
            }
        }
    }

    /// Takes a line off what was read.
    fn cut(&mut self) -> Option<String> {
        let end = self.read.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (line, with_its_end) = match end {
            Some(end) if end <= LINE_MAX => (end, end + 1),
            _ if self.read.len() > LINE_MAX => (LINE_MAX, LINE_MAX),
            None if self.ended && !self.read.is_empty() => (self.read.len(), self.read.len()),
            _ => return None,
        };
        let text = String::from_utf8_lossy(&self.read[..line]).into_owned();
        self.read.drain(..with_its_end);
        Some(text)
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Exit {
        self.child.exited_or_lost().await
    }

    /// Kills it; with its control group goes what it started.
    pub fn kill(&self) {
        self.child.kill();
    }
}
