//! `/proc/self/smaps`, read without allocating: while a process is written down its memory must not change.

use std::ops::Range;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mapping<'t> {
    pub(crate) range: Range<usize>,
    /// `PROT_*`.
    pub(crate) protection: i32,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    pub(crate) inode: u64,
    /// A path, a name such as `[heap]`, or nothing.
    pub(crate) name: &'t str,
    /// Kibibytes of pages that were written to.
    pub(crate) anonymous: usize,
    /// Kibibytes in swap.
    pub(crate) swapped: usize,
    pub(crate) has_key: bool,
    pub(crate) flags: &'t str,
}

impl<'t> Mapping<'t> {
    pub(crate) fn begin(line: &'t str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let (modes, rest) = rest.split_once(' ')?;
        let [read, write, execute, private] = <[u8; 4]>::try_from(modes.as_bytes()).ok()?;
        let (offset, rest) = rest.split_once(' ')?;
        let (_device, rest) = rest.split_once(' ')?;
        let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut protection = 0;
        for (letter, bit) in [(read, libc::PROT_READ), (write, libc::PROT_WRITE), (execute, libc::PROT_EXEC)]
        {
            protection |= if letter == b'-' { 0 } else { bit };
        }
        Some(Self {
            range,
            protection,
            shared: private != b'p',
            offset: u64::from_str_radix(offset, 16).ok()?,
            inode: inode.parse().ok()?,
            name: name.trim_start(),
            ..Self::default()
        })
    }

    pub(crate) fn has_flag(&self, wanted: &[&str]) -> bool {
        self.flags.split_ascii_whitespace().any(|flag| wanted.contains(&flag))
    }
}

/// The mappings of this text, in order.
pub(crate) fn mappings(text: &str) -> impl Iterator<Item = Mapping<'_>> {
    let mut lines = text.lines();
    let mut next: Option<Mapping<'_>> = None;
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            if let Some(begun) = Mapping::begin(line) {
                next = Some(begun);
            } else if let (Some(mapping), Some((key, value))) = (&mut next, line.split_once(':')) {
                match key {
                    "Anonymous" => mapping.anonymous = kibibytes(value),
                    "Swap" => mapping.swapped = kibibytes(value),
                    "ProtectionKey" => mapping.has_key = value.trim() != "0",
                    // the last line of each
                    "VmFlags" => {
                        mapping.flags = value;
                        return next.take();
                    }
                    _ => {}
                }
            }
        }
    })
}

fn kibibytes(value: &str) -> usize {
    value.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let text = "\
00400000-0041f000 r--p 00001000 fe:00 1181                               /usr/bin/a b
Size:                124 kB
Anonymous:             8 kB
Swap:                  4 kB
ProtectionKey:         0
VmFlags: rd mr mw me sd 
7ffc12345000-7ffc12366000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            16 kB
VmFlags: rd wr gd
";
        let found: Vec<Mapping<'_>> = mappings(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "/usr/bin/a b");
        assert_eq!((found[0].offset, found[0].inode, found[0].protection), (4096, 1181, libc::PROT_READ));
        assert_eq!((found[0].anonymous, found[0].swapped, found[0].has_key), (8, 4, false));
        assert!(found[0].has_flag(&["xx", "sd"]) && !found[0].has_flag(&["gd"]));
        assert_eq!((found[1].name, found[1].range.start), ("[stack]", 0x7ffc_1234_5000));
        assert!(mappings("VmFlags: rd\nnonsense\n1-2 rw\n").next().is_none());
    }
}
