//! The kernels of [`super::int8`] for x86-64.

use super::int8::{BLOCK_ROWS, GROUP, Int8Block, Int8Tokens, Sums, TILE};
use super::{Isa, Level};
use std::arch::x86_64::*;

/// Proof of AVX2 and FMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2Proof(());

/// Proof of AVX-512 with VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VnniProof(());

/// Bytes ahead of the weights in use that are asked for: hardware prefetchers stop at the end of each page.
const AHEAD: usize = 4096;

/// Groups of tokens as large as fit the registers, largest first, each by `$f::<T>`.
macro_rules! by_tokens {
    ($f:ident, $block:expr, $tokens:expr, $first:expr, $out:expr; $($t:literal),*) => {{
        let mut token = $first;
        $(
            while $tokens.count - token >= $t {
                $f::<$t>($block, $tokens, token, &mut $out[token..token + $t]);
                token += $t;
            }
        )*
    }};
}

impl Avx2Proof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx2).then_some(Avx2Proof(()))
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::block`].
    pub(super) fn block(self, block: Int8Block<'_>, tokens: Int8Tokens<'_>, out: &mut [Sums]) {
        // SAFETY: a proof of the instruction set; tokens `token..token + T` are below the count, and all slices are as
        // long as the count and the stride say.
        unsafe { by_tokens!(avx2, block, tokens, 0, out; 2, 1) }
    }
}

impl VnniProof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512 && is_x86_feature_detected!("avx512vnni")).then_some(VnniProof(()))
    }

    /// Tokens from `first` on. The slices were checked by the caller, [`super::int8::Int8Kernel::block`].
    pub(super) fn block_from(self, block: Int8Block<'_>, tokens: Int8Tokens<'_>, first: usize, out: &mut [Sums]) {
        // SAFETY: as for AVX2.
        unsafe { by_tokens!(vnni, block, tokens, first, out; 8, 4, 2, 1) }
    }
}

/// # Safety
/// AVX-512 with VNNI is there; tokens `token..token + T` exist, and the block has their groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn vnni<const T: usize>(block: Int8Block<'_>, tokens: Int8Tokens<'_>, token: usize, out: &mut [Sums]) {
    const { assert!(T <= 8) }
    let groups = tokens.groups;
    // SAFETY: tiles, scales and parts of tokens are read at group g < groups of tokens below the count, all of them inside
    // their slices by the caller's promise; prefetching faults nowhere.
    unsafe {
        let planes = tokens.planes.as_ptr().add(token * 2 * GROUP);
        let of = tokens.of.as_ptr().add(token);
        let mut product = [_mm512_setzero_ps(); T];
        for g in 0..groups {
            let tile = block.weights.as_ptr().add(g * TILE);
            let scale = widen(block.scales.as_ptr().add(g * BLOCK_ROWS));
            let planes = planes.add(g * tokens.capacity * 2 * GROUP);
            let of = of.add(g * tokens.capacity);
            // Two or four chains a plane where there are few tokens: one product waits five cycles for the one before.
            let mut highs = [[_mm512_setzero_si512(); 4]; T];
            let mut lows = [[_mm512_setzero_si512(); 4]; T];
            for t in 0..T {
                lows[t][0] = _mm512_set1_epi32((*of.add(t)).start);
            }
            let chains = match T {
                1 => 4,
                2 => 2,
                _ => 1,
            };
            for steps in 0..GROUP / 4 / chains {
                // The inner loop is unrolled, so that every chain is a register.
                for chain in 0..chains {
                    let step = steps * chains + chain;
                    let weights = _mm512_loadu_si512(tile.add(step * 64).cast());
                    _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(step * 64 + AHEAD).cast());
                    for t in 0..T {
                        let x = |at: usize| {
                            _mm512_set1_epi32(planes.add(t * 2 * GROUP + at).cast::<i32>().read_unaligned())
                        };
                        highs[t][chain] = _mm512_dpbusd_epi32(highs[t][chain], weights, x(step * 4));
                        lows[t][chain] = _mm512_dpbusd_epi32(lows[t][chain], weights, x(GROUP + step * 4));
                    }
                }
            }
            for t in 0..T {
                let sum = |[a, b, c, d]: [__m512i; 4]| match T {
                    1 => _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)),
                    2 => _mm512_add_epi32(a, b),
                    _ => a,
                };
                let whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(sum(highs[t])), sum(lows[t]));
                let by = _mm512_mul_ps(scale, _mm512_set1_ps((*of.add(t)).scale));
                product[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), by, product[t]);
            }
        }
        // The scales again, now in the first-level cache: with the products there would be too few registers.
        let (mut norm, mut error) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
        for g in 0..groups {
            let scale = widen(block.scales.as_ptr().add(g * BLOCK_ROWS));
            for t in 0..T {
                let of = &*of.add(g * tokens.capacity + t);
                norm[t] = _mm512_fmadd_ps(scale, _mm512_set1_ps(of.norm), norm[t]);
                error[t] = _mm512_fmadd_ps(scale, _mm512_set1_ps(of.error), error[t]);
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(out[t].product.as_mut_ptr(), product[t]);
            _mm512_storeu_ps(out[t].norm.as_mut_ptr(), norm[t]);
            _mm512_storeu_ps(out[t].error.as_mut_ptr(), error[t]);
        }
    }
}

/// Sixteen bf16 as f32.
///
/// # Safety
/// AVX-512 F is there and 16 elements are readable.
#[inline(always)]
pub(super) unsafe fn widen(from: *const u16) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
}

/// # Safety
/// AVX2 and FMA are there; tokens `token..token + T` exist, and the block has their groups.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const T: usize>(block: Int8Block<'_>, tokens: Int8Tokens<'_>, token: usize, out: &mut [Sums]) {
    let groups = tokens.groups;
    // SAFETY: as in `vnni`.
    unsafe {
        let whole = tokens.whole.as_ptr().add(token * GROUP);
        let of = tokens.of.as_ptr().add(token);
        let scales = |g: usize, half: usize| {
            let halves = _mm_loadu_si128(block.scales.as_ptr().add(g * BLOCK_ROWS + 8 * half).cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        };
        let mut product = [[_mm256_setzero_ps(); 2]; T];
        for g in 0..groups {
            let tile = block.weights.as_ptr().add(g * TILE);
            // Quarter q holds rows 4q..4q+4, two sums of column pairs each.
            let mut sums = [[_mm256_setzero_si256(); 4]; T];
            for step in 0..GROUP / 4 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(step * 64 + AHEAD).cast());
                let mut x = [_mm256_setzero_si256(); T];
                for t in 0..T {
                    let at = whole.add((g * tokens.capacity + t) * GROUP + step * 4);
                    x[t] = _mm256_set1_epi64x(at.cast::<i64>().read_unaligned());
                }
                for q in 0..4 {
                    let weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(tile.add(step * 64 + q * 16).cast()));
                    for t in 0..T {
                        sums[t][q] = _mm256_add_epi32(sums[t][q], _mm256_madd_epi16(weights, x[t]));
                    }
                }
            }
            for t in 0..T {
                let of = &*of.add(g * tokens.capacity + t);
                for half in 0..2 {
                    // [r0 r1 r4 r5 | r2 r3 r6 r7], put in order
                    let pairs = _mm256_hadd_epi32(sums[t][2 * half], sums[t][2 * half + 1]);
                    let rows = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                    let rows = _mm256_add_epi32(rows, _mm256_set1_epi32(of.start));
                    let by = _mm256_mul_ps(scales(g, half), _mm256_set1_ps(of.scale));
                    product[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(rows), by, product[t][half]);
                }
            }
        }
        for t in 0..T {
            for half in 0..2 {
                let (mut norm, mut error) = (_mm256_setzero_ps(), _mm256_setzero_ps());
                for g in 0..groups {
                    let of = &*of.add(g * tokens.capacity + t);
                    norm = _mm256_fmadd_ps(scales(g, half), _mm256_set1_ps(of.norm), norm);
                    error = _mm256_fmadd_ps(scales(g, half), _mm256_set1_ps(of.error), error);
                }
                _mm256_storeu_ps(out[t].product.as_mut_ptr().add(8 * half), product[t][half]);
                _mm256_storeu_ps(out[t].norm.as_mut_ptr().add(8 * half), norm);
                _mm256_storeu_ps(out[t].error.as_mut_ptr().add(8 * half), error);
            }
        }
    }
}
