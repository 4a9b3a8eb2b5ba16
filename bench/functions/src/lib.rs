//! Sealed values: what a step, and who called it, can tell from any other value, from a damaged one, and from one
//! that a step has seen twice.
//!
//! A value is sealed by appending the [`sum`] of all its bytes. Sealing it again covers the first seal, so after
//! `n` steps a payload has exactly one right form: [`sealed`]`(payload, n + 1)`.

/// Bytes of a seal.
pub const SEAL_LEN: usize = 8;

/// A sum that any change of a bit changes, and that depends on where each byte is. Not for secrets.
pub fn sum(bytes: &[u8]) -> u64 {
    // As FNV-1a, eight bytes at a time and with the high bits folded down.
    let mix = |sum: u64, word: u64| {
        let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^ (sum >> 29)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let begin = mix(0xcbf2_9ce4_8422_2325, bytes.len() as u64);
    let all = words.iter().fold(begin, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    mix(all, u64::from_le_bytes(last))
}

/// Whether the last eight bytes are the sum of those before.
pub fn is_sealed(value: &[u8]) -> bool {
    value.split_last_chunk::<SEAL_LEN>().is_some_and(|(rest, seal)| sum(rest) == u64::from_le_bytes(*seal))
}

/// The payload, sealed this many times.
pub fn sealed(payload: &[u8], times: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(payload.len() + times * SEAL_LEN);
    value.extend_from_slice(payload);
    for _ in 0..times {
        let seal = sum(&value).to_le_bytes();
        value.extend_from_slice(&seal);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_any_bit_breaks_the_seal() {
        for len in [0, 1, 7, 8, 9, 31] {
            let payload: Vec<u8> = (0..len).collect();
            let value = sealed(&payload, 2);
            assert!(is_sealed(&value), "{len} bytes");
            for bit in 0..8 * value.len() {
                let mut changed = value.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_sealed(&changed), "{len} bytes, bit {bit}");
            }
        }
    }

    #[test]
    fn length_and_order_matter() {
        assert_ne!(sum(b""), sum(&[0]));
        assert_ne!(sum(&[0; 8]), sum(&[0; 16]));
        assert_ne!(sum(b"onetwothree_four"), sum(b"hree_fouronetwot"));
        assert!(!is_sealed(b"short"));
    }

    #[test]
    fn seals_lie_upon_each_other() {
        let (once, twice) = (sealed(b"payload", 1), sealed(b"payload", 2));
        assert_eq!((once.len(), twice.len()), (15, 23));
        assert!(twice.starts_with(&once));
        assert_eq!(twice, sealed(&once, 1));
    }
}
