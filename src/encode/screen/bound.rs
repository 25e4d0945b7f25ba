//! The error bound: how far a cheap pre-activation can be from the canonical one.
//!
//! For a row, w = s Q + dw: s its scale, Q integers (those of both planes, or 256 times the high plane alone). For a token,
//! z = x - c rounded to f32, with c the centre, any vector, and z = t Z + dz. The cheap pre-activation is
//! `y' = s t (Q . Z) + b'`, `b' = w . c + b`. By Cauchy-Schwarz, with |.| Euclidean norms,
//!
//! `|w . x - (w . c + s t (Q . Z))| <= |dw| |z| + |s Q| |dz| + |w| |x - c - z|`
//!
//! To this add, with u = 2^-24 and gamma(k) = k u / (1 - k u):
//! - the rounding of x - c: |x - c - z| <= u |z|;
//! - the rounding of `dot/1`, ceil(d / 16) fused steps and 4 of the tree: gamma |w| |x|;
//! - the rounding of the cheap side: the integer to f32, the product of the scales, the product of both: at most 5 u of
//!   |s Q| |t Z|, or 8 u where AMX adds f32s; b' to f32: u |b'| <= u (|y'| + |s Q| |t Z|); w . c, summed in f64:
//!   2^-40 |w| |c|;
//! - what the fine products of AMX leave out, low plane times low plane: |s q| |t zl|, q and zl the low bytes. s q is the
//!   difference between the errors of the coarse and of the fine weights, so at most the sum of their norms;
//! - the bias is added to each of the two, and the bound to the cheap one: u |y| + u |y'| + u |y' +- eps|;
//! - eps itself is evaluated in f32: a factor of 1 + 2^-18 covers it;
//! - where a number underflows, a rounding is absolute instead: at most 2^-150 each, multiplied by at most 2^45 (an integer
//!   product of 2^15 terms) in the product of scales; everything else is far below.
//!
//! With |s Q| <= |w| + |dw|, at most `size`, |t Z| <= |z| + |dz|, this is, for a row and a token,
//!
//! `eps = error * of_z + coarse error * of_low + size * of_x + 8 u |y'| + underflow`,
//!
//! where `error` is |dw| + 16 u size, `of_z` is |z|, `of_x` is |dz| (1 + 16 u) + gamma |x| + 2^-40 |c|, and `of_low` is 0, or
//! for AMX |t zl|, which is then added to `of_z` as well.
//!
//! Nothing may overflow, in `dot/1` or here: [`Bound::covers`] says of a token that nothing can.

use crate::isa_fn;
use crate::simd::int8::{BLOCK_ROWS, Line, MOST_COLUMNS};
use crate::threads::Divided;

const U: f64 = 1.0 / (1_u64 << 24) as f64;
/// For the few roundings of eps itself.
const EVALUATED: f64 = 1.0 + 1.0 / (1_u64 << 18) as f64;
/// Covers all f64 roundings of norms, some 2^13 times 2^-53 of them.
const SLACK: f64 = 1.0 + 1.0 / (1_u64 << 30) as f64;

/// What the cheap pre-activations of one block of rows and their bounds are made of, row by row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Rows {
    /// s: an integer of 1 means this much.
    pub(super) scale: Line,
    /// b'.
    pub(super) bias: Line,
    /// |dw| of the high plane alone, and roundings.
    pub(super) coarse: Line,
    /// |dw| of both planes, and roundings.
    pub(super) fine: Line,
    /// At least |w| + |dw|.
    pub(super) size: Line,
}

impl Rows {
    pub(super) const ZERO: Rows = {
        let zero = [0.0; BLOCK_ROWS];
        Rows { scale: zero, bias: zero, coarse: zero, fine: zero, size: zero }
    };
}

/// What one token contributes to them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Token {
    /// t: an integer of 1 means this much.
    pub(super) scale: f32,
    /// Of the row's error.
    pub(super) of_z: f32,
    /// Of the row's size.
    pub(super) of_x: f32,
    /// |t zl|.
    pub(super) low: f32,
    /// Whether the bounds hold. All rows are computed by `dot/1` otherwise.
    pub(super) covered: bool,
}

/// Which products a cheap pre-activation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// Of the high plane.
    Coarse,
    /// Of both planes.
    Fine,
    /// Of both planes, but for the low one with the token's low one.
    Tiled,
}

/// What the bounds of all rows of one matrix share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// d.
    cols: f64,
    /// Of `dot/1`.
    gamma: f64,
    /// |c|.
    centre: f64,
    /// At least the norm of any row, and at least any |bias|, b' included.
    row_norm: f64,
    bias: f64,
}

/// The least f32 that is not below `value`, or one more.
fn round_up(value: f64) -> f32 {
    (value as f32).next_up()
}

/// The norm that f64 sums of squares come to, not below it.
pub(super) fn norm_of(square: f64) -> f64 {
    square.sqrt() * SLACK
}

impl Bound {
    /// Whether the derivation holds for rows of `cols` elements. No model is near the limit.
    pub(super) fn applies(cols: usize) -> bool {
        cols <= MOST_COLUMNS
    }

    /// For rows of `cols` elements, none of a norm above `row_norm`, no bias above `bias`.
    pub(super) fn new(cols: usize, centre: f64, row_norm: f64, bias: f64) -> Self {
        let roundings = (cols.div_ceil(16) + 6) as f64 * U;
        Bound { cols: cols as f64, gamma: roundings / (1.0 - roundings), centre, row_norm, bias }
    }

    /// `coarse`, `fine` and `size` of a row, from |w| and |dw| without and with the low plane.
    pub(super) fn row(norm: f64, coarse: f64, fine: f64) -> [f32; 3] {
        let size = norm + coarse.max(fine);
        [coarse + 16.0 * U * size, fine + 16.0 * U * size, size].map(|v| round_up(v * EVALUATED))
    }

    /// The terms of a token: |x|, the norms of z, dz and t zl, and t.
    ///
    /// With `deviations` the result bounds nothing for sure. The errors dw of a row and the elements of z are then taken to
    /// be independent and of mean 0, so that dw . z has the standard deviation |dw| |z| / sqrt(d), likewise the other
    /// products, and each counts as so many of those instead of the whole.
    pub(super) fn token(&self, x: f64, norms: [f64; 3], scale: f32, deviations: Option<f64>) -> Token {
        let covered = self.covers(x + norms[0] + self.centre);
        let share = deviations.map_or(1.0, |deviations| (deviations / self.cols.sqrt()).min(1.0));
        let [z, error, low] = norms.map(|norm| norm * share);
        let of_x = error * (1.0 + 16.0 * U) + self.gamma * x + self.centre * 2.0_f64.powi(-40);
        Token {
            scale,
            of_z: round_up(z * EVALUATED),
            of_x: round_up(of_x * EVALUATED),
            low: round_up(low * EVALUATED),
            covered,
        }
    }

    /// Whether no intermediate of any row can overflow, and no product of two pre-activations, for a token whose norms add
    /// up to `norm`. Also false for NaN.
    fn covers(&self, norm: f64) -> bool {
        norm <= 2.0_f64.powi(100) && norm * self.row_norm + self.bias <= 2.0_f64.powi(60)
    }
}

/// The absolute term: see the module.
const UNDERFLOW: f32 = 1.0 / (1_u128 << 100) as f32;

/// The largest coefficients of all rows of a matrix.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Largest {
    pub(super) coarse: f32,
    pub(super) fine: f32,
    pub(super) size: f32,
}

impl Products {
    /// eps without what depends on y', from a row's coefficients.
    #[inline(always)]
    fn eps_of(self, coarse: f32, fine: f32, size: f32, token: &Token) -> f32 {
        let left = if self == Products::Tiled { token.low } else { 0.0 };
        let error = if self == Products::Coarse { coarse } else { fine };
        error.mul_add(token.of_z + left, coarse.mul_add(left, size.mul_add(token.of_x, UNDERFLOW)))
    }

    /// How far row `r` of a block may be from `y`, its cheap pre-activation by these products.
    #[inline(always)]
    pub(super) fn eps(self, of: &Rows, r: usize, token: &Token, y: f32) -> f32 {
        y.abs().mul_add(OF_Y, self.eps_of(of.coarse[r], of.fine[r], of.size[r], token))
    }

    /// At least the eps of any row whose upper bound is positive, where no cheap pre-activation is above `most`.
    pub(super) fn most_eps(self, of: &Largest, token: &Token, most: f32) -> f32 {
        let eps = self.eps_of(of.coarse, of.fine, of.size, token);
        // A negative y of such a row is no larger than its eps.
        (most.max(0.0) + 2.0 * eps).mul_add(OF_Y, eps) * EVALUATED as f32
    }
}

/// Of |y'|: three roundings and a little.
const OF_Y: f32 = 8.0 / (1_u64 << 24) as f32;

isa_fn! {
    /// The cheap pre-activations of one block of rows and each token, from their products: the first of them that `y` has
    /// room for, `stride` elements from one token to the next.
    pub(super) fn estimate(
        lines: &[Line],
        of: &Rows,
        kind: Products,
        tokens: &[Token],
        y: &mut EstimatesMut<'_>,
    ) {
        for (t, (line, token)) in lines.iter().zip(tokens).enumerate() {
            // Coarse products are in units of 256 integers.
            let scale = if kind == Products::Coarse { 256.0 * token.scale } else { token.scale };
            let mut values = [0.0; BLOCK_ROWS];
            for r in 0..BLOCK_ROWS {
                values[r] = line[r].mul_add(of.scale[r] * scale, of.bias[r]);
            }
            y.write(t, &values);
        }
    }
}

/// Where the estimates of one block of rows go: as many rows as there are, of each token.
pub(super) struct EstimatesMut<'a> {
    y: &'a Divided<'a, f32>,
    /// Element of the block's first row of the first token.
    first: usize,
    /// Rows, at most 16.
    count: usize,
    /// Elements from one token to the next.
    stride: usize,
}

impl<'a> EstimatesMut<'a> {
    /// `count` rows of each token, from element `first` on, tokens `stride` apart.
    ///
    /// # Safety
    /// Nobody else may access those elements while this lives.
    pub(super) unsafe fn new(y: &'a Divided<'a, f32>, first: usize, count: usize, stride: usize) -> Self {
        EstimatesMut { y, first, count, stride }
    }

    #[inline(always)]
    fn write(&mut self, t: usize, values: &Line) {
        let at = self.first + t * self.stride;
        // SAFETY: the promise of `new`.
        let to = unsafe { self.y.slice(at..at + self.count) };
        match <&mut Line>::try_from(to) {
            // Of fixed length: one store.
            Ok(to) => *to = *values,
            Err(_) => {
                // SAFETY: as above.
                let to = unsafe { self.y.slice(at..at + self.count) };
                to.copy_from_slice(&values[..self.count]);
            }
        }
    }
}

/// The cheap pre-activation of one row by its fine product, nothing left out.
pub(super) fn estimate_one(product: f32, of: &Rows, r: usize, token: &Token) -> f32 {
    product.mul_add(of.scale[r] * token.scale, of.bias[r])
}
