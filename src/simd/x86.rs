//! The x86-64 instruction sets: 16 lanes as two AVX registers or one AVX-512 register.

use super::picked::picked_body;
use super::{F32x16, Term, Tile, gathered_dots_body, gathered_sum_body, rows_by_tokens};
use std::arch::x86_64::*;
use std::ops::Range;

#[derive(Clone, Copy)]
struct Avx512(__m512);

// SAFETY (all methods): the trait's callers vouch for AVX-512 F, BW, DQ and VL, and for 16 readable elements at `from`.
impl F32x16 for Avx512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl; the caller vouches for 16 writable elements.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, by.0, to.0) })
    }
    #[inline(always)]
    unsafe fn fma_first(self, by: Self, to: Self, lanes: usize) -> Self {
        let mask = ((1_u32 << lanes) - 1) as u16;
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_mask3_fmadd_ps(self.0, by.0, to.0, mask) })
    }
    #[inline(always)]
    unsafe fn sum4(of: [Self; 4]) -> [f32; 4] {
        // SAFETY: see the impl; the store is to a local of 16 bytes.
        unsafe {
            let [Avx512(a), Avx512(b), Avx512(c), Avx512(d)] = of;
            // j += j+8, two vectors a register: [a0..8 | b0..8]
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
            // j += j+4, four vectors a register: [a0..4 | b0..4 | c0..4 | d0..4]
            let abcd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
            // j += j+2, then j += j+1, in each quarter
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b01_00_11_10>(abcd));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
            // lane 0 of each quarter
            let packed = _mm512_maskz_compress_ps(0x1111, sums);
            let mut out = [0.0_f32; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(packed));
            out
        }
    }
}

#[derive(Clone, Copy)]
struct Avx2(__m256, __m256);

// SAFETY (all methods): the trait's callers vouch for AVX2 and FMA, and for 16 readable elements at `from`.
impl F32x16 for Avx2 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let widen = |from: *const u16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Avx2(widen(from), widen(from.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl; the caller vouches for 16 writable elements.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, by.0, to.0), _mm256_fmadd_ps(self.1, by.1, to.1)) }
    }
    #[inline(always)]
    unsafe fn fma_first(self, by: Self, to: Self, lanes: usize) -> Self {
        // SAFETY: see the impl; the mask is read from inside the table, since lanes < 16.
        unsafe {
            const MASK: [i32; 32] = {
                let mut mask = [0; 32];
                let mut i = 0;
                while i < 16 {
                    mask[i] = -1;
                    i += 1;
                }
                mask
            };
            let from = MASK.as_ptr().add(16 - lanes);
            let low = _mm256_castsi256_ps(_mm256_loadu_si256(from.cast()));
            let high = _mm256_castsi256_ps(_mm256_loadu_si256(from.add(8).cast()));
            let all = self.fma(by, to);
            Avx2(_mm256_blendv_ps(to.0, all.0, low), _mm256_blendv_ps(to.1, all.1, high))
        }
    }
    #[inline(always)]
    unsafe fn sum4(of: [Self; 4]) -> [f32; 4] {
        // SAFETY: see the impl; the store is to a local of 16 bytes.
        unsafe {
            // j += j+8
            let [a, b, c, d] = of.map(|v| _mm256_add_ps(v.0, v.1));
            // j += j+4, two vectors a register
            let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            // j += j+2: [a a c c | b b d d]
            let acbd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xEE>(ab, cd));
            // j += j+1
            let sums = _mm256_add_ps(acbd, _mm256_permute_ps::<0b10_11_00_01>(acbd));
            let (low, high) = (_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            let mut out = [0.0_f32; 4];
            // low = a a c c, high = b b d d
            // unpacklo = a b a b, unpackhi = c d c d: take a b, c d
            let packed = _mm_movelh_ps(_mm_unpacklo_ps(low, high), _mm_unpackhi_ps(low, high));
            _mm_storeu_ps(out.as_mut_ptr(), packed);
            out
        }
    }
}

macro_rules! wrapper {
    ($(#[$doc:meta])* $name:ident, $vector:ty, $weight:ty, $rows:literal x $tokens:literal, $features:literal) => {
        /// # Safety
        /// As for [`rows_by_tokens`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(tile: &Tile<'_, $weight>, rows: Range<usize>, out: *mut f32, out_stride: usize) {
            // SAFETY: the caller's promise; this function enables the instruction set.
            unsafe { rows_by_tokens::<$vector, $weight, $rows, $tokens>(tile, rows, out, out_stride) }
        }
    };
}

// 4 x 6 accumulators, 4 weights and one x fill 29 of 32 registers.
wrapper!(avx512_f32, Avx512, f32, 4 x 6, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
wrapper!(avx512_bf16, Avx512, u16, 4 x 6, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
// 2 x 2 accumulators of two registers, 2 weights and one x of two fill 14 of 16.
wrapper!(avx2_f32, Avx2, f32, 2 x 2, "avx2,fma");
wrapper!(avx2_bf16, Avx2, u16, 2 x 2, "avx2,fma");

macro_rules! gathered {
    ($sum:ident, $dots:ident, $vector:ty, $features:literal) => {
        /// # Safety
        /// As for [`gathered_sum_body`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $sum(rows: &[f32], stride: usize, terms: &[Term], out: &mut [f32]) {
            // SAFETY: the caller's promise; this function enables the instruction set.
            unsafe { gathered_sum_body::<$vector>(rows, stride, terms, out) }
        }
        /// # Safety
        /// As for [`gathered_dots_body`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $dots(rows: &[f32], stride: usize, picks: &[u32], x: &[f32], out: &mut [f32]) {
            // SAFETY: the caller's promise; this function enables the instruction set.
            unsafe { gathered_dots_body::<$vector>(rows, stride, picks, x, out) }
        }
    };
}

gathered!(avx512_sum, avx512_dots, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
gathered!(avx2_sum, avx2_dots, Avx2, "avx2,fma");

macro_rules! picked {
    ($name:ident, $vector:ty, $weight:ty, $features:literal) => {
        /// # Safety
        /// As for [`picked_body`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(tile: &Tile<'_, $weight>, picks: &[u32], out: *mut f32) {
            // SAFETY: the caller's promise; this function enables the instruction set.
            unsafe { picked_body::<$vector, $weight>(tile, picks, out) }
        }
    };
}

picked!(avx512_picked_f32, Avx512, f32, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
picked!(avx512_picked_bf16, Avx512, u16, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
picked!(avx2_picked_f32, Avx2, f32, "avx2,fma");
picked!(avx2_picked_bf16, Avx2, u16, "avx2,fma");
