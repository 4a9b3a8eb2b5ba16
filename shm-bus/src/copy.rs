//! Copying payloads, at the same speed wherever they lie.
//!
//! glibc's `memcpy` uses `rep movsb` from some 2 KiB up to about 1 MiB. Some AMD cores then take ten times longer when
//! the destination lies 1 to 31 bytes further into its page than the source does into its own: 64 KiB in 25 us
//! instead of 1.5 (`cargo xtask bench ipc`, group `copy`). Heap blocks start 16 bytes into a page as often as not, and
//! segments at a page's start, so payloads meet that by chance. Pieces below the threshold are copied by vector
//! instructions, which don't mind, and cost nothing where the distance is a lucky one.

/// Below the least length for which glibc takes `rep movsb`.
const PIECE: usize = 1024;

/// Copies `from` to `to`.
///
/// # Panics
/// If their lengths differ.
pub fn copy(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "a copy has one length");
    for (to, from) in to.chunks_mut(PIECE).zip(from.chunks(PIECE)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_is_copied_at_any_length() {
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let from: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut to = vec![0; len];
            super::copy(&mut to, &from);
            assert_eq!(to, from);
        }
    }
}
