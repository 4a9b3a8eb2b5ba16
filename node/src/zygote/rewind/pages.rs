//! Which pages of an instance are its own: looked up from outside, while it waits in the stub or before.
//!
//! A page of a private mapping is its own once it was written to. There are two questions: which pages differ from what lies
//! below them when the plan is made ([`differing`]), and which are its own after a request though the plan doesn't copy them back
//! ([`Watch::look`]): mostly none, and then nothing needs to be dropped, which leaves the pages that were only read where they are.
//!
//! Mostly spryd needn't even look. A page becomes a process's own by a page fault, and the kernel counts a thread's faults,
//! whether its instructions or its system calls cause them. The instance has one thread; so if its count is what it was the
//! time before, no page has come to be its own since. There are two exceptions:
//! - the kernel may make a huge page of small ones, in memory of no file, and nothing is counted: such ranges are looked at
//!   each time ([`Watch::always`]), unless it has been told to make none there, as the zygote does for all that it has;
//! - spryd may have written to its memory, who then counts the fault as its own: who does so says it ([`Gate`](super::Gate)).
//!
//! The same line of `/proc` says how much is mapped. No known mapping can go or become smaller, for they are sealed; so if it is
//! as much as they have, nothing else is mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mappings::Mapping;
use super::plan::COPIES_MAX;
use crate::sys::pagemap::{self, Region};
use crate::sys::rewind as sys;

pub(super) const PAGE: u64 = 4096;
/// Pages of its own that an instance may have before its first request: each is looked at, on the keeper's thread, and of a
/// mapping of zeros that was only read every page is one, which costs it nothing.
pub(super) const OWN_MAX: usize = 4 * COPIES_MAX;
/// Ranges of its own pages that one look finds. Python's nop has some two hundred.
const RANGES_MAX: usize = 512;
/// The same where mostly less is found: the kernel makes room for as many as it is asked for.
const FEW: usize = 16;
/// Ranges with less than this between them are looked at together: a look costs as much as passing over some pages.
const NEAR: u64 = 32 * PAGE;
/// No count of faults.
const UNKNOWN: u64 = u64::MAX;
/// Pages that one request is said to have written to: of one that writes to more, all are dropped anyway.
const CHANGED_MAX: u64 = 1024;

/// Private mappings that can be written to: all others stay as they are.
pub(super) fn changeable(known: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    known.iter().filter(|mapping| mapping.is_private() && mapping.rights.write)
}

/// The pages of private mappings that were written to, in order; `None`: more than [`OWN_MAX`]. How much is mapped doesn't matter: a
/// function may map whatever it likes.
pub(super) fn own(pagemap: &File, known: &[Mapping]) -> io::Result<Option<Vec<u64>>> {
    let mut own = Vec::new();
    let mut room = [[0; 3]; RANGES_MAX];
    // What can't be written to needs no copy: it can't change. (Its rights can't, either.)
    for mapping in changeable(known) {
        let mut at = mapping.range.start;
        while at < mapping.range.end {
            let most = (OWN_MAX + 1 - own.len()) as u64;
            let look = [at, mapping.range.end];
            let (found, end) = pagemap::own_ranges(pagemap.as_fd(), look, &mut room, most)?;
            own.extend(found.iter().flat_map(|[start, end, _]| (*start..*end).step_by(PAGE as usize)));
            if own.len() > OWN_MAX {
                return Ok(None);
            }
            at = end;
        }
    }
    Ok(Some(own))
}

/// Those of `own` that aren't, byte for byte, what would be there if they were dropped. (Counts of references go up and down
/// again, most of all.)
pub(super) fn differing(pid: i32, known: &[Mapping], own: Vec<u64>) -> Vec<u64> {
    let mut mappings = changeable(known).peekable();
    let mut below: Option<(u64, File)> = None;
    let (mut now, mut before) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut differs = |page: &u64| {
        while mappings.next_if(|mapping| mapping.range.end <= *page).is_some() {}
        // What can't be looked at may differ.
        let Some(mapping) = mappings.peek() else { return true };
        before.fill(0);
        if mapping.inode != 0 {
            if below.as_ref().is_none_or(|(of, _)| *of != mapping.range.start) {
                let (start, end) = (mapping.range.start, mapping.range.end);
                let opened = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
                below = opened.ok().map(|file| (start, file));
            }
            let Some((_, file)) = &below else { return true };
            let at = mapping.offset + (page - mapping.range.start);
            if file.read_exact_at(&mut before, at).is_err() {
                return true;
            }
        }
        sys::read_memory(pid, *page, &mut now).is_err() || now != before
    };
    own.into_iter().filter(|page| differs(page)).collect()
}

/// Where an instance's pages must not be its own after a request.
#[derive(Debug)]
pub(super) struct Watch {
    pagemap: File,
    /// `/proc/PID/task/PID/stat`.
    stat: File,
    /// Faults that were counted the last time, after which nothing but the plan's pages was its own; or [`UNKNOWN`].
    faults: AtomicU64,
    /// In memory of which there may be huge pages.
    always: Ranges,
    /// In all other: frozen memory, data of libraries, what the zygote has left.
    after_faults: Ranges,
    /// How much is mapped if nothing is beside what is known.
    mapped_bytes: u64,
}

/// What an instance has changed beside what is copied back in any case.
#[derive(Debug)]
pub(super) struct Seen {
    /// Pages that are its own and should not be; `None`: too many, or it can't be found out.
    pub(super) pages: Option<Vec<u64>>,
    /// Something may be mapped in the gaps.
    pub(super) gaps: bool,
}

/// Ranges that the plan can drop.
#[derive(Debug)]
struct Ranges {
    /// In order.
    drops: Vec<[u64; 2]>,
    /// Ranges that cover these, and not much more.
    looks: Vec<[u64; 2]>,
}

impl Ranges {
    fn new(drops: Vec<[u64; 2]>) -> Self {
        let looks = covers(&drops);
        Self { drops, looks }
    }

    /// See [`Seen::pages`].
    fn changed(&self, pagemap: &File) -> Option<Vec<u64>> {
        self.look(pagemap, &mut [[0; 3]; FEW]).or_else(|| self.look(pagemap, &mut [[0; 3]; RANGES_MAX]))
    }

    fn look(&self, pagemap: &File, room: &mut [Region]) -> Option<Vec<u64>> {
        let mut found = 0;
        for look in &self.looks {
            let (own, end) =
                pagemap::own_ranges(pagemap.as_fd(), *look, &mut room[found..], OWN_MAX as u64).ok()?;
            if end < look[1] {
                return None;
            }
            found += own.len();
        }
        common(room[..found].iter().map(|[start, end, _]| [*start, *end]), &self.drops)
    }
}

impl Watch {
    /// `drops`: what the plan can drop, in order, of these mappings. `mapped_bytes`: how much is mapped if nothing is beside these
    /// and what is the plan's own.
    pub(super) fn new(
        pid: i32,
        pagemap: File,
        known: &[Mapping],
        drops: &[[u64; 2]],
        mapped_bytes: u64,
    ) -> io::Result<Self> {
        let stat = File::open(format!("/proc/{pid}/task/{pid}/stat"))?;
        let within = |counts: bool| {
            let all = changeable(known);
            let mappings = all.filter(move |mapping| (mapping.inode != 0 || mapping.stays_small) == counts);
            Ranges::new(parts(drops, mappings.map(|mapping| [mapping.range.start, mapping.range.end])))
        };
        let (always, after_faults) = (within(false), within(true));
        let faults = AtomicU64::new(UNKNOWN);
        Ok(Self { pagemap, stat, faults, always, after_faults, mapped_bytes })
    }

    /// Looks what it has changed. `written`: somebody else may have written to its memory since the last time.
    ///
    /// To be called at each rewinding, since what it remembers holds until the next one.
    pub(super) fn look(&self, written: bool) -> Seen {
        let mut text = [0; 512];
        let len = self.stat.read_at(&mut text, 0).unwrap_or(0);
        let counts = Counts::read(&text[..len]);
        let faults = counts.as_ref().map_or(UNKNOWN, |counts| counts.faults);
        let same = self.faults.swap(faults, Ordering::Relaxed) == faults && faults != UNKNOWN;
        let gaps = counts.is_none_or(|counts| counts.mapped_bytes != self.mapped_bytes);
        Seen { pages: self.changed(!same || written), gaps }
    }

    fn changed(&self, everywhere: bool) -> Option<Vec<u64>> {
        let mut changed = self.always.changed(&self.pagemap)?;
        if everywhere {
            changed.extend(self.after_faults.changed(&self.pagemap)?);
        }
        Some(changed)
    }
}

/// What a line of `/proc/PID/task/PID/stat` counts.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// Its faults, small and large.
    faults: u64,
    /// How much is mapped.
    mapped_bytes: u64,
}

impl Counts {
    /// `None`: it can't be found out.
    fn read(stat: &[u8]) -> Option<Self> {
        // What comes before is the process's to choose.
        let behind_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let mut words = std::str::from_utf8(&stat[behind_name..]).ok()?.split_ascii_whitespace();
        let mut next = |skipped| words.nth(skipped)?.parse::<u64>().ok();
        let (small, large, mapped_bytes) = (next(7)?, next(1)?, next(10)?);
        Some(Self { faults: small.checked_add(large)?, mapped_bytes })
    }
}

/// What of `ranges` lies in `mappings`, both in order.
fn parts(ranges: &[[u64; 2]], mappings: impl Iterator<Item = [u64; 2]>) -> Vec<[u64; 2]> {
    let of = |[from, to]: [u64; 2]| {
        let cut = ranges.iter().map(move |[start, end]| [from.max(*start), to.min(*end)]);
        cut.filter(|[start, end]| start < end)
    };
    mappings.flat_map(of).collect()
}

/// Neighbours together.
fn covers(ranges: &[[u64; 2]]) -> Vec<[u64; 2]> {
    let mut covers: Vec<[u64; 2]> = Vec::new();
    for [start, end] in ranges {
        match covers.last_mut() {
            Some(last) if start - last[1] < NEAR => last[1] = *end,
            _ => covers.push([*start, *end]),
        }
    }
    covers
}

/// The pages of `own` that lie in `drops`, both in order; `None`: too many.
fn common(own: impl Iterator<Item = [u64; 2]>, drops: &[[u64; 2]]) -> Option<Vec<u64>> {
    let mut drops = drops.iter().peekable();
    let (mut pages, mut count) = (Vec::new(), 0);
    for [start, end] in own {
        while drops.next_if(|[_, drop_end]| *drop_end <= start).is_some() {}
        let within = drops.clone().take_while(|[drop_start, _]| *drop_start < end);
        for [drop_start, drop_end] in within {
            let (from, to) = (start.max(*drop_start), end.min(*drop_end));
            count += (to - from) / PAGE;
            if count > CHANGED_MAX {
                return None;
            }
            pages.extend((from..to).step_by(PAGE as usize));
        }
    }
    Some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_whatever_the_process_is_called() {
        let line = b"7 (a) R 1 (2) S 3 4 5 6 7 8 901 10 23 12 13 14 15 16 17 18 19 1 21 4096 23\n";
        assert_eq!(Counts::read(line), Some(Counts { faults: 901 + 23, mapped_bytes: 4096 }));
        assert_eq!(Counts::read(&line[..line.len() - 8]), None, "cut off");
        assert_eq!(Counts::read(b""), None);
    }

    #[test]
    fn how_much_this_process_has_mapped_is_read() {
        let count = || {
            let stat = std::fs::read("/proc/thread-self/stat").expect("its line");
            Counts::read(&stat).expect("whole").mapped_bytes
        };
        let maps = || std::fs::read_to_string("/proc/self/smaps").expect("its mappings");
        let sum = || super::super::mappings::parse(&maps()).iter().map(Mapping::len).sum::<u64>();
        // Other tests map and unmap meanwhile.
        let agree = || (0..1000).any(|_| count() == sum());
        assert!(agree(), "{} are mapped, {} in all mappings", count(), sum());
    }

    #[test]
    fn pages_that_cost_nothing_are_counted_too() {
        use crate::zygote::rewind::mappings::Rights;
        let zeros = vec![0_u8; (OWN_MAX + 2) * PAGE as usize];
        assert!(zeros.iter().step_by(PAGE as usize).all(|byte| *std::hint::black_box(byte) == 0));
        let start = (zeros.as_ptr() as u64).next_multiple_of(PAGE);
        let pagemap = File::open("/proc/self/pagemap").expect("the page map");
        let first = |pages: usize| {
            let range = start..start + pages as u64 * PAGE;
            let rights = Rights { read: true, write: true, execute: false, shared: false };
            let (offset, device, inode) = (0, "00:00".to_owned(), 0);
            let mapping = Mapping { range, rights, offset, device, inode, sealed: false, stays_small: false };
            own(&pagemap, &[mapping])
        };
        // Before Linux 6.7 there is nothing to ask, and nothing is rewound.
        if first(1).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTTY)) {
            return;
        }
        let all = first(OWN_MAX).expect("looked up").expect("not too many");
        assert!(all.into_iter().eq((start..).step_by(PAGE as usize).take(OWN_MAX)));
        assert_eq!(first(OWN_MAX + 1).expect("looked up"), None);
    }

    #[test]
    fn ranges_are_cut_at_the_borders_of_mappings() {
        let ranges = [[0x2000, 0x6000], [0x8000, 0x9000]];
        let found = |mappings: &[[u64; 2]]| parts(&ranges, mappings.iter().copied());
        assert_eq!(
            found(&[[0x1000, 0x3000], [0x3000, 0x5000], [0x5000, 0x20_000]]),
            [[0x2000, 0x3000], [0x3000, 0x5000], [0x5000, 0x6000], [0x8000, 0x9000]]
        );
        assert_eq!(found(&[[0x6000, 0x8000]]), [[0; 2]; 0]);
    }

    #[test]
    fn own_pages_within_what_is_dropped_are_found() {
        let drops = [[0x2000, 0x4000], [0x6000, 0x9000], [0x20_000, 0x21_000]];
        let found = |own: &[[u64; 2]]| common(own.iter().copied(), &drops).expect("few");
        assert_eq!(found(&[]), [0; 0]);
        assert_eq!(found(&[[0x1000, 0x2000], [0x4000, 0x6000], [0x9000, 0x20_000]]), [0; 0], "beside them");
        assert_eq!(found(&[[0x1000, 0x3000], [0x8000, 0x21_000]]), [0x2000, 0x8000, 0x20_000]);
        assert_eq!(
            found(&[[0x3000, 0x7000], [0x8000, 0x9000]]),
            [0x3000, 0x6000, 0x8000],
            "over two of them"
        );
        assert_eq!(covers(&drops), [[0x2000, 0x21_000]]);
        assert_eq!(covers(&[[0x2000, 0x4000], [0x4000 + NEAR, 0x80_000]]).len(), 2);
        let large = [[0, (CHANGED_MAX + 1) * PAGE]];
        assert_eq!(common(large.into_iter(), &large), None);
    }
}
