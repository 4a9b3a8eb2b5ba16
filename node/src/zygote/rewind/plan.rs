//! The plan of one instance: what its stub puts back. Made from what the instance is when it asks to be held, by looking from
//! outside; what the instance says of itself is where its registers are, and those are its own affair.
//!
//! Three kinds of memory, by page:
//! - what a private mapping shares with the file below it (or with nothing, if it has none): **dropped**, so that it is so
//!   again. After most requests there is nothing to drop, since they write to the same pages as the one before, which are of
//!   the next kind; spryd looks each time ([`Plan::look`]);
//! - what differs from that, because the zygote or the instance has written to it: **copied back**, where it lies, from the plan or
//!   from what it has in common with others ([`Common`]). These pages are not dropped, since most are written to by every request, and a copy costs a fifth of a fault;
//! - the outbox: zeroed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use spry_wire::rewind::{
    COMMON_AT, COMMON_MAX, EXTENDED_MAX, Head, LISTS_AT, List, ORDERS_AT, ORDERS_LEN, OUTBOX_ZEROED,
    PLAIN_FLAGS, PLAN_AT, PLAN_MAX, Registers,
};

use super::common::{Common, Commons};
use super::copies::{Copies, Copy, Source};
use super::listener::Written;
use super::mappings::{self, Mapping};
use super::pages::{self, OWN_MAX, PAGE, Seen, Watch};
use crate::sys::rewind as sys;

/// Private pages that are known to differ: more would make every rewinding longer than a fork.
pub(super) const COPIES_MAX: usize = 4096;

/// Why an instance can't be rewound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("{what}: {source}")]
    Os { what: &'static str, source: io::Error },
    #[error("memory at {0:x?} is shared, and it could leave something there for its next request")]
    Shared(Range<u64>),
    #[error("its outbox isn't mapped once, as a whole")]
    Outbox,
    #[error(
        "it has {pages} pages of its own, and copying more than {COPIES_MAX} back takes longer than a fork"
    )]
    Copies { pages: usize },
    #[error("it has more than {OWN_MAX} pages of its own, and looking at each takes longer than a fork")]
    Own,
    #[error("its plan is too long")]
    Long,
    #[error("its registers lie nowhere")]
    Registers,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) pid: i32,
    /// Where it says that its registers are.
    pub(crate) registers: u64,
    /// Its outbox's inode.
    pub(crate) outbox: u64,
}

/// A plan, and what it is about.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) file: OwnedFd,
    pub(in crate::zygote) common: Arc<Common>,
    known: Vec<Mapping>,
    watch: Watch,
    len: u64,
    /// How much was known of what requests write to ([`Written::generation`]).
    pub(super) generation: u32,
}

fn os(what: &'static str) -> impl FnOnce(io::Error) -> PlanError {
    move |source| PlanError::Os { what, source }
}

impl Plan {
    /// Looks at the instance, which waits. `written`: pages that requests are known to write to, which are copied back as
    /// well.
    pub(in crate::zygote) fn make(
        subject: Subject,
        written: &Written,
        commons: &Commons,
    ) -> Result<Self, PlanError> {
        let Subject { pid, .. } = subject;
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).map_err(os("read its mappings"))?;
        let mut known = mappings::parse(&text);
        // A mapping of their own, which goes.
        known.retain(|mapping| !mapping.range.contains(&subject.registers));
        let outbox = outbox(&known, subject.outbox)?;
        let is_shared =
            |mapping: &&Mapping| mapping.rights.shared && mapping.rights.write && mapping.range != outbox;
        if let Some(shared) = known.iter().find(is_shared) {
            return Err(PlanError::Shared(shared.range.clone()));
        }
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(os("open its page map"))?;
        let own = pages::own(&pagemap, &known).map_err(os("read its page map"))?;
        let mut own = pages::differing(pid, &known, own.ok_or(PlanError::Own)?);
        let registers = Said::read(subject)?;
        let dead = dead_stack(&known, registers.word(STACK));
        own.retain(|page| !dead.contains(page));
        own.extend(written.pages.iter().copied().filter(|page| may_differ(&known, *page)));
        own.sort_unstable();
        own.dedup();
        if own.len() > COPIES_MAX {
            return Err(PlanError::Copies { pages: own.len() });
        }
        let common = commons.of(written.generation, pid, &own).map_err(os("copy its memory"))?;
        let drops = between(&known, &runs(&own));
        let copies = Copies::find(pid, &own, &common).map_err(os("read its memory"))?;
        let (file, len) = lay_out(&known, &registers, outbox.start, &drops, copies, common.len)?;
        // What is mapped once it has gone to the stub.
        let own = [ORDERS_LEN, len, common.len].map(|len| len.next_multiple_of(PAGE));
        let mapped = known.iter().map(Mapping::len).chain(own).sum();
        let watch = Watch::new(pid, pagemap, &known, &drops, mapped);
        let watch = watch.map_err(os("open its counts of page faults"))?;
        Ok(Self { file, common, known, watch, len, generation: written.generation })
    }

    /// What the instance, which waits, has changed that isn't copied back in any case. `written`: spryd has written to its
    /// memory, maybe.
    pub(super) fn look(&self, written: bool) -> Seen {
        self.watch.look(written)
    }

    /// Whether the instance is what the plan says, and stays so: asked when it first waits in the stub.
    pub(crate) fn check(&self, pid: i32, stub: u64, orders: u64) -> Result<(), String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"));
        let now = mappings::parse(&text.map_err(|error| format!("read its mappings: {error}"))?);
        mappings::check(&self.known, &now)?;
        let inode = |file: BorrowedFd<'_>| super::inode(file).map_err(|errno| errno.to_string());
        let (plan, common) = (inode(self.file.as_fd())?, inode(self.common.file.as_fd())?);
        let mapped = |start: u64, len: u64, inode: u64, execute: bool| {
            now.iter().any(|mapping| {
                let rights = mapping.rights;
                mapping.range == (start..start + len.next_multiple_of(PAGE))
                    && (mapping.inode, mapping.offset, mapping.sealed) == (inode, 0, true)
                    && (rights.shared, rights.write, rights.execute) == (true, false, execute)
            })
        };
        if !mapped(PLAN_AT, self.len, plan, false) {
            return Err("its plan isn't where it should be".to_owned());
        }
        if !mapped(COMMON_AT, self.common.len, common, false) {
            return Err("what it has in common with others isn't where it should be".to_owned());
        }
        if !mapped(spry_wire::rewind::STUB_AT, spry_wire::rewind::STUB_LEN, stub, true) {
            return Err("the stub isn't where it should be".to_owned());
        }
        if !mapped(ORDERS_AT, ORDERS_LEN, orders, false) {
            return Err("spryd's orders aren't where they should be".to_owned());
        }
        Ok(())
    }
}

/// The plan's file, and how long it is.
fn lay_out(
    known: &[Mapping],
    registers: &Said,
    outbox: u64,
    drops: &[[u64; 2]],
    copies: Copies,
    common_len: u64,
) -> Result<(OwnedFd, u64), PlanError> {
    let mut bytes = vec![0; LISTS_AT as usize];
    let len_of = |[start, end]: &[u64; 2]| [*start, end - start];
    let seals = list(&mut bytes, joined(known).iter().map(len_of));
    let drops = list(&mut bytes, drops.iter().map(len_of));
    // The plan's own place comes to be known, and the others that are mapped when this one is.
    let mut all = known.to_vec();
    let copies_at = PLAN_AT + bytes.len() as u64;
    // Three more gaps than now, since each splits one.
    let end = sys::user_space_end().map_err(os("find out where userspace ends"))?;
    let gap_count = mappings::gaps(&all, end).len() + 3;
    let lists_end = copies_at + 24 * copies.runs.len() as u64 + 16 * gap_count as u64;
    let bytes_at = lists_end.next_multiple_of(PAGE);
    let len = bytes_at - PLAN_AT + copies.own.len() as u64;
    if len > PLAN_MAX || common_len > COMMON_MAX {
        return Err(PlanError::Long);
    }
    let copied = list(
        &mut bytes,
        copies.runs.iter().map(|Copy { to, len, from }| match from {
            Source::Common(at) => [*to, len / 8, COMMON_AT + at],
            Source::Own(at) => [*to, len / 8, bytes_at + at],
        }),
    );
    let place = |at: u64, len: u64| at..at + len.next_multiple_of(PAGE);
    for place in [place(ORDERS_AT, ORDERS_LEN), place(PLAN_AT, len), place(COMMON_AT, common_len)] {
        let at = all.partition_point(|mapping| mapping.range.start < place.start);
        let own = Mapping { range: place, ..all.first().cloned().ok_or(PlanError::Registers)? };
        all.insert(at, own);
    }
    let gaps = mappings::gaps(&all, end);
    debug_assert!(gaps.len() <= gap_count);
    let gaps = list(&mut bytes, gaps.iter().map(|gap| [gap.start, gap.end - gap.start]));
    let head = Head {
        all_signals: u64::MAX,
        mask: registers.word(MASK),
        no_time: [0; 2],
        brk: registers.word(BRK),
        outbox,
        bases: [registers.word(BASES), registers.word(BASES + 8)],
        gaps,
        drops,
        copies: copied,
        flags: PLAIN_FLAGS,
        stack: registers.word(STACK),
        goes_on: registers.word(GOES_ON),
        kept: std::array::from_fn(|index| registers.word(KEPT + 8 * index)),
        sets_bases: u64::from(sys::sets_bases()),
        seals,
    };
    bytes[..size_of::<Head>()].copy_from_slice(&words(&head));
    let extended = spry_wire::rewind::EXTENDED_AT as usize;
    bytes[extended..extended + EXTENDED_MAX as usize].copy_from_slice(&registers.0[..EXTENDED_MAX as usize]);
    bytes.resize((bytes_at - PLAN_AT) as usize, 0);
    bytes.extend(copies.own);
    let file = sys::sealed_file(c"spry-plan", &[&bytes], false).map_err(os("make its plan"))?;
    Ok((file, len))
}

/// Appends a list.
fn list<const WORDS: usize>(bytes: &mut Vec<u8>, entries: impl Iterator<Item = [u64; WORDS]>) -> List {
    let before = bytes.len();
    bytes.extend(entries.flatten().flat_map(u64::to_le_bytes));
    List { at: PLAN_AT + before as u64, count: (bytes.len() - before) as u64 / (8 * WORDS as u64) }
}

/// Where the outbox is mapped.
fn outbox(known: &[Mapping], inode: u64) -> Result<Range<u64>, PlanError> {
    let mut found = known.iter().filter(|mapping| mapping.inode == inode && mapping.rights.shared);
    let (Some(one), None) = (found.next(), found.next()) else { return Err(PlanError::Outbox) };
    if one.offset != 0 || !one.rights.write || one.len() < OUTBOX_ZEROED {
        return Err(PlanError::Outbox);
    }
    Ok(one.range.clone())
}

/// The pages below the end of the stack: what lies there is of no use to anybody, whatever has been called so far, and zeros are as
/// good.
fn dead_stack(known: &[Mapping], end: u64) -> Range<u64> {
    /// What a function may use below the end.
    const RED_ZONE: u64 = 128;
    let stack = known.iter().find(|mapping| mapping.range.contains(&end));
    stack.map_or(0..0, |stack| stack.range.start..end.saturating_sub(RED_ZONE) / PAGE * PAGE)
}

/// Whether a page is of a private mapping that can be written to.
fn may_differ(known: &[Mapping], page: u64) -> bool {
    pages::changeable(known).any(|mapping| mapping.range.contains(&page))
}

/// Start and end of each run of pages.
fn runs(pages: &[u64]) -> Vec<[u64; 2]> {
    let mut runs: Vec<[u64; 2]> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last[1] == *page => last[1] += PAGE,
            _ => runs.push([*page, page + PAGE]),
        }
    }
    runs
}

/// Neighbours together.
fn joined(known: &[Mapping]) -> Vec<[u64; 2]> {
    let mut all: Vec<[u64; 2]> = Vec::new();
    for Mapping { range, .. } in known {
        match all.last_mut() {
            Some(last) if last[1] == range.start => last[1] = range.end,
            _ => all.push([range.start, range.end]),
        }
    }
    all
}

/// What of the private writable mappings isn't copied back.
fn between(known: &[Mapping], copies: &[[u64; 2]]) -> Vec<[u64; 2]> {
    let mut drops: Vec<[u64; 2]> = Vec::new();
    let mut put = |start: u64, end: u64| match drops.last_mut() {
        _ if start == end => {}
        // The kernel goes over the border of two mappings by itself.
        Some(last) if last[1] == start => last[1] = end,
        _ => drops.push([start, end]),
    };
    for Mapping { range, .. } in pages::changeable(known) {
        let mut at = range.start;
        // A run may go over the border of two mappings.
        let within = copies.iter().filter(|[start, end]| *start < range.end && range.start < *end);
        for [start, end] in within {
            put(at, (*start).max(at));
            at = (*end).min(range.end);
        }
        put(at, range.end);
    }
    drops
}

const KEPT: usize = std::mem::offset_of!(Registers, kept);
const STACK: usize = std::mem::offset_of!(Registers, stack);
const GOES_ON: usize = std::mem::offset_of!(Registers, goes_on);
const BASES: usize = std::mem::offset_of!(Registers, bases);
const MASK: usize = std::mem::offset_of!(Registers, mask);
const BRK: usize = std::mem::offset_of!(Registers, brk);

/// The bytes of an instance's [`Registers`].
struct Said(Vec<u8>);

impl Said {
    fn read(Subject { pid, registers, .. }: Subject) -> Result<Self, PlanError> {
        let mut bytes = vec![0; size_of::<Registers>()];
        sys::read_memory(pid, registers, &mut bytes).map_err(|_| PlanError::Registers)?;
        Ok(Self(bytes))
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// The head as it lies in memory.
fn words(head: &Head) -> Vec<u8> {
    let list = |list: &List| [list.at, list.count];
    let mut all = vec![head.all_signals, head.mask];
    all.extend(head.no_time);
    all.extend([head.brk, head.outbox]);
    all.extend(head.bases);
    for each in [&head.gaps, &head.drops, &head.copies] {
        all.extend(list(each));
    }
    all.extend([head.flags, head.stack, head.goes_on]);
    all.extend(head.kept);
    all.push(head.sets_bases);
    all.extend(list(&head.seals));
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const _: () = assert!(size_of::<Head>() == 8 * (2 + 2 + 2 + 2 + 6 + 3 + 6 + 1 + 2));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zygote::rewind::mappings::Rights;

    fn mapping(start: u64, end: u64) -> Mapping {
        let rights = Rights { read: true, write: true, execute: false, shared: false };
        let device = "00:00".into();
        Mapping { range: start..end, rights, offset: 0, device, inode: 0, sealed: false, stays_small: false }
    }

    #[test]
    fn every_page_is_either_copied_or_dropped() {
        let known = [mapping(0x1000, 0x9000), mapping(0x9000, 0xb000), mapping(0x20_000, 0x21_000)];
        let copies = runs(&[0x2000, 0x3000, 0x8000, 0x9000, 0x20_000]);
        assert_eq!(copies, [[0x2000, 0x4000], [0x8000, 0xa000], [0x20_000, 0x21_000]]);
        let drops = between(&known, &copies);
        for page in (0..0x30_000).step_by(PAGE as usize) {
            let within = |ranges: &[[u64; 2]]| {
                ranges.iter().filter(|[start, end]| (*start..*end).contains(&page)).count()
            };
            let there = known.iter().any(|mapping| mapping.range.contains(&page));
            assert_eq!(within(&drops) + within(&copies), usize::from(there), "{page:x}");
        }
    }

    #[test]
    fn the_page_that_the_stack_ends_in_is_in_use() {
        let known = [mapping(0x1000, 0x9000), mapping(0x20_000, 0x30_000)];
        assert_eq!(dead_stack(&known, 0x28_080), 0x20_000..0x28_000);
        assert_eq!(dead_stack(&known, 0x28_07f), 0x20_000..0x27_000, "a part of it is in the page before");
        assert!(dead_stack(&known, 0x20_010).is_empty());
        assert!(dead_stack(&known, 0xa000).is_empty(), "no stack");
    }

    #[test]
    fn a_head_lies_as_the_stub_reads_it() {
        let list = |at| List { at, count: at + 1 };
        let kept = [40; 6];
        let head =
            Head { gaps: list(10), copies: list(20), kept, goes_on: 50, sets_bases: 60, ..Head::default() };
        let bytes = words(&head);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        use spry_wire::rewind::at;
        assert_eq!([word(at::GAPS), word(at::GAPS + 8), word(at::COPIES)], [10, 11, 20]);
        assert_eq!([word(at::KEPT), word(at::KEPT + 40), word(at::GOES_ON)], [40, 40, 50]);
        assert_eq!(word(at::SETS_BASES), 60);
    }
}
