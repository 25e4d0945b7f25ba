//! The largest product of each head: one pass over a token's pre-activations, which all of the selection rests on.

use crate::isa_fn;

isa_fn! {
    /// Whether no element is NaN or +infinity.
    pub(super) fn finite(y: &[f32]) -> bool {
        // One flat reduction of words as wide as the elements: the form that compilers vectorise. On bits, not by a float
        // comparison with infinity, because valgrind 3.19 gets AVX's "not less than" wrong where a NaN is involved.
        let bad = |v: f32| {
            let bits = v.to_bits();
            let positive = bits.wrapping_sub(0x7F80_0000) < 0x0080_0000; // +infinity and NaNs
            u32::from(positive | (bits > 0xFF80_0000)) // NaNs with the sign bit
        };
        y.iter().fold(0_u32, |any, &v| any | bad(v)) == 0
    }
}

/// Writes each head's largest product, `maxima.len()` of them; false if a pre-activation is NaN or +infinity or a
/// product is not finite.
///
/// # Panics
/// If `y` is not `maxima.len() * (m + n)` long.
pub(super) fn head_maxima(isa: crate::Isa, y: &[f32], m: usize, n: usize, maxima: &mut [f32]) -> bool {
    assert_eq!(y.len(), maxima.len() * (m + n), "pre-activations of another shape");
    #[cfg(target_arch = "x86_64")]
    if (m, n, isa.level()) == (4, 4, crate::IsaLevel::Avx512) {
        // SAFETY: the Isa is proof of the instruction set; the lengths were compared.
        let plain = unsafe { x86::maxima_4_4(y, maxima) };
        // -infinity is allowed among pre-activations, and looks like the others in that pass.
        return (plain || finite(isa, y)) && finite(isa, maxima);
    }
    finite(isa, y) && {
        match (m, n) {
            #[cfg(target_arch = "x86_64")]
            (4, 4) => x86::maxima_of_quads::<1, 1>(y, maxima),
            #[cfg(target_arch = "x86_64")]
            (4, 8) => x86::maxima_of_quads::<1, 2>(y, maxima),
            #[cfg(target_arch = "x86_64")]
            (8, 8) => x86::maxima_of_quads::<2, 2>(y, maxima),
            _ => by_heads(isa, y, m, n, maxima),
        }
        finite(isa, maxima)
    }
}

/// Values of which [`column_maxima`] makes one.
pub(super) const COLUMN: usize = 16;
const COLUMNS: usize = 16;

/// How many maxima [`column_maxima`] writes for `len` values.
pub(super) fn columns(len: usize) -> usize {
    len.div_ceil(COLUMN * COLUMNS) * COLUMNS
}

isa_fn! {
    /// The dense counterpart: the largest positive value, or 0, of each of [`columns`] parts of `y`. It matters that the
    /// parts are small and disjoint, not which they are: element i of a block of 256 is in part i modulo 16.
    pub(super) fn column_maxima(y: &[f32], maxima: &mut [f32]) {
        for (block, maxima) in y.chunks(COLUMN * COLUMNS).zip(maxima.as_chunks_mut::<COLUMNS>().0) {
            let mut max = [0.0_f32; COLUMNS];
            let (rows, rest) = block.as_chunks::<COLUMNS>();
            for row in rows {
                for j in 0..COLUMNS {
                    max[j] = if row[j] > max[j] { row[j] } else { max[j] };
                }
            }
            for (max, &v) in max.iter_mut().zip(rest) {
                *max = if v > *max { v } else { *max };
            }
            *maxima = max;
        }
    }
}

isa_fn! {
    fn by_heads(y: &[f32], m: usize, n: usize, maxima: &mut [f32]) {
        match (m, n) {
            // Fixed extents let the compiler keep a head in registers.
            (2, 2) => fixed::<2, 4>(y, maxima),
            (2, 4) => fixed::<2, 6>(y, maxima),
            (4, 4) => fixed::<4, 8>(y, maxima),
            (4, 8) => fixed::<4, 12>(y, maxima),
            (8, 8) => fixed::<8, 16>(y, maxima),
            _ => {
                for (rows, max) in y.chunks_exact(m + n).zip(maxima.iter_mut()) {
                    let (base, extension) = rows.split_at(m);
                    *max = positive_max(base) * positive_max(extension);
                }
            }
        }
    }
}

/// The largest value, or 0 where none is positive.
#[inline(always)]
pub(super) fn positive_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |max, &v| if v > max { v } else { max })
}

#[inline(always)]
fn fixed<const M: usize, const ROWS: usize>(y: &[f32], maxima: &mut [f32]) {
    let (heads, _) = y.as_chunks::<ROWS>();
    for (rows, max) in heads.iter().zip(maxima.iter_mut()) {
        *max = positive_max(&rows[..M]) * positive_max(&rows[M..]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{fixed, positive_max};
    use std::arch::x86_64::*;

    /// Each head's largest product at m = 4 * P and n = 4 * Q, four heads at a time. Pre-activations must be no NaN.
    pub(super) fn maxima_of_quads<const P: usize, const Q: usize>(y: &[f32], maxima: &mut [f32]) {
        /// The largest of each of four runs of 4 * N values, `stride` apart.
        ///
        /// # Safety
        /// All of them must be readable.
        #[inline(always)]
        unsafe fn four<const N: usize>(from: *const f32, stride: usize) -> __m128 {
            // SAFETY: SSE2 is part of x86-64; the loads are the caller's promise.
            unsafe {
                let run = |r: usize| {
                    let from = from.add(r * stride);
                    (1..N).fold(_mm_loadu_ps(from), |max, i| _mm_max_ps(max, _mm_loadu_ps(from.add(4 * i))))
                };
                // Two rounds of a transposition, halving by max as they go.
                let halve = |a, b| _mm_max_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
                let (ab, cd) = (halve(run(0), run(1)), halve(run(2), run(3)));
                _mm_max_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab))
            }
        }
        let rows = 4 * (P + Q);
        assert_eq!(y.len(), maxima.len() * rows);
        let whole = maxima.len() / 4 * 4;
        for at in (0..whole).step_by(4) {
            // SAFETY: four heads start at head `at`, since at + 4 <= maxima.len(), each with 4 * P base and 4 * Q
            // extension rows; SSE2 is part of x86-64.
            unsafe {
                let from = y.as_ptr().add(at * rows);
                let base = _mm_max_ps(four::<P>(from, rows), _mm_setzero_ps());
                let extension = _mm_max_ps(four::<Q>(from.add(4 * P), rows), _mm_setzero_ps());
                _mm_storeu_ps(maxima.as_mut_ptr().add(at), _mm_mul_ps(base, extension));
            }
        }
        for (rows, max) in y[whole * rows..].chunks_exact(rows).zip(&mut maxima[whole..]) {
            *max = positive_max(&rows[..4 * P]) * positive_max(&rows[4 * P..]);
        }
    }

    /// Each head's largest product at m = n = 4, 16 heads at a time. True if no pre-activation is NaN or infinite (of
    /// either sign); otherwise the maxima may be wrong.
    ///
    /// # Safety
    /// AVX-512 F must be there, and `y` be `8 * maxima.len()` long.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn maxima_4_4(y: &[f32], maxima: &mut [f32]) -> bool {
        let (zero, mut tainted) = (_mm512_setzero_ps(), [_mm512_setzero_ps(); 4]);
        // Result lane 4 * l + s holds the head behind lane l of vector s: undone at the end.
        let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
        let whole = maxima.len() / 16 * 16;
        for at in (0..whole).step_by(16) {
            // SAFETY: 8 * 16 pre-activations start at 8 * at, since at + 16 <= maxima.len().
            let from = unsafe { y.as_ptr().add(8 * at) };
            let mut quarter = |first: usize| {
                // SAFETY: within those 128: first is 0 or 64, and four vectors of 16 follow.
                let heads: [__m512; 4] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(first + 16 * i)) });
                for (sum, head) in tainted.iter_mut().zip(heads) {
                    // 0 * v is 0 but for NaN and the infinities, which stay NaN in the sum.
                    *sum = _mm512_fmadd_ps(head, zero, *sum);
                }
                // Each 128-bit lane of a vector is the base or the extension rows of one head. Two rounds of a
                // transposition, halving by max as they go, leave one maximum for each of four vectors in each lane.
                let halve = |a, b| _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (ab, cd) = (halve(heads[0], heads[1]), halve(heads[2], heads[3]));
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                _mm512_max_ps(low, high)
            };
            let (u, v) = (quarter(0), quarter(64));
            // Lanes 0 and 2 are of base rows, 1 and 3 of extension rows.
            let base = _mm512_max_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(u, v), zero);
            let extension = _mm512_max_ps(_mm512_shuffle_f32x4::<0b11_01_11_01>(u, v), zero);
            let products = _mm512_permutexvar_ps(order, _mm512_mul_ps(base, extension));
            // SAFETY: at + 16 <= maxima.len().
            unsafe { _mm512_storeu_ps(maxima.as_mut_ptr().add(at), products) };
        }
        let (rest, to) = (&y[8 * whole..], &mut maxima[whole..]);
        fixed::<4, 8>(rest, to);
        let sum = _mm512_add_ps(_mm512_add_ps(tainted[0], tainted[1]), _mm512_add_ps(tainted[2], tainted[3]));
        _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(sum, sum) == 0 && rest.iter().all(|v| v.is_finite())
    }
}
