//! Tokens in 16 bits, with the norms that the bounds need.

use super::bound::Bound;
use super::copy::{TO_INTEGER, norm_of};
use crate::error::Result;
use crate::isa_fn;
use crate::memory::{Aligned, try_vec};
use crate::simd::Isa;
use crate::simd::int8::{GROUP, Int8Tokens, MOST, TokenGroup};
use crate::threads::Divided;

/// Workspace for a tile of tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    groups: usize,
    capacity: usize,
    planes: Aligned<i8>,
    whole: Aligned<i16>,
    of: Vec<TokenGroup>,
    /// Whether the bounds hold for the token. All its rows are computed by `dot/1` otherwise.
    covered: Vec<bool>,
}

/// The workspace as threads share it, each preparing its own tokens.
pub(super) struct SharedTokens<'a> {
    groups: usize,
    capacity: usize,
    planes: Divided<'a, i8>,
    whole: Divided<'a, i16>,
    of: Divided<'a, TokenGroup>,
    covered: Divided<'a, bool>,
}

/// A scale below this would be imprecise or 0; then all of x counts as its rounding error.
const LEAST_SCALE: f32 = 1.0 / (1_u128 << 100) as f32;

/// Norms of a token's groups, squared and added up; NaN or infinite if an element is.
#[derive(Default)]
struct Total(f64);

isa_fn! {
    /// Rounds one group; `x` may be shorter than it.
    fn round_group(
        x: &[f32],
        planes: &mut [i8],
        whole: &mut [i16],
        of: &mut TokenGroup,
        total: &mut Total,
    ) {
        const LANES: usize = 8;
        let mut group = [0.0_f32; GROUP];
        group[..x.len()].copy_from_slice(x);
        let most = group.iter().fold(0.0_f32, |most, v| if v.abs() > most { v.abs() } else { most });
        let mut scale = most / MOST as f32;
        if !(LEAST_SCALE..f32::INFINITY).contains(&scale) {
            scale = 0.0;
        }
        let (step, inverse) = (f64::from(scale), if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 });
        let (mut square, mut left) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        for (x, to) in group.as_chunks::<LANES>().0.iter().zip(whole.as_chunks_mut::<LANES>().0) {
            for j in 0..LANES {
                let x = f64::from(x[j]);
                let shifted = x * inverse + TO_INTEGER;
                let rest = x - step * (shifted - TO_INTEGER);
                square[j] += x * x;
                left[j] += rest * rest;
                to[j] = shifted.to_bits() as i16;
            }
        }
        let mut sum = 0_i32;
        let (high, low) = planes.split_at_mut(GROUP);
        for c in 0..GROUP {
            low[c] = whole[c] as i8;
            high[c] = (whole[c].wrapping_sub(i16::from(low[c])) >> 8) as i8;
            sum += i32::from(whole[c]);
        }
        let square: f64 = square.iter().sum();
        *of = TokenGroup { start: -128 * sum, scale, norm: norm_of(square), error: norm_of(left.iter().sum()) };
        total.0 += square;
    }
}

impl Tokens {
    /// Room for `capacity` tokens of `groups` groups.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(super) fn new(capacity: usize, groups: usize) -> Result<Self> {
        let (what, parts) = ("the encoder's tokens in 16 bits", capacity.saturating_mul(groups));
        Ok(Tokens {
            groups,
            capacity,
            planes: Aligned::zeroed(parts.saturating_mul(2 * GROUP), what)?,
            whole: Aligned::zeroed(parts.saturating_mul(GROUP), what)?,
            of: try_vec(parts, TokenGroup::default(), what)?,
            covered: try_vec(capacity, false, what)?,
        })
    }

    pub(super) fn shared(&mut self) -> SharedTokens<'_> {
        SharedTokens {
            groups: self.groups,
            capacity: self.capacity,
            planes: Divided::of(&mut self.planes),
            whole: Divided::of(&mut self.whole),
            of: Divided::of(&mut self.of),
            covered: Divided::of(&mut self.covered),
        }
    }
}

impl SharedTokens<'_> {
    /// Tokens that lie side by side in a group when there are `count`: few lie densely, so that all groups of one token do
    /// not compete for the same few sets of the first-level cache; many are rounded up to what AMX takes at a time.
    fn width(&self, count: usize) -> usize {
        if count < 8 { count } else { count.next_multiple_of(16).min(self.capacity) }
    }

    /// Rounds token `t` of `count`, whose elements are `x`.
    ///
    /// # Safety
    /// Nobody else may access token `t` meanwhile.
    pub(super) unsafe fn prepare(&self, isa: Isa, bound: &Bound, t: usize, count: usize, x: &[f32]) {
        let width = self.width(count);
        let mut total = Total::default();
        for (g, x) in x.chunks(GROUP).enumerate() {
            let part = g * width + t;
            // SAFETY: the caller's promise: parts of token t.
            unsafe {
                let planes = self.planes.slice(part * 2 * GROUP..(part + 1) * 2 * GROUP);
                let whole = self.whole.slice(part * GROUP..(part + 1) * GROUP);
                round_group(isa, x, planes, whole, &mut self.of.slice(part..part + 1)[0], &mut total);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.covered.slice(t..t + 1)[0] = bound.covers(total.0.sqrt() * super::copy::SLACK) };
    }

    /// Whether the bounds hold for token `t`.
    ///
    /// # Safety
    /// Nobody may write token `t` meanwhile.
    pub(super) unsafe fn covered(&self, t: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.covered.read(t..t + 1)[0] }
    }

    /// The first `count` tokens, to read.
    ///
    /// # Safety
    /// Nobody may write any token while the result lives.
    pub(super) unsafe fn read(&self, count: usize) -> Int8Tokens<'_> {
        assert!(count <= self.capacity, "more tokens than there is room for");
        let width = self.width(count);
        let parts = self.groups * width;
        // SAFETY: the caller's promise; of the other tokens nothing is read through the result.
        unsafe {
            Int8Tokens {
                planes: self.planes.read(0..parts * 2 * GROUP),
                whole: self.whole.read(0..parts * GROUP),
                of: self.of.read(0..parts),
                groups: self.groups,
                capacity: width,
                count,
            }
        }
    }
}
