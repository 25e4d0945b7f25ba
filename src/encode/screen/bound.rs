//! The error bound: how far a cheap pre-activation can be from the canonical one.
//!
//! For row r, group g: w = s q + dw (s the row's scale of the group, q integers), x = t X + dx (t the token's scale). The
//! cheap sum is that of s t (q . X). So, by Cauchy-Schwarz in each group, with |w| the norm over a group,
//!
//! `|w . x - sum s t (q . X)| <= sum |dw| |x| + sum s |q| |dx|`
//!
//! Norms of rows are not stored group by group: with kappa the largest |dw| / s of a row and rho its largest |q|, the
//! bound is `kappa A + rho B`, `A = sum s |x|`, `B = sum s |dx|`: two numbers a row, and sums over the scales, which are
//! read anyway. It costs little, since all groups of a row are rounded alike: |dw| / s is about 8 / sqrt(12) in each.
//!
//! To this add, with u = 2^-24 and gamma(k) = k u / (1 - k u):
//! - the rounding of `dot/1`, ceil(d / 16) fused steps and 4 of the tree: gamma * sum |w| |x| <= gamma (kappa + rho) A;
//! - the rounding of the cheap sum: the integer to f32, the product of the scales, one fused step a group:
//!   gamma * sum s t |q| |X| <= gamma rho (A + B), since |t X| <= |x| + |dx|;
//! - the bias is added to each of the two, and the bound to the cheap one: u |y| + u |y8| + u |y8 +- eps|;
//! - A, B and eps itself are evaluated in f32: factors of 1 + gamma and a little;
//! - where a number underflows, a rounding is absolute instead: at most 2^-150 each, multiplied by at most 2^29 in the
//!   product of scales, once a group; everything else is far below.
//!
//! Nothing may overflow, in `dot/1` or here: [`Bound::covers`] says of a token that nothing can.

use crate::isa_fn;
use crate::simd::int8::{BLOCK_ROWS, GROUP, Sums};

const U: f64 = 1.0 / (1_u64 << 24) as f64;

/// What the bounds of one block of rows are made of, row by row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Coefficients {
    /// Of A.
    pub(super) norm: [f32; BLOCK_ROWS],
    /// Of B.
    pub(super) error: [f32; BLOCK_ROWS],
    pub(super) bias: [f32; BLOCK_ROWS],
}

impl Coefficients {
    pub(super) const ZERO: Coefficients =
        Coefficients { norm: [0.0; BLOCK_ROWS], error: [0.0; BLOCK_ROWS], bias: [0.0; BLOCK_ROWS] };
}

/// What the bounds of all rows of one matrix share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// Of the number of roundings in a sum, `dot/1`'s or the cheap one's, whichever are more, and of those of A and B.
    gamma: f64,
    /// The absolute term.
    underflow: f32,
    /// At least the norm of any row, and at least any |bias|.
    row_norm: f64,
    bias: f64,
}

/// The least f32 that is not below `value`, or one more.
pub(super) fn round_up(value: f64) -> f32 {
    (value as f32).next_up()
}

impl Bound {
    /// For rows of `cols` elements.
    pub(super) fn new(cols: usize, row_norm: f64, bias: f64) -> Self {
        let (groups, steps) = (cols.div_ceil(GROUP), cols.div_ceil(16));
        let roundings = (steps + groups + 16) as f64 * U;
        Bound {
            gamma: roundings / (1.0 - roundings),
            // Twice what the groups come to; 2^-120 times a number that d fits in cannot be inexact.
            underflow: (groups + 1) as f32 * 2.0_f32.powi(-120),
            row_norm,
            bias,
        }
    }

    /// Whether a sum of `cols` terms has few enough roundings for gamma to mean anything. No model is near it.
    pub(super) fn applies(&self) -> bool {
        self.gamma > 0.0 && self.gamma < 0.01
    }

    /// The coefficients of A and B for a row, from its kappa and rho.
    pub(super) fn row(&self, kappa: f64, rho: f64) -> (f32, f32) {
        // A and B are below their exact values by a factor of 1 + gamma at most; and the few f32 roundings of eps itself.
        let evaluated = (1.0 + 2.0 * self.gamma) * (1.0 + 2.0_f64.powi(-18));
        let norm = (kappa + self.gamma * (kappa + 2.0 * rho)) * evaluated;
        let error = rho * (1.0 + self.gamma) * evaluated;
        (round_up(norm), round_up(error))
    }

    /// Whether no intermediate of any row can overflow, and no product of two pre-activations, for a token of norm at
    /// most `norm`. Also false for NaN.
    pub(super) fn covers(&self, norm: f64) -> bool {
        norm <= 2.0_f64.powi(100) && norm * self.row_norm + self.bias <= 2.0_f64.powi(60)
    }

    pub(super) fn underflow(&self) -> f32 {
        self.underflow
    }
}

isa_fn! {
    /// Lower and upper bounds of the canonical pre-activations of one block and one token.
    pub(super) fn interval(
        sums: &Sums,
        of: &Coefficients,
        underflow: f32,
        low: &mut [f32; BLOCK_ROWS],
        high: &mut [f32; BLOCK_ROWS],
    ) {
        for r in 0..BLOCK_ROWS {
            let y = sums.product[r] + of.bias[r];
            // 8 u |y8|, where the roundings of the two bias adds and of the bounds need 3 and a little.
            let last = y.abs().mul_add(8.0 * U as f32, underflow);
            let eps = of.norm[r].mul_add(sums.norm[r], of.error[r].mul_add(sums.error[r], last));
            low[r] = y - eps;
            high[r] = y + eps;
        }
    }
}
