//! The kernel of [`super::int8`] for AMX: 16 rows by 16 tokens by 64 columns in one instruction, four times the rate of
//! `vpdpbusd`.

use super::Isa;
use super::amx::{Amx, configure, release};
use super::int8::{BLOCK_ROWS, GROUP, Int8Tokens, Line, Planes, TOKEN_TILE};
use super::int8_x86::VnniProof;
use std::arch::x86_64::*;

/// Proof of AMX for int8, granted to this process, and of AVX-512 with VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AmxProof(VnniProof);

/// Sums of two tiles of rows with one of tokens, `[2, 2, 16, 16]`: for each tile of rows, of high by high bytes, then of
/// what counts 256 times less.
#[repr(C, align(64))]
struct Products([[i32; TOKEN_TILE]; 4 * BLOCK_ROWS]);

/// The rows that come next, asked for line by line while tiles are multiplied: rows of many streams at once are more than
/// the hardware foresees.
struct Ahead {
    /// In the high plane; what is asked for of the low one lies as far from its start.
    next: *const u8,
    /// Cache lines of each plane a step.
    lines: usize,
}

impl AmxProof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        let vnni = VnniProof::of(isa)?;
        let int8 = __cpuid_count(7, 0).edx >> 25 & 1 == 1;
        (int8 && Amx::detect(isa).is_some()).then_some(AmxProof(vnni))
    }

    pub(super) fn vnni(self) -> VnniProof {
        self.0
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::tiled`].
    pub(super) fn tiled(self, fine: bool, planes: Planes<'_>, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        // SAFETY: a proof that the tile registers are there and granted, and of AVX-512; 32 rows of both planes and whole
        // tiles of tokens are inside their slices, and so are the sums of all tokens of a tile that has one.
        unsafe {
            configure();
            let bytes = 2 * BLOCK_ROWS * planes.stride;
            let steps = tokens.count.div_ceil(TOKEN_TILE) * tokens.groups;
            let mut ahead = Ahead { next: planes.high.as_ptr().wrapping_add(bytes), lines: bytes.div_ceil(64 * steps) };
            for first in (0..tokens.count).step_by(TOKEN_TILE) {
                let mut products = Products([[0; TOKEN_TILE]; 4 * BLOCK_ROWS]);
                let tiles = tokens.tiles.as_ptr().add(first * 2 * tokens.groups * GROUP);
                if fine {
                    multiply_fine(planes, tiles, tokens.groups, &mut ahead, &mut products);
                } else {
                    multiply_coarse(planes, tiles, tokens.groups, &mut ahead, &mut products);
                }
                let (upper, lower) = out.split_at_mut(tokens.count);
                let end = tokens.count.min(first + TOKEN_TILE);
                let sums = tokens.sums.as_ptr().add(first);
                let (a, b) = products.0.as_chunks::<{ 2 * BLOCK_ROWS }>().0.split_at(1);
                combine(fine, &a[0], sums, &mut upper[first..end]);
                combine(fine, &b[0], sums, &mut lower[first..end]);
            }
            release();
        }
    }
}

/// The loop over columns; `$steps` multiply, given a row tile of each plane at `wa` and `wb`, and others 16 rows on;
/// `$prefetch` asks for a line.
macro_rules! multiply {
    ($planes:expr, $tiles:expr, $groups:expr, $ahead:expr, $to:expr, $prefetch:literal, $steps:literal) => {{
        let half = BLOCK_ROWS * $planes.stride;
        std::arch::asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x} + {line}]",
            "tileloadd tmm5, [{x} + {line} + 1024]",
            "mov {two}, {lines}",
            "3:",
            $prefetch,
            "add {next}, 64",
            "dec {two}",
            "jnz 3b",
            $steps,
            "add {wa}, 64",
            "add {wb}, 64",
            "add {x}, 2048",
            "dec {k}",
            "jnz 2b",
            "tilestored [{to} + {line}], tmm0",
            "tilestored [{to} + {line} + 1024], tmm1",
            "tilestored [{to} + {line} + 2048], tmm2",
            "tilestored [{to} + {line} + 3072], tmm3",
            wa = inout(reg) $planes.high.as_ptr() => _,
            wb = inout(reg) $planes.low.as_ptr() => _,
            half = in(reg) half,
            x = inout(reg) $tiles => _,
            k = inout(reg) $groups => _,
            ws = in(reg) $planes.stride,
            line = in(reg) 64_usize,
            to = in(reg) &raw mut *$to,
            two = out(reg) _,
            next = inout(reg) $ahead.next,
            lines = in(reg) $ahead.lines,
            apart = in(reg) ($planes.low.as_ptr() as usize).wrapping_sub($planes.high.as_ptr() as usize),
            options(nostack),
        );
    }};
}

/// # Safety
/// The tile registers are configured on this thread, 8 of 16 rows of 64 bytes; 32 rows of both planes and the groups of one
/// tile of tokens are readable.
unsafe fn multiply_fine(planes: Planes<'_>, tiles: *const i8, groups: usize, ahead: &mut Ahead, to: &mut Products) {
    // SAFETY: the loop reads 64 bytes of each of 32 rows of both planes and 2,048 bytes of tokens for each group, and
    // stores 4,096 bytes: the caller's promise, and the size of Products. Prefetching faults nowhere.
    unsafe {
        multiply!(
            planes,
            tiles,
            groups,
            ahead,
            to,
            "prefetcht1 [{next}]
             prefetcht1 [{next} + {apart}]",
            "tileloadd tmm6, [{wa} + {ws}]
             tdpbusd tmm0, tmm6, tmm4
             lea {two}, [{wa} + {half}]
             tdpbusd tmm1, tmm6, tmm5
             tileloadd tmm7, [{wb} + {ws}]
             tdpbusd tmm1, tmm7, tmm4
             tileloadd tmm6, [{two} + {ws}]
             tdpbusd tmm2, tmm6, tmm4
             lea {two}, [{wb} + {half}]
             tdpbusd tmm3, tmm6, tmm5
             tileloadd tmm7, [{two} + {ws}]
             tdpbusd tmm3, tmm7, tmm4"
        );
    }
}

/// # Safety
/// As for [`multiply_fine`]; of the low plane nothing is read.
unsafe fn multiply_coarse(planes: Planes<'_>, tiles: *const i8, groups: usize, ahead: &mut Ahead, to: &mut Products) {
    // SAFETY: as in `multiply_fine`.
    unsafe {
        multiply!(
            planes,
            tiles,
            groups,
            ahead,
            to,
            "prefetcht1 [{next}] # nothing of the other plane, {apart} away",
            "tileloadd tmm6, [{wa} + {ws}]
             tdpbusd tmm0, tmm6, tmm4
             lea {two}, [{wa} + {half}]
             tdpbusd tmm1, tmm6, tmm5
             tileloadd tmm7, [{two} + {ws}]
             tdpbusd tmm2, tmm7, tmm4
             tdpbusd tmm3, tmm7, tmm5"
        );
    }
}

/// Takes off what the unsigned weights added, puts the two sums of each product together, and turns rows of tokens into
/// lines of rows. Coarse products are exact until their one rounding; fine ones are rounded three times.
///
/// # Safety
/// AVX-512 is there; 16 tokens have sums at `sums`; `out` is for at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn combine(fine: bool, products: &[[i32; TOKEN_TILE]; 2 * BLOCK_ROWS], sums: *const [i32; 2], out: &mut [Line]) {
    // SAFETY: loads are of whole lines of `products` and of 16 sums.
    unsafe {
        // [high, low] pairs of 16 tokens, taken apart.
        let (a, b) = (_mm512_loadu_si512(sums.cast()), _mm512_loadu_si512(sums.add(8).cast()));
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        let highs = _mm512_slli_epi32::<7>(_mm512_permutex2var_epi32(a, even, b));
        let lows = _mm512_slli_epi32::<7>(_mm512_permutex2var_epi32(a, odd, b));
        let small = if fine { _mm512_add_epi32(highs, lows) } else { lows };
        let mut rows = [_mm512_setzero_ps(); BLOCK_ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            let great = _mm512_sub_epi32(_mm512_loadu_si512(products[r].as_ptr().cast()), highs);
            let less = _mm512_sub_epi32(_mm512_loadu_si512(products[BLOCK_ROWS + r].as_ptr().cast()), small);
            *row = if fine {
                // In units of 256 Q's until here.
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(great), _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(less));
                _mm512_mul_ps(sum, _mm512_set1_ps(256.0))
            } else {
                let by = _mm512_set1_pd(256.0);
                let half = |great: __m256i, less: __m256i| {
                    _mm512_cvtpd_ps(_mm512_fmadd_pd(_mm512_cvtepi32_pd(great), by, _mm512_cvtepi32_pd(less)))
                };
                let first = half(_mm512_castsi512_si256(great), _mm512_castsi512_si256(less));
                let second = half(_mm512_extracti64x4_epi64::<1>(great), _mm512_extracti64x4_epi64::<1>(less));
                _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
            };
        }
        for (out, line) in out.iter_mut().zip(transposed(rows)) {
            _mm512_storeu_ps(out.as_mut_ptr(), line);
        }
    }
}

/// Row i of the result holds element i of each row.
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512; 16]) -> [__m512; 16] {
    let mut pairs = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Element 4 q + e of rows 4 i .. 4 i + 4, in quarter q.
    let mut fours = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (_mm512_castps_pd(pairs[4 * i + half]), _mm512_castps_pd(pairs[4 * i + 2 + half]));
            fours[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    let mut out = [_mm512_setzero_ps(); 16];
    for e in 0..4 {
        let [a, b, c, d] = [fours[e], fours[4 + e], fours[8 + e], fours[12 + e]];
        let (ab_even, ab_odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xDD>(c, d));
        out[e] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
        out[8 + e] = _mm512_shuffle_f32x4::<0xDD>(ab_even, cd_even);
        out[4 + e] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
        out[12 + e] = _mm512_shuffle_f32x4::<0xDD>(ab_odd, cd_odd);
    }
    out
}
