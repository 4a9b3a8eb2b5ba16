//! What is written of a process, and how: what the kernel knows of it, then its mappings, one after the other.
//!
//! Works while nothing may change ([`super::take`]): it doesn't allocate, and its errors are made into words later. Which mappings
//! another process can be given is decided here; what of a mapping was written to goes into the file, and the rest is mapped again
//! from where it came.

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::RawFd;

use super::PAGEMAP_FD;
use super::smaps::{self, Mapping};
use super::table::{
    HEADER, Kind, MAGIC, NAMES_MAX, REGION_WORDS, REGIONS_AT, REGIONS_MAX, Region, SIGNALS, at, identity,
};
use crate::sys::switch::Context;
use crate::sys::{layer as kernel, memory};

const PAGE: usize = 4096;
/// Contents begin here, behind the longest description.
const CONTENT_AT: u64 =
    ((REGIONS_AT + REGIONS_MAX * REGION_WORDS) * 8 + NAMES_MAX).next_multiple_of(PAGE) as u64;
/// What was never written to is left out of a piece from so many pages on.
const GAP_PAGES: usize = 16;
/// Stack that the other side has, at least.
const STACK: usize = 8 << 20;
/// Nothing is put so near below it.
const STACK_GUARD: usize = 1 << 20;

/// Words of the scratch mapping: the description, the paths, the text of smaps, a part of the page map.
const TABLE_WORDS: usize = REGIONS_AT + REGIONS_MAX * REGION_WORDS;
const NAMES_WORDS: usize = NAMES_MAX / 8;
const TEXT_WORDS: usize = (16 << 20) / 8;
const PAGES: usize = 1 << 16;
/// All of them.
pub(super) const SCRATCH_WORDS: usize = TABLE_WORDS + NAMES_WORDS + TEXT_WORDS + PAGES;

/// Why not; without a text, since none can be made while it is found out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) what: &'static str,
    pub(super) errno: i32,
    pub(super) address: usize,
}

impl Refusal {
    pub(super) fn of(what: &'static str) -> impl Fn(i32) -> Self {
        move |errno| Self { what, errno, address: 0 }
    }
}

/// Writes to the file, and otherwise only to its scratch mapping and the stack.
pub(super) struct Writer<'s> {
    table: &'s mut [u64],
    names: &'s mut [u8],
    text: &'s mut [u8],
    pages: &'s mut [u64],
    own: usize,
    file: RawFd,
    stack: usize,
    regions: usize,
    names_len: usize,
    cursor: u64,
    bytes: u64,
}

impl<'s> Writer<'s> {
    pub(super) fn new(words: &'s mut [u64], own: usize, file: RawFd, context: Context) -> Self {
        let (table, rest) = words.split_at_mut(TABLE_WORDS);
        let (names, rest) = rest.split_at_mut(NAMES_WORDS);
        let (text, pages) = rest.split_at_mut(TEXT_WORDS);
        table[at::CONTEXT] = context.stack;
        table[at::CONTEXT + 1] = context.floating_point;
        let stack = context.stack as usize;
        let (names, text) = (memory::as_bytes(names), memory::as_bytes(text));
        Self {
            table,
            names,
            text,
            pages,
            own,
            file,
            stack,
            regions: 0,
            names_len: 0,
            cursor: CONTENT_AT,
            bytes: 0,
        }
    }

    /// All of it. Returns the bytes of contents.
    pub(super) fn write(&mut self) -> Result<u64, Refusal> {
        self.header()?;
        let len = kernel::read_whole(c"/proc/self/smaps", self.text).map_err(Refusal::of("read smaps"))?;
        // The text is only read from here on, while the rest of the writer is changed.
        let text = std::mem::take(&mut self.text);
        let text = str::from_utf8(&text[..len]).map_err(|_| Refusal::of("read smaps")(libc::EILSEQ))?;
        let mut end = 0;
        for mapping in smaps::mappings(text) {
            self.mapping(&mapping, end)?;
            end = mapping.range.end;
        }
        self.table[at::MAGIC] = MAGIC;
        self.table[at::REGIONS] = self.regions as u64;
        self.table[at::NAMES_LEN] = self.names_len as u64;
        let table_len = (REGIONS_AT + self.regions * REGION_WORDS) * 8;
        kernel::set_len(self.file, self.cursor).map_err(Refusal::of("set the file's length"))?;
        self.copy(self.table.as_ptr() as usize, table_len, 0)?;
        self.copy(self.names.as_ptr() as usize, self.names_len, table_len as u64)?;
        Ok(self.bytes)
    }

    fn header(&mut self) -> Result<(), Refusal> {
        let asked = Refusal::of("what the kernel knows of the process");
        self.table[at::FS_BASE] = kernel::thread_base().map_err(&asked)?;
        let (tid, robust) = kernel::thread_words().ok_or_else(|| asked(libc::ENOSYS))?;
        self.table[at::TID_ADDRESS] = tid;
        self.table[at::ROBUST_LIST..at::ROBUST_LIST + 2].copy_from_slice(&robust);
        let signal_stack = kernel::signal_stack().map_err(&asked)?;
        self.table[at::SIGNAL_STACK..at::SIGNAL_STACK + 3].copy_from_slice(&signal_stack);
        for number in 1..=SIGNALS {
            let place = HEADER + (number - 1) * 4;
            let action = kernel::signal_action(number).map_err(&asked)?;
            self.table[place..place + 4].copy_from_slice(&action);
        }
        let len = kernel::read_whole(c"/proc/self/stat", self.text).map_err(&asked)?;
        let text = str::from_utf8(&self.text[..len]).map_err(|_| asked(libc::EILSEQ))?;
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        // By their numbers in proc(5): the code, the data, the heap's start; its end, which /proc doesn't tell; the stack,
        // the arguments, the environment.
        let numbers = [26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51];
        for (index, number) in numbers.into_iter().enumerate() {
            let field = fields.split_ascii_whitespace().nth(usize::saturating_sub(number, 3));
            let value = match number {
                0 => Some(kernel::heap_end()),
                _ => field.and_then(|field| field.parse().ok()),
            };
            self.table[at::MEMORY_MAP + index] = value.ok_or_else(|| asked(libc::EINVAL))?;
        }
        Ok(())
    }

    /// `before` is where the mapping before it ends.
    fn mapping(&mut self, mapping: &Mapping<'_>, before: usize) -> Result<(), Refusal> {
        let range = mapping.range.clone();
        let refuse = |what| Err(Refusal { what, errno: 0, address: range.start });
        if range.start == self.own || mapping.name == "[vsyscall]" {
            return Ok(());
        }
        if matches!(mapping.name, "[vdso]" | "[vvar]" | "[vvar_vclock]") {
            return self.region(mapping, Kind::Kernel, range, 0);
        }
        // shared with a fork by wish, locked, a device's, huge pages of the administrator's, somebody's page faults,
        // memory tags, shadow stacks, sealed, droppable
        let special = ["dc", "lo", "io", "pf", "de", "mm", "ht", "um", "uw", "ui", "mt", "ss", "sl", "dp"];
        if mapping.has_flag(&special) || mapping.has_key {
            return refuse("memory of a special kind");
        }
        if mapping.swapped > 0 {
            return refuse("a part of the memory is in swap");
        }
        if range.contains(&self.stack) {
            return self.stack(mapping, before);
        }
        let of_file = mapping.inode != 0;
        if of_file
            && (!mapping.name.starts_with('/')
                || mapping.name.contains('\\')
                || mapping.name.ends_with(" (deleted)"))
        {
            return refuse("memory of a file that others can't open");
        }
        if mapping.shared {
            return match of_file && mapping.protection & libc::PROT_WRITE == 0 {
                true => self.region(mapping, Kind::SharedFile, range, mapping.offset),
                false => refuse("memory that is shared with others"),
            };
        }
        let rest = match (of_file, mapping.has_flag(&["nr"])) {
            (true, _) => Kind::File,
            (false, _) if mapping.has_flag(&["wf"]) => Kind::EmptyAfterFork,
            (false, true) => Kind::EmptyUnreserved,
            (false, false) => Kind::Empty,
        };
        if mapping.anonymous == 0 || rest == Kind::EmptyAfterFork {
            return self.region(mapping, rest, range, mapping.offset);
        }
        if mapping.protection & libc::PROT_EXEC != 0 {
            return refuse("code that was made at run time");
        }
        if mapping.protection & libc::PROT_READ == 0 {
            return refuse("memory that was written to and can't be read");
        }
        self.pieces(mapping, rest)
    }

    /// Memory that was written to here and there.
    fn pieces(&mut self, mapping: &Mapping<'_>, rest: Kind) -> Result<(), Refusal> {
        let range = mapping.range.clone();
        let of_file = rest == Kind::File;
        let place = |start: usize| if of_file { mapping.offset + (start - range.start) as u64 } else { 0 };
        // Up to where everything is told, and the piece that is being found.
        let (mut told, mut piece) = (range.start, None::<Range<usize>>);
        let mut chunk = range.start;
        while chunk < range.end {
            let count = PAGES.min((range.end - chunk) / PAGE);
            kernel::read_pagemap(PAGEMAP_FD, chunk, &mut self.pages[..count])
                .map_err(Refusal::of("read the page map"))?;
            for index in 0..count {
                if !kernel::is_own_page(self.pages[index]) {
                    continue;
                }
                let page = chunk + index * PAGE;
                match &mut piece {
                    Some(piece) if page - piece.end < GAP_PAGES * PAGE => piece.end = page + PAGE,
                    _ => {
                        if let Some(whole) = piece.replace(page..page + PAGE) {
                            self.piece(mapping, rest, &mut told, whole, &place)?;
                        }
                    }
                }
            }
            chunk += count * PAGE;
        }
        if let Some(whole) = piece {
            self.piece(mapping, rest, &mut told, whole, &place)?;
        }
        match told < range.end {
            true => self.region(mapping, rest, told..range.end, place(told)),
            false => Ok(()),
        }
    }

    fn piece(
        &mut self,
        mapping: &Mapping<'_>,
        rest: Kind,
        told: &mut usize,
        piece: Range<usize>,
        place: &impl Fn(usize) -> u64,
    ) -> Result<(), Refusal> {
        if *told < piece.start {
            self.region(mapping, rest, *told..piece.start, place(*told))?;
        }
        let cursor = self.cursor;
        self.region(mapping, Kind::Content, piece.clone(), cursor)?;
        self.copy(piece.start, piece.len(), cursor)?;
        self.cursor += piece.len() as u64;
        *told = piece.end;
        Ok(())
    }

    /// All of it, and what it may still need: holes in the file, that become memory when they are used.
    fn stack(&mut self, mapping: &Mapping<'_>, before: usize) -> Result<(), Refusal> {
        let end = mapping.range.end;
        let wanted = (end - STACK.max(mapping.range.len())).max(before + STACK_GUARD);
        let start = wanted.min(mapping.range.start);
        let used = self.stack / PAGE * PAGE;
        let cursor = self.cursor;
        self.region(mapping, Kind::Content, start..end, cursor)?;
        self.copy(used, end - used, cursor + (used - start) as u64)?;
        self.cursor += (end - start) as u64;
        Ok(())
    }

    fn copy(&mut self, start: usize, len: usize, offset: u64) -> Result<(), Refusal> {
        self.bytes += len as u64;
        // SAFETY: memory that smaps says can be read, or this writer's own; there is one thread, and it is here.
        unsafe { kernel::write_memory(self.file, start, len, offset) }.map_err(|errno| Refusal {
            what: "write to the file",
            errno,
            address: start,
        })
    }

    fn region(
        &mut self,
        mapping: &Mapping<'_>,
        kind: Kind,
        range: Range<usize>,
        offset: u64,
    ) -> Result<(), Refusal> {
        if self.regions == REGIONS_MAX {
            return Err(Refusal::of("there are too many mappings")(0));
        }
        let (name, identity) = match kind {
            Kind::File | Kind::SharedFile => self.name(mapping.name, true)?,
            Kind::Kernel => self.name(mapping.name, false)?,
            _ => (0, 0),
        };
        let region = Region {
            start: range.start,
            end: range.end,
            protection: mapping.protection,
            kind,
            offset,
            name,
            identity,
        };
        let at = REGIONS_AT + self.regions * REGION_WORDS;
        self.table[at..at + REGION_WORDS].copy_from_slice(&region.words());
        self.regions += 1;
        Ok(())
    }

    /// Where a name is among the names, and which file it stands for.
    fn name(&mut self, name: &str, is_path: bool) -> Result<(usize, u64), Refusal> {
        let at = self.names_len;
        let Some(room) = self.names.get_mut(at..at + name.len() + 1) else {
            return Err(Refusal::of("there are too many files")(0));
        };
        room[..name.len()].copy_from_slice(name.as_bytes());
        room[name.len()] = 0;
        let written = CStr::from_bytes_with_nul(room).map_err(|_| Refusal::of("a file's name")(0))?;
        let identity = match is_path {
            true => identity(kernel::identity_of(written).map_err(Refusal::of("look at a mapped file"))?),
            false => 0,
        };
        self.names_len += name.len() + 1;
        Ok((at, identity))
    }
}
