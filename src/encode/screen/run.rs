//! The screened path of [`Encoder`](crate::Encoder): its phases and its workspace.

use super::bound::interval;
use super::copy::Int8Copy;
use super::tokens::Tokens;
use crate::activations::Activations;
use crate::encode::latents::SharedLatents;
use crate::encode::{Counts, Selector};
use crate::error::Result;
use crate::memory::{Aligned, try_vec};
use crate::sae::{Encoder as Shape, Sae, padded};
use crate::simd::int8::{BLOCK_ROWS, Int8Kernel, Sums};
use crate::simd::{self, Isa};
use crate::threads::{Divided, Pool};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Tokens screened at a time: the bits of a mark.
const TILE_TOKENS: usize = 16;
/// Heads or rows that a thread takes at a time when survivors are computed: few, since survivors lie unevenly.
const CHUNK: usize = 16;

/// Workspace of the screened path.
#[derive(Debug)]
pub(in crate::encode) struct Screener {
    copy: Arc<Option<Int8Copy>>,
    kernel: Int8Kernel,
    tokens: Tokens,
    tile_tokens: usize,
    /// Upper bounds, `[tile_tokens, rows]`. The lower ones are where the canonical values will be.
    high: Aligned<f32>,
    /// For each head (dense: row) a bit for each token that needs it.
    marks: Vec<AtomicU32>,
    /// One for each thread: the survivors of one token.
    survivors: Vec<Vec<u32>>,
    /// Rows computed by `dot/1` since the encoder was made.
    rescored: AtomicUsize,
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
        let shape = sae.config().encoder;
        let (units, tile_tokens) = (units(shape), TILE_TOKENS.min(most_tokens));
        let what = "the workspace of screening";
        let tokens = Tokens::new(tile_tokens, of.stride())?;
        let high = Aligned::zeroed(tile_tokens * weight.rows, what)?;
        let mut marks = Vec::new();
        marks.try_reserve_exact(units).map_err(|_| crate::Error::out_of_memory(what, units * 4))?;
        marks.resize_with(units, AtomicU32::default);
        let mut survivors = Vec::new();
        for _ in 0..pool.threads() {
            let mut list = try_vec(units, 0_u32, what)?;
            list.clear();
            survivors.push(list);
        }
        let (kernel, rescored) = (Int8Kernel::best(isa), AtomicUsize::new(0));
        Ok(Some(Screener { copy, kernel, tokens, tile_tokens, high, marks, survivors, rescored }))
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
        let shape = sae.config().encoder;
        let kron = matches!(shape, Shape::Kron { .. });
        let (weight, bias) = (sae.encoder().weight.as_ref(), &sae.encoder().bias);
        let (rows, x_stride, tile_tokens) = (weight.rows, padded(weight.cols), self.tile_tokens);
        let (units, unit_rows) = (units(shape), rows / units(shape));
        let (kernel, marks, rescored) = (self.kernel, &self.marks, &self.rescored);
        let tokens16 = self.tokens.shared();
        let (tile_x, tile_y) = (Divided::of(tile_x), Divided::of(tile_y));
        let high = Divided::of(&mut self.high);
        let (selectors, survivors) = (Divided::of(selectors), Divided::of(&mut self.survivors));
        // A call that panicked may have left some.
        marks.iter().for_each(|mark| mark.store(0, Ordering::Relaxed));
        let next = AtomicUsize::new(0);

        pool.run(&|worker| {
            // SAFETY: each thread takes the selector and the list of its own index.
            let (selector, survivors) = unsafe {
                (
                    &mut selectors.slice(worker.index..worker.index + 1)[0],
                    &mut survivors.slice(worker.index..worker.index + 1)[0],
                )
            };
            let mut start = 0;
            while start < x.rows() {
                let tokens = tile_tokens.min(x.rows() - start);
                for t in worker.share(tokens, 1) {
                    // SAFETY: shares are disjoint, and the barrier below separates these writes from all reads.
                    unsafe {
                        let to = tile_x.slice(t * x_stride..(t + 1) * x_stride);
                        x.widen_row(start + t, to);
                        tokens16.prepare(isa, copy.bound(), t, &to[..weight.cols]);
                    }
                }
                if worker.index == 0 {
                    next.store(0, Ordering::Relaxed);
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
                    // SAFETY: a token's bounds are read, and its lower ones overwritten, by the thread whose share it is
                    // in; the others write canonical values after the next barrier.
                    unsafe {
                        let y = tile_y.slice(t * rows..(t + 1) * rows);
                        if tokens16.covered(t) {
                            selector.survivors(y, high.read(t * rows..(t + 1) * rows), survivors);
                            for &unit in survivors.iter() {
                                marks[unit as usize].fetch_or(1 << t, Ordering::Relaxed);
                            }
                        } else {
                            marks.iter().for_each(|mark| _ = mark.fetch_or(1 << t, Ordering::Relaxed));
                        }
                        y.fill(0.0);
                    }
                }
                worker.wait();

                let mut computed = 0;
                loop {
                    let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if first >= units {
                        break;
                    }
                    for unit in first..units.min(first + CHUNK) {
                        let mut of_tokens = marks[unit].swap(0, Ordering::Relaxed);
                        while of_tokens != 0 {
                            let t = of_tokens.trailing_zeros() as usize;
                            of_tokens &= of_tokens - 1;
                            // SAFETY: nobody writes x now; the rows of a unit, of all tokens, belong to the one thread
                            // that took its chunk; they are read after the next barrier.
                            unsafe {
                                simd::pre_activations(
                                    isa,
                                    weight,
                                    bias,
                                    tile_x.read(t * x_stride..(t + 1) * x_stride),
                                    x_stride,
                                    1,
                                    unit * unit_rows..(unit + 1) * unit_rows,
                                    tile_y.pointer().add(t * rows),
                                    rows,
                                );
                            }
                            computed += unit_rows;
                        }
                    }
                }
                rescored.fetch_add(computed, Ordering::Relaxed);
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

    /// All bounds times `factor`, which makes them wrong below 1.
    #[cfg(test)]
    pub(super) fn scale_bounds(&mut self, factor: f32) {
        let copy = Arc::get_mut(&mut self.copy).expect("the only user of the copy");
        copy.as_mut().expect("made with a copy").scale_bounds(factor);
    }
}

/// What survives as one: heads, or rows of a dense encoder.
fn units(shape: Shape) -> usize {
    match shape {
        Shape::Kron { heads, .. } => heads,
        Shape::Dense { latents } => latents,
    }
}
