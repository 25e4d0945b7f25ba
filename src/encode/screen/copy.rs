//! The copy of an encoder's weights in two planes of int8, and what each row's rounding cost.

use super::bound::{Bound, Largest, Rows, norm_of};
use crate::error::Result;
use crate::isa_fn;
use crate::memory::{Aligned, try_vec};
use crate::sae::{ElementsRef, MatrixRef};
use crate::simd::Isa;
use crate::simd::int8::{BLOCK_ROWS, GROUP, Line, MOST, Planes};
use crate::threads::{Divided, Pool};

/// A weight matrix in 16 bits, as two planes, with one scale for each row. Small batches read the high plane and little of
/// the low one.
#[derive(Debug)]
pub(in crate::encode) struct Int8Copy {
    rows: usize,
    groups: usize,
    /// Bytes from one row to the next in a plane.
    stride: usize,
    /// `[rows rounded up to two blocks, stride]`; see [`crate::simd::int8`].
    high: Aligned<u8>,
    low: Aligned<u8>,
    /// `[blocks]`
    of: Vec<Rows>,
    largest: Largest,
    bound: Bound,
    /// c, `[groups * 64]`, zero-padded.
    centre: Aligned<f32>,
}

/// Rows that AMX takes at a time.
const TWO_BLOCKS: usize = 2 * BLOCK_ROWS;

/// Added to an f64 of modest size, leaves its nearest integer in the low bits.
pub(super) const TO_INTEGER: f64 = 1.5 * (1_u64 << 52) as f64;

/// The least f32 by which numbers up to `most` in size become integers of 16 bits; 0 if there is no use in any, and all
/// counts as rounding error then.
pub(super) fn scale_for(most: f32) -> f32 {
    let scale = (most / MOST as f32).next_up();
    if most > 0.0 && (f32::MIN_POSITIVE..f32::INFINITY).contains(&scale) { scale } else { 0.0 }
}

/// Two bytes of an integer of 16 bits: `256 * high + low`.
#[inline(always)]
pub(super) fn split(integer: i16) -> [i8; 2] {
    let low = integer as i8;
    [(integer.wrapping_sub(i16::from(low)) >> 8) as i8, low]
}

/// What the rounding of a row cost: sums of squares and of products with the centre.
#[derive(Debug, Default)]
struct RowCost {
    scale: f32,
    square: f64,
    coarse: f64,
    fine: f64,
    centre: f64,
}

isa_fn! {
    /// Rounds a row from f32 or bf16.
    fn round_row(from: MatrixRef<'_>, row: usize, centre: &[f32], high: &mut [u8], low: &mut [u8], cost: &mut RowCost) {
        const LANES: usize = 16;
        let at = row * from.stride;
        let element = |c: usize| match from.data {
            ElementsRef::F32(data) => data[at + c],
            ElementsRef::Bf16(data) => f32::from_bits(u32::from(data[at + c]) << 16),
        };
        // Whole vectors, then what is left.
        let mut w = [0.0_f32; LANES];
        let mut most = [0.0_f32; LANES];
        let fill = |c: usize, w: &mut [f32; LANES]| {
            if c + LANES <= from.cols {
                match from.data {
                    ElementsRef::F32(data) => w.copy_from_slice(&data[at + c..at + c + LANES]),
                    ElementsRef::Bf16(data) => {
                        for (w, &bits) in w.iter_mut().zip(&data[at + c..at + c + LANES]) {
                            *w = f32::from_bits(u32::from(bits) << 16);
                        }
                    }
                }
            } else {
                for (j, w) in w.iter_mut().enumerate() {
                    *w = if c + j < from.cols { element(c + j) } else { 0.0 };
                }
            }
        };
        for c in (0..from.cols).step_by(LANES) {
            fill(c, &mut w);
            for j in 0..LANES {
                let size = w[j].abs();
                most[j] = if size > most[j] { size } else { most[j] };
            }
        }
        let scale = scale_for(most.iter().fold(0.0, |a: f32, &b| a.max(b)));
        let (step, inverse) = (f64::from(scale), if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 });
        let mut square = [0.0_f64; LANES];
        let (mut coarse, mut fine, mut of_centre) = (square, square, square);
        for c in (0..from.cols).step_by(LANES) {
            fill(c, &mut w);
            let centre = &centre[c..c + LANES];
            let (high, low) = (&mut high[c..c + LANES], &mut low[c..c + LANES]);
            for j in 0..LANES {
                let w = f64::from(w[j]);
                let shifted = w * inverse + TO_INTEGER;
                let integer = shifted.to_bits() as i16;
                let [h, l] = split(integer);
                // The product is exact (24 bits by 16); the difference is rounded in the 53rd bit, far inside the slack.
                let rest = w - step * (shifted - TO_INTEGER);
                let more = w - step * f64::from(i32::from(h) * 256);
                square[j] += w * w;
                fine[j] += rest * rest;
                coarse[j] += more * more;
                of_centre[j] += w * f64::from(centre[j]);
                high[j] = (h as u8).wrapping_add(128);
                low[j] = (l as u8).wrapping_add(128);
            }
        }
        let sum = |lanes: [f64; LANES]| lanes.iter().sum::<f64>();
        *cost = RowCost {
            scale,
            square: sum(square),
            coarse: sum(coarse),
            fine: sum(fine),
            centre: sum(of_centre),
        };
    }
}

fn largest_of(rows: &[Rows]) -> Largest {
    let of = |line: fn(&Rows) -> &Line| rows.iter().flat_map(line).fold(0.0, |most: f32, &v| most.max(v));
    Largest { coarse: of(|rows| &rows.coarse), fine: of(|rows| &rows.fine), size: of(|rows| &rows.size) }
}

impl Int8Copy {
    /// Rounds a matrix on the threads of `pool`; tokens will be centred on `centre`, where there is one. None if rows are so
    /// long that the bound does not hold.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`]; those of [`Pool::run`].
    ///
    /// # Panics
    /// If the centre or the biases are of another length.
    pub(in crate::encode) fn new(
        from: MatrixRef<'_>,
        bias: &[f32],
        centre: Option<&[f32]>,
        isa: Isa,
        pool: &mut Pool,
    ) -> Result<Option<Self>> {
        if !Bound::applies(from.cols) {
            return Ok(None);
        }
        assert_eq!(bias.len(), from.rows, "a bias for each row");
        let groups = from.cols.div_ceil(GROUP);
        // An odd number of cache lines: rows that are used together do not compete for the same sets of a cache.
        let stride = (groups + usize::from(groups.is_multiple_of(2))) * GROUP;
        let padded_rows = from.rows.next_multiple_of(TWO_BLOCKS);
        let bytes = padded_rows.saturating_mul(stride);
        let mut high = Aligned::<u8>::zeroed(bytes, "the int8 weights")?;
        let mut low = Aligned::<u8>::zeroed(bytes, "the int8 weights")?;
        let mut of = try_vec(padded_rows / BLOCK_ROWS, Rows::ZERO, "the bounds of the int8 weights")?;
        let mut most = try_vec(padded_rows / TWO_BLOCKS, [0.0_f64; 2], "the bounds of the int8 weights")?;
        let mut padded_centre = Aligned::<f32>::zeroed(groups * GROUP, "the centre of tokens")?;
        if let Some(centre) = centre {
            padded_centre[..from.cols].copy_from_slice(centre);
        }
        {
            let centre = &*padded_centre;
            let (high, low) = (Divided::of(&mut high), Divided::of(&mut low));
            let (of, most) = (Divided::of(&mut of), Divided::of(&mut most));
            pool.run(&|worker| {
                for pair in worker.share(padded_rows / TWO_BLOCKS, 1) {
                    let first = pair * TWO_BLOCKS;
                    // SAFETY: shares are disjoint, so each pair of blocks is this thread's alone.
                    let (of, most) = unsafe { (of.slice(2 * pair..2 * pair + 2), &mut most.slice(pair..pair + 1)[0]) };
                    for row in first..from.rows.min(first + TWO_BLOCKS) {
                        // SAFETY: as above.
                        let [high, low] = [&high, &low].map(|p| unsafe { p.slice(row * stride..(row + 1) * stride) });
                        let mut cost = RowCost::default();
                        // Columns that are padding count for nothing, whatever they hold: tokens are 0 there.
                        round_row(isa, from, row, centre, high, low, &mut cost);
                        let norm = norm_of(cost.square);
                        let (of, r) = (&mut of[(row - first) / BLOCK_ROWS], row % BLOCK_ROWS);
                        let errors = Bound::row(norm, norm_of(cost.coarse), norm_of(cost.fine));
                        [of.coarse[r], of.fine[r], of.size[r]] = errors;
                        of.scale[r] = cost.scale;
                        let shifted = cost.centre + f64::from(bias[row]);
                        of.bias[r] = shifted as f32;
                        // NaN would be lost in a maximum; infinity keeps every token out of the screened path.
                        let raise =
                            |most: &mut f64, v: f64| *most = if v.is_nan() { f64::INFINITY } else { most.max(v) };
                        raise(&mut most[0], norm);
                        raise(&mut most[1], f64::from(bias[row]).abs().max(shifted.abs()));
                    }
                }
            })?;
        }
        let most = |i: usize| most.iter().fold(0.0, |a: f64, v| a.max(v[i]));
        let of_centre = norm_of(padded_centre.iter().map(|&c| f64::from(c) * f64::from(c)).sum());
        let bound = Bound::new(from.cols, of_centre, most(0), most(1));
        let (rows, largest) = (from.rows, largest_of(&of));
        Ok(Some(Int8Copy { rows, groups, stride, high, low, of, largest, bound, centre: padded_centre }))
    }

    /// Groups of columns.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// c, zero-padded to whole groups.
    pub(super) fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// Rows from `first` on, to the end of the last pair of blocks.
    pub(super) fn planes(&self, first: usize) -> Planes<'_> {
        let at = first * self.stride;
        Planes { high: &self.high[at..], low: &self.low[at..], stride: self.stride, groups: self.groups }
    }

    /// What the bounds of block `b` of rows are made of.
    pub(super) fn of(&self, b: usize) -> &Rows {
        &self.of[b]
    }

    /// The largest of those coefficients.
    pub(super) fn largest(&self) -> &Largest {
        &self.largest
    }

    /// Bytes that a pass over all rows reads: of the high plane alone, or of both.
    pub(in crate::encode) fn bytes(&self, both: bool) -> usize {
        (1 + usize::from(both)) * self.rows * self.groups * GROUP + size_of_val(&*self.of)
    }

    /// Bytes of memory.
    pub(in crate::encode) fn held_bytes(&self) -> usize {
        self.high.len() + self.low.len() + size_of_val(&*self.of) + size_of_val(&*self.centre)
    }

    /// Errors of the high plane, and of both, times these: for the tests, which must fail then.
    #[cfg(test)]
    pub(super) fn scale_bounds(&mut self, [coarse, fine]: [f32; 2]) {
        for of in &mut self.of {
            of.coarse.iter_mut().for_each(|c| *c *= coarse);
            of.fine.iter_mut().for_each(|c| *c *= fine);
        }
        self.largest = largest_of(&self.of);
    }
}
