//! A package layer as spryd holds it: a sealed file, described by the process that it was.
//!
//! The process is confined like a function without code: its own user, no network, the interpreter and the packages to read.
//! It imports, writes itself down, and ends; nothing of it lives on. What it hands over is checked for the one thing that
//! others rely on: that nobody can change the file any more. What is in it is the packages' own affair, and that of the
//! functions that use them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use spry_wire::control::{FromZygote, ToZygote};
use spry_wire::freeze::Freeze;
use spry_wire::layer::{Absent, Imports, LayerWish};
use tokio::sync::Notify;

use super::channel::ChannelError;
use super::confine::{Beginning, Begun, begin, confined};
use super::error::StartError;
use super::executor::Executor;
use super::spec::{Egress, ProcessLimits, Runtime, ZygoteSpec};
use super::start::{folders, line};
use crate::budget::Promise;
use crate::packages::Site;

/// Seals without which a layer isn't taken.
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// What a layer is made from.
#[derive(Debug)]
pub struct LayerSpec {
    /// Names its control group and host; no function's name.
    pub name: String,
    /// Who imports.
    pub interpreter: PathBuf,
    /// The folders with the packages.
    pub packages: Option<Site>,
    /// Variables that the functions' manifests set.
    pub env: BTreeMap<String, String>,
    /// Whom the process runs as, where spryd can say.
    pub uid_gid: Option<(u32, u32)>,
    /// Bytes that it may use meanwhile.
    pub memory_bytes: u64,
    /// What it imports, in order.
    pub modules: Vec<String>,
}

/// See the module. It holds its memory as long as anybody begins from it or has begun from it.
#[derive(Debug)]
pub struct Layer {
    file: OwnedFd,
    imports: Imports,
    absent: Absent,
    bytes: u64,
    took: Duration,
    cpu_time: Duration,
    _promise: Promise,
}

impl Layer {
    /// Makes one. `promise` is of the memory that is used meanwhile; what the layer doesn't hold is given back. Who rings
    /// `stop` needs that memory more.
    pub async fn make(
        executor: &Arc<Executor>,
        spec: LayerSpec,
        promise: Promise,
        stop: &Notify,
    ) -> Result<Self, StartError> {
        let begun_at = Instant::now();
        let wish = LayerWish { modules: spec.modules, packages: folders(spec.packages.as_ref()) };
        if !wish.fits() {
            return Err(StartError::Layer { why: "it is of too many modules and packages".to_owned() });
        }
        let group = executor.tree.function(&spec.name)?;
        let process = ZygoteSpec {
            name: spec.name,
            runtime: Runtime::Python { interpreter: spec.interpreter },
            handler: String::new(),
            code: PathBuf::from("/"), // none
            packages: spec.packages,
            secrets: Vec::new(),
            env: spec.env,
            uid_gid: spec.uid_gid,
            limits: ProcessLimits { memory_bytes: spec.memory_bytes, ..ProcessLimits::default() },
            egress: Egress::None,
            single_use: true,
            freeze: Freeze::Off,
            rewind: Err("it serves nothing".to_owned()),
        };
        let Begun { child, report, channel, mut output } =
            begin(executor, &process, Beginning::Runtime, &group).await?;
        let conversation = async {
            let failed = |source| StartError::Channel { source, output: String::new() };
            let step = confined(report, &child).await.map_err(|error| failed(ChannelError::Wait(error)))?;
            if let Some(step) = step {
                return Err(StartError::Sandbox(step));
            }
            channel.send(&ToZygote::MakeLayer(wish), &[]).await.map_err(failed)?;
            match channel.receive::<FromZygote>().await.map_err(failed)? {
                (FromZygote::Layer(made), fds) => Ok((made, fds)),
                (FromZygote::NoLayer { why }, _) => Err(StartError::Layer { why: line(&why) }),
                _ => Err(StartError::Protocol),
            }
        };
        let drained = async {
            output.drain().await;
            std::future::pending::<()>().await;
        };
        let timeout = executor.config.start_timeout;
        let told = tokio::select! {
            biased;
            told = tokio::time::timeout(timeout, conversation) => told,
            () = drained => unreachable!("never ends"),
            () = stop.notified() => Ok(Err(StartError::Layer { why: "memory is short".to_owned() })),
        };
        child.kill(); // it has nothing more to do
        let exit = child.exited_or_lost().await;
        let (made, fds) = match told {
            Ok(Ok(told)) => told,
            Ok(Err(StartError::Channel { source: ChannelError::Closed, .. })) => {
                return Err(StartError::Died { exit, output: output.text() });
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(StartError::Timeout { after: timeout, output: output.text() }),
        };
        let file = fds.into_iter().next().ok_or(StartError::Protocol)?;
        let (file, bytes) = check(file)?;
        let took = begun_at.elapsed();
        Ok(Self {
            file,
            imports: made.imports.checked(),
            absent: made.absent.bounded(),
            bytes,
            took,
            cpu_time: if exit.cpu_time.is_zero() { took } else { exit.cpu_time },
            _promise: promise.keep(bytes),
        })
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// What it has imported, as it says.
    pub fn imports(&self) -> &Imports {
        &self.imports
    }

    /// What importing has looked for and not found, as it says.
    pub fn absent(&self) -> &Absent {
        &self.absent
    }

    /// Memory that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long it took to make.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// The processor's time for that.
    pub fn cpu_time(&self) -> Duration {
        self.cpu_time
    }
}

/// A file in memory that nobody can change, and how much memory it takes.
fn check(file: OwnedFd) -> Result<(OwnedFd, u64), StartError> {
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if !seals.is_ok_and(|seals| seals.contains(SEALS)) {
        return Err(StartError::Layer { why: "its file isn't sealed".to_owned() });
    }
    let file = File::from(file);
    let os = |source| StartError::Os { operation: "look at a layer's file", source };
    let bytes = file.metadata().map_err(os)?.blocks() * 512;
    Ok((file.into(), bytes))
}
