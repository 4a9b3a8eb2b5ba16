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

/// The ranges between `start` and `end` whose pages are there and are no file's, in order. `None`: there are more than
/// `room` holds.
pub fn own_ranges<'r>(
    pagemap: BorrowedFd<'_>,
    [start, end]: [u64; 2],
    room: &'r mut [Region],
) -> Result<Option<&'r [Region]>, Errno> {
    let mut arguments = Arguments {
        size: size_of::<Arguments>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        regions: room.as_mut_ptr() as u64,
        regions_len: room.len() as u64,
        pages_max: 0,
        inverted: FILE,
        all_of: FILE,
        any_of: PRESENT | SWAPPED,
        told: PRESENT,
    };
    // SAFETY: the kernel writes to the struct and to at most that many regions, which are plain data.
    let found = Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), SCAN, &raw mut arguments) })?;
    Ok((arguments.walk_end >= end).then(|| &room[..(found as usize).min(room.len())]))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_written_to_is_found_and_what_was_read_is_not() {
        const PAGE: usize = 4096;
        let file = super::super::rewind::sealed_file(c"spry-test", &[&[7; 8 * PAGE]], false).expect("a file");
        // SAFETY: a new mapping of eight pages.
        let mapped = unsafe {
            let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            libc::mmap(std::ptr::null_mut(), 8 * PAGE, rights, flags, file.as_raw_fd(), 0)
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        // SAFETY: within the mapping, which nobody else has.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mapped.cast::<u8>(), 8 * PAGE) };
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(sum, 7 * 8 * PAGE as u64);
        for page in [1, 2, 5] {
            bytes[page * PAGE] = 8;
        }
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("the page map");
        let start = mapped as u64;
        let whole = [start, start + 8 * PAGE as u64];
        let mut room = [[0; 3]; 8];
        let found = own_ranges(pagemap.as_fd(), whole, &mut room);
        // Before Linux 6.7 there is nothing to ask, and nothing is rewound.
        if found != Err(Errno::ENOTTY) {
            let at = |page: u64| start + page * PAGE as u64;
            let ranges: Vec<_> =
                found.expect("asked").expect("room").iter().map(|[a, b, _]| [*a, *b]).collect();
            assert_eq!(ranges, [[at(1), at(3)], [at(5), at(6)]]);
            assert_eq!(own_ranges(pagemap.as_fd(), whole, &mut [[0; 3]; 1]), Ok(None), "no room for two");
        }
        // SAFETY: mapped above; nothing refers to it any more.
        unsafe { libc::munmap(mapped, 8 * PAGE) };
    }
}
