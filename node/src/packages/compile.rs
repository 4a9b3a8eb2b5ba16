//! Compiled code for what was installed: made by the interpreter in a confined process of its own, from the sources alone.
//!
//! Where pip would compile, code of packages may have run before (`packages.build`), and what it leaves says of itself whose it
//! is. A distribution is shared by all who have the same files, so that what is compiled of it must come from these files: one
//! process for each folder, which reads that folder and writes into another; from there only what belongs to a source is taken.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::pip::{self, Outcome};
use super::shelf::{Unit, Work};
use super::tree::{COMPILED, create};
use super::{PackagesError, off_the_loop};
use crate::config;
use crate::sandbox::installation;
use crate::units::Size;
use crate::zygote::{Executor, ExitHow, Task, TaskSpec};

/// Compiles a folder's modules into `work`. What can't be compiled isn't, and says so when it is imported.
pub(super) async fn run(
    executor: &Arc<Executor>,
    config: &config::Packages,
    unit: &Unit,
    work: &Work,
    interpreter: &Path,
    uid_gid: Option<(u32, u32)>,
    until: Instant,
) -> Result<(), PackagesError> {
    let mut visible = installation(interpreter);
    visible.push(unit.folder.clone());
    let spec = TaskSpec {
        name: pip::NAME,
        program: interpreter,
        arguments: &arguments(unit, work),
        environment: &pip::plain_environment(work),
        visible: &visible,
        folder: work.path(),
        uid_gid,
        limits: pip::LIMITS,
        network: false,
    };
    let task = Task::start(executor, &spec).await.map_err(|error| PackagesError::Start(Box::new(error)))?;
    match pip::watch(task, config, until.saturating_duration_since(Instant::now()), work, |_| {}).await? {
        Outcome { output, exit: None } => {
            Err(PackagesError::Timeout { after: config.timeout.as_duration(), output })
        }
        Outcome { exit: Some(exit), output } => {
            // 1: some of it can't be compiled.
            if !matches!(exit.how, ExitHow::Code(0 | 1)) {
                tracing::warn!(%exit, output, "{} isn't compiled", unit.place.display());
            }
            Ok(())
        }
    }
}

fn arguments(unit: &Unit, work: &Work) -> Vec<OsString> {
    let mut cache = OsString::from("pycache_prefix=");
    cache.push(work.site());
    let words = "-I -S -B -X utf8 -X";
    let mut all: Vec<OsString> = words.split(' ').map(OsString::from).collect();
    all.push(cache);
    all.extend(["-m", "compileall", "-q", "-q"].map(OsString::from));
    // Sources will be where they are going to lie, not where they lie now.
    all.extend(["-s".into(), unit.folder.clone().into(), "-p".into(), unit.place.clone().into()]);
    all.push(unit.folder.clone().into());
    all
}

/// Takes over what was compiled. `tag` is the interpreter's, `limit` what the set may hold; returns the bytes that it takes.
pub(super) fn take(
    unit: &Unit,
    work: &Work,
    tag: &str,
    left: u64,
    limit: Size,
) -> Result<u64, PackagesError> {
    let within = unit.folder.strip_prefix("/").unwrap_or(&unit.folder);
    let mut bytes = 0_u64;
    for source in sources(&unit.folder)? {
        let (Some(name), Some(folder)) = (source.file_stem(), source.parent()) else { continue };
        let mut compiled = name.to_owned();
        compiled.push(format!(".{tag}.pyc"));
        let Ok(tree) = super::tree::Single::open(&work.site(), &within.join(folder).join(&compiled)) else {
            continue;
        };
        bytes = bytes.saturating_add(tree.len());
        if bytes > left {
            return Err(PackagesError::Size { limit });
        }
        let target = unit.folder.join(folder).join(COMPILED).join(&compiled);
        let mut target: File = create(&target, 0o644)?;
        tree.copy(&mut target).map_err(PackagesError::os("copy", &source))?;
    }
    Ok(bytes)
}

/// The Python sources below a folder of spryd's own, by their places in it.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, PackagesError> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(place) = open.pop() {
        let path = folder.join(&place);
        for entry in fs::read_dir(&path).map_err(PackagesError::os("list", &path))? {
            let entry = entry.map_err(PackagesError::os("list", &path))?;
            let place = place.join(entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(place);
            } else if place.extension().is_some_and(|extension| extension == "py") {
                found.push(place);
            }
        }
    }
    Ok(found)
}

/// Makes the folder that the compiler writes to, without holding up the other tasks.
pub(super) async fn work(
    shelf: &super::shelf::Shelf,
    uid_gid: Option<(u32, u32)>,
) -> Result<Work, PackagesError> {
    let shelf = shelf.clone();
    off_the_loop(move || shelf.work("", uid_gid)).await
}
