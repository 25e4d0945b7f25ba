//! The screened path of [`Encoder`](crate::Encoder): its phases and its workspace.

use super::bound::{EstimatesMut, Products, Token, estimate, estimate_one};
use super::copy::Int8Copy;
use super::survivors::Distance;
use super::tokens::Tokens;
use crate::activations::Activations;
use crate::encode::latents::SharedLatents;
use crate::encode::select::room;
use crate::encode::{Counts, Instruction, Selector, y_stride};
use crate::error::Result;
use crate::sae::{Encoder as Shape, Sae, Selection, padded};
use crate::simd::int8::{BLOCK_ROWS, Int8Kernel};
use crate::simd::{self, Isa};
use crate::threads::{Claims, Divided, Pool, Worker};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens screened at a time: each pass over the copy serves so many.
const TILE_TOKENS: usize = 128;
/// Rows that a thread claims at a time: some microseconds.
const PIECE: usize = 64;
/// Of these, tiles take longer.
const TILED_PIECE: usize = 32;
/// With fewer tokens, tiles of them are slower than vectors.
const LEAST_TILED: usize = 12;

/// Where bounds are what errors are likely to be within: so many standard deviations.
const DEVIATIONS: f64 = 4.0;

/// Workspace of the screened path.
#[derive(Debug)]
pub(in crate::encode) struct Screener {
    copy: Arc<Option<Int8Copy>>,
    kernel: Int8Kernel,
    /// Whether bounds are what errors are likely to be within, and not proven.
    fast: bool,
    tokens: Tokens,
    tile_tokens: usize,
    /// For each token.
    lists: Vec<Lists>,
    /// For each thread: heads that may have survivors.
    heads: Vec<Vec<u32>>,
    /// Tokens, then rows, of the first tile, which threads claim.
    claims: [Claims; 2],
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
    /// Rows that are canonical already, ascending.
    exact: Vec<u32>,
    /// Rows to be computed in the phase that is next, ascending.
    rows: Vec<u32>,
    /// A value below which no latent is selected.
    cut: f32,
    /// Whether bounds do not hold for the token, and all of its rows are computed. Kept here, for the token itself may be
    /// overwritten by the next tile's while this one is still selected from.
    whole: bool,
}

impl Lists {
    /// Counts the rows that were computed among those that are exact.
    fn computed(&mut self) {
        self.exact.extend_from_slice(&self.rows);
        self.exact.sort_unstable();
    }
}

/// What is done with a token between two barriers, given its values and its lists.
type Step<'a> = dyn FnMut(&mut Selector, &mut Vec<u32>, &Token, &[f32], &mut Lists) + 'a;

/// How far cheap pre-activations of one token are from canonical ones.
struct From<'a> {
    products: Products,
    copy: &'a Int8Copy,
    token: &'a Token,
}

impl Distance for From<'_> {
    fn most(&self, most: f32) -> f32 {
        self.products.most_eps(self.copy.largest(), self.token, most)
    }

    #[inline(always)]
    fn of(&self, row: usize, y: f32) -> f32 {
        self.products.eps(self.copy.of(row / BLOCK_ROWS), row % BLOCK_ROWS, self.token, y)
    }
}

/// Rows whose bounds are narrowed at a time.
const PICKS: usize = 64;

/// Whether so many tokens are multiplied tile by tile.
fn is_tiled(kernel: Int8Kernel, tokens: usize) -> bool {
    kernel.takes_tiles() && tokens >= LEAST_TILED
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
    pub(in crate::encode) fn new(
        sae: &Sae,
        isa: Isa,
        pool: &mut Pool,
        most_tokens: usize,
        fast: bool,
    ) -> Result<Option<Self>> {
        let weight = sae.encoder().weight.as_ref();
        let copy = sae.derived(|| Int8Copy::new(weight, &sae.encoder().bias, sae.centre(), isa, pool))?;
        let Some(of) = &*copy else { return Ok(None) };
        let tile_tokens = TILE_TOKENS.min(most_tokens);
        let what = "the workspace of screening";
        let kernel = Int8Kernel::best(isa);
        let tokens = Tokens::new(tile_tokens, of.groups(), kernel.takes_tiles())?;
        let latents = match sae.config().selection {
            Selection::TopK(k) => k,
            Selection::Threshold { .. } => 0,
        };
        let mut lists = Vec::new();
        for _ in 0..tile_tokens {
            // Two rows a likely latent may be listed at first, some more than once.
            let most_rows = weight.rows.max(2 * latents);
            let [exact, rows] = [room(most_rows, what)?, room(most_rows, what)?];
            lists.push(Lists { latents: room(latents, what)?, exact, rows, cut: 0.0, whole: false });
        }
        let mut heads = Vec::new();
        for _ in 0..pool.threads() {
            heads.push(room(weight.rows, what)?);
        }
        let [rescored, refined] = [const { AtomicUsize::new(0) }; 2];
        let claims = [Claims::new(pool.threads())?, Claims::new(pool.threads())?];
        Ok(Some(Screener { copy, kernel, fast, tokens, tile_tokens, lists, heads, claims, rescored, refined }))
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
        self.copy
            .as_ref()
            .as_ref()
            .map_or(0, |copy| copy.bytes(!self.fast && is_tiled(self.kernel, tokens.min(self.tile_tokens))))
    }

    /// What multiplies the bulk of a batch of `tokens`, and how many times for each weight and token.
    pub(in crate::encode) fn arithmetic(&self, tokens: usize) -> (Instruction, usize) {
        // The high plane with both of the token's; by tiles the low plane with the token's high one as well.
        match self.kernel {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(_) if is_tiled(self.kernel, tokens.min(self.tile_tokens)) => {
                (Instruction::Int8Tiles, if self.fast { 2 } else { 3 })
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(_) => (Instruction::Int8Vectors, 2),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Vnni(_) => (Instruction::Int8Vectors, 2),
            _ => (Instruction::Integers, 1),
        }
    }

    /// Bytes of memory that the copy takes.
    pub(in crate::encode) fn held_bytes(&self) -> usize {
        self.copy.as_ref().as_ref().map_or(0, Int8Copy::held_bytes)
    }

    /// Tokens that a pass over the copy serves.
    pub(in crate::encode) fn tile_tokens(&self) -> usize {
        self.tile_tokens
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
        if x.rows() == 0 {
            return Ok(());
        }
        let Parts { sae, isa, pool, selectors, x: tile_x, y: tile_y } = parts;
        let kron = matches!(sae.config().encoder, Shape::Kron { .. });
        let (weight, bias) = (sae.encoder().weight.as_ref(), &sae.encoder().bias);
        let (rows, x_stride, tile_tokens) = (weight.rows, padded(weight.cols), self.tile_tokens);
        let stride = y_stride(rows);
        let (kernel, rescored, refined) = (self.kernel, &self.rescored, &self.refined);
        let is_tiled = |tokens: usize| is_tiled(kernel, tokens);
        let fast = self.fast;
        let deviations = if fast { Some(DEVIATIONS) } else { None };
        // Tiles read both planes, for there is then no need to narrow bounds afterwards; likely bounds are narrow anyway.
        let products = |tokens: usize| if is_tiled(tokens) && !fast { Products::Tiled } else { Products::Coarse };
        let tokens16 = self.tokens.shared();
        let (tile_x, tile_y) = (Divided::of(tile_x), Divided::of(tile_y));
        let (lists, heads) = (Divided::of(&mut self.lists), Divided::of(&mut self.heads));
        let selectors = Divided::of(selectors);
        // Canonical values of this thread's share of the rows that are listed, of each token.
        let compute = |worker: &Worker<'_>, tokens: usize| {
            let mut computed = 0;
            for t in 0..tokens {
                // SAFETY: between two barriers lists and x are only read, and each row of each token is in the share of
                // one thread: no row is listed twice.
                unsafe {
                    let picks = &lists.read(t..t + 1)[0].rows;
                    let picks = &picks[worker.share(picks.len(), 4)];
                    let x = tile_x.read(t * x_stride..(t + 1) * x_stride);
                    simd::picked_pre_activations(isa, weight, bias, x, picks, tile_y.pointer().add(t * stride));
                    computed += picks.len();
                }
            }
            rescored.fetch_add(computed, Ordering::Relaxed);
        };
        // The cheap pre-activations of some rows, whole steps of them, of all tokens.
        let estimates = |range: Range<usize>, tokens: usize| {
            // SAFETY: nobody writes the tokens before the barrier behind the next tile's widening.
            let in16 = unsafe { tokens16.read(tokens) };
            let mut lines = [[0.0; BLOCK_ROWS]; 2 * TILE_TOKENS];
            let tiled = is_tiled(tokens);
            let (blocks, kind) = (if tiled { 2 } else { 1 }, products(tokens));
            let lines = &mut lines[..blocks * tokens];
            for first in range.step_by(blocks * BLOCK_ROWS) {
                match tiled {
                    true => kernel.tiled(kind == Products::Tiled, copy.planes(first), in16, lines),
                    false => kernel.coarse(copy.planes(first), in16, lines),
                }
                for (b, lines) in lines.chunks_exact(tokens).enumerate() {
                    let first = (first + b * BLOCK_ROWS).min(rows);
                    let count = BLOCK_ROWS.min(rows - first);
                    let of = copy.of(first / BLOCK_ROWS);
                    // SAFETY: tokens are only read; this thread alone writes these rows, which are read after the next
                    // barrier.
                    unsafe {
                        let mut y = EstimatesMut::new(&tile_y, first, count, stride);
                        estimate(isa, lines, of, kind, tokens16.all(tokens), &mut y);
                    }
                }
            }
        };
        // Upper bounds by both planes, in place of the cheap values of this thread's share of the rows that are listed.
        let refine = |worker: &Worker<'_>, tokens: usize| {
            // SAFETY: as in `estimates`.
            let in16 = unsafe { tokens16.read(tokens) };
            let mut products = [0.0; PICKS];
            let mut computed = 0;
            for t in 0..tokens {
                // SAFETY: between two barriers lists and tokens are only read, and each row of each token is in the share
                // of one thread: no row is listed twice.
                unsafe {
                    let token = tokens16.of(t);
                    if !token.covered {
                        continue;
                    }
                    let picks = &lists.read(t..t + 1)[0].rows;
                    let picks = &picks[worker.share(picks.len(), 4)];
                    for picks in picks.chunks(PICKS) {
                        let products = &mut products[..picks.len()];
                        kernel.picked(copy.planes(0), in16, t, picks, products);
                        for (&row, &product) in picks.iter().zip(products.iter()) {
                            let (of, r) = (copy.of(row as usize / BLOCK_ROWS), row as usize % BLOCK_ROWS);
                            let y = estimate_one(product, of, r, token);
                            let at = t * stride + row as usize;
                            tile_y.slice(at..at + 1)[0] = y + Products::Fine.eps(of, r, token, y);
                        }
                    }
                    computed += picks.len();
                }
            }
            refined.fetch_add(computed, Ordering::Relaxed);
        };

        // Widens and rounds token `t` of a tile.
        let prepare = |start: usize, t: usize, tiled: bool| {
            // SAFETY: each token is claimed by, or in the share of, one thread; others read it after they have seen that
            // all are done, or after a barrier.
            unsafe {
                let to = tile_x.slice(t * x_stride..(t + 1) * x_stride);
                x.widen_row(start + t, to);
                tokens16.prepare(isa, copy.bound(), copy.centre(), deviations, t, to, tiled);
            }
        };

        // The first tile starts before all threads are awake.
        let first = tile_tokens.min(x.rows());
        let piece = if is_tiled(first) { TILED_PIECE } else { PIECE };
        let [claims_of_tokens, claims_of_rows] = &mut self.claims;
        claims_of_tokens.reset(first);
        claims_of_rows.reset(rows.div_ceil(piece));
        let (claims_of_tokens, claims_of_rows, prepared) = (&*claims_of_tokens, &*claims_of_rows, AtomicUsize::new(0));

        pool.run_open(&|member| {
            while let Some(t) = claims_of_tokens.claim(member.index) {
                prepare(0, t, is_tiled(first));
                prepared.fetch_add(1, Ordering::Release);
            }
            member.wait_until(|| prepared.load(Ordering::Acquire) == first);
            while let Some(at) = claims_of_rows.claim(member.index) {
                estimates(at * piece..rows.min((at + 1) * piece), first);
            }
            let worker = member.settle();
            // SAFETY: each thread takes the selector and the heads of its own index.
            let (selector, heads) = unsafe {
                let own = worker.index..worker.index + 1;
                (&mut selectors.slice(own.clone())[0], &mut heads.slice(own)[0])
            };
            let mut start = 0;
            while start < x.rows() {
                let tokens = tile_tokens.min(x.rows() - start);
                let tiled = is_tiled(tokens);
                if start > 0 {
                    for t in worker.share(tokens, 1) {
                        prepare(start, t, tiled);
                    }
                    worker.wait();
                    estimates(worker.share(rows, piece), tokens);
                    worker.wait();
                }

                // Between two barriers a token's values and lists are the business of the thread whose share it is in; the
                // others read the lists and write canonical values after the next one. Each such step is given the token,
                // its values and its lists; where bounds do not hold, all rows are listed in the last one.
                let mut each_token = |last: bool, step: &mut Step<'_>| {
                    for t in worker.share(tokens, 1) {
                        // SAFETY: as just said.
                        unsafe {
                            let (token, lists) = (tokens16.of(t), &mut lists.slice(t..t + 1)[0]);
                            lists.whole = !token.covered;
                            if token.covered {
                                step(selector, heads, token, tile_y.read(t * stride..t * stride + rows), lists);
                            } else {
                                lists.rows.clear();
                                if last {
                                    lists.rows.extend(0..rows as u32);
                                }
                            }
                        }
                    }
                };
                if tiled || fast {
                    // Bounds this narrow need no canonical values to find the cut.
                    each_token(true, &mut |selector, heads, token, y, lists| {
                        let from = From { products: products(tokens), copy, token };
                        lists.exact.clear();
                        let held = selector.likely(y, &mut lists.latents);
                        let cut = selector.cut(&lists.latents, |row| y[row] - from.of(row, y[row]));
                        selector.survivors(y, held, &from, &[], cut, heads, &mut lists.rows);
                    });
                } else {
                    each_token(false, &mut |selector, _, _, y, lists| {
                        lists.exact.clear();
                        selector.likely(y, &mut lists.latents);
                        selector.rows_of(&lists.latents, &mut lists.rows);
                    });
                    worker.wait();
                    compute(&worker, tokens);
                    worker.wait();
                    each_token(false, &mut |selector, heads, token, y, lists| {
                        let from = From { products: Products::Coarse, copy, token };
                        lists.computed();
                        lists.cut = selector.cut(&lists.latents, |row| y[row]);
                        // Some values are canonical by now, and the maxima others.
                        selector.survivors(y, false, &from, &lists.exact, lists.cut, heads, &mut lists.rows);
                    });
                    worker.wait();
                    refine(&worker, tokens);
                    worker.wait();
                    each_token(true, &mut |selector, _, _, y, lists| {
                        selector.survivors_among(y, &lists.exact, lists.cut, &mut lists.rows);
                    });
                }
                worker.wait();
                compute(&worker, tokens);
                worker.wait();

                for t in worker.share(tokens, 1) {
                    // SAFETY: y is only read between this barrier and the next tile's first; each row of `out` belongs
                    // to the one thread whose share it is in.
                    unsafe {
                        let y = tile_y.read(t * stride..t * stride + rows);
                        let lists = &mut lists.slice(t..t + 1)[0];
                        let outcome = if lists.whole {
                            selector.select(y)
                        } else {
                            lists.computed();
                            selector.select_among(y, &lists.exact)
                        };
                        counts.add(out.write_row(start + t, selector, outcome, kron));
                    }
                }
                // The next tile overwrites y and the lists, but only after the barrier behind the widening of x; tokens it
                // overwrites at once, so that nothing above may look at them.
                start += tokens;
            }
        })
    }

    /// Goes on with a copy of its own whose bounds, of the high plane and of both, are so many times what they should be:
    /// wrong below 1.
    #[cfg(test)]
    pub(super) fn scale_bounds(&mut self, sae: &Sae, isa: Isa, pool: &mut Pool, factors: [f32; 2]) {
        let encoder = sae.encoder();
        let centre = sae.centre();
        let mut copy = Int8Copy::new(encoder.weight.as_ref(), &encoder.bias, centre, isa, pool).unwrap().unwrap();
        copy.scale_bounds(factors);
        self.copy = Arc::new(Some(copy));
    }
}
