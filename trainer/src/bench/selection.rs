//! Selection alone: from all pre-activations of a token to its latents, and what share of an encode that is.

use super::contender::{EXACT, Shape};
use super::ours::normals;
use super::{Caches, Cell};
use kronsae::{Isa, Result, Selector, sae};
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Tokens selected from in turn: their pre-activations stay in a core's cache, as an encoder's do.
const TOKENS: usize = 16;

/// Selection beside an encode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelectionShare {
    /// Name of the shape.
    pub shape: String,
    /// Threads.
    pub threads: usize,
    /// Tokens of a call.
    pub batch: usize,
    /// Nanoseconds a token, on one thread.
    pub token_ns: f64,
    /// Of the median encode with hot caches: the tokens of the busiest thread.
    pub share: f64,
}

/// Nanoseconds that selecting from all pre-activations of one token takes, on one thread: the median of many passes, of
/// `seconds` together. Pre-activations are standard normal, as those of the benchmark are.
///
/// # Errors
/// Those of [`Selector::new`].
pub fn token_ns(shape: &Shape, k: usize, seconds: f64) -> Result<f64> {
    let rows = shape.kron().rows();
    let y = normals(31, TOKENS * rows, 1.0);
    let mut selector = Selector::new(shape.kron(), sae::Selection::TopK(k), None, Isa::detect()?)?;
    let mut passes = Vec::new();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while passes.len() < 5 || Instant::now() < end {
        let start = Instant::now();
        for y in y.chunks_exact(rows) {
            black_box(selector.select(black_box(y)));
        }
        passes.push(start.elapsed().as_nanos() as f64 / TOKENS as f64);
    }
    passes.sort_by(f64::total_cmp);
    Ok(passes[passes.len() / 2])
}

/// The shares of the encodes of `shape` among `cells`.
pub(super) fn shares(shape: &Shape, token_ns: f64, cells: &[Cell]) -> Vec<SelectionShare> {
    let ours = |cell: &&Cell| cell.contender == EXACT && cell.caches == Caches::Hot && cell.shape == shape.name;
    let share = |cell: &Cell| SelectionShare {
        shape: shape.name.clone(),
        threads: cell.threads,
        batch: cell.batch,
        token_ns,
        share: token_ns * cell.batch.div_ceil(cell.threads_used.unwrap_or(cell.threads)) as f64 / cell.times.median_ns,
    };
    cells.iter().filter(ours).map(share).collect()
}
