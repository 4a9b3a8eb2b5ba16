//! An instance's process, as its owner holds it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use spry_sched::backend::Process;
use spry_wire::control::{FromInstance, ToInstance};

use super::channel::{Channel, ChannelError};
use super::executor::Executor;
use super::exit::Exit;
use super::layer::Layer;
use super::nursery::Child;
use super::rewind::Gate;
use crate::cgroup::Controller;
use crate::sys::{self, CpuSet};

/// A forked instance that has said hello and sealed its outbox. Dropping it kills it.
#[derive(Debug)]
pub struct InstanceProcess {
    /// The number that it was asked for by.
    pub instance: u64,
    /// Its pid. Valid as long as [`Self::exited`] hasn't returned: then it may be reused.
    pub pid: i32,
    /// Its process.
    pub pidfd: Arc<OwnedFd>,
    /// The same for the scheduler's backend.
    pub process: Arc<Process>,
    /// Its standard output, non-blocking.
    pub stdout: OwnedFd,
    /// Its standard error, non-blocking.
    pub stderr: OwnedFd,
    /// If it is rewound: where it waits after each answer.
    pub gate: Option<Arc<Gate>>,
    pub(super) control: Channel,
    pub(super) child: Child,
    pub(super) executor: Arc<Executor>,
    /// Whose memory it shares.
    pub(super) _layer: Option<Arc<Layer>>,
}

impl InstanceProcess {
    /// Kills it. Its own children die when it is reaped, with its control group; without control groups,
    /// those that are still below it die now.
    pub fn kill(&self) {
        if !self.executor.has_control_group(Controller::Pids) && self.child.exit.borrow().is_none() {
            for pid in descendants(self.pid) {
                let _ = sys::kill_hard(pid);
            }
        }
        self.child.kill();
    }

    /// Waits for its end: it has been reaped, and what it left behind has been killed.
    pub async fn exited(&self) -> Exit {
        self.child.exited_or_lost().await
    }

    /// Its end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        *self.child.exit.borrow()
    }

    /// What it says next. It is hostile: what comes is well-formed and without descriptors, nothing more.
    pub async fn request(&self) -> Result<FromInstance, ChannelError> {
        match self.control.receive().await? {
            (message, fds) if fds.is_empty() => Ok(message),
            (_, fds) => Err(ChannelError::Descriptors(fds.len())),
        }
    }

    /// Answers it. There is room for that, unless it asks on and on without reading.
    pub fn reply(&self, message: &ToInstance, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.control.send_now(message, fds)
    }

    /// Where it may run: wherever spryd may.
    pub fn cpus(&self) -> CpuSet {
        self.executor.cpus
    }
}

impl Drop for InstanceProcess {
    fn drop(&mut self) {
        if self.exit().is_none() {
            self.kill();
        }
        if let Some(gate) = &self.gate {
            gate.listener().forget(self.pid);
        }
    }
}

/// The processes below this one, nearest first.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([pid]);
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                if seen.insert(child) {
                    found.push(child);
                    next.push(child);
                }
            }
        }
    }
    found
}
