//! Becoming what another process was when it was written down.
//!
//! All that can fail is done before the point of no return: the description is read, the files are opened and compared with
//! those that were mapped, a place is found for the bridge, and the list of calls is made. Then the bridge does it.
//!
//! This process is confined already, and gets nothing by it but memory that it could fill by itself.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use spry_wire::rewind::{STUB_AT, STUB_LEN};

use super::table::{Kind, Region, SIGNALS, Table, at, identity};
use super::{PAGEMAP_FD, SIZES_FD, smaps};
use crate::freeze::OwnMemory;
use crate::sys::switch::{self, Arrival, Bridge, Call, Context, PART};
use crate::sys::{self, layer as kernel, memory};

const PAGE: usize = 4096;
/// Beyond the last address that a process can have.
const LAST: usize = 0x7fff_ffff_f000;
/// Where bridges are looked for: nothing is put there by itself.
const BRIDGES: Range<usize> = 0x1_0000_0000..0x5000_0000_0000;

/// Where the stub lies in zygotes whose instances are rewound.
const STUB: Range<usize> = STUB_AT as usize..(STUB_AT + STUB_LEN) as usize;

/// `struct prctl_mm_map`, as words: eleven addresses, no auxiliary vector, and (with its length) no other program.
const MEMORY_MAP_WORDS: usize = 13;
/// Words of the blob: that struct, the signal stack, what the signals do.
const SIGNAL_STACK_AT: usize = MEMORY_MAP_WORDS;
const SIGNALS_AT: usize = SIGNAL_STACK_AT + 3;

/// Becomes the process that this file describes. Returns only if it can't.
pub(crate) fn restore(file: OwnedFd, memory: OwnMemory) -> Result<Infallible, String> {
    if !switch::KNOWN {
        return Err("there are no layers on this kind of machine".to_owned());
    }
    let file = File::from(file);
    let table = Table::read(|buffer, offset| file.read_exact_at(buffer, offset).is_ok());
    let table = table.ok_or("the layer's file describes no process")?;
    let files = Files::open(&table)?;
    let text = memory.mappings()?;
    let current = Current::read(&text);
    let kernels = pair_up(&current, &table)?;
    let parked: usize = kernels.iter().map(|(from, _)| from.len()).sum();
    // The list is at most as long as: one call per region, per hole between what stays, per signal, and a few more.
    let calls_max =
        table.regions.len() * 2 + kernels.len() * 3 + usize::from(current.has_stub) + SIGNALS + 32;
    let bridge_len = (2 * PART + calls_max * size_of::<Call>()).next_multiple_of(PAGE);
    let place =
        hole(&current.all, &table.regions, bridge_len + parked).ok_or("there is no room between the two")?;
    let bridge = Bridge { start: place, len: bridge_len };
    let mut blob = [0_u64; PART / 8 - 2];
    let mut kept: Vec<Range<usize>> = kernels.iter().map(|(from, _)| from.clone()).collect();
    kept.push(bridge.start..bridge.start + bridge.len);
    kept.extend(current.has_stub.then_some(STUB));
    kept.sort_unstable_by_key(|range| range.start);
    // What this process holds for later. (At these numbers are files that were opened just now, where it holds none.)
    let last_file = if memory.is_kept() { SIZES_FD } else { PAGEMAP_FD };
    let kept = Kept { ranges: kept, last_file };
    let calls = calls(&table, &files, file.as_raw_fd(), &kernels, &kept, bridge, &mut blob);
    debug_assert!(calls.len() <= calls_max);
    let context = Context { stack: table.word(at::CONTEXT), floating_point: table.word(at::CONTEXT + 1) };
    sys::forget_rseq();
    let arrival = Arrival { bridge, context, blob: &blob, calls: &calls };
    // SAFETY: the bridge's place is in neither process. What the calls make is what the file says; if that isn't a process,
    // this one ends, which is all that it could do to anyone.
    let error = memory::without_signals(|| unsafe { switch::arrive(&arrival) });
    Err(format!("make a bridge: {error}"))
}

/// The files that are to be mapped, and which of them each region is of.
struct Files {
    opened: Vec<File>,
    of_region: Vec<Option<usize>>,
}

impl Files {
    fn open(table: &Table) -> Result<Self, String> {
        let mut files = Self { opened: Vec::new(), of_region: Vec::new() };
        let mut last: Option<&CStr> = None;
        for region in &table.regions {
            if !matches!(region.kind, Kind::File | Kind::SharedFile) {
                files.of_region.push(None);
                continue;
            }
            // (A library's mappings lie side by side.)
            let name = table.name(region).ok_or("a file has no name")?;
            if last != Some(name) {
                files.opened.push(open(name, region.identity)?);
                last = Some(name);
            }
            files.of_region.push(files.opened.len().checked_sub(1));
        }
        Ok(files)
    }

    fn descriptor(&self, region: usize) -> i32 {
        let file = self.of_region[region].and_then(|index| self.opened.get(index));
        file.map_or(-1, |file| file.as_raw_fd())
    }
}

/// Opens a file if it is the one that was mapped.
fn open(name: &CStr, wanted: u64) -> Result<File, String> {
    let path = name.to_string_lossy();
    let os = |error: std::io::Error| format!("{path}: {error}");
    let file = File::open(&*path).map_err(os)?;
    let found = kernel::identity_of_file(&file);
    let found = found.map_err(|errno| os(std::io::Error::from_raw_os_error(errno)))?;
    match identity(found) == wanted {
        true => Ok(file),
        false => Err(format!("{path} has changed")),
    }
}

/// What stays of this process.
struct Kept {
    ranges: Vec<Range<usize>>,
    /// Of the page map and what lies behind it.
    last_file: i32,
}

/// What this process has now.
struct Current<'t> {
    all: Vec<Range<usize>>,
    kernels: Vec<(&'t str, Range<usize>)>,
    /// What rewinds its instances is there, and stays.
    has_stub: bool,
}

impl<'t> Current<'t> {
    fn read(text: &'t str) -> Self {
        let (mut all, mut kernels) = (Vec::new(), Vec::new());
        let mut has_stub = false;
        for mapping in text.lines().filter_map(smaps::Mapping::begin) {
            match mapping.name {
                "[vsyscall]" => continue,
                "[vdso]" | "[vvar]" | "[vvar_vclock]" => kernels.push((mapping.name, mapping.range.clone())),
                _ => {}
            }
            has_stub |= mapping.range == STUB;
            all.push(mapping.range);
        }
        Self { all, kernels, has_stub }
    }
}

/// From where to where a mapping of the kernel's own goes.
type Move = (Range<usize>, Range<usize>);

/// What moves there are.
fn pair_up(current: &Current<'_>, table: &Table) -> Result<Vec<Move>, String> {
    let wanted: Vec<&Region> = table.regions.iter().filter(|region| region.kind == Kind::Kernel).collect();
    let pairs: Option<Vec<_>> = wanted
        .iter()
        .map(|region| {
            let name = table.name(region)?.to_str().ok()?;
            let (_, from) = current.kernels.iter().find(|(known, _)| *known == name)?;
            (from.len() == region.end - region.start).then(|| (from.clone(), region.start..region.end))
        })
        .collect();
    match pairs {
        Some(pairs) if pairs.len() == current.kernels.len() => Ok(pairs),
        _ => Err("the kernel's own mappings are others".to_owned()),
    }
}

/// A place for so many bytes that is free in both.
fn hole(current: &[Range<usize>], regions: &[Region], len: usize) -> Option<usize> {
    let mut taken: Vec<Range<usize>> = current.to_vec();
    taken.extend(regions.iter().map(|region| region.start..region.end));
    taken.sort_unstable_by_key(|range| range.start);
    let mut free_from = BRIDGES.start;
    for range in taken {
        if range.start >= free_from + len {
            break;
        }
        free_from = free_from.max(range.end);
    }
    (free_from + len <= BRIDGES.end).then_some(free_from)
}

/// The calls, in order; what they point to is put into the blob.
fn calls(
    table: &Table,
    files: &Files,
    layer: i32,
    kernels: &[Move],
    kept: &Kept,
    bridge: Bridge,
    blob: &mut [u64],
) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut call = |number: i64, arguments: [usize; 6], may_fail: bool| {
        let [a, b, c, d, e, f] = arguments.map(|argument| argument as u64);
        calls.push([number as u64, a, b, c, d, e, f, u64::from(may_fail)]);
    };
    let blob_at = |word: usize| bridge.start + PART + word * 8;
    // Everything goes but the bridge, what is the kernel's, and the stub.
    let mut from = PAGE;
    for range in kept.ranges.iter().chain([&(LAST..LAST)]) {
        if from < range.start {
            call(libc::SYS_munmap, [from, range.start - from, 0, 0, 0, 0], false);
        }
        from = range.end;
    }
    // By way of a place behind the bridge: from and to may overlap.
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
    let mut parking = bridge.start + bridge.len;
    let mut parked = Vec::new();
    for (from, to) in kernels {
        call(libc::SYS_mremap, [from.start, from.len(), from.len(), flags, parking, 0], false);
        parked.push((parking, to.clone()));
        parking += from.len();
    }
    for (from, to) in parked {
        call(libc::SYS_mremap, [from, to.len(), to.len(), flags, to.start, 0], false);
    }
    let private = libc::MAP_PRIVATE | libc::MAP_FIXED;
    for (index, region) in table.regions.iter().enumerate() {
        let (flags, fd) = match region.kind {
            Kind::Kernel => continue,
            // Nothing is promised for what is never written to.
            Kind::Content => (private | libc::MAP_NORESERVE, layer),
            Kind::Empty | Kind::EmptyAfterFork => (private | libc::MAP_ANONYMOUS, -1),
            Kind::EmptyUnreserved => (private | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
            Kind::File => (private, files.descriptor(index)),
            Kind::SharedFile => (libc::MAP_SHARED | libc::MAP_FIXED, files.descriptor(index)),
        };
        let offset = if fd < 0 { 0 } else { region.offset as usize };
        let (start, len) = (region.start, region.end - region.start);
        let protection = region.protection as usize;
        call(libc::SYS_mmap, [start, len, protection, flags as usize, fd as usize, offset], false);
        if region.kind == Kind::EmptyAfterFork {
            call(libc::SYS_madvise, [start, len, libc::MADV_WIPEONFORK as usize, 0, 0, 0], false);
        }
    }
    let (below, above) = (PAGEMAP_FD as usize - 1, kept.last_file as usize + 1);
    call(libc::SYS_close_range, [4, below, 0, 0, 0, 0], false);
    call(libc::SYS_close_range, [above, u32::MAX as usize, 0, 0, 0, 0], false);

    for (index, word) in blob.iter_mut().enumerate().take(11) {
        *word = table.word(at::MEMORY_MAP + index);
    }
    blob[12] = u64::from(u32::MAX) << 32; // no auxiliary vector; exe_fd -1
    let (set_mm, map) = (libc::PR_SET_MM as usize, libc::PR_SET_MM_MAP as usize);
    call(libc::SYS_prctl, [set_mm, map, blob_at(0), MEMORY_MAP_WORDS * 8, 0, 0], false);
    #[cfg(target_arch = "x86_64")]
    {
        let base = table.word(at::FS_BASE) as usize;
        call(libc::SYS_arch_prctl, [kernel::ARCH_SET_FS as usize, base, 0, 0, 0, 0], false);
    }
    call(libc::SYS_set_tid_address, [table.word(at::TID_ADDRESS) as usize, 0, 0, 0, 0, 0], false);
    let robust = [table.word(at::ROBUST_LIST) as usize, table.word(at::ROBUST_LIST + 1) as usize, 0, 0, 0, 0];
    call(libc::SYS_set_robust_list, robust, false);
    for index in 0..3 {
        blob[SIGNAL_STACK_AT + index] = table.word(at::SIGNAL_STACK + index);
    }
    call(libc::SYS_sigaltstack, [blob_at(SIGNAL_STACK_AT), 0, 0, 0, 0, 0], false);
    for number in 1..=SIGNALS {
        let word = SIGNALS_AT + (number - 1) * 4;
        blob[word..word + 4].copy_from_slice(&table.signal(number));
        // (Two can't be set.)
        call(libc::SYS_rt_sigaction, [number, blob_at(word), 0, 8, 0, 0], true);
    }
    calls
}
