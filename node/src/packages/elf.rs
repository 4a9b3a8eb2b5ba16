//! Where a shared library looks for others (`DT_RPATH`, `DT_RUNPATH`), as far as that depends on its own place.
//!
//! Reads a few kilobytes of a file that may say anything: what isn't a sound 64-bit ELF file looks nowhere (and can't be loaded).

use std::fs::File;
use std::os::unix::fs::FileExt;

const PROGRAM_HEADER: usize = 56;
const HEADERS_MAX: u64 = 128;
const DYNAMIC_MAX: u64 = 1 << 20;
const TEXT_MAX: usize = 4096;
/// Folders that are named of one file. Where there are more, it isn't known what it looks for.
pub(super) const FOLDERS_MAX: usize = 32;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// The folders that it names by its own place: `$ORIGIN/../x`. Of more than [`FOLDERS_MAX`], one more than that.
pub(super) fn searches(file: &File) -> Vec<String> {
    let texts = texts(file).unwrap_or_default();
    let folders = texts.iter().flat_map(|text| text.split(':'));
    folders.filter(|folder| folder.contains("ORIGIN")).map(str::to_owned).take(FOLDERS_MAX + 1).collect()
}

fn texts(file: &File) -> Option<Vec<String>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    // 64 bits, the lower byte first.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    let (at, count) = (u64_at(&header, 32)?, u64::from(u16_at(&header, 56)?));
    if u64::from(u16_at(&header, 54)?) != PROGRAM_HEADER as u64 || count > HEADERS_MAX {
        return None;
    }
    let mut headers = vec![0; PROGRAM_HEADER * count as usize];
    file.read_exact_at(&mut headers, at).ok()?;
    let (mut loads, mut dynamic) = (Vec::new(), None);
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        let (offset, address, len) = (u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 32)?);
        match u32_at(header, 0)? {
            PT_LOAD => loads.push((offset, address, len)),
            PT_DYNAMIC => dynamic = Some((offset, len.min(DYNAMIC_MAX))),
            _ => {}
        }
    }
    let (offset, len) = dynamic?;
    let mut entries = vec![0; len as usize / 16 * 16];
    file.read_exact_at(&mut entries, offset).ok()?;
    // As the loader does: of each kind the last one counts.
    let (mut strings, mut rpath, mut runpath) = (None, None, None);
    for entry in entries.chunks_exact(16) {
        let value = u64_at(entry, 8)?;
        match u64_at(entry, 0)? {
            0 => break,
            DT_STRTAB => strings = Some(value),
            DT_RPATH => rpath = Some(value),
            DT_RUNPATH => runpath = Some(value),
            _ => {}
        }
    }
    let strings = strings?;
    let (offset, address, _) =
        *loads.iter().find(|(_, address, len)| strings >= *address && strings - address < *len)?;
    let strings = offset.checked_add(strings - address)?;
    rpath.into_iter().chain(runpath).map(|value| text(file, strings.checked_add(value)?)).collect()
}

fn text(file: &File, at: u64) -> Option<String> {
    let mut bytes = vec![0; TEXT_MAX];
    let read = file.read_at(&mut bytes, at).ok()?;
    let end = bytes[..read].iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    String::from_utf8(bytes).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_linker_wrote_is_read_and_nonsense_looks_nowhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("x.so");
        let compiler = Command::new("cc")
            .args([
                "-shared",
                "-x",
                "c",
                "/dev/null",
                "-Wl,-rpath,$ORIGIN/../other.libs:/usr/lib:$ORIGIN",
                "-o",
            ])
            .arg(&library)
            .status();
        if !compiler.is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("SPRY_TEST_ALL").is_none(), "SPRY_TEST_ALL is set, but there is no cc");
            println!("SKIPPED: there is no C compiler");
            return;
        }
        let whole = std::fs::read(&library).expect("read");
        let of = |bytes: &[u8]| {
            std::fs::write(&library, bytes).expect("written");
            searches(&File::open(&library).expect("opened"))
        };
        assert_eq!(of(&whole), ["$ORIGIN/../other.libs", "$ORIGIN"]);
        assert!(of(b"").is_empty() && of(b"\x7fELF").is_empty() && of(&[0xff; 4096]).is_empty());
        // Cut anywhere, and with any byte of its headers changed, it is read or it isn't.
        for len in (0..whole.len()).step_by(97) {
            of(&whole[..len]);
        }
        // Entries without end cost no more than one.
        let many = [29_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat().repeat(4096);
        let path = format!("\0{}\0", "ORIGIN:".repeat(500));
        let strings = [5_u64.to_le_bytes(), 0x10_0000_u64.to_le_bytes()].concat();
        let header = |kind: u32, at: u64, address: u64, len: u64| {
            let mut header = [kind.to_le_bytes(), [0; 4]].concat();
            header.extend([at, address, address, len, len, 0].map(u64::to_le_bytes).concat());
            header
        };
        let dynamic = [many, strings].concat();
        let at = 64 + 2 * PROGRAM_HEADER as u64;
        let mut bytes = whole[..64].to_vec();
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[56..58].copy_from_slice(&2_u16.to_le_bytes());
        bytes.extend(header(PT_DYNAMIC, at, 0, dynamic.len() as u64));
        bytes.extend(header(PT_LOAD, at + dynamic.len() as u64, 0x10_0000, path.len() as u64));
        bytes.extend(dynamic);
        bytes.extend(path.as_bytes());
        assert_eq!(of(&bytes), ["ORIGIN"; FOLDERS_MAX + 1]);
        for at in 0..1024.min(whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            of(&bytes);
        }
    }
}
