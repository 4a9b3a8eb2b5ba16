//! What is mapped in a process, as `/proc/PID/smaps` tells it, and what of that must not change.

use std::ops::Range;

/// Userspace ends here on x86-64 at most, with five levels of page tables. What lies beyond is the kernel's own.
const LAST: u64 = 0x00ff_ffff_ffff_f000;
/// Nothing can be mapped below: `vm.mmap_min_addr` is at least this where it isn't 0, and 0 is no address.
pub(super) const START: u64 = 4096;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<u64>,
    pub(super) rights: Rights,
    /// Of the file: the place, the device, the inode (0: of no file).
    pub(super) offset: u64,
    pub(super) device: String,
    pub(super) inode: u64,
    /// `mseal` has been called on it.
    pub(super) sealed: bool,
    /// The kernel makes no huge pages of its pages: `MADV_NOHUGEPAGE` has been called on it.
    pub(super) stays_small: bool,
}

/// As `rwxp` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) write: bool,
    pub(super) execute: bool,
    pub(super) shared: bool,
    pub(super) read: bool,
}

impl Mapping {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Its private pages can differ from what lies below them, now or after a write.
    pub(super) fn is_private(&self) -> bool {
        !self.rights.shared
    }

    fn begin(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        let [read, write, execute, private] = <[u8; 4]>::try_from(words.next()?.as_bytes()).ok()?;
        let rights = Rights {
            read: read == b'r',
            write: write == b'w',
            execute: execute == b'x',
            shared: private == b's',
        };
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let device = words.next()?.to_owned();
        let inode = words.next()?.parse().ok()?;
        Some(Self { range, rights, offset, device, inode, sealed: false, stays_small: false })
    }

    /// Whether `part` is this mapping or a piece of it, unchanged.
    fn has(&self, part: &Self) -> bool {
        let within = self.range.start <= part.range.start && part.range.end <= self.range.end;
        let moved = if self.inode == 0 { 0 } else { part.range.start.saturating_sub(self.range.start) };
        within
            && (self.rights, self.inode, &self.device) == (part.rights, part.inode, &part.device)
            && self.stays_small == part.stays_small
            && (self.inode == 0 || self.offset + moved == part.offset)
    }
}

/// All mappings of this text, in the order of their addresses, without the kernel's own beyond user space.
pub(super) fn parse(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::begin(line) {
            found.push(mapping);
        } else if let (Some(last), Some(flags)) = (found.last_mut(), line.strip_prefix("VmFlags:")) {
            for flag in flags.split_ascii_whitespace() {
                last.sealed |= flag == "sl";
                last.stays_small |= flag == "nh";
            }
        }
    }
    found.retain(|mapping| mapping.range.end <= LAST);
    found
}

/// The ranges in which nothing of `known` is mapped, where userspace ends at `end`.
pub(super) fn gaps(known: &[Mapping], end: u64) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = START;
    for mapping in known {
        if at < mapping.range.start {
            gaps.push(at..mapping.range.start);
        }
        at = mapping.range.end;
    }
    if at < end {
        gaps.push(at..end);
    }
    gaps
}

/// `known` is mapped as it was, all of it sealed. What is mapped beside it doesn't matter: it is in a gap. The error says
/// what is wrong.
pub(super) fn check(known: &[Mapping], now: &[Mapping]) -> Result<(), String> {
    let mut now = now.iter().peekable();
    for mapping in known {
        let mut at = mapping.range.start;
        while let Some(part) = now.next_if(|part| part.range.start < mapping.range.end) {
            if part.range.end <= mapping.range.start && at == mapping.range.start {
                continue; // in the gap before
            }
            if part.range.start != at || !mapping.has(part) {
                return Err(format!("{:x?} has become {:x?}", mapping.range, part.range));
            }
            if !part.sealed {
                return Err(format!("{:x?} is not sealed", part.range));
            }
            at = part.range.end;
        }
        if at != mapping.range.end {
            return Err(format!("{:x?} ends at {at:x}", mapping.range));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
1000-3000 r--p 00000000 fe:00 7   /lib/x
Size: 8 kB
VmFlags: rd mr mw me sl
3000-4000 rw-p 00002000 fe:00 7   /lib/x
VmFlags: rd wr mr mw me sl
9000-b000 rw-p 00000000 00:00 0   [heap]
VmFlags: rd wr nh sl
1000000000000-1000000001000 rw-p 00000000 00:00 0
VmFlags: rd wr sl
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
VmFlags: ex
";

    #[test]
    fn what_is_mapped_is_read_and_the_rest_is_gaps() {
        let known = parse(TEXT);
        assert_eq!(known.len(), 4);
        assert_eq!((known[1].offset, known[1].inode, known[1].rights.write), (0x2000, 7, true));
        assert!(known.iter().all(|mapping| mapping.sealed));
        assert_eq!([known[1].stays_small, known[2].stays_small], [false, true]);
        let high = 1 << 48;
        assert_eq!(gaps(&known, LAST), [0x4000..0x9000, 0xb000..high, high + 0x1000..LAST]);
        let end = 0x7fff_ffff_f000;
        assert_eq!(gaps(&known[..3], end), [0x4000..0x9000, 0xb000..end]);
    }

    #[test]
    fn every_change_is_seen_and_what_is_in_gaps_is_not() {
        let known = parse(TEXT);
        assert_eq!(check(&known, &known), Ok(()));
        let mut split = known.clone();
        split.splice(
            2..3,
            [
                Mapping { range: 0x9000..0xa000, ..known[2].clone() },
                Mapping { range: 0xa000..0xb000, ..known[2].clone() },
            ],
        );
        split.insert(2, Mapping { range: 0x5000..0x6000, sealed: false, ..known[2].clone() });
        split.insert(5, Mapping { range: 0xb000..0xc000, sealed: false, ..known[2].clone() });
        assert_eq!(check(&known, &split), Ok(()));
        let changed = |change: fn(&mut Vec<Mapping>)| {
            let mut now = known.clone();
            change(&mut now);
            check(&known, &now)
        };
        let changes: [fn(&mut Vec<Mapping>); 10] = [
            |now| now[0].sealed = false,
            |now| now[2].stays_small = false,
            |now| now[1].rights.write = false,
            |now| now[1].rights.shared = true,
            |now| now[1].inode = 8,
            |now| now[1].offset = 0,
            |now| drop(now.remove(2)),
            |now| now[2].range.end = 0xa000,
            |now| now[2].range.end = 0xc000,
            |now| now[2].range.start = 0x8000,
        ];
        for change in changes {
            assert!(changed(change).is_err());
        }
    }
}
