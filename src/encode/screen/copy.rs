//! The int8 copy of an encoder's weights, and what each row's rounding cost.

use super::bound::{Bound, Coefficients, round_up};
use crate::error::Result;
use crate::isa_fn;
use crate::memory::{Aligned, try_vec};
use crate::sae::{ElementsRef, MatrixRef};
use crate::simd::Isa;
use crate::simd::int8::{BLOCK_ROWS, GROUP, Int8Block, TILE};
use crate::threads::{Divided, Pool};

/// A weight matrix in int8, one bf16 scale for each 64 weights of a row: 1.03 bytes a weight.
#[derive(Debug)]
pub(in crate::encode) struct Int8Copy {
    groups: usize,
    /// `[blocks, groups, TILE]`; see [`crate::simd::int8`].
    weights: Aligned<u8>,
    /// `[blocks, groups, 16]`
    scales: Aligned<u16>,
    /// `[blocks]`
    coefficients: Vec<Coefficients>,
    bound: Bound,
}

/// What the rounding of a row cost: see [`Bound`].
#[derive(Debug, Clone, Copy, Default)]
struct RowCost {
    kappa: f64,
    rho: f64,
    square: f64,
}

/// One row's 64 weights in int8.
struct Rounded {
    bytes: [u8; GROUP],
    scale: u16,
    /// Sums of squares: of what rounding left, of the weights.
    left: f64,
    square: f64,
    /// Sum of squares of the integers.
    integers: i32,
}

/// Added to an f64 of modest size, leaves its nearest integer in the low bits.
pub(super) const TO_INTEGER: f64 = 1.5 * (1_u64 << 52) as f64;

/// The bf16 at or above the largest weight over 127; above 0 where that is.
#[inline(always)]
fn scale_for(most: f32) -> u16 {
    if most == 0.0 {
        return 0;
    }
    let least = (most / 127.0).next_up();
    ((least.to_bits() + 0xFFFF) >> 16) as u16
}

#[inline(always)]
fn round_group(w: &[f32; GROUP]) -> Rounded {
    const LANES: usize = 8;
    let most = w.iter().fold(0.0_f32, |most, v| if v.abs() > most { v.abs() } else { most });
    let scale = scale_for(most);
    let step = f64::from(f32::from_bits(u32::from(scale) << 16));
    let inverse = if scale == 0 { 0.0 } else { 1.0 / step };
    let (mut left, mut square, mut integers) = ([0.0_f64; LANES], [0.0_f64; LANES], [0.0_f64; LANES]);
    let mut bytes = [0_u8; GROUP];
    for (w, bytes) in w.as_chunks::<LANES>().0.iter().zip(bytes.as_chunks_mut::<LANES>().0) {
        for j in 0..LANES {
            let w = f64::from(w[j]);
            let shifted = w * inverse + TO_INTEGER;
            let integer = shifted - TO_INTEGER;
            // The product is exact (8 bits by 7); the difference is rounded in the 53rd bit, far inside the slack below.
            let rest = w - step * integer;
            left[j] += rest * rest;
            square[j] += w * w;
            integers[j] += integer * integer;
            bytes[j] = (shifted.to_bits() as u8).wrapping_add(128);
        }
    }
    Rounded {
        bytes,
        scale,
        left: left.iter().sum(),
        square: square.iter().sum(),
        integers: integers.iter().sum::<f64>() as i32,
    }
}

isa_fn! {
    /// Rounds the up to 16 rows of one block from f32 or bf16; missing rows and columns become zeros.
    fn round_block(
        from: MatrixRef<'_>,
        first: usize,
        weights: &mut [u8],
        scales: &mut [u16],
        costs: &mut [RowCost; BLOCK_ROWS],
    ) {
        let count = (from.rows - first).min(BLOCK_ROWS);
        weights.fill(128);
        for g in 0..from.cols.div_ceil(GROUP) {
            let columns = g * GROUP..from.cols.min((g + 1) * GROUP);
            let width = columns.len();
            for r in 0..count {
                let at = (first + r) * from.stride + columns.start;
                let mut w = [0.0_f32; GROUP];
                match from.data {
                    ElementsRef::F32(data) => w[..width].copy_from_slice(&data[at..at + width]),
                    ElementsRef::Bf16(data) => {
                        for (w, &bits) in w.iter_mut().zip(&data[at..at + width]) {
                            *w = f32::from_bits(u32::from(bits) << 16);
                        }
                    }
                }
                let rounded = round_group(&w);
                let tile = &mut weights[g * TILE..][..TILE];
                for (four, to) in rounded.bytes.as_chunks::<4>().0.iter().zip(tile.as_chunks_mut::<64>().0) {
                    to[4 * r..4 * r + 4].copy_from_slice(four);
                }
                scales[g * BLOCK_ROWS + r] = rounded.scale;
                let cost = &mut costs[r];
                if rounded.scale != 0 {
                    let step = f64::from(f32::from_bits(u32::from(rounded.scale) << 16));
                    cost.kappa = cost.kappa.max(rounded.left.sqrt() / step);
                    cost.rho = cost.rho.max(f64::from(rounded.integers).sqrt());
                }
                cost.square += rounded.square;
            }
        }
    }
}

/// Covers all f64 roundings of norms, which are some 64 times 2^-53.
pub(super) const SLACK: f64 = 1.0 + 1.0 / (1_u64 << 30) as f64;

impl Int8Copy {
    /// Rounds a matrix on the threads of `pool`. None if its rows are too long for the bound to mean anything.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`]; those of [`Pool::run`].
    pub(in crate::encode) fn new(from: MatrixRef<'_>, bias: &[f32], isa: Isa, pool: &mut Pool) -> Result<Option<Self>> {
        let (groups, blocks) = (from.cols.div_ceil(GROUP), from.rows.div_ceil(BLOCK_ROWS));
        if !Bound::new(from.cols, 0.0, 0.0).applies() {
            return Ok(None);
        }
        let mut weights = Aligned::<u8>::zeroed(blocks.saturating_mul(groups * TILE), "the int8 weights")?;
        let mut scales = Aligned::<u16>::zeroed(blocks * groups * BLOCK_ROWS, "the scales of the int8 weights")?;
        let mut coefficients = try_vec(blocks, Coefficients::ZERO, "the bounds of the int8 weights")?;
        let mut squares = try_vec(blocks, 0.0_f64, "the norms of the int8 weights")?;
        {
            let weights = Divided::of(&mut weights);
            let scales = Divided::of(&mut scales);
            let coefficients = Divided::of(&mut coefficients);
            let squares = Divided::of(&mut squares);
            let roundings = Bound::new(from.cols, 0.0, 0.0);
            pool.run(&|worker| {
                for b in worker.share(blocks, 1) {
                    // SAFETY: shares are disjoint, so each block's parts are this thread's alone.
                    let (weights, scales, of, square) = unsafe {
                        (
                            weights.slice(b * groups * TILE..(b + 1) * groups * TILE),
                            scales.slice(b * groups * BLOCK_ROWS..(b + 1) * groups * BLOCK_ROWS),
                            &mut coefficients.slice(b..b + 1)[0],
                            &mut squares.slice(b..b + 1)[0],
                        )
                    };
                    let mut costs = [RowCost::default(); BLOCK_ROWS];
                    round_block(isa, from, b * BLOCK_ROWS, weights, scales, &mut costs);
                    for (r, cost) in costs.iter().enumerate() {
                        (of.norm[r], of.error[r]) = roundings.row(cost.kappa * SLACK, cost.rho * SLACK);
                        of.bias[r] = bias.get(b * BLOCK_ROWS + r).copied().unwrap_or(0.0);
                        // NaN would be lost in a maximum; infinity keeps every token out of the screened path.
                        *square = if cost.square.is_nan() { f64::INFINITY } else { square.max(cost.square) };
                    }
                }
            })?;
        }
        let row_norm = squares.iter().fold(0.0, |most: f64, v| most.max(*v)).sqrt() * SLACK;
        let most_bias =
            bias.iter().fold(0.0, |most: f64, b| if b.is_nan() { f64::INFINITY } else { most.max(f64::from(b.abs())) });
        Ok(Some(Int8Copy { groups, weights, scales, coefficients, bound: Bound::new(from.cols, row_norm, most_bias) }))
    }

    /// Groups of a row.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Block `b` of rows, and what its bounds are made of.
    pub(super) fn block(&self, b: usize) -> (Int8Block<'_>, &Coefficients) {
        let block = Int8Block {
            weights: &self.weights[b * self.groups * TILE..][..self.groups * TILE],
            scales: &self.scales[b * self.groups * BLOCK_ROWS..][..self.groups * BLOCK_ROWS],
        };
        (block, &self.coefficients[b])
    }

    /// Bytes that a pass over all rows reads.
    pub(in crate::encode) fn bytes(&self) -> usize {
        self.weights.len() + 2 * self.scales.len() + size_of_val(&*self.coefficients)
    }

    /// All bounds times `factor`: for the tests, which must fail then.
    #[cfg(test)]
    pub(super) fn scale_bounds(&mut self, factor: f32) {
        for of in &mut self.coefficients {
            of.norm.iter_mut().chain(&mut of.error).for_each(|c| *c *= factor);
        }
    }
}

/// The norm that f64 sums of squares come to, as an f32 that is not below it.
pub(super) fn norm_of(square: f64) -> f32 {
    if square == 0.0 { 0.0 } else { round_up(square.sqrt() * SLACK) }
}
