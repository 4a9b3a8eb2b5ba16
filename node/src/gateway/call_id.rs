//! The public name of an invocation: 32 hexadecimal digits, unique over restarts.
//!
//! Of a synchronous call, the first half is drawn at random when a worker starts, the second counts. It names, it doesn't
//! protect: nothing is granted to whoever knows it. Of an asynchronous one all is drawn at random ([`CallId::random`]), since
//! whoever knows it may ask for the call's result, and cancel it.

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

    /// A name that nobody can guess: who knows it was told it.
    pub fn random() -> std::io::Result<Self> {
        Ok(Self::new(crate::sys::random_u64()?, crate::sys::random_u64()?))
    }

    /// Reads 32 hexadecimal digits (small letters).
    pub fn parse(text: &str) -> Option<Self> {
        let digits: [u8; 32] = text.as_bytes().try_into().ok()?;
        digits.iter().all(|digit| HEX.contains(digit)).then_some(Self(digits))
    }

    /// The two halves.
    pub fn halves(&self) -> (u64, u64) {
        let half = |digits: &str| u64::from_str_radix(digits, 16).unwrap_or_default();
        (half(&self.as_str()[..16]), half(&self.as_str()[16..]))
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
    fn a_name_is_read_as_it_was_written() {
        let id = CallId::new(0x0123_4567_89ab_cdef, u64::MAX);
        assert_eq!(CallId::parse(id.as_str()), Some(id));
        assert_eq!(id.halves(), (0x0123_4567_89ab_cdef, u64::MAX));
        for bad in ["", "g", &"0".repeat(31), &"0".repeat(33), &"A".repeat(32)] {
            assert_eq!(CallId::parse(bad), None);
        }
    }

    #[test]
    fn names_are_hexadecimal_and_differ() {
        let ids = CallIds::new(0x0123_4567_89ab_cdef);
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000000");
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000001");
    }
}
