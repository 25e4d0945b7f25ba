//! The screened path of [`Encoder`](crate::Encoder): its phases and its workspace.

use super::bound::{Products, interval, upper};
use super::copy::Int8Copy;
use super::tokens::Tokens;
use crate::activations::Activations;
use crate::encode::latents::SharedLatents;
use crate::encode::{Counts, Selector};
use crate::error::{Error, Result};
use crate::memory::Aligned;
use crate::sae::{Encoder as Shape, Sae, Selection, padded};
use crate::simd::int8::{BLOCK_ROWS, Int8Kernel};
use crate::simd::{self, Isa};
use crate::threads::{Divided, Pool, Worker};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens screened at a time: each pass over the copy serves so many.
const TILE_TOKENS: usize = 64;
/// With fewer tokens, tiles of them are slower than vectors.
const LEAST_TILED: usize = 12;

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
    /// Rows of both planes that were picked to narrow their bounds.
    refined: AtomicUsize,
}

/// What a token needs computed.
#[derive(Debug)]
struct Lists {
    /// The latents most likely to be selected.
    latents: Vec<u32>,
    /// Rows to be computed by `dot/1` in the phase that is next.
    rows: Vec<u32>,
    /// A value below which no latent is selected.
    cut: f32,
}

impl Lists {
    /// Lists the rows that can matter by the upper bounds `high`, but for those that are computed already.
    fn survivors(&mut self, selector: &mut Selector, high: &[f32], y: &[f32]) {
        selector.survivors(high, self.cut, &mut self.rows);
        // One that was computed and is 0 is computed again.
        self.rows.retain(|&row| y[row as usize] == 0.0);
    }
}

/// Rows whose bounds are narrowed at a time.
const PICKS: usize = 64;

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
        let copy = sae.derived(|| Int8Copy::new(weight, &sae.encoder().bias, sae.centre(), isa, pool))?;
        let Some(of) = &*copy else { return Ok(None) };
        let tile_tokens = TILE_TOKENS.min(most_tokens);
        let what = "the workspace of screening";
        let kernel = Int8Kernel::best(isa);
        let tokens = Tokens::new(tile_tokens, of.groups(), kernel.takes_tiles())?;
        let high = Aligned::zeroed(tile_tokens * weight.rows, what)?;
        let latents = match sae.config().selection {
            Selection::TopK(k) => k,
            Selection::Threshold { .. } => 0,
        };
        let mut lists = Vec::new();
        for _ in 0..tile_tokens {
            // At first the rows of all likely latents may be listed twice.
            let most_rows = weight.rows.max(2 * latents);
            lists.push(Lists { latents: room(latents, what)?, rows: room(most_rows, what)?, cut: 0.0 });
        }
        let [rescored, refined] = [const { AtomicUsize::new(0) }; 2];
        Ok(Some(Screener { copy, kernel, tokens, tile_tokens, high, lists, rescored, refined }))
    }

    /// Rows computed by `dot/1` so far, of all tokens.
    pub(in crate::encode) fn rescored(&self) -> usize {
        self.rescored.load(Ordering::Relaxed)
    }

    /// Rows of which both planes were read to narrow their bounds, so far, of all tokens.
    pub(in crate::encode) fn refined(&self) -> usize {
        self.refined.load(Ordering::Relaxed)
    }

    /// Bytes of the copy that each pass reads over a batch of `tokens`.
    pub(in crate::encode) fn copy_bytes(&self, tokens: usize) -> usize {
        self.copy.as_ref().as_ref().map_or(0, |copy| copy.bytes(self.is_tiled(tokens.min(self.tile_tokens))))
    }

    /// Bytes of memory that the copy takes.
    pub(in crate::encode) fn held_bytes(&self) -> usize {
        self.copy.as_ref().as_ref().map_or(0, Int8Copy::held_bytes)
    }

    /// Tokens that a pass over the copy serves.
    pub(in crate::encode) fn tile_tokens(&self) -> usize {
        self.tile_tokens
    }

    /// Whether so many tokens are multiplied with both planes, tile by tile.
    fn is_tiled(&self, tokens: usize) -> bool {
        self.kernel.takes_tiles() && tokens >= LEAST_TILED
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
        let (kernel, rescored, refined) = (self.kernel, &self.rescored, &self.refined);
        let is_tiled = |tokens: usize| kernel.takes_tiles() && tokens >= LEAST_TILED;
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

        // The bounds of this thread's share of the rows, of all tokens.
        let bound = |worker: &Worker<'_>, tokens: usize| {
            // SAFETY: nobody writes the tokens before the barrier behind the next tile's widening.
            let in16 = unsafe { tokens16.read(tokens) };
            let mut lines = [[0.0; BLOCK_ROWS]; 2 * TILE_TOKENS];
            let tiled = is_tiled(tokens);
            let (blocks, kind) = if tiled { (2, Products::Tiled) } else { (1, Products::Coarse) };
            let lines = &mut lines[..blocks * tokens];
            for first in worker.share(rows, blocks * BLOCK_ROWS).step_by(blocks * BLOCK_ROWS) {
                match tiled {
                    true => kernel.tiled(true, copy.planes(first), in16, lines),
                    false => kernel.coarse(copy.planes(first), in16, lines),
                }
                for (b, lines) in lines.chunks_exact(tokens).enumerate() {
                    let first = first + b * BLOCK_ROWS;
                    let count = BLOCK_ROWS.min(rows.saturating_sub(first));
                    let of = copy.of(first / BLOCK_ROWS);
                    for (t, line) in lines.iter().enumerate() {
                        let (mut below, mut above) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
                        // SAFETY: tokens are only read; this thread alone writes these rows, which are read after the
                        // next barrier.
                        unsafe {
                            interval(isa, line, of, kind, tokens16.of(t), &mut below, &mut above);
                            let at = t * rows + first.min(rows);
                            tile_y.slice(at..at + count).copy_from_slice(&below[..count]);
                            high.slice(at..at + count).copy_from_slice(&above[..count]);
                        }
                    }
                }
            }
        };
        // Narrows the upper bounds of this thread's share of the rows that are listed, of each token.
        let refine = |worker: &Worker<'_>, tokens: usize| {
            // SAFETY: as in `bound`.
            let in16 = unsafe { tokens16.read(tokens) };
            let mut products = [0.0; PICKS];
            let mut computed = 0;
            for t in 0..tokens {
                // SAFETY: between two barriers lists and tokens are only read, and each row of each token is in the share
                // of one thread: no row is listed twice.
                unsafe {
                    let of_token = tokens16.of(t);
                    if !of_token.covered {
                        continue;
                    }
                    let picks = &lists.read(t..t + 1)[0].rows;
                    let picks = &picks[worker.share(picks.len(), 4)];
                    for picks in picks.chunks(PICKS) {
                        let products = &mut products[..picks.len()];
                        kernel.picked(copy.planes(0), in16, t, picks, products);
                        for (&row, &product) in picks.iter().zip(products.iter()) {
                            let (b, r) = (row as usize / BLOCK_ROWS, row as usize % BLOCK_ROWS);
                            let narrower = upper(product, copy.of(b), r, of_token);
                            let high = &mut high.slice(t * rows + row as usize..t * rows + row as usize + 1)[0];
                            *high = high.min(narrower);
                        }
                    }
                    computed += picks.len();
                }
            }
            refined.fetch_add(computed, Ordering::Relaxed);
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
                        tokens16.prepare(isa, copy.bound(), copy.centre(), t, to, is_tiled(tokens));
                    }
                }
                worker.wait();
                bound(&worker, tokens);
                worker.wait();

                for t in worker.share(tokens, 1) {
                    // SAFETY: a token's bounds and lists are the business of the thread whose share it is in; the others
                    // read the lists and write canonical values after the next barrier.
                    unsafe {
                        let y = tile_y.slice(t * rows..(t + 1) * rows);
                        let Lists { latents, rows, .. } = &mut lists.slice(t..t + 1)[0];
                        if tokens16.of(t).covered {
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
                        if tokens16.of(t).covered {
                            lists.cut = selector.cut(y, &lists.latents);
                            lists.survivors(selector, high.read(t * rows..(t + 1) * rows), y);
                        } else {
                            lists.rows.clear();
                            lists.rows.extend(0..rows as u32);
                        }
                    }
                }
                worker.wait();
                if !is_tiled(tokens) {
                    refine(&worker, tokens);
                    worker.wait();
                    for t in worker.share(tokens, 1) {
                        // SAFETY: as above.
                        unsafe {
                            if tokens16.of(t).covered {
                                let (y, high) =
                                    (tile_y.read(t * rows..(t + 1) * rows), high.read(t * rows..(t + 1) * rows));
                                lists.slice(t..t + 1)[0].survivors(selector, high, y);
                            }
                        }
                    }
                    worker.wait();
                }
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
        let centre = sae.centre();
        let mut copy = Int8Copy::new(encoder.weight.as_ref(), &encoder.bias, centre, isa, pool).unwrap().unwrap();
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
