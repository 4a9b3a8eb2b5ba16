//! Fewer mappings for a fork to copy: a library's constants are mapped as its code is. Pure, from the text of
//! `/proc/self/smaps` to ranges.
//!
//! Linkers lay a library out so that its constants lie before and behind its code, and have each mapped by itself:
//!
//! ```text
//!  before   r--p constants │ r-xp code │ r--p constants │ r--p, rw-p data      the first three: neighbours in the file, too
//!  after    r-xp           constants, code, constants   │ r--p, rw-p data
//! ```
//!
//! A fork copies each mapping, at 0.7 us, and an exit takes each apart; Python with NumPy has 132 of them, a third of which this
//! saves. What it costs: constants can be jumped into, as in every library that was linked before 2018. Whoever could use that
//! runs code in this process already, and it is code of the function's own.

use std::ops::Range;

use crate::layer::smaps::{Mapping, mappings};

/// What may be made executable to become one mapping with its neighbour.
pub(super) fn constants(smaps: &str) -> Vec<Range<usize>> {
    let all: Vec<Mapping<'_>> = mappings(smaps).collect();
    let beside_code = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| all.get(before));
        before.is_some_and(|code| is_code(code) && continues(code, &all[at]))
            || all.get(at + 1).is_some_and(|code| is_code(code) && continues(&all[at], code))
    };
    let found = (0..all.len()).filter(|at| is_constant(&all[*at]) && beside_code(*at));
    found.map(|at| all[at].range.clone()).collect()
}

/// Nobody has written to it: it can be one mapping with another of its file.
fn is_constant(mapping: &Mapping<'_>) -> bool {
    mapping.protection == libc::PROT_READ && !mapping.shared && mapping.anonymous == 0 && !mapping.has_key
}

fn is_code(mapping: &Mapping<'_>) -> bool {
    mapping.protection == libc::PROT_READ | libc::PROT_EXEC && !mapping.shared
}

/// Neighbours in one file, and in memory.
fn continues(one: &Mapping<'_>, next: &Mapping<'_>) -> bool {
    let len = one.range.len() as u64;
    one.inode != 0
        && one.range.end == next.range.start
        && (one.inode, one.name, one.offset.checked_add(len)) == (next.inode, next.name, Some(next.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(header: &str, anonymous: usize) -> String {
        format!("{header}\nAnonymous: {anonymous} kB\nVmFlags: rd mr mw me \n")
    }

    fn found(entries: &[(&str, usize)]) -> Vec<usize> {
        let text: String = entries.iter().map(|(header, anonymous)| entry(header, *anonymous)).collect();
        constants(&text).into_iter().map(|range| range.start).collect()
    }

    #[test]
    fn what_lies_beside_its_code_is_found() {
        let library = [
            ("7000-9000 r--p 00000000 fe:00 77 /usr/lib/x.so", 0),
            ("9000-c000 r-xp 00002000 fe:00 77 /usr/lib/x.so", 0),
            ("c000-d000 r--p 00005000 fe:00 77 /usr/lib/x.so", 0),
            ("d000-e000 r--p 00006000 fe:00 77 /usr/lib/x.so", 4),
            ("e000-f000 rw-p 00007000 fe:00 77 /usr/lib/x.so", 4),
        ];
        assert_eq!(found(&library), [0x7000, 0xc000]);
        assert_eq!(found(&library[..2]), [0x7000]);
        assert_eq!(found(&library[1..]), [0xc000]);
    }

    #[test]
    fn what_is_not_its_codes_neighbour_stays() {
        let code = ("9000-c000 r-xp 00002000 fe:00 77 /usr/lib/x.so", 0);
        for other in [
            "d000-e000 r--p 00005000 fe:00 77 /usr/lib/x.so",
            "c000-d000 r--p 00009000 fe:00 77 /usr/lib/x.so",
            "c000-d000 r--p 00005000 fe:00 78 /usr/lib/x.so",
            "c000-d000 r--p 00005000 fe:00 77 /usr/lib/y.so",
            "c000-d000 r--s 00005000 fe:00 77 /usr/lib/x.so",
            "c000-d000 ---p 00005000 fe:00 77 /usr/lib/x.so",
            "c000-d000 rw-p 00005000 fe:00 77 /usr/lib/x.so",
        ] {
            assert!(found(&[code, (other, 0)]).is_empty(), "{other}");
        }
        assert!(
            found(&[code, ("c000-d000 r--p 00005000 fe:00 77 /usr/lib/x.so", 4)]).is_empty(),
            "written to"
        );
        let nameless = [("9000-c000 r-xp 00000000 00:00 0", 0), ("c000-d000 r--p 00003000 00:00 0", 0)];
        assert!(found(&nameless).is_empty(), "no file");
        assert!(constants("").is_empty());
        let last = ("fffffffffffff000-ffffffffffffffff r-xp fffffffffffff000 fe:00 1 /x", 0);
        assert!(found(&[last, ("1000-2000 r--p 00000000 fe:00 1 /x", 0)]).is_empty());
    }
}
