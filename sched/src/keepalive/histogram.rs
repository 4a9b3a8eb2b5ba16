//! `histogram`: a function is kept, and made anew, when its own past says that it will be called.
//!
//! After the hybrid histogram policy [M. Shahrad et al.: "Serverless in the Wild: Characterizing and Optimizing the
//! Serverless Workload at a Large Cloud Provider", USENIX ATC 2020, section 4]. Per function, the times from the
//! end of a request to the next one's arrival are counted in 240 buckets of a minute.
//!
//! ```text
//!   last use        5th percentile - 10 %                99th percentile + 10 %
//!      ├── not there ──────┼──────── there ─────────────────────┤
//! ```
//!
//! - The lower end of the window ([`Window::from_ns`], the paper's pre-warming window) is the 5th percentile, rounded
//!   down to a whole minute, less 10 %; if that is no time at all, the function simply stays.
//! - The upper end is the 99th percentile, rounded up to a whole minute, plus 10 %.
//! - A histogram says nothing while it is flat or nearly empty. It counts as representative when the coefficient of
//!   variation of its buckets' counts is above [`REPRESENTATIVE_CV`] (one tall bucket among 240 empty ones has 15.5, a
//!   flat one 0). Until then, and when more than half of the gaps were longer than the four hours that it
//!   covers, the function is kept by the fixed rule of [`Ttl`](super::Ttl).
//!
//! What differs from the paper: its fall-back keeps a function for four hours, ours for what its owner said
//! (`scale.idle`), since here the memory is one machine's; and functions whose gaps are mostly beyond four hours, which it
//! forecasts by ARIMA, fall back as well. Counts are halved when the histogram is full ([`TOTAL_MAX`]), so that it follows a
//! function whose habits change.
//!
//! The zygote has the instance's window: the ten percent are minutes, its start is milliseconds.

use super::ttl::{below, standard};
use super::{Arrivals, KeepAlive, Layer, Profile, SECOND_NS, Window, recency};
use crate::FunctionId;
use crate::slots::Slots;

/// A bucket's width.
pub const BUCKET_NS: u64 = 60 * SECOND_NS;
/// Buckets: four hours (section 4.2).
pub const BUCKETS: usize = 240;
/// The lower end (section 4.2).
const HEAD_PERCENT: u64 = 5;
/// The upper end (section 4.2).
const TAIL_PERCENT: u64 = 99;
/// The margin on both (section 4.2).
const MARGIN_PERCENT: u64 = 10;
/// The buckets' coefficient of variation above which they say something (the paper's choice, section 5.2).
const REPRESENTATIVE_CV: f64 = 2.0;
/// Gaps before anything is concluded: a percentile of fewer is an accident.
const SAMPLES_MIN: u32 = 10;
/// Counts are halved at so many gaps.
const TOTAL_MAX: u32 = 1 << 14;

/// See the module.
#[derive(Debug, Default)]
pub struct Histogram {
    known: Slots<Known>,
}

#[derive(Debug)]
struct Known {
    profile: Profile,
    gaps: Gaps,
    /// What follows from the gaps; `None`: the fixed rule.
    window: Option<Window>,
}

/// The counts of one function.
#[derive(Debug)]
struct Gaps {
    buckets: Box<[u32; BUCKETS]>,
    /// Sum of the buckets, and of their squares.
    within: u32,
    squares: u64,
    /// Longer than all buckets.
    beyond: u32,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), within: 0, squares: 0, beyond: 0 }
    }
}

impl Gaps {
    fn count(&mut self, gap_ns: u64, times: u64) {
        for _ in 0..times.min(u64::from(TOTAL_MAX)) {
            if self.within + self.beyond >= TOTAL_MAX {
                self.halve();
            }
            match self.buckets.get_mut((gap_ns / BUCKET_NS) as usize) {
                Some(bucket) => {
                    self.squares += 2 * u64::from(*bucket) + 1;
                    *bucket += 1;
                    self.within += 1;
                }
                None => self.beyond += 1,
            }
        }
    }

    fn halve(&mut self) {
        self.buckets.iter_mut().for_each(|bucket| *bucket /= 2);
        self.within = self.buckets.iter().sum();
        self.squares = self.buckets.iter().map(|bucket| u64::from(*bucket).pow(2)).sum();
        self.beyond /= 2;
    }

    /// Standard deviation over mean of the buckets' counts.
    fn variation(&self) -> f64 {
        let mean = f64::from(self.within) / BUCKETS as f64;
        let variance = self.squares as f64 / BUCKETS as f64 - mean * mean;
        if mean > 0.0 { variance.max(0.0).sqrt() / mean } else { 0.0 }
    }

    /// The bucket that this percentile is in.
    fn percentile(&self, percent: u64) -> u64 {
        let rank = (u64::from(self.within) * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        bucket.unwrap_or(BUCKETS - 1) as u64
    }

    fn window(&self) -> Option<Window> {
        let enough = self.within + self.beyond >= SAMPLES_MIN;
        if !enough || self.beyond > self.within || self.variation() <= REPRESENTATIVE_CV {
            return None;
        }
        let head_ns = self.percentile(HEAD_PERCENT) * BUCKET_NS;
        let tail_ns = (self.percentile(TAIL_PERCENT) + 1) * BUCKET_NS;
        Some(Window {
            from_ns: head_ns - head_ns / 100 * MARGIN_PERCENT,
            until_ns: tail_ns + tail_ns / 100 * MARGIN_PERCENT,
        })
    }
}

impl KeepAlive for Histogram {
    fn name(&self) -> &'static str {
        "histogram"
    }

    fn learn(&mut self, function: FunctionId, profile: Profile) {
        let fresh = || Known { profile, gaps: Gaps::default(), window: None };
        self.known.get_or_insert_with(function.0, fresh).profile = profile;
    }

    fn arrived(&mut self, function: FunctionId, arrivals: Arrivals, _: u64) {
        let Some(known) = self.known.get_mut(function.0) else { return };
        let close_behind = arrivals.count.saturating_sub(1);
        if let Some(gap_ns) = arrivals.gap_ns {
            known.gaps.count(gap_ns, arrivals.count.min(1));
        }
        known.gaps.count(0, close_behind);
        known.window = known.gaps.window();
    }

    fn forget(&mut self, function: FunctionId) {
        self.known.remove(function.0);
    }

    fn window(&self, function: FunctionId, layer: Layer, _: u64) -> Window {
        let Some(known) = self.known.get(function.0) else { return Window::lasting(0) };
        let window = known.window.filter(|_| layer != Layer::Package);
        window.unwrap_or_else(|| Window::lasting(standard(known.profile.standard_ns, layer)))
    }

    fn worth(&self, _: FunctionId, layer: Layer, used_ns: u64, now_ns: u64) -> f64 {
        below(layer, recency(used_ns, now_ns))
    }
}
