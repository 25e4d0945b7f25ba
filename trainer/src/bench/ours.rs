//! This library as a contender, and the random numbers of all.

use super::contender::{Contender, Tokens, Work};
use super::peaks::Unit;
use crate::random::mix;
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Instruction, Latents, Result, Sae};
use std::sync::Arc;
use std::time::Instant;

/// The encoder under its options.
#[derive(Debug)]
pub(super) struct Ours {
    encoder: Encoder,
    tokens: Tokens,
    latents: Latents,
    closer: Closer,
}

/// Calls of one size, and the rows that they looked at closer, of all their tokens.
#[derive(Debug, Default)]
struct Closer {
    tokens: usize,
    calls: usize,
    /// By the second plane.
    refined: usize,
    /// By `dot/1`.
    recomputed: usize,
}

impl Ours {
    /// An encoder for `sae`.
    ///
    /// # Errors
    /// Those of [`Encoder::new`].
    pub(super) fn new(sae: Arc<Sae>, options: EncoderOptions) -> Result<Self> {
        let tokens = Tokens::new(sae.config().d_model);
        let latents = Latents::new(0, sae.config().selection.capacity())?;
        Ok(Ours { encoder: Encoder::new(sae, options)?, tokens, latents, closer: Closer::default() })
    }
}

impl Contender for Ours {
    fn work(&self, tokens: usize) -> Work {
        let (plan, weight) = (self.encoder.plan(tokens), &self.encoder.sae().encoder().weight);
        let mut bytes = plan.bytes;
        if plan.screened && self.closer.tokens == tokens {
            // Rows that several tokens of a call look at are read once, as far as all of them go.
            let rows = |count: usize| (count / self.closer.calls.max(1)).min(weight.rows());
            let element = if weight.dtype() == Dtype::F32 { 4 } else { 2 };
            bytes += weight.cols() * (rows(self.closer.refined) + element * rows(self.closer.recomputed));
        }
        let unit = match plan.instruction {
            Instruction::F32 => Some(Unit::F32),
            Instruction::Int8Vectors => Some(Unit::Int8Vectors),
            Instruction::Int8Tiles => Some(Unit::Int8Tiles),
            Instruction::Integers => None,
        };
        let ours = Some((plan.screened, plan.threads));
        Work { bytes: bytes as u64, rows: weight.rows(), products: plan.products, unit, ours }
    }

    fn run(&mut self, tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
        let text = |e: kronsae::Error| e.message().to_owned();
        let d = self.encoder.sae().config().d_model;
        if self.latents.rows() != tokens {
            self.latents = Latents::new(tokens, self.latents.capacity).map_err(text)?;
        }
        if self.closer.tokens != tokens {
            self.closer = Closer { tokens, ..Closer::default() };
        }
        let looked = |encoder: &Encoder| encoder.screening().map_or([0; 2], |s| [s.refined_rows, s.recomputed_rows]);
        let before = looked(&self.encoder);
        for _ in 0..calls {
            let x = Activations::from_f32(self.tokens.next(tokens), d).map_err(text)?;
            let mut out = self.latents.as_mut();
            let start = Instant::now();
            self.encoder.encode(x, &mut out).map_err(text)?;
            times.push(start.elapsed().as_nanos() as f64);
        }
        let after = looked(&self.encoder);
        self.closer.calls += calls;
        self.closer.refined += after[0] - before[0];
        self.closer.recomputed += after[1] - before[1];
        Ok(())
    }
}

/// Fills `out` with numbers of mean 0 and deviation `deviation`, nearly normal: sums of four uniform ones, which are
/// made fast enough for matrices of gigabytes.
pub(super) fn fill_normals(seed: u64, deviation: f32, out: &mut [f32]) {
    // Four uniform numbers below 2^16: mean 2 * (2^16 - 1), variance 4 * 2^32 / 12.
    let scale = deviation / (65536.0 / 3.0_f32.sqrt());
    let key = mix(seed);
    for (at, value) in out.iter_mut().enumerate() {
        let bits = mix(key.wrapping_add(at as u64));
        let sum = (bits & 0xFFFF) + ((bits >> 16) & 0xFFFF) + ((bits >> 32) & 0xFFFF) + (bits >> 48);
        *value = (sum as f32 - 131_070.0) * scale;
    }
}

/// A vector of [`fill_normals`].
#[must_use]
pub(super) fn normals(seed: u64, len: usize, deviation: f32) -> Vec<f32> {
    let mut out = vec![0.0; len];
    fill_normals(seed, deviation, &mut out);
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn normals_have_their_moments() {
        let values = super::normals(5, 100_000, 0.5);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 1e5;
        let fourth = values.iter().map(|v| f64::from(*v).powi(4)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.006 && (square - 0.25).abs() < 0.004, "{mean} {square}");
        // A uniform distribution would have 1.8, a normal one 3, the sum of four has 2.7.
        assert!((fourth / square.powi(2) - 2.7).abs() < 0.05, "{fourth}");
    }
}
