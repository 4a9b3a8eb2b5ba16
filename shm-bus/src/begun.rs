//! The header of an outbox: the invocation that its owner began last.
//!
//! ```text
//! 0            8                                   64
//! ├ invocation ┼ zero ────────────────────────────┤ blocks …
//! ```
//!
//! When a process dies, the hub asks whether the invocation that it held was begun: if not, another process
//! may get it without anything having run twice. The owner can lie; that decides only whether its own
//! function sees the invocation again.

use std::sync::atomic::{Ordering, compiler_fence, fence};

use crate::ids::InvocationId;
use crate::segment::{Reader, Writer};

/// Bytes of the header; the allocator reserves them ([`crate::alloc::Allocator::reserve`]).
pub const HEADER_LEN: u32 = 64;

/// Says that `invocation` begins now. Called before anything of it runs.
pub fn write(outbox: &Writer, invocation: InvocationId) {
    // SYNC(begun): pairs with the load in `read`. The reader asks after this process's death, which orders by itself: what
    // comes before the instruction at which a process dies is done, what comes after it isn't. So only the compiler has
    // to be kept from moving the mark.
    outbox.mapping().atomic_u64(0).store(invocation.0, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
}

/// Which invocation the owner of `outbox` says that it began last; `None`: none yet.
pub fn read(outbox: &Reader) -> Option<InvocationId> {
    // SYNC(begun): a relaxed load and a fence, because the mapping is read-only.
    let begun = match outbox.mapping_now() {
        Some(mapping) => mapping.atomic_u64(0).load(Ordering::Relaxed),
        None => {
            let mut bytes = [0; 8];
            outbox.copy_into(0, &mut bytes).ok()?;
            u64::from_ne_bytes(bytes)
        }
    };
    fence(Ordering::Acquire);
    (begun != 0 && begun != u64::MAX).then_some(InvocationId(begun))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{create, page_len};

    #[test]
    fn the_last_one_counts_and_slot_states_are_no_invocations() {
        let fd = create("spry-test", page_len()).unwrap();
        let reader = Reader::map(&fd, page_len()).unwrap();
        let writer = Writer::map(fd, page_len()).unwrap();
        assert_eq!(read(&reader), None);
        for id in [7, 1 << 40] {
            write(&writer, InvocationId(id));
            assert_eq!(read(&reader), Some(InvocationId(id)));
        }
        writer.write_at(0, &u64::MAX.to_ne_bytes()).unwrap();
        assert_eq!(read(&reader), None);
    }
}
