//! Durations counted by buckets; one writer, any readers.

use super::snapshot::Histogram;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// A histogram that one thread fills while others read it.
#[derive(Debug)]
pub(crate) struct Durations {
    bounds: Box<[f64]>,
    nanos: Box<[u64]>,
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// # Errors
/// [`crate::Status::InvalidArgument`] unless there are 1 to 64 bounds, positive, finite and ascending.
pub(crate) fn check_bounds(bounds: &[f64]) -> Result<()> {
    let fine = bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0)
        && bounds.windows(2).all(|pair| pair[0] < pair[1])
        && (1..=64).contains(&bounds.len());
    if fine {
        return Ok(());
    }
    Err(Error::invalid(format!("latency bounds {bounds:?}: expected 1 to 64 positive numbers of seconds, ascending")))
}

impl Durations {
    pub(crate) fn new(bounds: &[f64]) -> Self {
        Durations {
            bounds: bounds.into(),
            nanos: bounds.iter().map(|bound| (bound * 1e9) as u64).collect(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts `times` observations of `nanos` each.
    pub(crate) fn observe(&self, nanos: u64, times: u64) {
        let bucket = &self.counts[self.nanos.partition_point(|bound| *bound < nanos)];
        bucket.store(bucket.load(Ordering::Relaxed) + times, Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed).saturating_add(nanos.saturating_mul(times));
        self.sum.store(sum, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram {
            bounds: self.bounds.to_vec(),
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_upper_ends() {
        let durations = Durations::new(&[1e-6, 1e-3]);
        durations.observe(1000, 2);
        durations.observe(1001, 1);
        durations.observe(5_000_000, 1);
        let read = durations.read();
        assert_eq!(read.counts, [2, 1, 1]);
        assert!((read.sum - 0.005_003_001).abs() < 1e-9);
    }

    #[test]
    fn bad_bounds() {
        for bounds in [&[][..], &[0.0], &[2.0, 1.0], &[1.0, 1.0], &[f64::NAN], &[1.0, f64::INFINITY]] {
            assert!(check_bounds(bounds).is_err(), "{bounds:?}");
        }
        assert!(check_bounds(&[1e-5, 1.0]).is_ok());
    }
}
