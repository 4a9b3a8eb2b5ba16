//! Which pages of another process are its own, asked of the kernel (`PAGEMAP_SCAN`, Linux 6.7).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
/// Categories of pages: of a file, present, in swap.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `struct page_region`: where it starts and ends, and of which of the asked categories it is.
pub type Region = [u64; 3];

/// `struct pm_scan_arg`.
#[repr(C)]
struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    pages_max: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

const _: () = assert!(size_of::<Arguments>() == 0x60);

/// The ranges between `start` and `end` whose pages are there and are no file's, in order; and where the look ended, which is before
/// `end` if there are more than `room` holds, or more than `pages_max` pages in them. Where nothing is, it passes over in no time.
pub fn own_ranges<'r>(
    pagemap: BorrowedFd<'_>,
    [start, end]: [u64; 2],
    room: &'r mut [Region],
    pages_max: u64,
) -> Result<(&'r [Region], u64), Errno> {
    let mut arguments = Arguments {
        size: size_of::<Arguments>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        regions: room.as_mut_ptr() as u64,
        regions_len: room.len() as u64,
        pages_max,
        inverted: FILE,
        all_of: FILE,
        any_of: PRESENT | SWAPPED,
        told: PRESENT,
    };
    // SAFETY: the kernel writes to the struct and to at most that many regions, which are plain data.
    let found = Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), SCAN, &raw mut arguments) })?;
    Ok((&room[..(found as usize).min(room.len())], arguments.walk_end))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    const PAGE: usize = 4096;
    const ANY: u64 = u64::MAX;

    /// A private mapping, which ends with the test.
    struct Mapped {
        at: *mut u8,
        len: usize,
    }

    impl Mapped {
        fn new(len: usize, file: Option<BorrowedFd<'_>>) -> Self {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let (more, fd) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
            let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | more;
            // SAFETY: a new mapping.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, flags, fd, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            Self { at: at.cast(), len }
        }

        fn write(&mut self, page: usize) {
            assert!(page < self.len / PAGE);
            // SAFETY: within the mapping, which nobody else has.
            unsafe { self.at.add(page * PAGE).write_volatile(8) }
        }

        fn read(&self, page: usize) -> u8 {
            assert!(page < self.len / PAGE);
            // SAFETY: as in `write`.
            unsafe { self.at.add(page * PAGE).read_volatile() }
        }

        /// The pages found and where that ended, both counted from the start; `None`: before Linux 6.7 there is nothing to
        /// ask, and nothing is rewound.
        fn own(&self, room: usize, pages_max: u64) -> Option<(Vec<[u64; 2]>, u64)> {
            let pagemap = File::open("/proc/self/pagemap").expect("the page map");
            let (start, len) = (self.at as u64, self.len as u64);
            let mut room = vec![[0; 3]; room];
            let found = own_ranges(pagemap.as_fd(), [start, start + len], &mut room, pages_max);
            if found == Err(Errno::ENOTTY) {
                return None;
            }
            let (ranges, end) = found.expect("asked");
            let page = |at: u64| (at - start) / PAGE as u64;
            Some((ranges.iter().map(|[from, to, _]| [page(*from), page(*to)]).collect(), page(end)))
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: mapped by this; nothing refers to it any more.
            unsafe { libc::munmap(self.at.cast(), self.len) };
        }
    }

    #[test]
    fn what_was_written_to_is_found_and_what_was_read_is_not() {
        let file = super::super::rewind::sealed_file(c"spry-test", &[&[7; 8 * PAGE]], false).expect("a file");
        let mut mapped = Mapped::new(8 * PAGE, Some(file.as_fd()));
        assert!((0..8).all(|page| mapped.read(page) == 7));
        [1, 2, 5].into_iter().for_each(|page| mapped.write(page));
        let Some(found) = mapped.own(8, ANY) else { return };
        assert_eq!(found, (vec![[1, 3], [5, 6]], 8));
        let (ranges, end) = mapped.own(1, ANY).expect("asked");
        assert_eq!(ranges, [[1, 3]]);
        assert!((3..=5).contains(&end), "no room for two: it goes on at {end}");
        let (ranges, end) = mapped.own(8, 1).expect("asked");
        assert_eq!((ranges, end), (vec![[1, 2]], 2), "one page and no more");
    }

    #[test]
    fn what_is_mapped_and_empty_is_passed_over() {
        const PAGES: usize = 1 << 24;
        const FAR: usize = PAGES - 1000;
        let mut mapped = Mapped::new(PAGES * PAGE, None);
        [0, FAR].into_iter().for_each(|page| mapped.write(page));
        let Some((ranges, end)) = mapped.own(4, ANY) else { return };
        assert_eq!((ranges.len(), ranges[0][0], end), (2, 0, PAGES as u64));
        // (The kernel may have made a huge page.)
        assert!(ranges[1][0] <= FAR as u64 && (FAR as u64) < ranges[1][1], "{ranges:?}");
    }
}
