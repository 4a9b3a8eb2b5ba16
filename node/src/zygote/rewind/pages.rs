//! Which pages of an instance are its own: looked up from outside, while it waits in the stub or before.
//!
//! A page of a private mapping is its own once it was written to. There are two questions: which pages differ from what lies
//! below them when the plan is made ([`differing`]), and which are its own after a request though the plan doesn't copy them back
//! ([`Watch::changed`]): mostly none, and then nothing needs to be dropped, which leaves the pages that were only read where they are.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::mappings::Mapping;
use crate::sys::{pagemap, rewind as sys};

pub(super) const PAGE: u64 = 4096;
/// Bits of an entry in `/proc/PID/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Ranges of its own pages that one look finds. Python's nop has some two hundred.
const RANGES_MAX: usize = 512;
/// Ranges with less than this between them are looked at together: a look costs as much as passing over some pages.
const NEAR: u64 = 32 * PAGE;
/// Pages that one request is said to have written to: of one that writes to more, all are dropped anyway.
const CHANGED_MAX: u64 = 1024;

/// Private mappings that can be written to: all others stay as they are.
pub(super) fn changeable(known: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    known.iter().filter(|mapping| mapping.is_private() && mapping.rights.write)
}

/// The pages of private mappings that were written to, in order.
pub(super) fn own(pagemap: &File, known: &[Mapping]) -> io::Result<Vec<u64>> {
    let mut own = Vec::new();
    // What can't be written to needs no copy: it can't change. (Its rights can't, either.)
    for mapping in changeable(known) {
        let mut entries = vec![0; (mapping.len() / PAGE * 8) as usize];
        pagemap.read_exact_at(&mut entries, mapping.range.start / PAGE * 8)?;
        for (index, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            if entry & SWAPPED != 0 || (entry & PRESENT != 0 && entry & OF_FILE == 0) {
                own.push(mapping.range.start + index as u64 * PAGE);
            }
        }
    }
    Ok(own)
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
    /// The ranges that the plan can drop, in order.
    drops: Vec<[u64; 2]>,
    /// Ranges that cover these, and not much more.
    looks: Vec<[u64; 2]>,
}

impl Watch {
    pub(super) fn new(pagemap: File, drops: Vec<[u64; 2]>) -> Self {
        let looks = covers(&drops);
        Self { pagemap, drops, looks }
    }

    /// Pages that are its own and should not be; `None`: too many, or it can't be found out.
    pub(super) fn changed(&self) -> Option<Vec<u64>> {
        let mut room = [[0; 3]; RANGES_MAX];
        let mut found = 0;
        for look in &self.looks {
            let own = pagemap::own_ranges(self.pagemap.as_fd(), *look, &mut room[found..]).ok()??;
            found += own.len();
        }
        common(room[..found].iter().map(|[start, end, _]| [*start, *end]), &self.drops)
    }
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
