//! The public name of an invocation: 32 hexadecimal digits, unique over restarts.
//!
//! The first half is drawn at random when a worker starts, the second counts. It names, it doesn't protect:
//! nothing is granted to whoever knows it.

use std::cell::Cell;

/// An invocation's public name (`X-Call-Id`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId([u8; 32]);

impl CallId {
    /// The name made of its two halves.
    pub fn new(high: u64, low: u64) -> Self {
        let mut digits = [0; 32];
        let value = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        for (pair, byte) in digits.chunks_exact_mut(2).zip(value) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Self(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The digits, as they go into a header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Gives out names; one per worker thread.
#[derive(Debug)]
pub struct CallIds {
    high: u64,
    next: Cell<u64>,
}

impl CallIds {
    /// A sequence whose first half is `high` (draw it at random).
    pub fn new(high: u64) -> Self {
        Self { high, next: Cell::new(0) }
    }

    /// The next name.
    pub fn next(&self) -> CallId {
        let low = self.next.get();
        self.next.set(low.wrapping_add(1));
        CallId::new(self.high, low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hexadecimal_and_differ() {
        let ids = CallIds::new(0x0123_4567_89ab_cdef);
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000000");
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000001");
    }
}
