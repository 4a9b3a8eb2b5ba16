//! The release page: how the hub tells a segment's owner which blocks it is done with.
//!
//! An instance's answer lies in its outbox until the hub has sent it to the client. Then the hub posts the
//! block's offset here, and the instance frees the block before it allocates the next one.
//!
//! ```text
//! 0       4                64        68
//! ├ posted ┼ zero ─────────┼ offset ┼ offset ┼ … 512 of them ┤      one page, written by the hub
//! ```
//!
//! `posted` counts posts, modulo 2^32; post number n is in entry n modulo 512. The reader's index is in the
//! reader's private memory: the hub never needs it, because an owner has at most [`OUTSTANDING_MAX`] blocks
//! out at once, so there are never more unread posts than entries. An owner that breaks this rule loses
//! its own posts and runs out of its own memory; nobody else notices.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use parking_lot::Mutex;

use crate::segment::{Reader, SegmentError, Writer, create, page_len};

/// Blocks that an owner may have handed out and not got back, at most.
pub const OUTSTANDING_MAX: u32 = 256;

const ENTRIES: u32 = 512;
const ENTRIES_AT: u64 = 64;
const POSTED_AT: u64 = 0;
const _: () = assert!(ENTRIES >= OUTSTANDING_MAX && ENTRIES_AT + ENTRIES as u64 * 4 <= 4096);

fn entry_at(post: u32) -> u64 {
    ENTRIES_AT + u64::from(post % ENTRIES) * 4
}

/// The hub's side. Any thread may post.
#[derive(Debug)]
pub struct ReleaseWriter {
    page: Arc<Writer>,
    /// `None`: nothing is ever posted.
    posted: Option<Mutex<u32>>,
}

impl ReleaseWriter {
    /// Makes a new page; `label` is for people.
    pub fn create(label: &str) -> Result<Self, SegmentError> {
        let page = Writer::map(create(label, page_len())?, page_len())?;
        Ok(Self { page: Arc::new(page), posted: Some(Mutex::new(0)) })
    }

    /// A page on which nothing is ever posted: for owners who answer once, and so never want a block back. As it stays
    /// as it is, all zero, any number of them can have the same one (see [`Self::share`]).
    pub fn silent(label: &str) -> Result<Self, SegmentError> {
        let page = Writer::map(create(label, page_len())?, page_len())?;
        Ok(Self { page: Arc::new(page), posted: None })
    }

    /// Another handle on a silent page; `None` if something may be posted on it.
    pub fn share(&self) -> Option<Self> {
        self.posted.is_none().then(|| Self { page: Arc::clone(&self.page), posted: None })
    }

    /// The page, to be handed to the reader.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.page.fd()
    }

    /// Gives the block at `offset` back to its owner.
    pub fn post(&self, offset: u32) {
        let Some(posted) = &self.posted else { return };
        let mut posted = posted.lock();
        let mapping = self.page.mapping();
        mapping.atomic_u32(entry_at(*posted)).store(offset, Ordering::Relaxed);
        *posted = posted.wrapping_add(1);
        // SYNC(released): pairs with the fence in `ReleaseReader::drain`; the entry, and the end of all
        // reads of the block, are visible before the count.
        mapping.atomic_u32(POSTED_AT).store(*posted, Ordering::Release);
    }
}

/// The owner's side.
#[derive(Debug)]
pub struct ReleaseReader {
    page: Reader,
    read: u32,
}

impl ReleaseReader {
    /// Maps the page that the hub made.
    pub fn map(fd: impl AsFd) -> Result<Self, SegmentError> {
        Ok(Self { page: Reader::map(fd, page_len())?, read: 0 })
    }

    /// Calls `freed` with the offset of every block posted since the last call; returns how many.
    pub fn drain(&mut self, mut freed: impl FnMut(u32)) -> u32 {
        let mapping = self.page.mapping();
        // SYNC(released): a relaxed load and a fence, because the mapping is read-only.
        let posted = mapping.atomic_u32(POSTED_AT).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let count = posted.wrapping_sub(self.read).min(ENTRIES);
        for back in (1..=count).rev() {
            freed(mapping.atomic_u32(entry_at(posted.wrapping_sub(back))).load(Ordering::Relaxed));
        }
        self.read = posted;
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn every_post_is_read_once_in_order() {
        let writer = ReleaseWriter::create("spry-test").unwrap();
        let mut reader = ReleaseReader::map(writer.fd()).unwrap();
        let mut next = 0;
        for burst in (0..200).chain([OUTSTANDING_MAX; 4]) {
            let burst = burst % (OUTSTANDING_MAX + 1);
            let first = next;
            for _ in 0..burst {
                writer.post(next);
                next += 1;
            }
            let mut got = Vec::new();
            assert_eq!(reader.drain(|offset| got.push(offset)), burst);
            assert_eq!(got, (first..next).collect::<Vec<_>>());
        }
        assert_eq!(reader.drain(|_| panic!("nothing was posted")), 0);
    }

    #[test]
    fn the_count_may_wrap() {
        let writer = ReleaseWriter::create("spry-test").unwrap();
        let mut reader = ReleaseReader::map(writer.fd()).unwrap();
        *writer.posted.as_ref().expect("not silent").lock() = u32::MAX - 1;
        reader.read = u32::MAX - 1;
        (0..5).for_each(|offset| writer.post(offset * 64));
        let mut got = Vec::new();
        reader.drain(|offset| got.push(offset));
        assert_eq!(got, [0, 64, 128, 192, 256]);
    }

    #[test]
    fn a_silent_page_is_shared_and_stays_silent() {
        let writer = ReleaseWriter::silent("spry-test").unwrap();
        let other = writer.share().expect("silent");
        let mut reader = ReleaseReader::map(other.fd()).unwrap();
        writer.post(64);
        other.post(128);
        assert_eq!(reader.drain(|_| panic!("nothing is posted")), 0);
        assert!(ReleaseWriter::create("spry-test").unwrap().share().is_none());
    }

    #[test]
    fn threads_post_at_once() {
        let writer = Arc::new(ReleaseWriter::create("spry-test").unwrap());
        let mut reader = ReleaseReader::map(writer.fd()).unwrap();
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                let writer = Arc::clone(&writer);
                std::thread::spawn(move || (0..60).for_each(|n| writer.post(thread * 60 + n)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut got = Vec::new();
        reader.drain(|offset| got.push(offset));
        got.sort_unstable();
        assert_eq!(got, (0..240).collect::<Vec<_>>());
    }
}
