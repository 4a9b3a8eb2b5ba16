//! Where the fields of a kernel structure are, from the kernel's own description of its types (BTF).
//!
//! Only what that takes: the types are walked once, in order, for the structure of a name; its members of plain position.
//! The format is in the kernel's Documentation/bpf/btf.rst.

/// Offsets, in bytes, of `fields` in `structure`. `None`: the description can't be read, or has no such thing.
pub(super) fn offsets<const N: usize>(btf: &[u8], structure: &str, fields: [&str; N]) -> Option<[u32; N]> {
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if word(0)? as u16 != 0xeb9f {
        return None;
    }
    let header_len = word(4)? as usize;
    let (types, types_len) = (header_len.checked_add(word(8)? as usize)?, word(12)? as usize);
    let (strings, strings_len) = (header_len.checked_add(word(16)? as usize)?, word(20)? as usize);
    let strings = btf.get(strings..strings.checked_add(strings_len)?)?;
    let named = |offset: u32, name: &str| {
        let tail = strings.get(offset as usize..);
        tail.is_some_and(|tail| tail.starts_with(name.as_bytes()) && tail.get(name.len()) == Some(&0))
    };
    let end = types.checked_add(types_len)?;
    let mut at = types;
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += 12;
        if kind == STRUCT && count > 0 && named(name, structure) {
            // With bit fields among the members, the upper byte of an offset is a width.
            let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
            let member = |field: &str| {
                let places = (0..count).map(|index| at + index * 12);
                let place =
                    places.into_iter().find(|place| word(*place).is_some_and(|name| named(name, field)))?;
                Some((word(place + 8)? & mask) / 8)
            };
            let mut found = [0; N];
            for (offset, field) in found.iter_mut().zip(fields) {
                *offset = member(field)?;
            }
            return Some(found);
        }
        at = at.checked_add(tail_len(kind, count)?)?;
    }
    None
}

const STRUCT: u32 = 4;

/// Bytes behind a type's first twelve.
fn tail_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags
        2 | 7..=12 | 16 | 18 => 0,
        // integers, variables, declaration tags
        1 | 14 | 17 => 4,
        // arrays
        3 => 12,
        // structures, unions, data sections, 64-bit enumerations
        4 | 5 | 15 | 19 => count * 12,
        // enumerations, function prototypes
        6 | 13 => count * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, a structure `other`, and `task` with the members `a` (at 4) and `b` (at 24, if there are bit fields).
    fn described(bit_fields: bool) -> Vec<u8> {
        let strings = b"\0int\0other\0task\0a\0b\0taskful\0";
        let mut types: Vec<u32> = vec![1, 1 << 24, 4, 32];
        types.extend([5, 4 << 24 | 1, 4, 16, 1, 0]);
        types.extend([11, u32::from(bit_fields) << 31 | 4 << 24 | 2, 32]);
        types.extend([16, 1, 32, 18, 1, if bit_fields { 3 << 24 | 192 } else { 192 }]);
        let types_len = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, types_len, types_len, strings.len() as u32];
        let words = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn members_are_found_by_name() {
        for bit_fields in [false, true] {
            let btf = described(bit_fields);
            assert_eq!(offsets(&btf, "task", ["a", "b"]), Some([4, 24]));
            assert_eq!(offsets(&btf, "task", ["c"]), None);
            assert_eq!(offsets(&btf, "tas", ["a"]), None);
        }
    }

    #[test]
    fn a_description_that_is_cut_off_anywhere_is_refused() {
        let btf = described(false);
        for len in 0..btf.len() {
            let _ = offsets(&btf[..len], "task", ["a", "b"]);
        }
        assert_eq!(offsets(&btf[..60], "task", ["a"]), None);
        assert_eq!(offsets(&[], "task", ["a"]), None);
    }

    #[test]
    fn this_kernel_describes_its_tasks() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIP: this kernel has no BTF");
            return;
        };
        let [pid, tgid] = offsets(&btf, "task_struct", ["pid", "tgid"]).expect("task_struct");
        assert_eq!(tgid, pid + 4);
    }
}
