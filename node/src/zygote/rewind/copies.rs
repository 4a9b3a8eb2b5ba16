//! Which pages of an instance are copied back after each request, and where from.

use std::io;

use super::common::Common;
use super::pages::PAGE;
use crate::sys::rewind as sys;

/// Pages that are copied back, in order.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pub(super) runs: Vec<Copy>,
    /// The bytes that the plan itself has.
    pub(super) own: Vec<u8>,
}

/// Some pages in a row that come from a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) to: u64,
    pub(super) len: u64,
    pub(super) from: Source,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// There in what is common.
    Common(u64),
    /// There in [`Copies::own`].
    Own(u64),
}

impl Copies {
    /// Finds out for each page of the instance where its bytes are to come from.
    pub(super) fn find(pid: i32, pages: &[u64], common: &Common) -> io::Result<Self> {
        let mut found = Self::default();
        let mut bytes = [0; PAGE as usize];
        for page in pages {
            sys::read_memory(pid, *page, &mut bytes)?;
            let there = common.find(*page, &bytes)?;
            found.put(*page, there, &bytes);
        }
        Ok(found)
    }

    fn put(&mut self, page: u64, common: Option<u64>, bytes: &[u8; PAGE as usize]) {
        let from = match common {
            Some(at) => Source::Common(at),
            None => {
                self.own.extend_from_slice(bytes);
                Source::Own(self.own.len() as u64 - PAGE)
            }
        };
        match self.runs.last_mut() {
            Some(last) if last.is_followed_by(page, &from) => last.len += PAGE,
            _ => self.runs.push(Copy { to: page, len: PAGE, from }),
        }
    }
}

impl Copy {
    fn is_followed_by(&self, page: u64, from: &Source) -> bool {
        let next = match self.from {
            Source::Common(at) => Source::Common(at + self.len),
            Source::Own(at) => Source::Own(at + self.len),
        };
        self.to + self.len == page && next == *from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_copy_if_their_bytes_are() {
        let mut copies = Copies::default();
        let put = |copies: &mut Copies, page: u64, common: Option<u64>, byte: u8| {
            copies.put(page * PAGE, common.map(|at| at * PAGE), &[byte; PAGE as usize]);
        };
        put(&mut copies, 1, Some(0), 1);
        put(&mut copies, 2, Some(1), 2);
        put(&mut copies, 3, None, 3);
        put(&mut copies, 4, None, 4);
        put(&mut copies, 5, Some(4), 5);
        put(&mut copies, 7, Some(5), 7); // not in a row there
        put(&mut copies, 8, Some(7), 8); // nor here
        let copy = |to: u64, len: u64, from: Source| Copy { to: to * PAGE, len: len * PAGE, from };
        assert_eq!(
            copies.runs,
            [
                copy(1, 2, Source::Common(0)),
                copy(3, 2, Source::Own(0)),
                copy(5, 1, Source::Common(4 * PAGE)),
                copy(7, 1, Source::Common(5 * PAGE)),
                copy(8, 1, Source::Common(7 * PAGE)),
            ]
        );
        assert_eq!((copies.own[0], copies.own[PAGE as usize], copies.own.len() as u64), (3, 4, 2 * PAGE));
    }
}
