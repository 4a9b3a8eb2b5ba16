//! How one function's CPU times are distributed: an aged sketch of quantiles.
//!
//! The sketch is DDSketch (Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
//! Relative-Error Guarantees", VLDB 2019, section 2): counters for buckets whose widths grow with their place, so
//! that every quantile is known to a fixed relative error. Buckets are found by the paper's linear interpolation
//! between powers of two (16 to an octave: the middle of a bucket is within 1/32 of whatever fell into it), which is
//! a shift and a mask instead of a logarithm, and the same on every machine.
//!
//! Why not a crate: the well-kept ones (`sketches-ddsketch`, `tdigest`) answer "which value is at quantile q" and
//! keep their buckets to themselves. A scheduler asks the other way round: what is left of a job that has used u
//! already? That takes one pass over the buckets above u. They cannot forget, either.
//!
//! **Ageing** is by forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009, section 3): each
//! observation weighs a little more than the one before, which is the same as if all earlier ones had lost weight,
//! and costs one multiplication. An observation has half its weight after [`HALF_LIFE`] later ones. Two rotating
//! sketches, the usual alternative, need twice the memory and forget half of what they know at each turn: a rare
//! long run would be known and unknown by turns. Age counts observations, not seconds: a function that nobody has
//! called for a day is still the function that it was.

/// So many later observations halve the weight of one.
pub const HALF_LIFE: u32 = 128;
/// The `HALF_LIFE`th root of two.
const GROWTH: f32 = 1.005_429_9;
/// When the newest weight passes this, all are scaled down, far from the end of an f32.
const WEIGHT_MAX: f32 = 1_048_576.0;

/// Everything below 2^10 ns is one bucket: nothing that costs less than a context switch needs telling apart.
const FLOOR_BITS: u32 = 10;
/// Everything above 2^42 ns (73 minutes) counts as that.
const CEILING_BITS: u32 = 42;
const SUB_BITS: u32 = 4;
const BUCKETS: usize = 1 + (((CEILING_BITS - FLOOR_BITS) as usize) << SUB_BITS);

/// An aged DDSketch of durations in nanoseconds. 2 KiB, of a fixed size.
#[derive(Clone, Debug)]
pub struct Sketch {
    weights: Box<[f32; BUCKETS]>,
    /// What the next observation will weigh.
    next_weight: f32,
    /// No bucket above this one has any weight.
    highest: usize,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { weights: Box::new([0.0; BUCKETS]), next_weight: 1.0, highest: 0 }
    }
}

/// A part of what may be left: so many nanoseconds, with this weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) rest_ns: f64,
    pub(crate) weight: f64,
}

impl Sketch {
    /// Takes in one duration.
    pub fn observe(&mut self, ns: u64) {
        let bucket = bucket(ns);
        self.weights[bucket] += self.next_weight;
        self.highest = self.highest.max(bucket);
        self.next_weight *= GROWTH;
        if self.next_weight > WEIGHT_MAX {
            let scale = self.next_weight.recip();
            self.weights.iter_mut().for_each(|weight| *weight *= scale);
            self.next_weight = 1.0;
        }
    }

    /// How many observations there are above `used_ns`; each counts as much as its age has left of it.
    pub fn weight_above(&self, used_ns: u64) -> f64 {
        self.rest(used_ns).map(|part| part.weight).sum()
    }

    /// The duration above which less than `weight` observations lie; `None` if all of them together are less.
    pub fn above_ns(&self, weight: f64) -> Option<u64> {
        let unit = f64::from(self.next_weight);
        let mut above = 0.0;
        let reached = (0..=self.highest).rev().find(|index| {
            above += f64::from(self.weights[*index]) / unit;
            above >= weight
        });
        reached.map(|index| bounds(index).1 as u64)
    }

    /// The mean of what is left of those that lasted longer than `used_ns`; `None` if none did.
    pub fn mean_rest_ns(&self, used_ns: u64) -> Option<f64> {
        let (sum, weight) = self
            .rest(used_ns)
            .fold((0.0, 0.0), |(sum, weight), part| (sum + part.rest_ns * part.weight, weight + part.weight));
        (weight > 0.0).then(|| sum / weight)
    }

    /// The quantile `q` (0 to 1) of what is left of those that lasted longer than `used_ns`; `None` if none did.
    pub fn quantile_rest_ns(&self, used_ns: u64, q: f64) -> Option<f64> {
        let wanted = self.weight_above(used_ns) * q.clamp(0.0, 1.0);
        let mut below = 0.0;
        let mut last = None;
        for part in self.rest(used_ns) {
            below += part.weight;
            last = Some(part.rest_ns);
            if below >= wanted {
                break;
            }
        }
        last
    }

    /// What may be left after `used_ns`, shortest first. Within the bucket of `used_ns` durations count as evenly
    /// spread, so the part above it remains.
    pub(crate) fn rest(&self, used_ns: u64) -> impl Iterator<Item = Part> {
        let used = used_ns as f64;
        let unit = f64::from(self.next_weight);
        (bucket(used_ns)..=self.highest).filter_map(move |index| {
            let weight = f64::from(self.weights[index]) / unit;
            let (low, high) = bounds(index);
            let from = low.max(used);
            let part = (high - from) / (high - low);
            (weight > 0.0 && part > 0.0)
                .then_some(Part { rest_ns: f64::midpoint(from, high) - used, weight: weight * part })
        })
    }
}

fn bucket(ns: u64) -> usize {
    if ns < 1 << FLOOR_BITS {
        return 0;
    }
    let octave = ns.ilog2();
    let within = (ns >> (octave - SUB_BITS)) as usize & ((1 << SUB_BITS) - 1);
    (1 + (((octave - FLOOR_BITS) as usize) << SUB_BITS) + within).min(BUCKETS - 1)
}

/// Where a bucket begins and ends, in nanoseconds.
fn bounds(bucket: usize) -> (f64, f64) {
    let Some(place) = bucket.checked_sub(1) else { return (0.0, (1u64 << FLOOR_BITS) as f64) };
    let octave = FLOOR_BITS + (place >> SUB_BITS) as u32;
    let within = (place & ((1 << SUB_BITS) - 1)) as u64;
    let width = 1u64 << (octave - SUB_BITS);
    let low = ((1 << SUB_BITS) + within) * width;
    (low as f64, (low + width) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(durations: impl IntoIterator<Item = u64>) -> Sketch {
        let mut sketch = Sketch::default();
        durations.into_iter().for_each(|ns| sketch.observe(ns));
        sketch
    }

    proptest! {
        #[test]
        fn a_duration_lies_in_its_bucket_and_near_its_middle(ns in 1u64 << FLOOR_BITS..1 << CEILING_BITS) {
            let (low, high) = bounds(bucket(ns));
            let ns = ns as f64;
            prop_assert!(low <= ns && ns < high);
            prop_assert!((f64::midpoint(low, high) - ns).abs() <= ns / 32.0);
        }

        /// The guarantee of the paper, against the sorted values themselves (few enough that none has aged much).
        #[test]
        fn quantiles_are_within_the_stated_error(
            mut durations in prop::collection::vec(2_000u64..4_000_000_000, 1..12), q in 0.0f64..=1.0,
        ) {
            let sketch = of(durations.iter().copied());
            durations.sort_unstable();
            let got = sketch.quantile_rest_ns(0, q).unwrap();
            // Age shifts ranks by at most 12/128 of an observation: the neighbour is right as well.
            let rank = q * durations.len() as f64;
            let low = durations[(rank - 1.2).max(0.0) as usize] as f64;
            let high = durations[(rank + 0.2).min(durations.len() as f64 - 1.0) as usize] as f64;
            prop_assert!(low * 31.0 / 32.0 <= got && got <= high * 33.0 / 32.0, "{low} {got} {high}");
        }

        #[test]
        fn any_duration_and_any_age_are_answered(
            durations in prop::collection::vec(any::<u64>(), 0..50), used in any::<u64>(),
        ) {
            let sketch = of(durations);
            for part in sketch.rest(used) {
                prop_assert!(part.rest_ns >= 0.0 && part.weight > 0.0 && part.weight.is_finite());
            }
        }
    }

    #[test]
    fn an_observation_has_half_its_weight_after_its_half_life() {
        let mut sketch = of([1_000_000]);
        let first = sketch.weight_above(500_000);
        (0..HALF_LIFE).for_each(|_| sketch.observe(2_000));
        let then = sketch.weight_above(500_000);
        assert!((then / first - 0.5).abs() < 0.001, "{first} {then}");
    }

    #[test]
    fn nearly_all_lie_below_what_nearly_none_lies_above() {
        assert_eq!(Sketch::default().above_ns(0.5), None);
        let mut sketch = of([60_000_000_000]);
        assert!(sketch.above_ns(0.5).unwrap() > 60_000_000_000);
        (0..4 * HALF_LIFE).for_each(|_| sketch.observe(5_000_000));
        let most = sketch.above_ns(0.5).unwrap();
        assert!((5_000_000..5_300_000).contains(&most), "{most}");
    }

    #[test]
    fn the_weight_stays_bounded_and_the_past_fades() {
        let mut sketch = of(std::iter::repeat_n(1_000_000_000, 1000));
        (0..10_000).for_each(|_| sketch.observe(1_000_000));
        // A geometric series: 1 / (1 - 1/GROWTH).
        assert!((sketch.weight_above(0) - 184.2).abs() < 1.0, "{}", sketch.weight_above(0));
        assert!((sketch.mean_rest_ns(0).unwrap() / 1e6 - 1.0).abs() < 0.04);
    }

    #[test]
    fn what_is_left_depends_on_what_was_used() {
        let sketch = of((0..100).map(|call| if call % 5 == 0 { 500_000_000 } else { 5_000_000 }));
        let mean = sketch.mean_rest_ns(0).unwrap();
        assert!((90e6..115e6).contains(&mean), "{mean}");
        // Past the short ones only the long ones are left.
        let mean = sketch.mean_rest_ns(10_000_000).unwrap();
        assert!((470e6..510e6).contains(&mean), "{mean}");
        assert_eq!(sketch.mean_rest_ns(600_000_000), None);
        assert!(sketch.quantile_rest_ns(0, 0.5).unwrap() < 5.2e6);
    }
}
