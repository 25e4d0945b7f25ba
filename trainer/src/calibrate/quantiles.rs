//! How often and how strongly each latent fires.

use super::for_tokens;
use crate::data::Dataset;
use kronsae::{Result, Sae};
use std::sync::Arc;

/// The levels of the quantiles, of the value where a latent is active.
pub const LEVELS: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Bins of a latent's histogram.
const BINS: usize = 64;

/// What each latent does on a corpus; NaN where it never fired.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Tokens that were encoded.
    pub tokens: u64,
    /// Share of tokens on which the latent is active, `[F]`.
    pub rate: Vec<f32>,
    /// Mean value where active, `[F]`.
    pub mean: Vec<f32>,
    /// Quantiles of the value where active at [`LEVELS`], `[F, Q]`.
    pub quantiles: Vec<f32>,
    /// The largest relative error of a quantile: one bin of the latent whose values span the widest range.
    pub quantile_error: f64,
}

#[derive(Clone, Copy)]
struct Moments {
    fired: u64,
    sum: f64,
    low: f32,
    high: f32,
}

impl Moments {
    /// Logarithm of the ratio of a bin's edges. 0 where all values are equal.
    fn step(&self) -> f64 {
        (f64::from(self.high) / f64::from(self.low)).ln() / BINS as f64
    }

    fn bin(&self, value: f32) -> usize {
        let step = self.step();
        if step <= 0.0 {
            return 0;
        }
        // Rounding may put the largest value one past the end, and the smallest just below 0 (the cast saturates).
        (((f64::from(value) / f64::from(self.low)).ln() / step) as usize).min(BINS - 1)
    }

    /// The value of rank `level * fired`, interpolated inside its bin.
    fn quantile(&self, bins: &[u32], level: f64) -> f32 {
        let rank = (level * self.fired as f64).ceil().max(1.0);
        let mut before = 0.0;
        for (bin, &count) in bins.iter().enumerate() {
            let count = f64::from(count);
            if before + count >= rank {
                let within = bin as f64 + (rank - before) / count;
                let value = f64::from(self.low) * (self.step() * within).exp();
                return (value as f32).clamp(self.low, self.high);
            }
            before += count;
        }
        self.high
    }
}

/// Measures the latents of `sae` under its selection: two passes over `data`, the first for the range of each latent, the
/// second for its histogram.
pub(super) fn measure(
    sae: &Arc<Sae>,
    data: &Dataset,
    threads: usize,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<Statistics> {
    let latents = sae.config().encoder.latents();
    let mut moments = vec![Moments { fired: 0, sum: 0.0, low: f32::INFINITY, high: 0.0 }; latents];
    let tokens = for_tokens(sae, data, threads, "measuring rates", progress, &mut |indices, values| {
        for (&latent, &value) in indices.iter().zip(values) {
            let m = &mut moments[latent as usize];
            *m = Moments {
                fired: m.fired + 1,
                sum: m.sum + f64::from(value),
                low: m.low.min(value),
                high: m.high.max(value),
            };
        }
    })?;
    let mut bins = vec![0_u32; latents * BINS];
    for_tokens(sae, data, threads, "measuring quantiles", progress, &mut |indices, values| {
        for (&latent, &value) in indices.iter().zip(values) {
            let latent = latent as usize;
            let bin = &mut bins[latent * BINS + moments[latent].bin(value)];
            *bin = bin.saturating_add(1);
        }
    })?;

    let mut out = Statistics { tokens, ..Statistics::default() };
    for (m, bins) in moments.iter().zip(bins.chunks_exact(BINS)) {
        out.rate.push((m.fired as f64 / tokens as f64) as f32);
        if m.fired == 0 {
            out.mean.push(f32::NAN);
            out.quantiles.extend([f32::NAN; LEVELS.len()]);
            continue;
        }
        out.mean.push((m.sum / m.fired as f64) as f32);
        out.quantiles.extend(LEVELS.map(|level| m.quantile(bins, level)));
        out.quantile_error = out.quantile_error.max(m.step().exp_m1());
    }
    Ok(out)
}
