//! What a layer's file says of itself: words of 64 bits, so that writing needs no memory and reading no trust in layouts.
//!
//! ```text
//! words   HEADER: magic, counts, registers, the kernel's notes about the process
//!         SIGNALS x 4: what each signal does
//!         regions x REGION_WORDS
//! bytes   paths of the files that are mapped, each ended by a zero byte
//! pages   the contents of regions
//! ```

/// `spryLAY1`, read as a number.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"spryLAY1");
/// Words before the signals.
pub(crate) const HEADER: usize = 32;
/// Signals that the kernel knows.
pub(crate) const SIGNALS: usize = 64;
/// Words of one region.
pub(crate) const REGION_WORDS: usize = 8;
/// More are not taken over: a process may have 65,530 mappings, and the function adds its own.
pub(crate) const REGIONS_MAX: usize = 16_384;
/// Bytes of all paths at most.
pub(crate) const NAMES_MAX: usize = 1 << 20;
/// Where regions begin.
pub(crate) const REGIONS_AT: usize = HEADER + SIGNALS * 4;

/// Places in the header.
pub(crate) mod at {
    pub(crate) const MAGIC: usize = 0;
    /// How many regions.
    pub(crate) const REGIONS: usize = 1;
    /// Bytes of paths, which follow the regions.
    pub(crate) const NAMES_LEN: usize = 2;
    /// Three words: stack pointer, floating-point control, and unused.
    pub(crate) const CONTEXT: usize = 3;
    pub(crate) const FS_BASE: usize = 6;
    pub(crate) const TID_ADDRESS: usize = 7;
    /// Two words.
    pub(crate) const ROBUST_LIST: usize = 8;
    /// Three words: `stack_t`.
    pub(crate) const SIGNAL_STACK: usize = 10;
    /// Eleven words: `struct prctl_mm_map` without its last three fields.
    pub(crate) const MEMORY_MAP: usize = 13;
}

/// What is at a region's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of the layer's file, from the offset on; whoever writes gets a page of their own.
    Content = 1,
    /// Nothing yet.
    Empty = 2,
    /// Nothing yet, and no memory reserved.
    EmptyUnreserved = 3,
    /// Nothing yet, and a fork finds it empty again.
    EmptyAfterFork = 4,
    /// A file, from the offset on; nobody has written to it.
    File = 5,
    /// The same, shared with all who have it mapped; can only be read.
    SharedFile = 6,
    /// The kernel's own (vDSO and what it reads), which every process has somewhere.
    Kernel = 7,
}

impl Kind {
    fn of(word: u64) -> Option<Self> {
        let all = [
            Self::Content,
            Self::Empty,
            Self::EmptyUnreserved,
            Self::EmptyAfterFork,
            Self::File,
            Self::SharedFile,
            Self::Kernel,
        ];
        all.into_iter().find(|kind| *kind as u64 == word)
    }
}

/// A stretch of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// `PROT_*`.
    pub(crate) protection: i32,
    pub(crate) kind: Kind,
    /// Where it begins in its file.
    pub(crate) offset: u64,
    /// Where its path begins among the paths.
    pub(crate) name: usize,
    /// Which file it was: a number made of what `stat` says.
    pub(crate) identity: u64,
}

impl Region {
    pub(crate) fn words(&self) -> [u64; REGION_WORDS] {
        [
            self.start as u64,
            self.end as u64,
            self.protection as u64,
            self.kind as u64,
            self.offset,
            self.name as u64,
            self.identity,
            0,
        ]
    }

    fn of(words: &[u64]) -> Option<Self> {
        let &[start, end, protection, kind, offset, name, identity, _] = words else { return None };
        let region = Self {
            start: start as usize,
            end: end as usize,
            protection: (protection & 7) as i32,
            kind: Kind::of(kind)?,
            offset,
            name: name as usize,
            identity,
        };
        (start < end && start % 4096 == 0 && end % 4096 == 0 && offset % 4096 == 0).then_some(region)
    }
}

/// A file's description, read.
#[derive(Debug)]
pub(crate) struct Table {
    words: Vec<u64>,
    pub(crate) regions: Vec<Region>,
    names: Vec<u8>,
}

impl Table {
    /// Reads it by `read`, which fills a buffer from an offset on. `None`: this is no such file.
    pub(crate) fn read(read: impl Fn(&mut [u8], u64) -> bool) -> Option<Self> {
        let words_of = |bytes: &[u8]| -> Vec<u64> {
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight"))).collect()
        };
        let mut head = vec![0; REGIONS_AT * 8];
        if !read(&mut head, 0) {
            return None;
        }
        let words = words_of(&head);
        let (count, names_len) = (words[at::REGIONS] as usize, words[at::NAMES_LEN] as usize);
        if words[at::MAGIC] != MAGIC || count > REGIONS_MAX || names_len > NAMES_MAX {
            return None;
        }
        let mut rest = vec![0; count * REGION_WORDS * 8];
        let mut names = vec![0; names_len];
        let names_at = ((REGIONS_AT + count * REGION_WORDS) * 8) as u64;
        if !read(&mut rest, (REGIONS_AT * 8) as u64) || !read(&mut names, names_at) {
            return None;
        }
        let regions: Option<Vec<Region>> =
            words_of(&rest).chunks_exact(REGION_WORDS).map(Region::of).collect();
        let regions = regions?;
        regions.is_sorted_by(|a, b| a.end <= b.start).then_some(Self { words, regions, names })
    }

    /// A word of the header.
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.words[at]
    }

    /// What a signal does: handler, flags, restorer, mask.
    pub(crate) fn signal(&self, number: usize) -> [u64; 4] {
        let at = HEADER + (number - 1) * 4;
        [self.words[at], self.words[at + 1], self.words[at + 2], self.words[at + 3]]
    }

    /// The path, or the kernel's name, of a region.
    pub(crate) fn name(&self, region: &Region) -> Option<&std::ffi::CStr> {
        std::ffi::CStr::from_bytes_until_nul(self.names.get(region.name..)?).ok()
    }
}

/// Tells a file from another that lies at the same path later: a hash (FNV-1a) of device, number, size and time.
pub(crate) fn identity(parts: [u64; 4]) -> u64 {
    parts.iter().flat_map(|part| part.to_ne_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(regions: &[Region], names: &[u8]) -> Vec<u8> {
        let mut words = vec![0; REGIONS_AT];
        words[at::MAGIC] = MAGIC;
        words[at::REGIONS] = regions.len() as u64;
        words[at::NAMES_LEN] = names.len() as u64;
        words.extend(regions.iter().flat_map(Region::words));
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(names);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Table> {
        Table::read(|buffer, offset| {
            let Some(part) = bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len())) else {
                return false;
            };
            buffer.copy_from_slice(part);
            true
        })
    }

    fn region(start: usize, end: usize, name: usize) -> Region {
        Region { start, end, protection: 3, kind: Kind::File, offset: 4096, name, identity: 7 }
    }

    #[test]
    fn what_is_written_is_read() {
        let regions = [region(0x1000, 0x3000, 0), region(0x3000, 0x4000, 5)];
        let bytes = file(&regions, b"/lib\0/usr/x\0");
        let table = read(&bytes).expect("a table");
        assert_eq!(table.regions, regions);
        assert_eq!(table.name(&regions[1]), Some(c"/usr/x"));
        assert_eq!(table.name(&region(0, 1, 99)), None);
    }

    #[test]
    fn nonsense_is_no_table() {
        let good = file(&[region(0x1000, 0x2000, 0)], b"/x\0");
        assert!(read(&good).is_some());
        for len in 0..good.len() {
            assert!(read(&good[..len]).is_none(), "cut at {len}");
        }
        for bad in [
            file(&[region(0x2000, 0x1000, 0)], b""),
            file(&[region(0x1001, 0x2000, 0)], b""),
            file(&[region(0x1000, 0x3000, 0), region(0x2000, 0x4000, 0)], b""),
            vec![0; 1 << 16],
            vec![0xff; 1 << 16],
        ] {
            assert!(read(&bad).is_none());
        }
    }

    #[test]
    fn other_files_have_other_identities() {
        assert_ne!(identity([1, 2, 3, 4]), identity([1, 2, 3, 5]));
        assert_ne!(identity([1, 2, 3, 4]), identity([2, 1, 3, 4]));
    }
}
