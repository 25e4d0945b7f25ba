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
    stride: usize,
    high: Aligned<i8>,
    low: Aligned<i8>,
    whole: Aligned<i16>,
    groups: Vec<TokenGroup>,
    /// Whether the bounds hold for the token. All its rows are computed by `dot/1` otherwise.
    covered: Vec<bool>,
}

/// The workspace as threads share it, each preparing its own tokens.
pub(super) struct SharedTokens<'a> {
    stride: usize,
    high: Divided<'a, i8>,
    low: Divided<'a, i8>,
    whole: Divided<'a, i16>,
    groups: Divided<'a, TokenGroup>,
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
        high: &mut [i8; GROUP],
        low: &mut [i8; GROUP],
        whole: &mut [i16; GROUP],
        of: &mut TokenGroup,
        total: &mut Total,
    ) {
        const LANES: usize = 8;
        let mut group = [0.0_f32; GROUP];
        group[..x.len()].copy_from_slice(x);
        let most = group.iter().fold(0.0_f32, |most, v| if v.abs() > most { v.abs() } else { most });
        let mut scale = most / MOST as f32;
        if !(scale >= LEAST_SCALE && scale < f32::INFINITY) {
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
    /// Room for `capacity` tokens of `stride` elements, whole groups.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(super) fn new(capacity: usize, stride: usize) -> Result<Self> {
        let what = "the encoder's tokens in 16 bits";
        Ok(Tokens {
            stride,
            high: Aligned::zeroed(capacity * stride, what)?,
            low: Aligned::zeroed(capacity * stride, what)?,
            whole: Aligned::zeroed(capacity * stride, what)?,
            groups: try_vec(capacity * stride / GROUP, TokenGroup::default(), what)?,
            covered: try_vec(capacity, false, what)?,
        })
    }

    pub(super) fn shared(&mut self) -> SharedTokens<'_> {
        SharedTokens {
            stride: self.stride,
            high: Divided::of(&mut self.high),
            low: Divided::of(&mut self.low),
            whole: Divided::of(&mut self.whole),
            groups: Divided::of(&mut self.groups),
            covered: Divided::of(&mut self.covered),
        }
    }
}

impl SharedTokens<'_> {
    /// Rounds token `t`, whose elements are `x`.
    ///
    /// # Safety
    /// Nobody else may access token `t` meanwhile.
    pub(super) unsafe fn prepare(&self, isa: Isa, bound: &Bound, t: usize, x: &[f32]) {
        let (range, groups) = (t * self.stride..(t + 1) * self.stride, self.stride / GROUP);
        // SAFETY: the caller's promise: the parts of token t.
        let (high, low, whole, of, covered) = unsafe {
            (
                self.high.slice(range.clone()),
                self.low.slice(range.clone()),
                self.whole.slice(range),
                self.groups.slice(t * groups..(t + 1) * groups),
                &mut self.covered.slice(t..t + 1)[0],
            )
        };
        let mut total = Total::default();
        let planes = high.as_chunks_mut().0.iter_mut().zip(low.as_chunks_mut().0).zip(whole.as_chunks_mut().0);
        for ((x, of), ((high, low), whole)) in x.chunks(GROUP).zip(of).zip(planes) {
            round_group(isa, x, high, low, whole, of, &mut total);
        }
        *covered = bound.covers(total.0.sqrt() * super::copy::SLACK);
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
    /// Nobody may write them while the result lives.
    pub(super) unsafe fn read(&self, count: usize) -> Int8Tokens<'_> {
        let elements = 0..count * self.stride;
        // SAFETY: the caller's promise.
        unsafe {
            Int8Tokens {
                high: self.high.read(elements.clone()),
                low: self.low.read(elements.clone()),
                whole: self.whole.read(elements),
                groups: self.groups.read(0..count * (self.stride / GROUP)),
                stride: self.stride,
                count,
            }
        }
    }
}
