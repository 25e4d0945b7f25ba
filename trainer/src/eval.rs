//! Evaluation: how well a trained SAE reconstructs activations, and how it uses its latents to do so.
//!
//! With x a token's activation, x̂ its reconstruction by the model and μ the mean of all evaluated tokens:
//!
//! - pooled explained variance: `1 - SSE / SST`, SSE the sum of |x - x̂|² over all tokens, SST the sum of |x - μ|². Tokens of
//!   large norm weigh more;
//! - explained variance, mean per token: the mean over tokens of `1 - |x - x̂|² / |x - μ|²`. Every token weighs the same;
//! - FVU, the fraction of variance unexplained: 1 - pooled;
//! - MSE: SSE over tokens and dimensions, in the raw units of the activations;
//! - L0: latents of a token, on average;
//! - dead: a latent that fired on none of the tokens evaluated *here*. A small data set makes more of them.
//!
//! Everything is computed in f64 from the f32 reconstruction of the runtime, in two passes over the data: first μ, then the
//! rest, so that no sum is ever a small difference of two large ones. Every sum runs in row order whatever the number of
//! threads, so results do not depend on it.

use crate::data::Dataset;
use crate::stream::{Chunk, check_rows, check_width, chunk_tokens, encode_rows};
use kronsae::sae::Encoder as Kind;
use kronsae::threads::Pool;
use kronsae::{Aligned, Error, LatentsRef, ROW_NOT_FINITE, ROW_TRUNCATED, Result, Sae};
use serde::{Deserialize, Deserializer, Serialize};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// How to evaluate.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Threads to use, the caller's included.
    pub threads: usize,
}

impl Default for EvalOptions {
    /// One thread.
    fn default() -> Self {
        EvalOptions { threads: 1 }
    }
}

/// Explained variance under both of its definitions; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExplainedVariance {
    /// `1 - SSE / SST` over all tokens. NaN (`null` in JSON) where the tokens do not vary.
    #[serde(deserialize_with = "null_as_nan")]
    pub pooled: f64,
    /// Mean over tokens of each token's own ratio; tokens that equal the mean exactly are left out. NaN if all do.
    #[serde(deserialize_with = "null_as_nan")]
    pub per_token_mean: f64,
}

/// How often latents fire: a histogram of their firing rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FiringDensity {
    /// Edges of the bins, log10 of the share of tokens on which a latent fires. The first bin also has whatever is lower.
    pub log10_edges: Vec<f64>,
    /// Latents in each bin; one fewer than edges. Latents that never fired are in none.
    pub counts: Vec<u64>,
}

/// What [`evaluate`] found. Its JSON is what `kronsae eval --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Share of the variance that the reconstruction explains.
    pub explained_variance: ExplainedVariance,
    /// Fraction of variance unexplained: 1 - pooled explained variance.
    #[serde(deserialize_with = "null_as_nan")]
    pub fvu: f64,
    /// Mean squared error of an element, in raw units.
    #[serde(deserialize_with = "null_as_nan")]
    pub mse: f64,
    /// Latents of a token, on average.
    #[serde(deserialize_with = "null_as_nan")]
    pub l0: f64,
    /// Share of latents that never fired here.
    pub dead_share: f64,
    /// Tokens evaluated.
    pub tokens: u64,
    /// Tokens left out: an activation, a pre-activation or the reconstruction was not finite.
    pub non_finite_tokens: u64,
    /// Tokens with more active latents than `max_latents` (threshold selection): only the strongest were kept.
    pub truncated_tokens: u64,
    /// F, the number of latents.
    pub latents: u64,
    /// Latents that never fired here.
    pub dead_latents: u64,
    /// How often latents fire.
    pub firing_density: FiringDensity,
    /// Share of all firings that fall to each head (KronSAE only); an even use of the heads is `1 / heads` each.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub head_usage: Option<Vec<f64>>,
}

/// JSON has no NaN: it is written as `null`, and read back here.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Evaluates `sae` on tokens `rows` of `data`, streaming it twice: the data set is never held in memory.
///
/// `progress` is called with the number of tokens done, from time to time. The result does not depend on
/// `options.threads`.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if the range is empty or outside the data set, the widths differ or the number of
/// threads is 0; [`kronsae::Status::Unsupported`] if `sae` was opened encoder-only; those of reading the shards.
pub fn evaluate(
    sae: &Arc<Sae>,
    data: &Dataset,
    rows: Range<usize>,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    check_rows(data, &rows)?;
    check_width(sae, data)?;
    let mut pool = Pool::new(options.threads, "eval")?;
    // Which finite tokens overflow inside the model is known only after encoding, but they must not be in the mean
    // either. There are none in any sound data set; where there are, both passes run again without them.
    let mut left_out = Vec::new();
    loop {
        let mean = mean_of(data, rows.clone(), &left_out, &mut pool)?;
        let totals = Totals::of(sae, data, rows.clone(), options.threads, &mean, &mut pool, progress)?;
        if totals.left_out == left_out {
            return Ok(totals.finish(sae.config().encoder, sae.config().d_model));
        }
        left_out = totals.left_out;
    }
}

fn finite(row: &[f32]) -> bool {
    row.iter().fold(true, |all, v| all & v.is_finite())
}

/// The mean activation, `[d_model]`, of the tokens that are finite and not in `left_out` (ascending). Zeros if none is.
fn mean_of(data: &Dataset, rows: Range<usize>, left_out: &[usize], pool: &mut Pool) -> Result<Vec<f64>> {
    let d = data.d_model();
    let tokens = chunk_tokens(d).min(rows.len());
    let mut x = Aligned::zeroed(tokens * d, "a chunk of tokens")?;
    // Each thread sums its own dimensions over all tokens: the order of additions is that of the rows.
    let sums: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(Vec::<f64>::new())).collect();
    let mut count = 0_u64;
    let mut start = rows.start;
    while start < rows.end {
        let n = tokens.min(rows.end - start);
        let x = &mut x[..n * d];
        data.read(start, n, x)?;
        let taken: Vec<usize> =
            (0..n).filter(|r| finite(&x[r * d..][..d]) && left_out.binary_search(&(start + r)).is_err()).collect();
        count += taken.len() as u64;
        pool.run(&|worker| {
            let share = worker.share(d, 16);
            let mut sum = sums[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            sum.resize(share.len(), 0.0);
            for r in &taken {
                for (s, v) in sum.iter_mut().zip(&x[r * d..][share.clone()]) {
                    *s += f64::from(*v);
                }
            }
        })?;
        start += n;
    }
    let sums = sums.into_iter().flat_map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(sums.map(|sum| if count == 0 { 0.0 } else { sum / count as f64 }).collect())
}

/// One token's squared distances.
#[derive(Clone, Copy)]
struct TokenError {
    /// |x - x̂|².
    residual: f64,
    /// |x - μ|².
    spread: f64,
}

/// A thread's workspace: reconstructions of its share of a chunk, and what they come to.
#[derive(Default)]
struct Part {
    decoded: Vec<f32>,
    errors: Vec<TokenError>,
    result: Option<Error>,
}

#[derive(Default)]
struct Totals {
    sse: f64,
    sst: f64,
    /// Sum of residual / spread, and the number of tokens in it.
    ratios: f64,
    ratio_tokens: u64,
    tokens: u64,
    firings: u64,
    truncated: u64,
    /// Tokens on which each latent fired, `[F]`.
    fired: Vec<u64>,
    non_finite: u64,
    /// Finite tokens that overflow inside the model, ascending.
    left_out: Vec<usize>,
}

impl Totals {
    fn of(
        sae: &Arc<Sae>,
        data: &Dataset,
        rows: Range<usize>,
        threads: usize,
        mean: &[f64],
        pool: &mut Pool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut totals = Totals { fired: vec![0; sae.config().encoder.latents()], ..Totals::default() };
        let parts: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(Part::default())).collect();
        let first = rows.start;
        encode_rows(sae, data, rows, threads, &mut |chunk| {
            pool.run(&|worker| {
                let mut part = parts[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
                part.run(sae, chunk, worker.share(chunk.rows, 1), mean);
            })?;
            let mut row = 0;
            for part in &parts {
                let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(error) = part.result.take() {
                    return Err(error);
                }
                for error in &part.errors {
                    totals.add(chunk, row, *error);
                    row += 1;
                }
            }
            progress(chunk.start + chunk.rows - first);
            Ok(())
        })?;
        Ok(totals)
    }

    fn add(&mut self, chunk: Chunk<'_>, row: usize, error: TokenError) {
        let flags = chunk.latents.flags[row];
        if flags & ROW_NOT_FINITE != 0 || !error.residual.is_finite() {
            self.non_finite += 1;
            if error.spread.is_finite() {
                self.left_out.push(chunk.start + row);
            }
            return;
        }
        self.tokens += 1;
        self.sse += error.residual;
        self.sst += error.spread;
        if error.spread > 0.0 {
            self.ratios += error.residual / error.spread;
            self.ratio_tokens += 1;
        }
        self.truncated += u64::from(flags & ROW_TRUNCATED != 0);
        let (indices, _) = chunk.latents.row(row);
        self.firings += indices.len() as u64;
        for &latent in indices {
            self.fired[latent as usize] += 1;
        }
    }

    fn finish(self, encoder: Kind, d_model: usize) -> Evaluation {
        let tokens = self.tokens as f64;
        let latents = self.fired.len() as u64;
        let dead = self.fired.iter().filter(|&&n| n == 0).count() as u64;
        let pooled = if self.sst > 0.0 { 1.0 - self.sse / self.sst } else { f64::NAN };
        let head_usage = match encoder {
            Kind::Dense { .. } => None,
            Kind::Kron { base, extension, .. } => {
                let all = self.firings.max(1) as f64;
                Some(self.fired.chunks(base * extension).map(|head| head.iter().sum::<u64>() as f64 / all).collect())
            }
        };
        Evaluation {
            explained_variance: ExplainedVariance {
                pooled,
                per_token_mean: 1.0 - self.ratios / self.ratio_tokens as f64,
            },
            fvu: 1.0 - pooled,
            mse: self.sse / (tokens * d_model as f64),
            l0: self.firings as f64 / tokens,
            dead_share: dead as f64 / latents as f64,
            tokens: self.tokens,
            non_finite_tokens: self.non_finite,
            truncated_tokens: self.truncated,
            latents,
            dead_latents: dead,
            firing_density: FiringDensity::of(&self.fired, self.tokens),
            head_usage,
        }
    }
}

impl Part {
    /// The errors of tokens `share` of a chunk.
    fn run(&mut self, sae: &Sae, chunk: Chunk<'_>, share: Range<usize>, mean: &[f64]) {
        let d = mean.len();
        let capacity = chunk.latents.capacity;
        self.errors.clear();
        self.decoded.resize(share.len() * d, 0.0);
        let entries = share.start * capacity..share.end * capacity;
        let latents = LatentsRef {
            counts: &chunk.latents.counts[share.clone()],
            indices: &chunk.latents.indices[entries.clone()],
            values: &chunk.latents.values[entries],
            capacity,
        };
        if let Err(error) = sae.decode(latents, &mut self.decoded) {
            self.result = Some(error);
            return;
        }
        let x = chunk.x[share.start * d..share.end * d].chunks_exact(d);
        self.errors.extend(x.zip(self.decoded.chunks_exact(d)).map(|(x, decoded)| {
            let (mut residual, mut spread) = (0.0, 0.0);
            for ((&x, &y), &m) in x.iter().zip(decoded).zip(mean) {
                let x = f64::from(x);
                residual += (x - f64::from(y)).powi(2);
                spread += (x - m).powi(2);
            }
            TokenError { residual, spread }
        }));
    }
}

impl FiringDensity {
    /// Bins of a quarter of a decade.
    const BINS_PER_DECADE: u32 = 4;
    /// The histogram starts at a rate of 10^-7.
    const DECADES: u32 = 7;

    /// The histogram of `fired[f] / tokens`.
    fn of(fired: &[u64], tokens: u64) -> Self {
        let bins = Self::DECADES * Self::BINS_PER_DECADE;
        let edge = |at: u32| f64::from(at) / f64::from(Self::BINS_PER_DECADE) - f64::from(Self::DECADES);
        let mut counts = vec![0; bins as usize];
        for &n in fired.iter().filter(|&&n| n > 0) {
            let at = ((n as f64 / tokens as f64).log10() + f64::from(Self::DECADES)) * f64::from(Self::BINS_PER_DECADE);
            // A rate of exactly 1 belongs to the last bin; anything below the first edge to the first.
            counts[(at.max(0.0) as usize).min(bins as usize - 1)] += 1;
        }
        FiringDensity { log10_edges: (0..=bins).map(edge).collect(), counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_bins() {
        let density = FiringDensity::of(&[0, 1, 10, 999, 1000, 0], 1000);
        assert_eq!(density.log10_edges.len(), density.counts.len() + 1);
        assert_eq!((density.log10_edges[0], *density.log10_edges.last().unwrap()), (-7.0, 0.0));
        assert_eq!(density.counts.iter().sum::<u64>(), 4);
        assert_eq!(density.counts[27], 2, "999 and 1000 of 1000");
        assert_eq!((density.counts[16], density.counts[20]), (1, 1), "10^-3 and 10^-2 open their bins");
    }

    #[test]
    fn json_round_trip_with_nan() {
        let totals = Totals { fired: vec![0; 8], ..Totals::default() };
        let nothing = totals.finish(Kind::Kron { heads: 2, base: 2, extension: 2 }, 4);
        let text = serde_json::to_string(&nothing).unwrap();
        assert!(
            text.starts_with(r#"{"explained_variance":{"pooled":null,"per_token_mean":null},"fvu":null,"#),
            "{text}"
        );
        let back: Evaluation = serde_json::from_str(&text).unwrap();
        assert!(back.mse.is_nan() && back.head_usage == Some(vec![0.0, 0.0]));
    }
}
