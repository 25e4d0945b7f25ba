//! This library as a contender, and the random numbers of all.

use super::contender::{Contender, Tokens};
use crate::random::mix;
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Latents, Result, Sae};
use std::sync::Arc;
use std::time::Instant;

/// The encoder under its options.
#[derive(Debug)]
pub(super) struct Ours {
    encoder: Encoder,
    tokens: Tokens,
    latents: Latents,
}

impl Ours {
    /// An encoder for `sae`.
    ///
    /// # Errors
    /// Those of [`Encoder::new`].
    pub(super) fn new(sae: Arc<Sae>, options: EncoderOptions) -> Result<Self> {
        let tokens = Tokens::new(sae.config().d_model);
        let latents = Latents::new(0, sae.config().selection.capacity())?;
        Ok(Ours { encoder: Encoder::new(sae, options)?, tokens, latents })
    }
}

impl Contender for Ours {
    fn weight_bytes(&self, tokens: usize) -> u64 {
        // Screened, an int8 copy of the weights; the few rows that are computed exactly after it are not counted.
        if let Some(screening) = self.encoder.screening().filter(|screening| tokens <= screening.most_rows) {
            return screening.copy_bytes[usize::from(tokens > 1)] as u64;
        }
        let weight = &self.encoder.sae().encoder().weight;
        let element = if weight.dtype() == Dtype::F32 { 4 } else { 2 };
        weight.rows() as u64 * weight.cols() as u64 * element
    }

    fn rows(&self) -> usize {
        self.encoder.sae().encoder().weight.rows()
    }

    fn run(&mut self, tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
        let text = |e: kronsae::Error| e.message().to_owned();
        let d = self.encoder.sae().config().d_model;
        if self.latents.rows() != tokens {
            self.latents = Latents::new(tokens, self.latents.capacity).map_err(text)?;
        }
        for _ in 0..calls {
            let x = Activations::from_f32(self.tokens.next(tokens), d).map_err(text)?;
            let mut out = self.latents.as_mut();
            let start = Instant::now();
            self.encoder.encode(x, &mut out).map_err(text)?;
            times.push(start.elapsed().as_nanos() as f64);
        }
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
