//! Which policy and which backend: what the configuration may say, and what comes of it here.

use std::path::Path;
use std::sync::Arc;

use spry_sched::backend::{Backend, KERNEL, PIN_DIR, Posix, PosixOptions, SchedExt};
use spry_sched::policy::{Alps, AlpsConfig, Policy, Sfs, SfsConfig, Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::signals::Signals;

use crate::cgroup::Arrangement;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum PolicyChoice {
    /// The kernel's fair class alone.
    #[default]
    #[serde(rename = "eevdf")]
    Eevdf,
    /// First come, first served for a slice.
    #[serde(rename = "sfs")]
    Sfs,
    /// Ranks by function.
    #[serde(rename = "alps")]
    Alps,
    /// Least expected time left.
    #[serde(rename = "srpt")]
    Srpt,
    /// The same by Gittins index, and nobody starves.
    #[serde(rename = "srpt+")]
    SrptPlus,
}

impl PolicyChoice {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Eevdf, Self::Sfs, Self::Alps, Self::Srpt, Self::SrptPlus];

    /// Their names in the file, in that order.
    pub const NAMES: [&'static str; 5] = ["eevdf", "sfs", "alps", "srpt", "srpt+"];

    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The other way round.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.as_str() == name)
    }

    /// The policy itself; `None`: nothing is to be decided.
    pub fn policy(self, cores: usize) -> Option<Box<dyn Policy + Send>> {
        let cores = cores as u32;
        match self {
            Self::Eevdf => None,
            Self::Sfs => Some(Box::new(Sfs::new(SfsConfig::new(cores)))),
            Self::Alps => Some(Box::new(Alps::new(AlpsConfig::new(cores)))),
            Self::Srpt => Some(Box::new(Srpt::new(Predictor::default()))),
            Self::SrptPlus => Some(Box::new(SrptPlus::new(SrptPlusConfig::default(), Predictor::default()))),
        }
    }
}

/// What decisions become in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendChoice {
    /// The best that works here.
    #[default]
    Auto,
    /// The kernel's own classes.
    Posix,
    /// A scheduler in BPF, whenever `spry-scx` has loaded it; the kernel's own classes until then.
    SchedExt,
}

impl BackendChoice {
    /// Their names in the file.
    pub const NAMES: [&'static str; 3] = ["auto", "posix", "sched_ext"];

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Auto, Self::Posix, Self::SchedExt]
            .into_iter()
            .find(|choice| Self::NAMES[*choice as usize] == name)
    }
}

/// `[scheduler]`, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerChoice {
    /// Who goes first.
    pub policy: PolicyChoice,
    /// How that is made true.
    pub backend: BackendChoice,
    /// Whether the real-time class may be used for it.
    pub realtime: bool,
    /// Whether the kernel is asked, by BPF, what processes do.
    pub signals: bool,
}

impl SchedulerChoice {
    /// How control groups have to lie for it.
    pub fn arrangement(self) -> Arrangement {
        match self.policy {
            PolicyChoice::Eevdf => Arrangement::ByFunction,
            _ => Arrangement::SideBySide,
        }
    }
}

impl Default for SchedulerChoice {
    fn default() -> Self {
        Self {
            policy: PolicyChoice::default(),
            backend: BackendChoice::default(),
            realtime: false,
            signals: true,
        }
    }
}

/// Opens the backend. `groups`: the control group in which processes have groups of their own, with the cpu controller.
pub fn open_backend(choice: SchedulerChoice, groups: Option<&Path>) -> Arc<dyn Backend> {
    let posix = Posix::open(PosixOptions { groups, realtime: choice.realtime });
    let wants_sched_ext = match choice.backend {
        BackendChoice::Posix => false,
        // (A real-time process would go before all that are in SCHED_EXT.)
        BackendChoice::Auto => !choice.realtime && Path::new(KERNEL).is_dir(),
        BackendChoice::SchedExt => true,
    };
    if wants_sched_ext { Arc::new(SchedExt::open(Path::new(PIN_DIR), posix)) } else { Arc::new(posix) }
}

/// Loads the signals, if they are wanted and to be had; and in words what is used.
pub fn open_signals(choice: SchedulerChoice) -> (Option<Arc<Signals>>, String) {
    let instead = "processes' CPU clocks, and looking twice";
    if choice.policy == PolicyChoice::Eevdf {
        return (None, "processes' CPU clocks (no policy asks for more)".into());
    }
    if !choice.signals {
        return (None, format!("{instead} (scheduler.signals is false)"));
    }
    match Signals::load() {
        Ok(signals) => (Some(signals), "BPF at context switches".into()),
        Err(error) => {
            tracing::warn!(%error, "no signals from the kernel's scheduler");
            (None, format!("{instead} ({error})"))
        }
    }
}
