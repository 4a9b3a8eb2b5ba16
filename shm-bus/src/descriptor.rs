//! Validation of a descriptor: 32 bytes from somebody who may be hostile, against what the receiver knows.
//!
//! The caller passes a private copy (transports hand out copies), and uses the returned range, never the
//! descriptor's own numbers again. What is *in* the range is as hostile as before.

use std::ops::Range;

use spry_ebpf_common::{Descriptor, flags, status};

use crate::ids::InvocationId;
use crate::segment::{NameError, SegmentName};

/// Why a descriptor is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// It names a segment that the sender can't mean.
    #[error("a descriptor names what isn't there: {0}")]
    Segment(#[from] NameError),
    /// Its payload isn't within the segment.
    #[error("a descriptor names {length} bytes at {offset} of a segment of {segment_len}")]
    Range {
        /// First byte.
        offset: u32,
        /// How many.
        length: u32,
        /// Bytes of the segment.
        segment_len: u64,
    },
    /// It belongs to another invocation, or to none.
    #[error("a descriptor is of invocation {is:#x}, not {held:#x}")]
    Invocation {
        /// What the descriptor says.
        is: u64,
        /// What the sender holds.
        held: u64,
    },
    /// It has a flag or a status that nobody defined.
    #[error("a descriptor has the unknown flags {0:#04x}")]
    Flags(u8),
}

/// Checks everything about a descriptor that belongs to the invocation `held`. `len_of` finds a segment that
/// the sender may name ([`crate::segment::Table::get`], or [`one_of`]) and says how long it is.
/// Returns where in that segment the payload lies.
pub fn check(
    descriptor: &Descriptor,
    held: InvocationId,
    len_of: impl FnOnce(SegmentName) -> Result<u64, NameError>,
) -> Result<Range<u64>, DescriptorError> {
    if descriptor.invocation != held.0 || held.0 == 0 || held.0 == u64::MAX {
        return Err(DescriptorError::Invocation { is: descriptor.invocation, held: held.0 });
    }
    let known = flags::HOLD | flags::NEXT | flags::EMIT;
    let known_flags = descriptor.flags & !status::MASK & !known == 0;
    let known_status =
        matches!(descriptor.flags & status::MASK, status::OK | status::FAILED | status::EXPIRED);
    if !known_flags || !known_status {
        return Err(DescriptorError::Flags(descriptor.flags));
    }
    let segment_len = len_of(name(descriptor))?;
    let start = u64::from(descriptor.offset);
    let end = start + u64::from(descriptor.length);
    if end > segment_len {
        let Descriptor { offset, length, .. } = *descriptor;
        return Err(DescriptorError::Range { offset, length, segment_len });
    }
    Ok(start..end)
}

/// The segment that a descriptor names.
pub fn name(descriptor: &Descriptor) -> SegmentName {
    SegmentName { id: descriptor.segment, generation: descriptor.generation }
}

/// Looks a name up among a few known segments and their lengths, for [`check`].
pub fn one_of(known: &[(SegmentName, u64)]) -> impl FnOnce(SegmentName) -> Result<u64, NameError> + '_ {
    move |name| {
        if let Some((_, len)) = known.iter().find(|(known, _)| *known == name) {
            return Ok(*len);
        }
        let same_slot = known.iter().any(|(known, _)| known.id == name.id);
        Err(if same_slot { NameError::Stale(name) } else { NameError::Unknown(name) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: SegmentName = SegmentName { id: 3, generation: 9 };
    const LEN: u64 = 8192;

    fn good() -> Descriptor {
        Descriptor {
            segment: 3,
            generation: 9,
            offset: 64,
            length: 100,
            invocation: 77,
            ..Descriptor::default()
        }
    }

    fn verdict(descriptor: &Descriptor) -> Result<Range<u64>, DescriptorError> {
        check(descriptor, InvocationId(77), one_of(&[(SEGMENT, LEN)]))
    }

    #[test]
    fn each_field_is_checked() {
        assert_eq!(verdict(&good()), Ok(64..164));
        let whole = Descriptor { offset: 0, length: LEN as u32, ..good() };
        assert_eq!(verdict(&whole), Ok(0..LEN));
        let empty = Descriptor { offset: LEN as u32, length: 0, ..good() };
        assert_eq!(verdict(&empty), Ok(LEN..LEN));
        let bad = Descriptor { generation: 8, ..good() };
        assert_eq!(verdict(&bad), Err(NameError::Stale(name(&bad)).into()));
        let bad = Descriptor { segment: 4, ..good() };
        assert_eq!(verdict(&bad), Err(NameError::Unknown(name(&bad)).into()));
        for (offset, length) in [(64, LEN as u32), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
            let bad = Descriptor { offset, length, ..good() };
            assert!(matches!(verdict(&bad), Err(DescriptorError::Range { .. })));
        }
        for invocation in [0, 78, u64::MAX] {
            let bad = Descriptor { invocation, ..good() };
            assert!(matches!(verdict(&bad), Err(DescriptorError::Invocation { .. })));
            let held = check(&bad, InvocationId(invocation), one_of(&[(SEGMENT, LEN)]));
            assert_eq!(held.is_ok(), invocation == 78, "slot states are no invocations");
        }
        for flags in [3, 0x0f, 0x10, 0x90, 0xff] {
            assert_eq!(verdict(&Descriptor { flags, ..good() }), Err(DescriptorError::Flags(flags)));
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_within_the_segment(
            segment in 2u32..5, generation in 8u32..11, offset in any::<u32>(), length in any::<u32>(),
            invocation in 76u64..79, flags in any::<u8>(), near in any::<bool>(),
        ) {
            let (offset, length) = if near { (offset % 9000, length % 9000) } else { (offset, length) };
            let made = Descriptor { segment, generation, offset, length, invocation, flags, ..good() };
            if let Ok(range) = verdict(&made) {
                prop_assert!(range.start <= range.end && range.end <= LEN);
                prop_assert_eq!(name(&made), SEGMENT);
                prop_assert_eq!(invocation, 77);
            }
        }
    }
}
