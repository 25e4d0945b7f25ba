//! The screened path of [`Encoder`](crate::Encoder): its phases and its workspace.

use super::bound::interval;
use super::copy::Int8Copy;
use super::tokens::Tokens;
use crate::activations::Activations;
use crate::encode::latents::SharedLatents;
use crate::encode::{Counts, Selector};
use crate::error::{Error, Result};
use crate::memory::Aligned;
use crate::sae::{Encoder as Shape, Sae, Selection, padded};
use crate::simd::int8::{BLOCK_ROWS, Int8Kernel, Sums};
use crate::simd::{self, Isa};
use crate::threads::{Divided, Pool, Worker};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens screened at a time: each pass over the copy serves so many.
const TILE_TOKENS: usize = 48;

/// Workspace of the screened path.
#[derive(Debug)]
pub(in crate::encode) struct Screener {
    copy: Arc<Option<Int8Copy>>,
    kernel: Int8Kernel,
    tokens: Tokens,
    tile_tokens: usize,
    /// Upper bounds, `[tile_tokens, rows]`. The lower ones are where the canonical values will be.
    high: Aligned<f32>,
    /// For each token.
    lists: Vec<Lists>,
    /// Rows computed by `dot/1` since the encoder was made.
    rescored: AtomicUsize,
}

/// What a token needs computed.
#[derive(Debug)]
struct Lists {
    /// The latents most likely to be selected.
    latents: Vec<u32>,
    /// Rows to be computed by `dot/1` in the phase that is next.
    rows: Vec<u32>,
}

/// The parts of an encoder that both paths work on.
pub(in crate::encode) struct Parts<'a> {
    pub(in crate::encode) sae: &'a Sae,
    pub(in crate::encode) isa: Isa,
    pub(in crate::encode) pool: &'a mut Pool,
    pub(in crate::encode) selectors: &'a mut [Selector],
    pub(in crate::encode) x: &'a mut [f32],
    pub(in crate::encode) y: &'a mut [f32],
}

impl Screener {
    /// The workspace, and the int8 copy if no other encoder of this model has made it. None if the model is of a shape
    /// that cannot be screened.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(in crate::encode) fn new(sae: &Sae, isa: Isa, pool: &mut Pool, most_tokens: usize) -> Result<Option<Self>> {
        let weight = sae.encoder().weight.as_ref();
        let copy = sae.derived(|| Int8Copy::new(weight, &sae.encoder().bias, isa, pool))?;
        let Some(of) = &*copy else { return Ok(None) };
        let tile_tokens = TILE_TOKENS.min(most_tokens);
        let what = "the workspace of screening";
        let tokens = Tokens::new(tile_tokens, of.groups())?;
        let high = Aligned::zeroed(tile_tokens * weight.rows, what)?;
        let latents = match sae.config().selection {
            Selection::TopK(k) => k,
            Selection::Threshold { .. } => 0,
        };
        let mut lists = Vec::new();
        for _ in 0..tile_tokens {
            // At first the rows of all likely latents may be listed twice.
            let most_rows = weight.rows.max(2 * latents);
            lists.push(Lists { latents: room(latents, what)?, rows: room(most_rows, what)? });
        }
        let (kernel, rescored) = (Int8Kernel::best(isa), AtomicUsize::new(0));
        Ok(Some(Screener { copy, kernel, tokens, tile_tokens, high, lists, rescored }))
    }

    /// Rows computed by `dot/1` so far, of all tokens.
    pub(in crate::encode) fn rescored(&self) -> usize {
        self.rescored.load(Ordering::Relaxed)
    }

    /// Bytes of the copy that each pass reads.
    pub(in crate::encode) fn copy_bytes(&self) -> usize {
        self.copy.as_ref().as_ref().map_or(0, Int8Copy::bytes)
    }

    /// Encodes a batch whose buffers were checked.
    ///
    /// # Errors
    /// Those of [`Pool::run`].
    pub(in crate::encode) fn encode(
        &mut self,
        parts: Parts<'_>,
        x: Activations<'_>,
        out: &SharedLatents,
        counts: &Counts,
    ) -> Result<()> {
        let Some(copy) = &*self.copy else { unreachable!("a screener without a copy is not made") };
        let Parts { sae, isa, pool, selectors, x: tile_x, y: tile_y } = parts;
        let kron = matches!(sae.config().encoder, Shape::Kron { .. });
        let (weight, bias) = (sae.encoder().weight.as_ref(), &sae.encoder().bias);
        let (rows, x_stride, tile_tokens) = (weight.rows, padded(weight.cols), self.tile_tokens);
        let (kernel, rescored) = (self.kernel, &self.rescored);
        let tokens16 = self.tokens.shared();
        let (tile_x, tile_y) = (Divided::of(tile_x), Divided::of(tile_y));
        let (high, lists) = (Divided::of(&mut self.high), Divided::of(&mut self.lists));
        let selectors = Divided::of(selectors);
        // This thread's share of the rows that are listed, of each token.
        let compute = |worker: &Worker<'_>, tokens: usize| {
            let mut computed = 0;
            for t in 0..tokens {
                // SAFETY: between two barriers lists and x are only read, and each row of each token is in the share of
                // one thread: no row is listed twice.
                unsafe {
                    let picks = &lists.read(t..t + 1)[0].rows;
                    let picks = &picks[worker.share(picks.len(), 4)];
                    let x = tile_x.read(t * x_stride..(t + 1) * x_stride);
                    simd::picked_pre_activations(isa, weight, bias, x, picks, tile_y.pointer().add(t * rows));
                    computed += picks.len();
                }
            }
            rescored.fetch_add(computed, Ordering::Relaxed);
        };

        pool.run(&|worker| {
            // SAFETY: each thread takes the selector of its own index.
            let selector = unsafe { &mut selectors.slice(worker.index..worker.index + 1)[0] };
            let mut start = 0;
            while start < x.rows() {
                let tokens = tile_tokens.min(x.rows() - start);
                for t in worker.share(tokens, 1) {
                    // SAFETY: shares are disjoint, and the barrier below separates these writes from all reads.
                    unsafe {
                        let to = tile_x.slice(t * x_stride..(t + 1) * x_stride);
                        x.widen_row(start + t, to);
                        tokens16.prepare(isa, copy.bound(), t, tokens, &to[..weight.cols]);
                    }
                }
                worker.wait();

                // SAFETY: nobody writes the tokens before the barrier behind the next tile's widening.
                let in16 = unsafe { tokens16.read(tokens) };
                for first in worker.share(rows, BLOCK_ROWS).step_by(BLOCK_ROWS) {
                    let (block, of) = copy.block(first / BLOCK_ROWS);
                    let mut sums = [Sums::ZERO; TILE_TOKENS];
                    kernel.block(block, in16, &mut sums[..tokens]);
                    let count = BLOCK_ROWS.min(rows - first);
                    for (t, sums) in sums[..tokens].iter().enumerate() {
                        let (mut below, mut above) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
                        interval(isa, sums, of, copy.bound().underflow(), &mut below, &mut above);
                        let at = t * rows + first;
                        // SAFETY: this thread alone writes these rows, which are read after the next barrier.
                        unsafe {
                            tile_y.slice(at..at + count).copy_from_slice(&below[..count]);
                            high.slice(at..at + count).copy_from_slice(&above[..count]);
                        }
                    }
                }
                worker.wait();

                for t in worker.share(tokens, 1) {
                    // SAFETY: a token's bounds and lists are the business of the thread whose share it is in; the others
                    // read the lists and write canonical values after the next barrier.
                    unsafe {
                        let y = tile_y.slice(t * rows..(t + 1) * rows);
                        let Lists { latents, rows } = &mut lists.slice(t..t + 1)[0];
                        if tokens16.covered(t) {
                            selector.likely(y, latents, rows);
                        } else {
                            latents.clear();
                            rows.clear();
                        }
                        // Not selected, whatever the rule.
                        y.fill(0.0);
                    }
                }
                worker.wait();
                compute(&worker, tokens);
                worker.wait();

                for t in worker.share(tokens, 1) {
                    // SAFETY: as above.
                    unsafe {
                        let y = tile_y.slice(t * rows..(t + 1) * rows);
                        let lists = &mut lists.slice(t..t + 1)[0];
                        if tokens16.covered(t) {
                            let cut = selector.cut(y, &lists.latents);
                            selector.survivors(high.read(t * rows..(t + 1) * rows), cut, &mut lists.rows);
                            // Those that were computed before; one that is 0 is computed again.
                            lists.rows.retain(|&row| y[row as usize] == 0.0);
                        } else {
                            lists.rows.clear();
                            lists.rows.extend(0..rows as u32);
                        }
                    }
                }
                worker.wait();
                compute(&worker, tokens);
                worker.wait();

                for t in worker.share(tokens, 1) {
                    // SAFETY: y is only read between this barrier and the next tile's first; each row of `out` belongs
                    // to the one thread whose share it is in.
                    unsafe {
                        let outcome = selector.select(tile_y.read(t * rows..(t + 1) * rows));
                        counts.add(out.write_row(start + t, selector, outcome, kron));
                    }
                }
                // The next tile overwrites y, but only after the barrier behind the widening of x.
                start += tokens;
            }
        })
    }

    /// Goes on with a copy of its own whose bounds are `factor` times what they should be: wrong below 1.
    #[cfg(test)]
    pub(super) fn scale_bounds(&mut self, sae: &Sae, isa: Isa, pool: &mut Pool, factor: f32) {
        let encoder = sae.encoder();
        let mut copy = Int8Copy::new(encoder.weight.as_ref(), &encoder.bias, isa, pool).unwrap().unwrap();
        copy.scale_bounds(factor);
        self.copy = Arc::new(Some(copy));
    }
}

/// An empty list with room for `most`, of which the system gives only what is used.
fn room(most: usize, what: &str) -> Result<Vec<u32>> {
    let mut list = Vec::new();
    list.try_reserve_exact(most).map_err(|_| Error::out_of_memory(what, most.saturating_mul(4)))?;
    Ok(list)
}
