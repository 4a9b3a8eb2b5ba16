//! Freezing: a zygote's memory is made so that forks needn't copy its page tables.
//!
//! A fork copies the page tables of all private memory that was written to: 16 microseconds a megabyte, which for a
//! Python function with NumPy is more than everything else together. Page tables of a file's pages needn't be copied (they
//! can be filled in again from the page cache when somebody looks), and the kernel doesn't. So, once the function is
//! loaded:
//!
//! ```text
//!  before            [heap rw-p, anonymous]          fork copies a table entry per page
//!  copy              [heap] ──pwrite──► memfd
//!  exchange          mmap(heap's address, MAP_PRIVATE | MAP_FIXED, memfd)
//!  after             [heap rw-p, memfd]              fork copies what was written to since: a few pages
//! ```
//!
//! The bytes stay where they are, so no pointer changes; who writes gets a page of its own, as ever. Each exchange is one
//! call and thus atomic; that nothing writes between copy and exchange is by having one thread, no signals, and code
//! that uses its stack only ([`crate::sys::memory`]). `plan` says which memory; `guard` keeps calls from working that
//! would tell the difference.
//!
//! The other way is huge pages, one table entry for 2 MiB. When nobody says, it is the memfd (docs/decisions/0009 has the figures).
//!
//! Nothing here may fail a function: what can't be frozen stays as it is, and the reason is told.

mod guard;
mod join;
mod plan;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Instant;

use spry_wire::freeze::{Freeze, FreezeWish, Frozen};

#[cfg(target_arch = "x86_64")]
pub(crate) use guard::EMPTYING;

use crate::layer::{MAPPINGS_FD, PAGEMAP_FD, SIZES_FD};
use crate::sys::layer as kernel;
use crate::sys::memory::{self, Exchange};

/// Less than this is not worth a memfd and a filter: copying its page tables costs less than what freezing adds to
/// the first writes of every instance.
const LEAST: u64 = 256 << 10;
/// The size of a huge page.
const HUGE: usize = 2 << 20;
/// Of a huge page's bytes, so many must have been touched: it costs memory for all.
const HUGE_TOUCHED: usize = HUGE / 16 * 15;

/// What `/proc` says of this process's own memory. Opened early where `/proc` is out of reach later.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnMemory {
    is_kept: bool,
}

impl OwnMemory {
    /// Opens both files.
    pub(crate) fn keep() -> Self {
        kernel::keep(MAPPINGS, MAPPINGS_FD);
        kernel::keep(SIZES, SIZES_FD);
        Self { is_kept: true }
    }

    /// As the process was that has become this one just now.
    fn as_before() -> Self {
        Self { is_kept: kernel::is_open(MAPPINGS_FD) }
    }

    /// What is mapped: the text of smaps.
    pub(crate) fn mappings(self) -> Result<String, String> {
        self.read(MAPPINGS_FD, MAPPINGS, TEXT_ROOM)
    }

    fn sizes(self) -> Result<String, String> {
        self.read(SIZES_FD, SIZES, 256)
    }

    /// Reads it all into memory that doesn't move meanwhile: the text tells of that memory, too. `room` is how much there is
    /// at first.
    fn read(self, kept: i32, path: &CStr, room: usize) -> Result<String, String> {
        let path = path.to_string_lossy();
        let failed = |error: io::Error| format!("read {path}: {error}");
        let own;
        let number = match self.is_kept {
            true => kept,
            false => {
                own = File::open(&*path).map_err(failed)?;
                own.as_raw_fd()
            }
        };
        let bytes = kernel::read_from_start(number, room);
        let bytes = bytes.map_err(|errno| failed(io::Error::from_raw_os_error(errno)))?;
        String::from_utf8(bytes).map_err(|_| failed(io::ErrorKind::InvalidData.into()))
    }

    /// Whether the files are open, at their numbers.
    pub(crate) fn is_kept(self) -> bool {
        self.is_kept
    }

    /// They are of no more use.
    pub(crate) fn close(self) {
        if self.is_kept {
            kernel::close(MAPPINGS_FD);
            kernel::close(SIZES_FD);
        }
    }
}

const MAPPINGS: &CStr = c"/proc/self/smaps";
const SIZES: &CStr = c"/proc/self/statm";
/// For the text of all mappings: more than the longest gap that is frozen along.
const TEXT_ROOM: usize = 1 << 20;
const _: () = assert!(TEXT_ROOM > plan::GAP + (128 << 10));

/// Freezes this process. It has one thread.
pub(crate) fn freeze(wish: &FreezeWish, memory: OwnMemory) -> Frozen {
    let started = Instant::now();
    let done = match wish.how {
        Freeze::Off => return Frozen::not("switched off"),
        Freeze::Auto | Freeze::Memfd => to_memfd(wish, memory),
        Freeze::Huge => to_huge_pages(wish, memory),
    };
    let mut frozen = done.unwrap_or_else(Frozen::not);
    frozen.took_us = started.elapsed().as_micros() as u64;
    frozen
}

/// Leaves less memory, in fewer mappings. Returns the text that tells of those that may have to be frozen; it must not go before the
/// rest is frozen, which could leave a hole in what it lies within.
fn tidied(own: OwnMemory) -> Result<String, String> {
    memory::trim_heap();
    let text = own.mappings()?;
    join::constants(&text).iter().for_each(memory::make_executable);
    Ok(text)
}

fn to_memfd(wish: &FreezeWish, own: OwnMemory) -> Result<Frozen, String> {
    has_room(wish, own, memory::CHUNK as u64)?;
    let page = memory::page_size();
    let text = tidied(own)?;
    let (pieces, total) = plan::lay_out(found(&text, page, plan::GAP)?);
    if total == 0 || (total < LEAST && !wish.always) {
        return Err(format!("only {} KiB were written to, and a fork copies these quickly", total >> 10));
    }
    let file = memory::frozen_file(total).map_err(|error| format!("make a file in memory: {error}"))?;
    let ranges: Vec<Range<usize>> = pieces.iter().map(|piece| piece.mapping.range.clone()).collect();
    keep_from_emptying(&ranges)?;
    let (mut bytes, mut count, mut failed) = (0, 0, None);
    memory::without_signals(|| {
        // From here to the end of this closure nothing is written to but the stack.
        for piece in &pieces {
            let wanted = Exchange {
                start: piece.mapping.range.start,
                len: piece.mapping.range.len(),
                protection: piece.mapping.protection,
                no_reserve: piece.mapping.no_reserve,
                has_holes: !piece.mapping.of_file,
                file: file.as_raw_fd(),
                offset: piece.offset,
            };
            // SAFETY: the plan's pieces are private, readable, and not the stack; each has a place of its own in the
            // file. `load` has refused a second thread, and signals are blocked.
            let (done, errno) = unsafe { memory::copy_and_exchange(wanted, page) };
            bytes += done as u64;
            count += u32::from(done > 0);
            failed = failed.or(errno);
        }
    });
    drop(text);
    let sealed = memory::seal(&file);
    let why = match (failed, sealed) {
        (Some(errno), _) => {
            Some(format!("a part could not be exchanged: {}", io::Error::from_raw_os_error(errno)))
        }
        (None, Err(error)) => Some(format!("the file could not be sealed: {error}")),
        (None, Ok(())) => None,
    };
    Ok(Frozen { how: Freeze::Memfd, bytes, pieces: count, took_us: 0, why })
}

fn to_huge_pages(wish: &FreezeWish, own: OwnMemory) -> Result<Frozen, String> {
    has_room(wish, own, HUGE as u64)?;
    let page = memory::page_size();
    let mut frozen = Frozen { how: Freeze::Huge, ..Frozen::default() };
    let mut failed = None;
    let text = tidied(own)?;
    for mapping in found(&text, page, page)?.iter().filter(|mapping| !mapping.of_file) {
        let first = mapping.range.start.next_multiple_of(HUGE);
        for start in (first..mapping.range.end).step_by(HUGE) {
            let range = start..start + HUGE;
            if range.end > mapping.range.end {
                break;
            }
            let touched = memory::touched(&range).unwrap_or_default();
            if touched.iter().filter(|page| **page & 1 != 0).count() * page < HUGE_TOUCHED {
                continue;
            }
            match memory::collapse(&range) {
                Ok(()) => {
                    frozen.bytes += HUGE as u64;
                    frozen.pieces += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
    }
    match (frozen.bytes, failed) {
        (0, Some(error)) => Err(format!("huge pages can't be made: {error} (needs Linux 6.1)")),
        (0, None) => Err("no 2 MiB of memory in one place were written to".to_owned()),
        (_, failed) => {
            frozen.why = failed.map(|error| format!("a part could not be made of huge pages: {error}"));
            Ok(frozen)
        }
    }
}

/// What a layer brought is frozen already: keeps calls from working that would tell the difference.
pub(crate) fn guard_layer() -> Result<OwnMemory, String> {
    let own = OwnMemory::as_before();
    let ranges = plan::of_layer(&own.mappings()?);
    keep_from_emptying(&ranges)?;
    Ok(own)
}

/// Keeps calls from working on this memory that would tell the difference, if they don't fail on any.
fn keep_from_emptying(ranges: &[Range<usize>]) -> Result<(), String> {
    if memory::is_never_emptied() {
        return Ok(());
    }
    memory::add_filter(&mut guard::compile(ranges))
        .map_err(|error| format!("system calls can't be filtered, and MADV_DONTNEED must be: {error}"))
}

/// What is to be frozen, by address: not the text that says so.
fn found(text: &String, page: usize, gap: usize) -> Result<Vec<plan::Mapping>, String> {
    let texts = text.as_ptr() as usize..text.as_ptr() as usize + text.capacity();
    let mut found = Vec::new();
    for mapping in plan::mappings(text, memory::stack_address()) {
        if mapping.of_file && !mapping.of_layer {
            found.push(mapping);
            continue;
        }
        let mut touched = match mapping.of_layer {
            true => kernel::own_pages(PAGEMAP_FD, &mapping.range)
                .map_err(|errno| format!("read the page map: {}", io::Error::from_raw_os_error(errno)))?,
            false => match memory::touched(&mapping.range) {
                Ok(touched) => touched,
                // What isn't there any more (this function's own memory comes and goes) is left out.
                Err(_) => continue,
            },
        };
        plan::leave_out(&mapping, &mut touched, page, &texts);
        let gap = if mapping.of_layer { plan::LAYER_GAP } else { gap };
        found.extend(plan::cut(&mapping, &touched, page, gap));
    }
    Ok(found)
}

/// While a chunk is exchanged it is there twice: a function near its limit would die of it.
fn has_room(wish: &FreezeWish, own: OwnMemory, extra: u64) -> Result<(), String> {
    let statm = own.sizes()?;
    let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let needed = resident * memory::page_size() as u64 + 2 * extra;
    if wish.memory_bytes > 0 && needed > wish.memory_bytes {
        return Err(format!(
            "within the memory limit of {} MiB there is no room to copy a part of {} MiB",
            wish.memory_bytes >> 20,
            needed >> 20
        ));
    }
    Ok(())
}
