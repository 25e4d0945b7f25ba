//! The kernels of [`super::int8`] for x86-64.

use super::int8::{BLOCK_ROWS, GROUP, Int8Tokens, Line, Planes};
use super::{Isa, Level};
use std::arch::x86_64::*;

/// Proof of AVX2 and FMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2Proof(());

/// Proof of AVX-512 with VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VnniProof(());

/// Rows of a step.
const ROWS: usize = 4;

/// How far ahead of the rows in use others are asked for: hardware prefetchers stop at the end of each page. Whole steps of
/// rows, and at least so many bytes.
fn ahead(stride: usize) -> usize {
    const LEAST: usize = 8192;
    LEAST.div_ceil(ROWS * stride) * ROWS * stride
}

/// Groups of tokens as large as fit the registers, largest first, each by `$f::<T>`.
macro_rules! by_tokens {
    ($f:ident, $planes:expr, $tokens:expr, $out:expr; $($t:literal),*) => {{
        let mut token = 0;
        $(
            while $tokens.count - token >= $t {
                $f::<$t>($planes, $tokens, token, &mut $out[token..token + $t]);
                token += $t;
            }
        )*
    }};
}

impl Avx2Proof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx2).then_some(Avx2Proof(()))
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::coarse`].
    pub(super) fn coarse(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        let width = tokens.groups * GROUP;
        // SAFETY: a proof of the instruction set; 16 rows of the plane and the tokens below the count are inside.
        unsafe {
            for (t, out) in out.iter_mut().enumerate() {
                let whole = tokens.whole.as_ptr().add(t * width);
                for r in 0..BLOCK_ROWS {
                    out[r] =
                        avx2(planes.high.as_ptr().add(r * planes.stride), whole, width, sum(tokens.sums[t])) as f32;
                }
            }
        }
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::picked`].
    pub(super) fn picked(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, t: usize, picks: &[u32], out: &mut [f32]) {
        let width = tokens.groups * GROUP;
        // SAFETY: a proof of the instruction set; the rows picked and token t are inside.
        unsafe {
            let whole = tokens.whole.as_ptr().add(t * width);
            for (&row, out) in picks.iter().zip(out) {
                let at = row as usize * planes.stride;
                let of = |plane: &[u8]| avx2(plane.as_ptr().add(at), whole, width, sum(tokens.sums[t]));
                *out = (256 * of(planes.high) + of(planes.low)) as f32;
            }
        }
    }
}

/// Of a token's elements.
fn sum([high, low]: [i32; 2]) -> i64 {
    256 * i64::from(high) + i64::from(low)
}

/// `sum (row - 128) Z`, given the sum of Z.
///
/// # Safety
/// AVX2 is there; `width` bytes of the row and elements of the token are readable.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(row: *const u8, whole: *const i16, width: usize, sum: i64) -> i64 {
    /// Columns after which sums of 32 bits go into wider ones: 64 steps of two products of at most 255 * 32,512 < 2^23.
    const FLUSH: usize = 1024;
    // SAFETY: loads at columns below `width`, a multiple of 64; prefetching faults nowhere.
    unsafe {
        let mut wide = _mm256_setzero_si256();
        let mut column = 0;
        while column < width {
            let end = width.min(column + FLUSH);
            let mut sums = [_mm256_setzero_si256(); 4];
            while column < end {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(column + 8192).cast());
                for (i, sums) in sums.iter_mut().enumerate() {
                    let at = column + 16 * i;
                    let weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(row.add(at).cast()));
                    let x = _mm256_loadu_si256(whole.add(at).cast());
                    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(weights, x));
                }
                column += GROUP;
            }
            for sums in sums {
                wide = _mm256_add_epi64(wide, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(sums)));
                wide = _mm256_add_epi64(wide, _mm256_cvtepi32_epi64(_mm256_extracti128_si256::<1>(sums)));
            }
        }
        let mut lanes = [0_i64; 4];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), wide);
        lanes.iter().sum::<i64>() - 128 * sum
    }
}

impl VnniProof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512 && is_x86_feature_detected!("avx512vnni")).then_some(VnniProof(()))
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::coarse`].
    pub(super) fn coarse(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        // SAFETY: a proof of the instruction set; tokens `token..token + T` are below the count, and all slices are as
        // long as the count and the stride say.
        unsafe { by_tokens!(vnni, planes, tokens, out; 2, 1) }
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::picked`].
    pub(super) fn picked(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, t: usize, picks: &[u32], out: &mut [f32]) {
        // SAFETY: a proof of the instruction set; the rows picked and token t are inside.
        unsafe { vnni_picked(planes, tokens, t, picks, out) }
    }
}

/// The coarse products of 16 rows with tokens `token..token + T`.
///
/// # Safety
/// AVX-512 with VNNI is there; the tokens exist, and 16 rows of the high plane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn vnni<const T: usize>(planes: Planes<'_>, tokens: Int8Tokens<'_>, token: usize, out: &mut [Line]) {
    const { assert!(T <= 2) }
    let (width, stride) = (tokens.groups * GROUP, planes.stride);
    let ahead = ahead(stride);
    // SAFETY: rows and tokens are read at columns below `width`, inside their slices by the caller's promise; prefetching
    // faults nowhere.
    unsafe {
        let x = tokens.planes.as_ptr().add(token * 2 * width);
        for first in (0..BLOCK_ROWS).step_by(ROWS) {
            let rows = planes.high.as_ptr().add(first * stride);
            let mut great = [[_mm512_setzero_si512(); ROWS]; T];
            let mut less = [[_mm512_setzero_si512(); ROWS]; T];
            for column in (0..width).step_by(GROUP) {
                let mut weights = [_mm512_setzero_si512(); ROWS];
                for r in 0..ROWS {
                    let at = rows.add(r * stride + column);
                    weights[r] = _mm512_loadu_si512(at.cast());
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
                }
                for t in 0..T {
                    let x = x.add(t * 2 * width + column);
                    let (high, low) = (_mm512_loadu_si512(x.cast()), _mm512_loadu_si512(x.add(width).cast()));
                    for r in 0..ROWS {
                        great[t][r] = _mm512_dpbusd_epi32(great[t][r], weights[r], high);
                        less[t][r] = _mm512_dpbusd_epi32(less[t][r], weights[r], low);
                    }
                }
            }
            for t in 0..T {
                let [high, low] = tokens.sums[token + t];
                let great = doubles(great[t], high);
                let less = doubles(less[t], low);
                let whole = _mm256_cvtpd_ps(_mm256_fmadd_pd(great, _mm256_set1_pd(256.0), less));
                _mm_storeu_ps(out[t].as_mut_ptr().add(first), whole);
            }
        }
    }
}

/// The sums of four vectors' lanes, less 128 times `sum`, as f64.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn doubles([a, b, c, d]: [__m512i; ROWS], sum: i32) -> __m256d {
    let ab = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
    let cd = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
    // Four lanes of each: [a | b | c | d].
    let abcd = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xDD>(ab, cd));
    let pairs = _mm512_add_epi32(abcd, _mm512_shuffle_epi32::<0b01_00_11_10>(abcd));
    let sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b10_11_00_01>(pairs));
    let four = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, sums));
    _mm256_cvtepi32_pd(_mm_sub_epi32(four, _mm_set1_epi32(sum << 7)))
}

/// # Safety
/// AVX-512 with VNNI is there; the rows picked and token `t` exist; `out` is as long as `picks`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn vnni_picked(planes: Planes<'_>, tokens: Int8Tokens<'_>, t: usize, picks: &[u32], out: &mut [f32]) {
    let width = tokens.groups * GROUP;
    let [of_high, of_low] = tokens.sums[t];
    // SAFETY: rows and the token are read at columns below `width`, inside their slices by the caller's promise;
    // prefetching faults nowhere.
    unsafe {
        let x = tokens.planes.as_ptr().add(t * 2 * width);
        for (c, (four, out)) in picks.chunks(ROWS).zip(out.chunks_mut(ROWS)).enumerate() {
            // A short last group repeats its first row; the surplus is dropped below.
            let at = |of: &[u32], r: usize| *of.get(r).unwrap_or(&of[0]) as usize * planes.stride;
            let rows: [usize; ROWS] = std::array::from_fn(|r| at(four, r));
            // Rows lie far apart: the next ones are asked for while these are used.
            let next = picks.get(ROWS * (c + 1)..).filter(|next| !next.is_empty()).unwrap_or(four);
            let next: [usize; ROWS] = std::array::from_fn(|r| at(next, r));
            // High by high, what counts 256 times less, low by low.
            let mut sums = [[_mm512_setzero_si512(); ROWS]; 3];
            for column in (0..width).step_by(GROUP) {
                let high = _mm512_loadu_si512(x.add(column).cast());
                let low = _mm512_loadu_si512(x.add(width + column).cast());
                for r in 0..ROWS {
                    let of = |plane: &[u8]| {
                        _mm_prefetch::<_MM_HINT_T0>(plane.as_ptr().wrapping_add(next[r] + column).cast());
                        _mm512_loadu_si512(plane.as_ptr().add(rows[r] + column).cast())
                    };
                    let (great, less) = (of(planes.high), of(planes.low));
                    sums[0][r] = _mm512_dpbusd_epi32(sums[0][r], great, high);
                    sums[1][r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[1][r], great, low), less, high);
                    sums[2][r] = _mm512_dpbusd_epi32(sums[2][r], less, low);
                }
            }
            let by = _mm256_set1_pd(256.0);
            let [great, less, least] = sums;
            let upper = _mm256_fmadd_pd(doubles(great, of_high), by, doubles(less, of_high + of_low));
            let whole = _mm256_cvtpd_ps(_mm256_fmadd_pd(upper, by, doubles(least, of_low)));
            let mut lanes = [0.0_f32; ROWS];
            _mm_storeu_ps(lanes.as_mut_ptr(), whole);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}
