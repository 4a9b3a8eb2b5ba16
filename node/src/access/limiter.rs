//! A rate limit per caller: a token bucket each, in a table that never grows.
//!
//! A caller's bucket fills at `rate.per_second`, up to `rate.burst`; a request takes one. The table is set-associative, as a
//! processor's cache: a caller's place is one of the [`WAYS`] slots of the set that its (keyed) hash names. Where all are taken,
//! the fullest bucket is forgotten: a full one says as much as none, and who is being limited keeps being limited. So
//! memory and time are fixed, however many addresses an attacker has.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::Rate;

/// Slots in a set.
const WAYS: usize = 8;

/// Who makes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who<'a> {
    /// The bearer of this token; the empty id is the first token's.
    Token(&'a str),
    /// Somebody at this address.
    Address(IpAddr),
}

/// One caller's bucket. `key` 0: nobody's.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    key: u64,
    left: f64,
    at_s: f64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: Rate,
    begun: Instant,
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
    hasher: RandomState,
}

impl Limiter {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let sets = (rate.table / WAYS).max(1);
        let sets = (0..sets).map(|_| Mutex::default()).collect();
        Self { rate, begun: now, sets, hasher: RandomState::new() }
    }

    /// Takes one request out of a caller's bucket. An error says when there will be one.
    pub(super) fn take(&self, who: Who<'_>, now: Instant) -> Result<(), Duration> {
        let hash = self.hash(who);
        let (set, key) = (&self.sets[(hash >> 32) as usize % self.sets.len()], hash | 1);
        let now_s = now.saturating_duration_since(self.begun).as_secs_f64();
        let mut set = set.lock();
        let at = match set.iter().position(|bucket| bucket.key == key) {
            Some(at) => at,
            None => {
                let fill =
                    |bucket: &Bucket| if bucket.key == 0 { f64::MAX } else { self.fill(bucket, now_s) };
                let fullest = (0..WAYS).max_by(|one, other| fill(&set[*one]).total_cmp(&fill(&set[*other])));
                let at = fullest.unwrap_or(0);
                set[at] = Bucket { key, left: self.rate.burst, at_s: now_s };
                at
            }
        };
        let left = self.fill(&set[at], now_s);
        let taken = left >= 1.0;
        set[at].left = if taken { left - 1.0 } else { left };
        set[at].at_s = now_s;
        if taken {
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - left) / self.rate.per_second).unwrap_or(Duration::MAX))
    }

    fn fill(&self, bucket: &Bucket, now_s: f64) -> f64 {
        (bucket.left + (now_s - bucket.at_s).max(0.0) * self.rate.per_second).min(self.rate.burst)
    }

    /// An attacker has a whole network of IPv6 addresses, so these count by their first 64 bits.
    fn hash(&self, who: Who<'_>) -> u64 {
        match who {
            Who::Token(id) => self.hasher.hash_one((0_u8, id)),
            Who::Address(address) => match address.to_canonical() {
                IpAddr::V4(address) => self.hasher.hash_one((1_u8, address)),
                IpAddr::V6(address) => self.hasher.hash_one((2_u8, &address.octets()[..8])),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 2.0, burst: 3.0, table: 64 };

    fn at(text: &str) -> Who<'static> {
        Who::Address(text.parse().expect("an address"))
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let begun = Instant::now();
        let limiter = Limiter::new(RATE, begun);
        for _ in 0..3 {
            assert_eq!(limiter.take(at("192.0.2.1"), begun), Ok(()));
        }
        assert_eq!(limiter.take(at("192.0.2.1"), begun), Err(Duration::from_millis(500)));
        assert_eq!(limiter.take(at("192.0.2.2"), begun), Ok(()), "another caller");
        let later = begun + Duration::from_millis(500);
        assert_eq!(limiter.take(at("192.0.2.1"), later), Ok(()));
        assert!(limiter.take(at("192.0.2.1"), later).is_err());
        let much_later = begun + Duration::from_secs(3600);
        let taken = (0..10).filter(|_| limiter.take(at("192.0.2.1"), much_later).is_ok()).count();
        assert_eq!(taken, 3, "no more than a burst is saved up");
    }

    #[test]
    fn one_caller_is_one_caller() {
        let begun = Instant::now();
        let limiter = Limiter::new(Rate { burst: 1.0, ..RATE }, begun);
        assert!(limiter.take(at("2001:db8::1"), begun).is_ok());
        assert!(limiter.take(at("2001:db8::ffff:1"), begun).is_err(), "the same network");
        assert!(limiter.take(at("2001:db8:0:1::1"), begun).is_ok());
        assert!(limiter.take(at("192.0.2.1"), begun).is_ok());
        assert!(limiter.take(at("::ffff:192.0.2.1"), begun).is_err(), "the same address");
        assert!(limiter.take(Who::Token("a"), begun).is_ok());
        assert!(limiter.take(Who::Token("a"), begun).is_err());
        assert!(limiter.take(Who::Token("b"), begun).is_ok());
    }

    #[test]
    fn a_flood_of_addresses_does_not_free_who_is_limited() {
        let begun = Instant::now();
        let limiter = Limiter::new(RATE, begun);
        while limiter.take(at("192.0.2.1"), begun).is_ok() {}
        for address in 0..100_000_u32 {
            let _ = limiter.take(Who::Address(IpAddr::from(address.to_be_bytes())), begun);
        }
        assert!(limiter.take(at("192.0.2.1"), begun).is_err());
    }
}
