//! The threshold under which the mean number of active latents is K.

use super::{for_tokens, reselected};
use crate::data::Dataset;
use kronsae::sae::Selection;
use kronsae::{Result, Sae};
use serde::Serialize;
use std::sync::Arc;

/// A threshold and how near it comes to what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Theta {
    /// A latent is active iff its value is above this, strictly.
    pub theta: f32,
    /// Mean number of active latents of a token on the calibration set, before any cut to `max_latents`. Below K where
    /// even at 0 fewer are positive.
    pub mean_active: f64,
}

/// The low bits of a value that its bin does not see: bins are 2^13 to the octave.
const SHIFT: u32 = 10;

/// A histogram of positive floats: their bits order like their values.
struct Histogram {
    bins: Vec<u64>,
}

impl Histogram {
    fn new() -> Self {
        Histogram { bins: vec![0; 1 << (31 - SHIFT)] }
    }

    fn add(&mut self, value: f32) {
        debug_assert!(value > 0.0 && value.is_finite());
        self.bins[(value.to_bits() >> SHIFT) as usize] += 1;
    }

    /// The largest float below bin `bin`: as a threshold, it lets pass that bin and all above. 0 for the lowest.
    fn below(bin: usize) -> f32 {
        f32::from_bits(((bin as u32) << SHIFT).saturating_sub(1))
    }

    /// The highest bin such that at least `wanted` values lie in it and above, and their number; bin 0 and all values
    /// where there are not as many.
    fn reaching(&self, wanted: u64) -> (usize, u64) {
        let mut above = 0;
        for (bin, count) in self.bins.iter().enumerate().rev() {
            above += count;
            if above >= wanted && *count > 0 {
                return (bin, above);
            }
        }
        (0, above)
    }
}

/// Finds theta for a mean of `k` active latents. Gives the model back, with another selection.
pub(super) fn find(
    sae: Arc<Sae>,
    data: &Dataset,
    k: usize,
    threads: usize,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<(Arc<Sae>, Theta)> {
    let latents = sae.config().encoder.latents();
    // First of the strongest latents alone: cheap, and nearly always all that is needed.
    let seen = k.saturating_mul(4).min(latents);
    let sae = reselected(sae, Selection::TopK(seen))?;
    let mut histogram = Histogram::new();
    // The largest value behind which a token may have more latents than were seen.
    let mut blind = 0.0_f32;
    let tokens = for_tokens(&sae, data, threads, "looking for theta", progress, &mut |_, values| {
        values.iter().for_each(|&v| histogram.add(v));
        if values.len() == seen && seen < latents {
            blind = blind.max(values[seen - 1]);
        }
    })?;
    let wanted = tokens * k as u64;
    let bound = Histogram::below(histogram.reaching(wanted).0);
    // The latents that were not seen only make more active, so theta is at least `bound`. If none of them is above it,
    // the histogram is complete there; if some may be, one of all latents above it takes its place.
    let mut sae = sae;
    if blind > bound {
        sae = reselected(sae, Selection::Threshold { theta: bound, max_latents: latents })?;
        histogram = Histogram::new();
        for_tokens(&sae, data, threads, "looking for theta again", progress, &mut |_, values| {
            values.iter().for_each(|&v| histogram.add(v));
        })?;
    }
    // With the bin at which the count passes what is wanted, or without it: whichever is nearer.
    let (bin, with) = histogram.reaching(wanted);
    let without = with - histogram.bins[bin];
    let (bin, active) =
        if with > wanted && wanted - without < with - wanted { (bin + 1, without) } else { (bin, with) };
    Ok((sae, Theta { theta: Histogram::below(bin), mean_active: active as f64 / tokens as f64 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_what_passes_a_threshold() {
        let mut histogram = Histogram::new();
        let values = [1e-30_f32, 0.5, 0.5, 1.0, 1.0001, 3.0, f32::MAX];
        values.iter().for_each(|&v| histogram.add(v));
        for wanted in 1..=values.len() as u64 {
            let (bin, above) = histogram.reaching(wanted);
            let theta = Histogram::below(bin);
            assert_eq!(values.iter().filter(|v| **v > theta).count() as u64, above);
            assert!(above >= wanted);
        }
        assert_eq!(histogram.reaching(8), (0, 7));
        assert_eq!(Histogram::below(0), 0.0);
    }
}
