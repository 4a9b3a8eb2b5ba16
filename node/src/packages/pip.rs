//! Running pip: confined, watched, and heard.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::shelf::Work;
use super::tree::bytes_below;
use super::{PackagesError, off_the_loop};
use crate::config::{self, PackageIndex};
use crate::progress::Progress;
use crate::sandbox::installation;
use crate::units::Size;
use crate::zygote::{Executor, Exit, ExitHow, ProcessLimits, Task, TaskSpec};

/// Names pip's control group; no function can have it.
pub(super) const NAME: &str = "_packages";
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The node's certificates, where pip looks for its own otherwise.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Of spryd's own environment, what says how the network is reached.
const NETWORK_VARIABLES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];
/// Lines kept for the error's text.
const LINES_KEPT: usize = 40;
/// While pip works, there are the archive, what is unpacked of it, and what is installed.
const WORK_FACTOR: u64 = 3;
/// How often its folder is measured.
const MEASURED_EVERY: Duration = Duration::from_millis(500);
/// A resolver holds an index in memory, a compiler more.
pub(super) const LIMITS: ProcessLimits =
    ProcessLimits { memory_bytes: 1 << 30, cpu: 1.0, processes: 64, open_files: 1024, tmpfs_bytes: 16 << 20 };

/// Has pip install what the work folder's `requirements.txt` says into its `site`.
pub(super) async fn run(
    executor: &Arc<Executor>,
    config: &config::Packages,
    work: &Work,
    interpreter: &Path,
    uid_gid: Option<(u32, u32)>,
    progress: &Progress,
) -> Result<(), PackagesError> {
    let mut visible = installation(interpreter);
    visible.extend(config.find_links.clone());
    let spec = TaskSpec {
        name: NAME,
        program: interpreter,
        arguments: &arguments(config, work),
        environment: &environment(config, work),
        visible: &visible,
        folder: work.path(),
        uid_gid,
        limits: LIMITS,
        network: config.index != PackageIndex::Nowhere,
    };
    let task = Task::start(executor, &spec).await.map_err(|error| PackagesError::Start(Box::new(error)))?;
    match watch(task, config, config.timeout.as_duration(), work, |line| progress.say(line)).await? {
        Outcome { exit: Some(exit), .. } if exit.how == ExitHow::Code(0) => Ok(()),
        Outcome { exit: Some(exit), output } => Err(PackagesError::Pip { how: exit.to_string(), output }),
        Outcome { exit: None, output } => {
            Err(PackagesError::Timeout { after: config.timeout.as_duration(), output })
        }
    }
}

/// How a task ended.
pub(super) struct Outcome {
    /// `None`: its time ran out.
    pub(super) exit: Option<Exit>,
    /// The last lines that it printed.
    pub(super) output: String,
}

/// Waits for a task's end, within the bounds that hold for what it does and for what it writes.
pub(super) async fn watch(
    mut task: Task,
    config: &config::Packages,
    within: Duration,
    work: &Work,
    say: impl Fn(&str),
) -> Result<Outcome, PackagesError> {
    let mut kept = VecDeque::new();
    let heard = async {
        while let Some(line) = task.line().await {
            if line.trim().is_empty() {
                continue;
            }
            say(&line);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
        task.exited().await
    };
    let bound = config.size.as_bytes().saturating_mul(WORK_FACTOR);
    let ended = tokio::select! {
        exit = tokio::time::timeout(within, heard) => Ok(exit.ok()),
        error = outgrown(work.path().to_owned(), bound, config.size) => Err(error),
    };
    let output = Vec::from(kept).join("\n");
    if let Ok(Some(exit)) = ended {
        return Ok(Outcome { exit: Some(exit), output });
    }
    task.kill();
    task.exited().await;
    ended.map(|_| Outcome { exit: None, output })
}

fn arguments(config: &config::Packages, work: &Work) -> Vec<OsString> {
    let words = "-I -u -B -X utf8 -m pip install --no-cache-dir --no-compile --progress-bar off \
                 --no-warn-script-location";
    let mut all: Vec<OsString> = words.split(' ').map(OsString::from).collect();
    if !config.build {
        all.push("--only-binary=:all:".into());
    }
    all.extend(["--target".into(), work.site().into(), "-r".into(), work.requirements().into()]);
    all
}

/// What every program of an installation has.
pub(super) fn plain_environment(work: &Work) -> BTreeMap<String, String> {
    let shown = |path: &Path| path.display().to_string();
    [
        ("PATH", PATH.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("HOME", shown(work.path())),
        ("TMPDIR", shown(&work.tmp())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn environment(config: &config::Packages, work: &Work) -> BTreeMap<String, String> {
    let shown = |path: &Path| path.display().to_string();
    let mut all = plain_environment(work);
    let mut set = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    set("PIP_CONFIG_FILE", "/dev/null".to_owned());
    set("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned());
    set("PIP_NO_INPUT", "1".to_owned());
    match &config.index {
        PackageIndex::OfPip => {}
        // In the environment, where others don't see what it may hold of a password.
        PackageIndex::At(url) => set("PIP_INDEX_URL", url.clone()),
        PackageIndex::Nowhere => set("PIP_NO_INDEX", "1".to_owned()),
    }
    if let Some(folder) = &config.find_links {
        set("PIP_FIND_LINKS", shown(folder));
    }
    if Path::new(CERTIFICATES).exists() {
        set("PIP_CERT", CERTIFICATES.to_owned());
    }
    for name in NETWORK_VARIABLES {
        if let Ok(value) = std::env::var(name) {
            set(name, value);
        }
    }
    all
}

/// Ends when the folder holds more than `bound`.
async fn outgrown(folder: PathBuf, bound: u64, limit: Size) -> PackagesError {
    loop {
        tokio::time::sleep(MEASURED_EVERY).await;
        let path = folder.clone();
        if off_the_loop(move || bytes_below(&path, bound)).await > bound {
            return PackagesError::Size { limit };
        }
    }
}
