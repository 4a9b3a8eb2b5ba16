//! Segments on the running kernel: seals hold, hostile ranges are refused.

use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::sys::{Access, Mapping};

fn pair(len: u64) -> (Arc<Writer>, Arc<Reader>) {
    let fd = create("spry-test", len).unwrap();
    let reader = Reader::map(&fd, len).unwrap();
    (Arc::new(Writer::map(fd, len).unwrap()), Arc::new(reader))
}

#[test]
fn what_the_owner_writes_is_read() {
    let (writer, reader) = pair(4 * page_len());
    writer.write_at(page_len() - 3, b"across pages").unwrap();
    assert_eq!(reader.copy(page_len() - 3, 12).unwrap(), b"across pages");
    let region = reader.region(page_len() - 3, 6).unwrap();
    drop(reader);
    assert_eq!(region.as_ref(), b"across");
    assert_eq!(writer.region(page_len() - 3, 6).unwrap().as_ref(), b"across");
}

#[test]
fn an_unmapped_segment_is_read_the_same_and_mapped_for_what_is_large() {
    let len = 64 * page_len();
    let fd = create("spry-test", len).unwrap();
    let reader = Arc::new(Reader::unmapped(fd.try_clone().unwrap(), len).unwrap());
    let writer = Writer::map(fd, len).unwrap();
    writer.write_at(page_len() - 3, b"across pages").unwrap();
    assert_eq!(crate::begun::read(&reader), None);
    crate::begun::write(&writer, crate::ids::InvocationId(7));
    assert_eq!(crate::begun::read(&reader), Some(crate::ids::InvocationId(7)));
    assert_eq!(reader.copy(page_len() - 3, 12).unwrap(), b"across pages");
    let small = reader.region(page_len() - 3, 6).unwrap();
    writer.write_at(page_len() - 3, b"others").unwrap();
    assert_eq!(small.as_ref(), b"across", "a copy");
    for (offset, len) in [(len, 1), (len - 1, 2), (u64::MAX, 2), (0, u64::MAX)] {
        assert!(matches!(reader.copy(offset, len), Err(SegmentError::Range { .. })));
        assert!(reader.region(offset, len).is_err());
    }
    assert!(reader.mapping_now().is_none());
    let large = reader.region(0, len).unwrap();
    assert!(reader.mapping_now().is_some());
    assert_eq!(&large.as_ref()[page_len() as usize - 3..][..6], b"others");
    assert_eq!(reader.slice(page_len() - 3, 6).unwrap(), b"others");
}

#[test]
fn lengths_are_whole_pages() {
    for len in [0, 1, page_len() - 1, page_len() + 1, 1 << 32, u64::MAX] {
        assert!(matches!(create("spry-test", len), Err(SegmentError::Length { .. })), "{len}");
    }
}

#[test]
fn size_is_fixed_from_the_start() {
    let len = 2 * page_len();
    let file = File::from(create("spry-test", len).unwrap());
    assert!(file.set_len(len - page_len()).is_err());
    assert!(file.set_len(len + page_len()).is_err());
    assert!(matches!(Reader::map(&file, page_len()), Err(SegmentError::Size { .. })));
}

#[test]
fn nobody_else_gets_a_writable_mapping() {
    let (writer, reader) = pair(page_len());
    require_sealed(writer.fd()).unwrap();
    let again = Mapping::new(writer.fd(), page_len(), Access::ReadWrite);
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert!(matches!(
        Writer::map(writer.fd().try_clone_to_owned().unwrap(), page_len()),
        Err(SegmentError::Os { .. })
    ));
    assert!(nix::unistd::write(writer.fd(), b"x").is_err(), "write(2) is closed, too");
    assert_eq!(reader.copy(0, 1).unwrap(), [0]);
}

#[test]
fn other_files_are_no_segments() {
    let file = tempfile();
    file.set_len(page_len()).unwrap();
    assert!(matches!(Reader::map(&file, page_len()), Err(SegmentError::Seals { .. })));
    let unsealed = MemfdOptions::default().allow_sealing(true).create("spry-test").unwrap().into_file();
    unsealed.set_len(page_len()).unwrap();
    assert!(matches!(Reader::map(&unsealed, page_len()), Err(SegmentError::Seals { .. })));
    let open = create("spry-test", page_len()).unwrap();
    assert!(matches!(require_sealed(&open), Err(SegmentError::Seals { .. })));
}

fn tempfile() -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir()).unwrap()
}

proptest! {
    #[test]
    fn any_range_is_served_or_refused(offset in any::<u64>(), len in any::<u64>(), near in any::<bool>()) {
        let (writer, reader) = pair(page_len());
        let (offset, len) = if near { (offset % 5000, len % 5000) } else { (offset, len) };
        let fits = offset.checked_add(len).is_some_and(|end| end <= page_len());
        prop_assert_eq!(reader.copy(offset, len).is_ok(), fits);
        prop_assert_eq!(reader.region(offset, len).is_ok(), fits);
        prop_assert_eq!(writer.region(offset, len).is_ok(), fits);
        prop_assert_eq!(writer.address(offset, len).is_ok(), fits);
    }
}
