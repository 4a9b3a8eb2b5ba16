//! Pages that the plans of one zygote's instances have in common.
//!
//! Instances of one zygote differ from what is frozen by nearly the same bytes on the same pages. So these lie in one more sealed
//! file, which all of them map, and a plan has only those pages that differ from it. That isn't for the memory alone: where
//! several instances take turns, what is copied from stays in the processor's cache.
//!
//! The pages are those of the first instance whose plan is made with what is known by then ([`Written`](super::listener::Written)),
//! as it was before its first request. Nobody takes a page from here that isn't, byte for byte, his own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::pages::PAGE;
use crate::sys::rewind as sys;

/// One such file.
#[derive(Debug)]
pub(in crate::zygote) struct Common {
    pub(in crate::zygote) file: OwnedFd,
    pub(super) len: u64,
    /// Which page lies where in it.
    pages: BTreeMap<u64, u64>,
    generation: u32,
}

impl Common {
    /// Copies an instance's pages.
    fn make(pid: i32, pages: &[u64], generation: u32) -> io::Result<Self> {
        let len = (pages.len() as u64 * PAGE).max(PAGE);
        let mut bytes = vec![0; len as usize];
        for (page, room) in pages.iter().zip(bytes.chunks_exact_mut(PAGE as usize)) {
            sys::read_memory(pid, *page, room)?;
        }
        let file = sys::sealed_file(c"spry-plan-pages", &[&bytes], false)?;
        let pages = pages.iter().copied().zip((0..).step_by(PAGE as usize)).collect();
        Ok(Self { file, len, pages, generation })
    }

    /// Where this page lies in it, if it has these bytes.
    pub(super) fn find(&self, page: u64, bytes: &[u8; PAGE as usize]) -> io::Result<Option<u64>> {
        let Some(at) = self.pages.get(&page) else { return Ok(None) };
        let mut there = [0; PAGE as usize];
        sys::read_file(&self.file, *at, &mut there)?;
        Ok((there == *bytes).then_some(*at))
    }
}

/// The file that plans are made with now, of one zygote.
#[derive(Debug, Default)]
pub(in crate::zygote) struct Commons(Mutex<Option<Arc<Common>>>);

impl Commons {
    /// The file of this generation; if there is none yet, it is made of these pages of an instance.
    pub(super) fn of(&self, generation: u32, pid: i32, pages: &[u64]) -> io::Result<Arc<Common>> {
        let mut now = self.0.lock();
        if let Some(common) = now.as_ref().filter(|common| common.generation >= generation) {
            return Ok(Arc::clone(common));
        }
        let made = Arc::new(Common::make(pid, pages, generation)?);
        *now = Some(Arc::clone(&made));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Page([u8; PAGE as usize]);

    #[test]
    fn a_page_is_taken_only_if_it_is_the_same() {
        let pages = [Page([1; PAGE as usize]), Page([2; PAGE as usize])];
        let at = pages.each_ref().map(|page| page.0.as_ptr() as u64);
        let commons = Commons::default();
        let pid = std::process::id() as i32;
        let common = commons.of(1, pid, &at).expect("made of its own memory");
        assert_eq!(common.find(at[1], &pages[1].0).expect("read"), Some(PAGE));
        assert_eq!(common.find(at[1], &pages[0].0).expect("read"), None, "other bytes");
        assert_eq!(common.find(at[1] + PAGE, &pages[1].0).expect("read"), None, "another page");
        let same = commons.of(1, pid, &at[..1]).expect("there");
        assert!(Arc::ptr_eq(&common, &same));
        let newer = commons.of(2, pid, &at[..1]).expect("made");
        assert_eq!((newer.len, common.len), (PAGE, 2 * PAGE));
        assert!(Arc::ptr_eq(&newer, &commons.of(1, pid, &at).expect("there")), "not an older one again");
    }
}
