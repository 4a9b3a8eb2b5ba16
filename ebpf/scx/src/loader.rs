//! Loading the scheduler: what the program `spry-scx` does.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::{Link, MapCore as _, Object, ObjectBuilder};

use crate::{ACCOUNTS, HEALTH, Health, MARKS, STANDINGS, Scheduler};

/// The scheduler, as `cargo xtask ebpf` builds it.
static OBJECT: &[u8] = include_bytes!("../../spry-scx.bpf.o");
/// Its maps, and what they are pinned as.
const MAPS: [(&str, &str); 4] = [
    ("spry_standings", STANDINGS),
    ("spry_accounts", ACCOUNTS),
    ("spry_health", HEALTH),
    ("spry_marks", MARKS),
];
/// There when the kernel has sched_ext at all.
const KERNEL: &str = "/sys/kernel/sched_ext";

/// Why it couldn't be loaded, or didn't stay.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel lacks it.
    #[error(
        "this kernel has no sched_ext (CONFIG_SCHED_CLASS_EXT; Linux 6.12 or later): spryd uses its other backend"
    )]
    NoSchedExt,
    /// There can be one.
    #[error("another scheduler is loaded: {0}")]
    Taken(String),
    /// The kernel refused.
    #[error("load the scheduler: {0} (root, or CAP_BPF, CAP_PERFMON and CAP_SYS_NICE, is needed)")]
    Refused(libbpf_rs::Error),
    /// The folder for the maps.
    #[error("{what} {}: {source}", path.display())]
    Pin {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The object isn't what this program expects.
    #[error("the scheduler's object has no {0}")]
    Object(&'static str),
}

/// The scheduler, for as long as this lives.
#[derive(Debug)]
pub struct Loaded {
    folder: PathBuf,
    client: Scheduler,
    // Dropped before the maps that it uses.
    link: Option<Link>,
    _object: Object,
}

/// Loads the scheduler and pins its maps to `folder`, in the place of those of an earlier one.
pub fn load(folder: &Path) -> Result<Loaded, LoadError> {
    if !Path::new(KERNEL).is_dir() {
        return Err(LoadError::NoSchedExt);
    }
    if let Ok(name) = fs::read_to_string(Path::new(KERNEL).join("root/ops")) {
        return Err(LoadError::Taken(name.trim().to_owned()));
    }
    let mut builder = ObjectBuilder::default();
    let open = builder.open_memory(OBJECT).map_err(LoadError::Refused)?;
    let mut object = open.load().map_err(LoadError::Refused)?;
    let link = object
        .maps_mut()
        .find(|map| map.name() == OsStr::new("spry"))
        .ok_or(LoadError::Object("struct_ops map"))?
        .attach_struct_ops()
        .map_err(LoadError::Refused)?;
    pin(&mut object, folder)?;
    let client = Scheduler::open(folder).map_err(|error| LoadError::Pin {
        what: "read what was pinned in",
        path: folder.to_owned(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(Loaded { folder: folder.to_owned(), client, link: Some(link), _object: object })
}

fn pin(object: &mut Object, folder: &Path) -> Result<(), LoadError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Pin { what, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("create the folder", folder))?;
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(folder, private).map_err(failed("make private", folder))?;
    if let Some(what) = crate::folder::check(folder).map_err(failed("look at", folder))? {
        return Err(failed("use", folder)(io::Error::other(what)));
    }
    unpin(folder);
    for (name, pinned) in MAPS {
        let path = folder.join(pinned);
        let mut map =
            object.maps_mut().find(|map| map.name() == OsStr::new(name)).ok_or(LoadError::Object(name))?;
        map.pin(&path).map_err(|error| failed("pin", &path)(io::Error::other(error.to_string())))?;
    }
    Ok(())
}

/// Takes the maps' names away; whoever has them open keeps them.
fn unpin(folder: &Path) {
    for (_, pinned) in MAPS {
        let _not_there = fs::remove_file(folder.join(pinned));
    }
}

impl Loaded {
    /// How it is now.
    pub fn health(&self) -> Health {
        self.client.health()
    }

    /// Waits until the scheduler has ended by itself, or `stop` says so; looks every `interval`.
    pub fn wait(&self, interval: Duration, stop: &mut dyn FnMut(Duration) -> bool) -> Health {
        loop {
            let health = self.health();
            if !health.running || stop(interval) {
                return health;
            }
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        unpin(&self.folder);
        let _may_have_files_of_others = fs::remove_dir(&self.folder);
        // The kernel puts all tasks back into the fair class before this returns.
        drop(self.link.take());
    }
}
