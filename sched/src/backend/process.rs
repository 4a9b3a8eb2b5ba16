//! A process that backends act on, and what they have told the kernel about it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::share::{Scale, Weight};
use super::{Level, sys};

/// A process that is a child of this one. It is named by a descriptor; its pid is used only while that says that it
/// hasn't been reaped.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    group: Option<PathBuf>,
    files: OnceLock<Option<GroupFiles>>,
    /// The slice that was asked for last, in microseconds; 0: none was.
    slice_us: AtomicU32,
    /// Its slot in the scheduler in BPF, while it has one.
    pub(super) slot: Mutex<Option<spry_scx::Task>>,
}

/// The files of a control group that say how much of a core it gets, and what was written to them last: what is there
/// already needs no system call. (Changes come from one thread at a time: whoever decides has a lock.)
#[derive(Debug)]
pub(super) struct GroupFiles {
    idle: File,
    weight: Option<(File, Scale)>,
    idle_now: AtomicU32,
    weight_now: AtomicU32,
}

/// Nothing has been written yet: what is there may be of whoever had the group before.
const UNKNOWN: u32 = u32::MAX;

impl Process {
    /// `group`: the folder of its control group with the cpu controller, if it has one for itself alone.
    pub fn new(pid: i32, pidfd: Arc<OwnedFd>, group: Option<PathBuf>) -> Self {
        Self {
            pid,
            pidfd,
            group,
            files: OnceLock::new(),
            slice_us: AtomicU32::new(0),
            slot: Mutex::default(),
        }
    }

    /// Its pid. See [`Self::is_alive`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its descriptor.
    pub(super) fn pidfd(&self) -> &Arc<OwnedFd> {
        &self.pidfd
    }

    /// Whether it hasn't ended. A dead one keeps its pid until its parent has reaped it.
    pub fn is_alive(&self) -> bool {
        sys::is_alive(self.pidfd.as_fd())
    }

    /// Its control group's folder.
    pub fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// The CPU time that it has used, all threads, in nanoseconds. `None`: it has ended.
    pub fn cpu_ns(&self) -> Option<u64> {
        sys::process_cpu_ns(self.pid).ok()
    }

    /// Its group's files, opened once.
    pub(super) fn group_files(&self) -> Option<&GroupFiles> {
        self.files.get_or_init(|| GroupFiles::open(self.group.as_deref()?)).as_ref()
    }

    /// Remembers which slice is asked for; false: it is the same as before.
    pub(super) fn changes_slice(&self, slice_ns: u64) -> bool {
        let slice_us = u32::try_from(slice_ns / 1000).unwrap_or(u32::MAX);
        self.slice_us.swap(slice_us, Ordering::Relaxed) != slice_us
    }
}

impl GroupFiles {
    fn open(folder: &Path) -> Option<Self> {
        let open = |name: &str| File::options().write(true).open(folder.join(name)).ok();
        let weight = Scale::ALL.into_iter().find_map(|scale| Some((open(scale.file())?, scale)));
        let (idle_now, weight_now) = (AtomicU32::new(UNKNOWN), AtomicU32::new(UNKNOWN));
        Some(Self { idle: open("cpu.idle")?, weight, idle_now, weight_now })
    }

    pub(super) fn set_level(&self, level: Level) -> io::Result<()> {
        let idle = u32::from(level == Level::Back);
        if self.idle_now.load(Ordering::Relaxed) == idle {
            return Ok(());
        }
        self.idle.write_all_at(if idle == 1 { b"1" } else { b"0" }, 0)?;
        self.idle_now.store(idle, Ordering::Relaxed);
        // A group that was idle comes back with the weight that groups are made with.
        self.weight_now.store(UNKNOWN, Ordering::Relaxed);
        Ok(())
    }

    /// Only where it isn't idle: an idle group has no weight.
    pub(super) fn set_weight(&self, weight: Weight) -> io::Result<()> {
        let Some((file, scale)) = &self.weight else { return Ok(()) };
        let value = weight.on(*scale);
        if self.weight_now.load(Ordering::Relaxed) == value {
            return Ok(());
        }
        file.write_all_at(value.to_string().as_bytes(), 0)?;
        self.weight_now.store(value, Ordering::Relaxed);
        Ok(())
    }
}
