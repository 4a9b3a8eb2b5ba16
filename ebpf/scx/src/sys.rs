//! The system calls of this crate: bpf(2) on pinned maps, their memory, and the scheduling class of a process.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Kinds of maps, and that one may be mapped.
const ARRAY: u32 = 2;
const TASK_STORAGE: u32 = 29;
const MMAPABLE: u32 = 1 << 10;
/// What `statfs` says of a BPF file system.
const BPF_FS: libc::c_long = 0xcafe_4a11;
/// The scheduling class.
const SCHED_EXT: libc::c_int = 7;

/// The parts of `union bpf_attr` that are used; each begins at the union's start.
#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Pinned {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoOf {
    fd: u32,
    size: u32,
    info: u64,
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MapInfo {
    kind: u32,
    id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) entries: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every caller passes one of the structures above, whose layout is the kernel's and whose pointers are to
    // memory that lives through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned map.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pinned { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a map is like.
pub(crate) fn info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attributes = InfoOf {
        fd: map.as_raw_fd().cast_unsigned(),
        size: u32::try_from(size_of::<MapInfo>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// Fails unless it can say of processes which slots they have.
pub(crate) fn require_marks(map: BorrowedFd<'_>) -> io::Result<()> {
    let info = info(map)?;
    match (info.kind, info.key_size, info.value_size) {
        (TASK_STORAGE, 4, 4) => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it isn't one of a word for each process")),
    }
}

/// Whether a folder is one of a BPF file system.
pub(crate) fn is_bpffs(folder: &Path) -> io::Result<bool> {
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a string that ends with a zero byte, and room for one structure; both live through the call.
    let result = unsafe { libc::statfs(folder.as_ptr(), found.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it: the call succeeded.
    Ok(unsafe { found.assume_init() }.f_type == BPF_FS)
}

/// Writes which slot the process behind `pidfd` has.
pub(crate) fn mark(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    let mut attributes = element(map, &key, Some(&slot));
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Forgets it.
pub(crate) fn unmark(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    let mut attributes = element(map, &key, None);
    bpf(BPF_MAP_DELETE_ELEM, &mut attributes).map(drop)
}

fn element(map: BorrowedFd<'_>, key: &RawFd, value: Option<&u32>) -> Element {
    Element {
        map: map.as_raw_fd().cast_unsigned(),
        _pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
        flags: 0,
    }
}

/// Puts a process's first thread into SCHED_EXT, or back into the fair class. What it starts later goes with it.
pub(crate) fn set_class(pid: libc::pid_t, extensible: bool) -> io::Result<()> {
    let class = if extensible { SCHED_EXT } else { libc::SCHED_OTHER };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a structure that lives through the call.
    let result = unsafe { libc::sched_setscheduler(pid, class, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Which class a process is in.
pub(crate) fn is_extensible(pid: libc::pid_t) -> io::Result<bool> {
    // SAFETY: takes a number, returns one.
    let class = unsafe { libc::sched_getscheduler(pid) };
    if class < 0 { Err(io::Error::last_os_error()) } else { Ok(class == SCHED_EXT) }
}

/// The values of an array map, in memory that the kernel shares with us.
#[derive(Debug)]
pub(crate) struct Values<T> {
    first: NonNull<T>,
    entries: usize,
    values: PhantomData<T>,
}

// SAFETY: T is read and written through atomics only (layout.rs has no other types), so threads may share it.
unsafe impl<T: Sync> Send for Values<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Values<T> {}

impl<T> Values<T> {
    /// Maps an array of that many `T`s; `writable`: not for reading only.
    pub(crate) fn map(map: BorrowedFd<'_>, entries: u32, writable: bool) -> io::Result<Self> {
        let info = info(map)?;
        let differs = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if info.kind != ARRAY || info.key_size != 4 || info.flags & MMAPABLE == 0 {
            return differs("it isn't an array that can be mapped".to_owned());
        }
        if (info.entries, info.value_size as usize) != (entries, size_of::<T>()) {
            let expected = size_of::<T>();
            let (is, bytes) = (info.entries, info.value_size);
            return differs(format!("it has {is} values of {bytes} bytes, not {entries} of {expected}"));
        }
        let entries = entries as usize;
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping, nowhere near others.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * size_of::<T>(),
                access,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { first, entries, values: PhantomData })
    }

    /// One of them.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        // SAFETY: the mapping has `entries` values of the size of T (checked against the map) and lives as long as self;
        // any bytes are a valid T, whose fields are atomics.
        (index < self.entries).then(|| unsafe { self.first.add(index).as_ref() })
    }
}

impl<T> Drop for Values<T> {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
