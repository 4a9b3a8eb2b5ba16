//! Python packages that functions ask for: installed by pip when a function is deployed, each distribution once.
//!
//! ```text
//! STATE/packages/           0711 root
//!   numpy-2.2.6-HASH/       0755 root   one distribution: named by what is in it, and the interpreter that it was compiled by
//!   KEY.list                            one set: the names of its distributions' folders. KEY is the hash of what was asked for
//!                                       and of the interpreter
//!   KEY/site/               0755 root   one set that can't be split, and why (`KEY/why`)
//!   .work-N/                0700 pip's user, where pip works, and then the compiler
//!   .new-N/                 what pip made, while it is copied
//! ```
//!
//! **Installing.** pip runs as a confined [`Task`](crate::zygote::Task) with a user of its own, the network, and one folder to write to; what it
//! prints is the deploy's progress. What it leaves there is told apart by distribution ([`split`]); what isn't there yet is copied file by
//! file into folders that nobody but spryd can write to, compiled ([`compile`]), flushed, and renamed to its place; the list comes
//! last: a set is complete or not there.
//!
//! **Names.** A distribution's folder is called by the hash of *what was installed*, of every byte that a process can read there and
//! that wasn't made from the rest by spryd. The hash of the wheel would say less: a wheel may bring files of another distribution, or be
//! built here, and old versions of pip don't tell it.
//!
//! **Sharing.** Its distributions lie read-only in the root of every function that asks for a set, at the same paths in all of them, and no
//! others do. A set goes when no function asks for it, a distribution when no set has it nor any process was given it
//! ([`Packages::sweep`]): those that were started with another interpreter, before it was changed, keep what they have. A set
//! that is asked for and isn't there (the interpreter was replaced, the folder lost) is installed again when a zygote is started.
//!
//! **Trust.** With wheels only (the default) installing runs no code of the packages. Whoever uses them runs it: in each
//! function's own sandbox.

mod compile;
mod elf;
mod interpreter;
mod pip;
mod shelf;
mod split;
mod tree;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::config;
use crate::manifest::Requirement;
use crate::progress::Progress;
use crate::units::Size;
use crate::zygote::{Executor, StartError};
pub use interpreter::{Identity, ask};
pub use shelf::Key;
use shelf::{Shelf, Staged};

/// Packages can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// The interpreter has no pip.
    #[error(
        "{} has no pip, which installs packages: install it (Debian: apt-get install python3-pip), or name another \
         interpreter by python.interpreter in spryd.toml", .0.display()
    )]
    NoPip(PathBuf),
    /// The interpreter didn't say what it is.
    #[error("{} can't say what it is: {why}", interpreter.display())]
    Ask {
        /// Which.
        interpreter: PathBuf,
        /// Why.
        why: String,
    },
    /// pip could not be started.
    #[error("start pip: {0}")]
    Start(#[source] Box<StartError>),
    /// pip failed.
    #[error("the packages can't be installed: pip {how}\n{output}")]
    Pip {
        /// How it ended.
        how: String,
        /// The last lines that it printed.
        output: String,
    },
    /// It took too long.
    #[error(
        "the packages weren't installed after {} s (`packages.timeout` of spryd.toml)\n{output}", after.as_secs()
    )]
    Timeout {
        /// The limit.
        after: Duration,
        /// The last lines that pip printed.
        output: String,
    },
    /// They are too large.
    #[error("the packages are over the limit of {limit} (`packages.size` of spryd.toml)")]
    Size {
        /// The limit.
        limit: Size,
    },
    /// They have what no package has.
    #[error("the packages have {what} at {}", path.display())]
    Content {
        /// Where.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
    /// The state folder.
    #[error("{operation} {}: {source}", path.display())]
    Os {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl PackagesError {
    /// Is it what the function asks for, rather than the node?
    pub fn blames_function(&self) -> bool {
        matches!(self, Self::Pip { .. } | Self::Timeout { .. } | Self::Size { .. } | Self::Content { .. })
    }

    fn os(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Os { operation, path, source }
    }
}

/// What a function is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    /// The folders, in the order in which modules are looked for.
    pub folders: Vec<PathBuf>,
    /// Why all is in one folder, if it is.
    pub whole: Option<String>,
}

impl Site {
    /// The distributions, as one asks for them; empty where all is in one folder.
    pub fn distributions(&self) -> Vec<String> {
        if self.whole.is_some() {
            return Vec::new();
        }
        self.folders.iter().map(|folder| distribution(folder)).collect()
    }
}

/// What a distribution's folder is of: `numpy==2.2.6`.
pub fn distribution(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let described = name.rsplit_once('-').map_or(&*name, |(described, _)| described);
    described
        .rsplit_once('-')
        .map_or_else(|| described.to_owned(), |(name, version)| format!("{name}=={version}"))
}

/// Names of modules, the first part, that a folder has for who looks into it.
pub fn modules_in(folder: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        // (A link may be to either.)
        let is_folder = std::fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        names.extend(if is_folder { Some(file) } else { split::module(file) }.map(str::to_owned));
    }
    Ok(names)
}

/// What a sweep leaves.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What functions ask for: they get it with the interpreter of now.
    pub lists: BTreeSet<Vec<Requirement>>,
    /// What [`Packages::provide`] has given to those that run, whichever interpreter it was for.
    pub given: BTreeSet<PathBuf>,
}

/// All sets of packages on this node; used by the keeper's thread alone.
#[derive(Debug)]
pub struct Packages {
    shelf: Shelf,
    config: config::Packages,
    executor: Arc<Executor>,
    /// Whom pip runs as.
    uid_gid: Option<(u32, u32)>,
    /// Held while pip works: its user has one process tree at a time.
    one_at_a_time: tokio::sync::Mutex<()>,
    known: RefCell<HashMap<PathBuf, (SystemTime, Identity)>>,
    closing: Cell<bool>,
    closed: Notify,
}

impl Packages {
    /// Opens the state folder's sets, and removes what a crash has left half made. Blocks on the disk.
    pub fn open(config: &config::Config, executor: Arc<Executor>) -> Result<Self, PackagesError> {
        let uid = config.uid_base + config::raw::UID_COUNT;
        Ok(Self {
            shelf: Shelf::open(&config.state_dir.join("packages"))?,
            config: config.packages.clone(),
            uid_gid: executor.needs_own_users().then_some((uid, uid)),
            executor,
            one_at_a_time: tokio::sync::Mutex::default(),
            known: RefCell::default(),
            closing: Cell::new(false),
            closed: Notify::new(),
        })
    }

    /// Whom pip runs as, where functions have users of their own.
    pub fn uid_gid(&self) -> Option<(u32, u32)> {
        self.uid_gid
    }

    /// The folders with these packages, for this interpreter: as they are there, or installed now.
    pub async fn provide(
        &self,
        wanted: &[Requirement],
        interpreter: &Path,
        progress: &Progress,
    ) -> Result<Site, PackagesError> {
        let identity = self.identify(interpreter).await?;
        let key = Key::of(wanted, &identity, &self.config);
        if let Some(site) = self.shelf.find(&key) {
            return Ok(site);
        }
        if !identity.has_pip {
            return Err(PackagesError::NoPip(interpreter.to_owned()));
        }
        let one_at_a_time = match self.one_at_a_time.try_lock() {
            Ok(held) => held,
            Err(_) => {
                progress.say("waiting: other packages are being installed");
                self.one_at_a_time.lock().await
            }
        };
        if let Some(site) = self.shelf.find(&key) {
            return Ok(site);
        }
        let site = tokio::select! {
            biased;
            () = self.closed() => Err(PackagesError::ShuttingDown),
            site = self.install(wanted, interpreter, &identity, &key, progress) => site,
        };
        drop(one_at_a_time);
        site
    }

    /// Whether they are there, so that a zygote's start won't wait for pip.
    pub async fn has(&self, wanted: &[Requirement], interpreter: &Path) -> Result<bool, PackagesError> {
        let identity = self.identify(interpreter).await?;
        Ok(self.shelf.find(&Key::of(wanted, &identity, &self.config)).is_some())
    }

    async fn install(
        &self,
        wanted: &[Requirement],
        interpreter: &Path,
        identity: &Identity,
        key: &Key,
        progress: &Progress,
    ) -> Result<Site, PackagesError> {
        let names: Vec<&str> = wanted.iter().filter_map(|wanted| wanted.as_str().split(' ').next()).collect();
        progress.say(&format!("installing {} …", names.join(", ")));
        let until = Instant::now() + self.config.timeout.as_duration();
        let (shelf, uid_gid) = (self.shelf.clone(), self.uid_gid);
        let text: String = wanted.iter().map(|wanted| format!("{wanted}\n")).collect();
        let work = off_the_loop(move || shelf.work(&text, uid_gid)).await?;
        let ran = pip::run(&self.executor, &self.config, &work, interpreter, self.uid_gid, progress).await;
        if let Err(error) = ran {
            off_the_loop(move || drop(work)).await;
            return Err(error);
        }
        progress.say("keeping the packages …");
        let (shelf, key, config) = (self.shelf.clone(), key.clone(), self.config.clone());
        let kind = identity.kind.clone();
        let staged = off_the_loop(move || shelf.stage(&work, &key, &kind, &config)).await?;
        let compiled = self.compile(&staged, interpreter, identity, until).await;
        let shelf = self.shelf.clone();
        let site = off_the_loop(move || {
            let staged = staged;
            compiled.and_then(|()| shelf.commit(&staged))
        });
        let site = site.await?;
        if let Some(why) = &site.whole {
            progress.say(&format!("they lie in one folder, and no other set shares them: {why}"));
            tracing::info!(
                packages = names.join(" "),
                why,
                "a set of packages can't be split into its distributions"
            );
        }
        Ok(site)
    }

    /// Has compiled what is new.
    async fn compile(
        &self,
        staged: &Staged,
        interpreter: &Path,
        identity: &Identity,
        until: Instant,
    ) -> Result<(), PackagesError> {
        for unit in &staged.units {
            let work = compile::work(&self.shelf, self.uid_gid).await?;
            let ran =
                compile::run(&self.executor, &self.config, unit, &work, interpreter, self.uid_gid, until)
                    .await;
            let (unit, tag) = (unit.clone(), identity.tag().to_owned());
            let (left, limit) = (staged.left.get(), self.config.size);
            let taken = off_the_loop(move || {
                let work = work;
                ran.and_then(|()| compile::take(&unit, &work, &tag, left, limit))
            });
            staged.left.set(left - taken.await?);
        }
        Ok(())
    }

    /// Removes the sets that nobody asks for or uses. `wanted` is called when nothing more is waited for before they are out of
    /// reach: it must name whoever uses a set, or is about to.
    pub async fn sweep(&self, interpreter: &Path, wanted: impl FnOnce() -> Wanted) {
        let identity = match self.identify(interpreter).await {
            Ok(identity) => identity,
            Err(error) => return tracing::warn!(%error, "packages that nobody needs are kept"),
        };
        let Wanted { lists, given } = wanted();
        let keys: BTreeSet<Key> =
            lists.iter().map(|wanted| Key::of(wanted, &identity, &self.config)).collect();
        match self.shelf.take_away(&keys, &given) {
            Ok(taken) if taken.is_empty() => {}
            Ok(taken) => off_the_loop(move || shelf::remove(&taken)).await,
            Err(error) => tracing::warn!(%error, "packages that nobody needs are kept"),
        }
    }

    /// Ends what is being installed; nothing is from now on.
    pub fn close(&self) {
        self.closing.set(true);
        self.closed.notify_waiters();
    }

    async fn closed(&self) {
        loop {
            let told = self.closed.notified();
            if self.closing.get() {
                return;
            }
            told.await;
        }
    }

    /// What the interpreter is; asked once, and again when its file has changed.
    async fn identify(&self, interpreter: &Path) -> Result<Identity, PackagesError> {
        let failed = |error: std::io::Error| PackagesError::Ask {
            interpreter: interpreter.to_owned(),
            why: error.to_string(),
        };
        let changed = std::fs::metadata(interpreter).and_then(|file| file.modified()).map_err(failed)?;
        if let Some((at, identity)) = self.known.borrow().get(interpreter)
            && *at == changed
            && identity.has_pip
        {
            return Ok(identity.clone());
        }
        let (path, uid) = (interpreter.to_owned(), self.uid_gid.map(|(uid, _)| uid));
        let identity = off_the_loop(move || ask(&path, uid)).await?;
        self.known.borrow_mut().insert(interpreter.to_owned(), (changed, identity.clone()));
        Ok(identity)
    }
}

/// Waits for the disk without holding up the other tasks.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
