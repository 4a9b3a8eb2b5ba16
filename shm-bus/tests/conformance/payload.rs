//! Bytes go through segments, both ways, and come back the same.

use std::os::fd::AsFd;
use std::sync::Arc;

use shm_bus::Descriptor;
use shm_bus::alloc::Allocator;
use shm_bus::descriptor::{check, one_of};
use shm_bus::ids::InvocationId;
use shm_bus::release::ReleaseWriter;
use shm_bus::segment::{self, Reader, SegmentName, Writer, require_sealed};

use crate::harness::Bus;

pub(crate) const SEGMENT_LEN: u64 = 256 << 20;

const LENGTHS: [u32; 14] =
    [0, 1, 31, 32, 63, 64, 65, 4095, 4096, 4097, (64 << 10) - 1, (64 << 10) + 1, 1 << 20, 64 << 20];

/// Bytes without a period that is a power of two, different from call to call.
fn pattern(len: u32, salt: u32) -> Vec<u8> {
    let mut state = salt | 1;
    let unit: Vec<u8> = (0..65_521.min(len))
        .map(|_| {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect();
    let mut bytes = Vec::with_capacity(len as usize);
    while bytes.len() < len as usize {
        let left = len as usize - bytes.len();
        bytes.extend_from_slice(&unit[..left.min(unit.len())]);
    }
    bytes
}

pub(crate) fn bytes_are_preserved(mut bus: Bus) {
    let inbox = Writer::map(segment::create("spry-test-inbox", SEGMENT_LEN).unwrap(), SEGMENT_LEN).unwrap();
    let outbox = segment::create("spry-test-outbox", SEGMENT_LEN).unwrap();
    let answers = Arc::new(Reader::map(&outbox, SEGMENT_LEN).unwrap());
    let release = ReleaseWriter::create("spry-test-release").unwrap();
    let _peer = bus.join_with("copy", &[inbox.fd(), outbox.as_fd(), release.fd()]);
    let mut blocks = Allocator::new(SEGMENT_LEN as u32);
    let name = SegmentName { id: 8, generation: 1 };
    for (salt, len) in (1..).zip(LENGTHS.iter().chain(&LENGTHS)) {
        let bytes = pattern(*len, salt);
        let block = blocks.allocate(*len).unwrap();
        inbox.write_at(block.offset.into(), &bytes).unwrap();
        let sent = Descriptor { offset: block.offset, length: *len, ..bus.descriptor() };
        assert!(bus.try_send(&sent));
        let answer = bus.answer();
        if salt == 1 {
            require_sealed(&outbox).unwrap();
        }
        let held = InvocationId(sent.invocation);
        let range = check(&answer, held, one_of(&[(name, SEGMENT_LEN)])).unwrap();
        assert_eq!(shm_bus::begun::read(&answers), Some(held));
        let region = answers.region(range.start, range.end - range.start).unwrap();
        assert!(region.as_ref() == bytes, "{len} bytes differ");
        release.post(answer.offset);
        blocks.free(block.offset);
    }
}
