//! What of a process's memory is frozen: pure, from the text of `/proc/self/smaps` to a list of pieces.
//!
//! Only memory that every fork would copy page tables for is worth it: private, with pages that were written to
//! (`Anonymous`). Mappings that mean more than their bytes stay as they are, see [`refusal`].

use std::ops::Range;

use crate::layer::SHOWN_NAME;

/// A private file mapping longer than this is frozen only if it was written to all over: its copy is a whole one.
const SPARSE_FILE: usize = 1 << 20;
/// Memory that was never touched is left out of a piece from this many bytes on. Shorter gaps are taken along: a
/// mapping in many pieces costs more than the gap.
pub(super) const GAP: usize = 256 << 10;

/// The same in memory of a layer: what is taken along isn't shared any more.
pub(super) const LAYER_GAP: usize = 32 << 10;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<usize>,
    /// `PROT_*`.
    pub(super) protection: i32,
    /// Of a file, rather than anonymous.
    pub(super) of_file: bool,
    /// Without reserved memory (`MAP_NORESERVE`).
    pub(super) no_reserve: bool,
    /// Of a layer's file ([`crate::layer`]), which stays where nobody has written.
    pub(super) of_layer: bool,
}

/// A stretch of one mapping that is to be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) mapping: Mapping,
    /// Within the memfd.
    pub(super) offset: u64,
}

/// The mappings of this text that are to be frozen. `stack` is an address on the stack in use.
pub(super) fn mappings(smaps: &str, stack: usize) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut current: Option<Seen> = None;
    for line in smaps.lines() {
        if let Some(seen) = Seen::begin(line) {
            current = Some(seen);
        } else if let (Some(seen), Some((key, value))) = (&mut current, line.split_once(':')) {
            match key {
                "Anonymous" => seen.anonymous = kibibytes(value),
                "Swap" => seen.swapped = kibibytes(value),
                "ProtectionKey" => seen.key = value.trim() != "0",
                // the last line of each mapping
                "VmFlags" => found.extend(seen.mapping(value, stack)),
                _ => {}
            }
        }
    }
    found
}

/// Where a layer's file is mapped, by the text of `/proc/self/maps` or smaps.
pub(super) fn of_layer(maps: &str) -> Vec<Range<usize>> {
    let begun = maps.lines().filter_map(Seen::begin).map(|seen| seen.mapping);
    begun.filter(|mapping| mapping.of_layer).map(|mapping| mapping.range).collect()
}

/// What has been read of one mapping so far.
#[derive(Debug)]
struct Seen {
    mapping: Mapping,
    private: bool,
    anonymous: usize,
    swapped: usize,
    key: bool,
}

impl Seen {
    /// From a line such as `7f00-7f10 rw-p 00000000 fe:00 247282   /lib/x.so`; `None` for any other.
    fn begin(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let [read, write, execute, private] = <[u8; 4]>::try_from(words.next()?.as_bytes()).ok()?;
        let inode = words.nth(2)?;
        let mut protection = 0;
        for (letter, bit) in [(read, libc::PROT_READ), (write, libc::PROT_WRITE), (execute, libc::PROT_EXEC)]
        {
            protection |= if letter == b'-' { 0 } else { bit };
        }
        let of_layer = words.next().is_some_and(|name| name == SHOWN_NAME);
        let mapping = Mapping { range, protection, of_file: inode != "0", no_reserve: false, of_layer };
        Some(Self { mapping, private: private == b'p', anonymous: 0, swapped: 0, key: false })
    }

    fn mapping(&self, flags: &str, stack: usize) -> Option<Mapping> {
        let Mapping { range, protection, of_file, of_layer, .. } = &self.mapping;
        let sparse = *of_file && !of_layer && range.len() > SPARSE_FILE && self.anonymous < range.len() / 2;
        // Executable memory: code that a compiler has made in this process. It is little, and moving it brings
        // nothing but trouble with those that protect it.
        let readable = protection & (libc::PROT_READ | libc::PROT_EXEC) == libc::PROT_READ;
        let wanted = self.private && readable && self.anonymous > 0 && !sparse && self.swapped == 0;
        let special = self.key || range.contains(&stack) || flags.split_ascii_whitespace().any(refusal);
        let no_reserve = flags.split_ascii_whitespace().any(|flag| flag == "nr");
        (wanted && !special).then(|| Mapping { no_reserve, ..self.mapping.clone() })
    }
}

/// Flags of mappings that are more than bytes, and would be something else afterwards.
fn refusal(flag: &str) -> bool {
    matches!(
        flag,
        "gd" // grows downwards: a stack
            | "lo" // locked: the file's pages wouldn't be
            | "io" | "pf" | "de" | "mm" // a device's, or the kernel's own (vvar, vdso)
            | "dc" | "wf" // a fork shall not have it, or find it empty
            | "ht" // huge pages of the administrator's
            | "um" | "uw" | "ui" // somebody handles its page faults
            | "mt" | "ss" | "sl" // memory tags, shadow stacks, sealed
    )
}

fn kibibytes(value: &str) -> usize {
    value.trim().trim_end_matches(" kB").parse().map_or(0, |kib: usize| kib << 10)
}

/// Has a stretch of memory count as never touched, with all pages that it has a part in.
pub(super) fn leave_out(mapping: &Mapping, touched: &mut [u8], page: usize, stretch: &Range<usize>) {
    let start = mapping.range.start;
    let first = stretch.start.saturating_sub(start) / page;
    let end = stretch.end.saturating_sub(start).div_ceil(page);
    if let Some(pages) = touched.get_mut(first..end.min(touched.len())) {
        pages.fill(0);
    }
}

/// Cuts what was never touched out of a mapping, where it is long. `touched` has a byte per page, by `mincore`.
pub(super) fn cut(mapping: &Mapping, touched: &[u8], page: usize, gap: usize) -> Vec<Mapping> {
    let mut pieces: Vec<Mapping> = Vec::new();
    let start = mapping.range.start;
    let pages = touched.iter().enumerate().filter(|(_, touched)| **touched & 1 != 0);
    for at in pages.map(|(index, _)| start + index * page) {
        match pieces.last_mut() {
            Some(last) if at - last.range.end < gap => last.range.end = at + page,
            _ => pieces.push(Mapping { range: at..at + page, ..mapping.clone() }),
        }
    }
    let Some((first, last)) = pieces.first().map(|p| p.range.start).zip(pieces.last().map(|p| p.range.end))
    else {
        return pieces;
    };
    if mapping.of_layer {
        return pieces; // the rest is shared with other functions
    }
    // Short untouched ends are taken along, so that the mapping stays one.
    if first - start < gap {
        pieces[0].range.start = start;
    }
    if mapping.range.end - last < gap {
        pieces.last_mut().expect("not empty").range.end = mapping.range.end;
    }
    pieces
}

/// Gives each piece a place in one file.
pub(super) fn lay_out(mappings: Vec<Mapping>) -> (Vec<Piece>, u64) {
    let mut offset = 0;
    let mut pieces = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let len = mapping.range.len() as u64;
        pieces.push(Piece { mapping, offset });
        offset += len;
    }
    (pieces, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn entry(header: &str, anonymous: usize, more: &str, flags: &str) -> String {
        format!(
            "{header}\nSize: 999 kB\nRss: 999 kB\nAnonymous: {anonymous:>8} kB\n{more}VmFlags: {flags} \n"
        )
    }

    fn ranges(smaps: &str) -> Vec<Range<usize>> {
        mappings(smaps, 0x7ffc_0000_1000).into_iter().map(|mapping| mapping.range).collect()
    }

    #[test]
    fn private_memory_that_was_written_to_is_taken() {
        let heap = entry(
            "00600000-00700000 rw-p 00000000 00:00 0    [heap]",
            1024,
            "Swap:  0 kB\n",
            "rd wr mr mw me ac",
        );
        let data = entry(
            "7f0000000000-7f0000004000 rw-p 00031000 fe:00 77  /usr/lib/a library.so",
            16,
            "",
            "rd wr mr",
        );
        let relro =
            entry("7f0000004000-7f0000006000 r--p 00031000 fe:00 77  /usr/lib/x.so", 4, "", "rd mr mw me");
        let found = mappings(&(heap + &data + &relro), 0);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].range, 0x60_0000..0x70_0000);
        assert_eq!((found[0].of_file, found[0].protection), (false, libc::PROT_READ | libc::PROT_WRITE));
        assert_eq!((found[2].of_file, found[2].protection), (true, libc::PROT_READ));
    }

    #[test]
    fn what_is_more_than_bytes_stays() {
        let anonymous = |flags: &str| entry("00600000-00700000 rw-p 00000000 00:00 0", 1024, "", flags);
        assert_eq!(ranges(&anonymous("rd wr mr mw me ac nr")).len(), 1);
        for flag in ["gd", "lo", "io", "pf", "de", "dc", "wf", "ht", "um", "uw", "ui", "mt", "ss", "sl"] {
            assert!(ranges(&anonymous(&format!("rd wr mr {flag}"))).is_empty(), "{flag}");
        }
        for header in [
            "00600000-00700000 rw-s 00000000 00:01 5 /memfd:outbox (deleted)",
            "00600000-00700000 ---p 00000000 00:00 0",
            "00600000-00700000 rwxp 00000000 00:00 0",
            "00600000-00700000 r-xp 00000000 fe:00 9 /usr/lib/x.so",
        ] {
            assert!(ranges(&entry(header, 1024, "", "rd wr")).is_empty(), "{header}");
        }
        let stack = "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0";
        assert!(
            ranges(&entry(stack, 132, "", "rd wr")).is_empty(),
            "the stack in use, whatever it is called"
        );
        let plain = "00600000-00700000 rw-p 00000000 00:00 0";
        assert!(ranges(&entry(plain, 0, "", "rd wr")).is_empty(), "never touched");
        assert!(ranges(&entry(plain, 8, "Swap:   4 kB\n", "rd wr")).is_empty(), "partly in swap");
        assert!(ranges(&entry(plain, 8, "ProtectionKey:   3\n", "rd wr")).is_empty(), "has a key");
        let weights = "00600000-40600000 rw-p 00000000 fe:00 9 /srv/weights";
        assert!(ranges(&entry(weights, 64, "", "rd wr")).is_empty(), "a large file, hardly written to");
    }

    #[test]
    fn nonsense_is_nothing() {
        for text in
            ["", "\n\n", "VmFlags: rd", "abc", "zz-yy rw-p 0 0 0", "1-2 rw-", "Anonymous: 5 kB\nVmFlags: rd"]
        {
            assert!(ranges(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn long_untouched_stretches_are_cut_out() {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let whole =
            Mapping { range: 0..100 * PAGE, protection, of_file: false, no_reserve: false, of_layer: false };
        let cut_at = |touched: &[usize]| -> Vec<(usize, usize)> {
            let mut pages = vec![0; 100];
            touched.iter().for_each(|page| pages[*page] = 0xf1);
            let pieces = cut(&whole, &pages, PAGE, 10 * PAGE);
            pieces.into_iter().map(|p| (p.range.start / PAGE, p.range.end / PAGE)).collect()
        };
        assert!(cut_at(&[]).is_empty());
        assert_eq!(cut_at(&[0]), [(0, 1)]);
        assert_eq!(cut_at(&[5, 14, 95]), [(0, 15), (95, 100)]);
        assert_eq!(cut_at(&[50]), [(50, 51)]);
        assert_eq!(cut_at(&(0..100).collect::<Vec<_>>()), [(0, 100)]);
        assert_eq!(cut_at(&(0..100).step_by(7).collect::<Vec<_>>()), [(0, 100)]);
    }

    #[test]
    fn what_is_left_out_takes_its_pages_along_and_no_others() {
        let mapping = Mapping {
            range: 10 * PAGE..20 * PAGE,
            protection: 1,
            of_file: false,
            no_reserve: false,
            of_layer: false,
        };
        let left = |stretch: Range<usize>| -> Vec<usize> {
            let mut touched = vec![1; 10];
            leave_out(&mapping, &mut touched, PAGE, &stretch);
            (0..10).filter(|page| touched[*page] == 1).collect()
        };
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(left(0..10 * PAGE), all);
        assert_eq!(left(20 * PAGE..30 * PAGE), all);
        assert_eq!(left(0..11 * PAGE), all[1..]);
        assert_eq!(left(12 * PAGE + 16..18 * PAGE + 1), [0, 1, 9]);
        assert_eq!(left(19 * PAGE..40 * PAGE), all[..9]);
        assert!(left(0..40 * PAGE).is_empty());
    }

    #[test]
    fn pieces_lie_one_after_another_in_the_file() {
        let at = |range| Mapping { range, protection: 1, of_file: false, no_reserve: false, of_layer: false };
        let (pieces, len) = lay_out(vec![at(0x1000..0x3000), at(0x9000..0xa000)]);
        assert_eq!(pieces.iter().map(|piece| piece.offset).collect::<Vec<_>>(), [0, 0x2000]);
        assert_eq!(len, 0x3000);
    }
}
