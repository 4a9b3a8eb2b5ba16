//! What a function sees as `/`: nothing but what its runtime needs, read-only, an own `/proc`, a `/tmp` of its own.
//!
//! ```text
//! /            tmpfs, read-only
//! /usr, /lib … the host's: interpreters, libraries, helper programs
//! /etc         a few files: the dynamic linker's cache, the time zone, certificates; a passwd with one user
//! /dev         null, zero, full, random, urandom
//! /proc        its own mount, without other users' processes
//! /tmp         tmpfs, limited, charged to who writes
//! /run/secrets tmpfs, read-only: the function's secrets, if it has any
//! …            the function's code, the runtime, the interpreter's installation: each at its own path
//! ```
//!
//! Paths are the host's, so that what an installation has written down about itself stays true. Not here: who
//! may do what with these files (users and modes, [`super::landlock`]).

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::step::ROOT;
use super::{PlanError, Step, text};
use crate::secrets::Secret;

/// Programs and libraries.
const SYSTEM: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives"];
/// Configuration that libraries read, and that tells nothing of the host.
const CONFIGURATION: [&str; 11] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/fonts",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki",
];
/// What names are looked up by.
const NAMES: [&str; 6] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols"];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    // named semaphores and shared memory: counted with /tmp
    ("/tmp", "/dev/shm"),
];
/// Never bound as a whole, whatever an interpreter's path says.
const TOO_MUCH: [&str; 9] = ["/", "/etc", "/home", "/proc", "/root", "/run", "/sys", "/tmp", "/var"];
/// Where secrets are.
const SECRETS: &str = "/run/secrets";
/// A file takes whole pages; this is the largest that kernels have.
const PAGE_MAX: usize = 64 * 1024;
/// A file takes about this much of a file system's bookkeeping: one file per 4 KiB of size, at least these.
const TMP_FILES_MIN: u64 = 256;

/// What a root is made from.
#[derive(Debug, Clone, Copy)]
pub struct Root<'a> {
    /// Folders and files of this function and its runtime, at their own paths.
    pub visible: &'a [PathBuf],
    /// A folder that may be written to, at its own path.
    pub writable: Option<&'a Path>,
    /// What lies in `/run/secrets`.
    pub secrets: &'a [Secret],
    /// Bytes that `/tmp` may hold.
    pub tmp_bytes: u64,
    /// False: nothing can be written to `/tmp`.
    pub tmp_writable: bool,
    /// With what names are looked up by.
    pub host_network: bool,
    /// Whether `/proc` can be mounted anew; else the host's is bound.
    pub own_proc: bool,
    /// The line of `/etc/passwd`.
    pub user: (u32, u32),
}

impl Root<'_> {
    /// The steps up to and including the change of the root. Looks at the host's files.
    pub(super) fn steps(&self) -> Result<Vec<Step>, PlanError> {
        let mut made = Builder { steps: vec![Step::MountRoot], made: BTreeSet::new(), bound: Vec::new() };
        let tmp = inside(Path::new("/tmp"))?;
        made.folder(Path::new("/tmp"))?;
        let files = (self.tmp_bytes / 4096).max(TMP_FILES_MIN);
        let options = format!("size={},nr_inodes={files},mode=1777", self.tmp_bytes);
        made.steps.push(Step::MountTmp { path: tmp.clone(), options: text("/tmp", OsStr::new(&options))? });
        for path in SYSTEM.into_iter().chain(CONFIGURATION) {
            made.show(Path::new(path))?;
        }
        for path in python_configuration() {
            made.show(&path)?;
        }
        if self.host_network {
            for path in NAMES {
                made.show(Path::new(path))?;
            }
        }
        for path in self.visible {
            made.show(path)?;
        }
        if let Some(path) = self.writable {
            made.folder(path)?;
            made.steps
                .push(Step::BindWritable { source: text("path", path.as_os_str())?, target: inside(path)? });
        }
        let (uid, gid) = self.user;
        made.file(Path::new("/etc/passwd"), &format!("function:x:{uid}:{gid}::/:/usr/sbin/nologin\n"))?;
        made.file(Path::new("/etc/group"), &format!("function:x:{gid}:\n"))?;
        for name in DEVICES {
            made.bind(&Path::new("/dev").join(name), true)?;
        }
        for (target, path) in DEVICE_LINKS {
            made.link(OsStr::new(target), Path::new(path))?;
        }
        if self.own_proc {
            made.folder(Path::new("/proc"))?;
            made.steps.push(Step::MountProc(inside(Path::new("/proc"))?));
        } else {
            made.bind(Path::new("/proc"), false)?;
        }
        if !self.secrets.is_empty() {
            made.secrets(self.secrets, self.user)?;
        }
        if !self.tmp_writable {
            made.steps.push(Step::SealTmp(tmp));
        }
        made.steps.extend([Step::EnterRoot, Step::SealRoot]);
        Ok(made.steps)
    }
}

/// Where Debian keeps parts of Python's library.
fn python_configuration() -> Vec<PathBuf> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_bytes().starts_with(b"python3"))
        .map(|entry| entry.path())
        .collect()
}

/// What an interpreter needs beside `/usr`: its installation, and that of the one behind a virtual environment.
pub fn installation(interpreter: &Path) -> Vec<PathBuf> {
    let prefix = |program: &Path| program.parent().and_then(Path::parent).map(Path::to_owned);
    let mut found: Vec<PathBuf> = prefix(interpreter).into_iter().collect();
    found.extend(fs::canonicalize(interpreter).ok().as_deref().and_then(prefix));
    let settings = found.first().map(|prefix| prefix.join("pyvenv.cfg"));
    let settings = settings.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let home = settings.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| key.trim() == "home");
    found.extend(home.and_then(|(_, bin)| Path::new(bin.trim()).parent().map(Path::to_owned)));
    found
}

fn inside(path: &Path) -> Result<CString, PlanError> {
    let mut bytes = ROOT.to_bytes().to_vec();
    bytes.extend(path.as_os_str().as_bytes());
    text("path in the root", OsStr::from_bytes(&bytes))
}

struct Builder {
    steps: Vec<Step>,
    made: BTreeSet<PathBuf>,
    bound: Vec<PathBuf>,
}

impl Builder {
    fn is_shown(&self, path: &Path) -> bool {
        self.bound.iter().any(|bound| path.starts_with(bound))
    }

    /// Makes the path visible as the host has it, if it has it: a link stays one where what it means is visible too.
    fn show(&mut self, path: &Path) -> Result<(), PlanError> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        if self.is_shown(path) || TOO_MUCH.iter().any(|whole| path == Path::new(whole)) {
            return Ok(());
        }
        if metadata.is_symlink()
            && let (Ok(target), Ok(meant)) = (fs::read_link(path), fs::canonicalize(path))
            && self.is_shown(&meant)
        {
            return self.link(target.as_os_str(), path);
        }
        self.bind(path, false)
    }

    fn bind(&mut self, path: &Path, device: bool) -> Result<(), PlanError> {
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        if metadata.is_dir() {
            self.folder(path)?;
        } else {
            self.file(path, "")?;
        }
        let source = text("path", path.as_os_str())?;
        self.steps.push(Step::Bind { source, target: inside(path)?, device });
        self.bound.push(path.to_owned());
        Ok(())
    }

    /// The folder and those above it.
    fn folder(&mut self, path: &Path) -> Result<(), PlanError> {
        let way: Vec<&Path> = path.ancestors().filter(|part| part.parent().is_some()).collect();
        for part in way.into_iter().rev() {
            if self.made.insert(part.to_owned()) {
                self.steps.push(Step::MakeFolder(inside(part)?));
            }
        }
        Ok(())
    }

    fn secrets(&mut self, secrets: &[Secret], owner: (u32, u32)) -> Result<(), PlanError> {
        let folder = Path::new(SECRETS);
        self.folder(folder)?;
        let path = inside(folder)?;
        let bytes: usize =
            secrets.iter().map(|secret| secret.value.as_bytes().len().next_multiple_of(PAGE_MAX)).sum();
        let (uid, gid) = owner;
        let files = secrets.len() + 2;
        let options = format!("size={bytes},nr_inodes={files},mode=500,uid={uid},gid={gid}");
        let options = text("mount options", OsStr::new(&options))?;
        self.steps.push(Step::MountSecrets { path: path.clone(), options });
        for Secret { name, value } in secrets {
            let path = inside(&folder.join(name.as_str()))?;
            self.steps.push(Step::MakeSecret { path, value: value.clone(), owner });
        }
        self.steps.push(Step::SealSecrets(path));
        Ok(())
    }

    fn file(&mut self, path: &Path, content: &str) -> Result<(), PlanError> {
        self.folder(path.parent().unwrap_or(Path::new("/")))?;
        let content = text("file in the root", OsStr::new(content))?;
        self.steps.push(Step::MakeFile { path: inside(path)?, text: content });
        Ok(())
    }

    fn link(&mut self, target: &OsStr, path: &Path) -> Result<(), PlanError> {
        self.folder(path.parent().unwrap_or(Path::new("/")))?;
        self.steps.push(Step::MakeLink { target: text("link", target)?, path: inside(path)? });
        Ok(())
    }
}
