//! The kernel of [`super::int8`] for AMX: 16 tokens by 16 rows by 64 columns in one instruction, four times the rate of
//! `vpdpbusd`. The layout of a tile of weights is the one that the instruction takes.

use super::Isa;
use super::amx::{Amx, configure, release};
use super::int8::{BLOCK_ROWS, GROUP, Int8Block, Int8Tokens, Sums, TILE};
use super::int8_x86::{VnniProof, widen};
use std::arch::x86_64::*;

/// Tokens of one step.
pub(super) const TOKENS: usize = 16;
/// With fewer tokens than this, a step is slower than `vpdpbusd`.
const LEAST: usize = 12;

/// Proof of AMX for int8, granted to this process, and of AVX-512 with VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AmxProof(VnniProof);

impl AmxProof {
    pub(super) fn of(isa: Isa) -> Option<Self> {
        let vnni = VnniProof::of(isa)?;
        let int8 = __cpuid_count(7, 0).edx >> 25 & 1 == 1;
        (int8 && Amx::detect(isa).is_some()).then_some(AmxProof(vnni))
    }

    /// The slices were checked by the caller, [`super::int8::Int8Kernel::block`].
    pub(super) fn block(self, block: Int8Block<'_>, tokens: Int8Tokens<'_>, out: &mut [Sums]) {
        let mut token = 0;
        if tokens.count >= LEAST {
            // SAFETY: a proof that the tile registers are there and granted; whole steps of tokens are inside the
            // capacity, whose slices are as long as it says.
            unsafe {
                configure();
                while tokens.count - token >= LEAST && token + TOKENS <= tokens.capacity {
                    let end = tokens.count.min(token + TOKENS);
                    step(block, tokens, token, &mut out[token..end]);
                    token = end;
                }
                release();
            }
        }
        self.0.block_from(block, tokens, token, out);
    }
}

/// Tokens `token..token + 16`, of which `out` has the results of the first.
///
/// # Safety
/// The tile registers are configured on this thread, 8 of 16 rows of 64 bytes; AVX-512 with VNNI is there; 16 tokens are
/// inside the capacity, and the block has their groups; `out` is for at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn step(block: Int8Block<'_>, tokens: Int8Tokens<'_>, token: usize, out: &mut [Sums]) {
    #[repr(C, align(64))]
    struct Products([[i32; BLOCK_ROWS]; 2 * TOKENS]);
    // Two in turn, so that one is read while the next is computed.
    let mut products = [const { Products([[0; BLOCK_ROWS]; 2 * TOKENS]) }; 2];
    // SAFETY: tiles of weights and parts of tokens are inside their slices by the caller's promise; the stores fill the
    // 2,048 bytes of one Products; prefetching faults nowhere.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); TOKENS];
        let multiply = |g: usize, to: *mut Products| {
            let tile = block.weights.as_ptr().add(g * TILE);
            let part = g * tokens.capacity + token;
            let x = tokens.planes.as_ptr().add(part * 2 * GROUP);
            for line in 0..TILE / 64 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(line * 64 + TILE).cast());
            }
            std::arch::asm!(
                "tileloadd tmm2, [{w} + {line}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm3, [{x} + {xs}]",
                "tdpbsud tmm0, tmm3, tmm2",
                "tileloadd tmm4, [{x} + {xs} + 64]",
                "tdpbsud tmm1, tmm4, tmm2",
                "tilestored [{to} + {line}], tmm0",
                "tilestored [{to} + {line} + 1024], tmm1",
                w = in(reg) tile,
                x = in(reg) x,
                to = in(reg) to,
                line = in(reg) 64_usize,
                xs = in(reg) 2 * GROUP,
                options(nostack),
            );
        };
        multiply(0, &raw mut products[0]);
        for g in 0..tokens.groups {
            // Tiles are not forwarded from the store buffer: the next ones are on their way before these are read.
            if g + 1 < tokens.groups {
                multiply(g + 1, &raw mut products[(g + 1) % 2]);
            }
            let from = &raw const products[g % 2];
            let scale = widen(block.scales.as_ptr().add(g * BLOCK_ROWS));
            let of = tokens.of.as_ptr().add(g * tokens.capacity + token);
            for t in 0..TOKENS {
                let line = |at: usize| _mm512_load_si512((*from).0[at].as_ptr().cast());
                let start = _mm512_set1_epi32((*of.add(t)).start);
                let high = _mm512_slli_epi32::<8>(line(t));
                let whole = _mm512_add_epi32(_mm512_add_epi32(start, line(TOKENS + t)), high);
                let by = _mm512_mul_ps(scale, _mm512_set1_ps((*of.add(t)).scale));
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), by, sums[t]);
            }
        }
        // By constant indices, so that the sums above are registers.
        let mut all = [[0.0_f32; BLOCK_ROWS]; TOKENS];
        for t in 0..TOKENS {
            _mm512_storeu_ps(all[t].as_mut_ptr(), sums[t]);
        }
        for (out, product) in out.iter_mut().zip(all) {
            out.product = product;
        }
        // In parts that fit the registers.
        const PART: usize = 8;
        for first in (0..out.len()).step_by(PART) {
            let (mut norm, mut error) = ([_mm512_setzero_ps(); PART], [_mm512_setzero_ps(); PART]);
            for g in 0..tokens.groups {
                let scale = widen(block.scales.as_ptr().add(g * BLOCK_ROWS));
                let of = tokens.of.as_ptr().add(g * tokens.capacity + token + first);
                for t in 0..PART {
                    let of = &*of.add(t);
                    norm[t] = _mm512_fmadd_ps(scale, _mm512_set1_ps(of.norm), norm[t]);
                    error[t] = _mm512_fmadd_ps(scale, _mm512_set1_ps(of.error), error[t]);
                }
            }
            for (t, out) in out[first..].iter_mut().take(PART).enumerate() {
                _mm512_storeu_ps(out.norm.as_mut_ptr(), norm[t]);
                _mm512_storeu_ps(out.error.as_mut_ptr(), error[t]);
            }
        }
    }
}
