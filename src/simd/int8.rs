//! Products of int8 rows and 16-bit tokens, exact in i32 within a group of 64 columns: the cheap side of screening.
//!
//! Layout: 16 rows make a *block*, 64 columns a *group*. A tile (one block, one group) is 1,024 bytes in the order they
//! are used: for each 4 columns, the 4 bytes of row 0, then those of row 1, ... So one vector of 64 bytes meets the same 4
//! columns of x in every lane, a lane is a row, nothing is ever summed across lanes, and a block is one stream of memory.
//!
//! Weights are stored plus 128, unsigned, for `vpdpbusd` multiplies unsigned by signed. What that adds is the same for all
//! rows, -128 times the sum of x over the group, and is what the sum starts from. Tokens are in 16 bits: as two signed
//! bytes with X = 256 * high + low for `vpdpbusd`, and whole for instruction sets that multiply 16 bits. (`vpmaddubsw`
//! saturates and is not used.) No i32 overflows: 64 * 127 * 32,767 < 2^29.

use super::Isa;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::int8_amx;
#[cfg(target_arch = "x86_64")]
use super::int8_x86;

/// Rows of a block.
pub(crate) const BLOCK_ROWS: usize = 16;
/// Columns of a group: they share a scale.
pub(crate) const GROUP: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE: usize = BLOCK_ROWS * GROUP;
/// The most that an element of a token may be in 16 bits, either side of 0: its high byte must not overflow.
pub(crate) const MOST: i32 = 127 * 256;

/// What one group of one token's elements is multiplied by, and what its rounding cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TokenGroup {
    /// -128 times the sum of the group's integers.
    pub(crate) start: i32,
    /// An integer of 1 means this much.
    pub(crate) scale: f32,
    /// At least the Euclidean norm of the group's elements.
    pub(crate) norm: f32,
    /// At least the norm of what rounding them to integers left.
    pub(crate) error: f32,
}

/// Tokens in 16 bits, group by group: what one tile of weights meets lies together, at distances that are constants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Tokens<'a> {
    /// `[groups, capacity, 2, 64]`: the high bytes of a group, then its low bytes.
    pub(crate) planes: &'a [i8],
    /// `[groups, capacity, 64]`
    pub(crate) whole: &'a [i16],
    /// `[groups, capacity]`
    pub(crate) of: &'a [TokenGroup],
    pub(crate) groups: usize,
    /// Tokens there is room for.
    pub(crate) capacity: usize,
    /// Tokens there are.
    pub(crate) count: usize,
}

/// One block of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Block<'a> {
    /// Tiles, group by group.
    pub(crate) weights: &'a [u8],
    /// A bf16 for each row of each group, `[groups, 16]`.
    pub(crate) scales: &'a [u16],
}

/// What a block gives for one token, row by row, as f32 arithmetic has it. All sums run over groups in order, by fused
/// multiply-adds from 0, so they are the same bits on every instruction set.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Sums {
    /// Sum of (row scale * token scale) * integer product.
    pub(crate) product: [f32; BLOCK_ROWS],
    /// Sum of row scale * token norm.
    pub(crate) norm: [f32; BLOCK_ROWS],
    /// Sum of row scale * token error.
    pub(crate) error: [f32; BLOCK_ROWS],
}

impl Sums {
    pub(crate) const ZERO: Sums =
        Sums { product: [0.0; BLOCK_ROWS], norm: [0.0; BLOCK_ROWS], error: [0.0; BLOCK_ROWS] };
}

/// Which kernel computes the products; each a proof that this CPU has what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int8Kernel {
    /// Left to the compiler.
    Portable(Isa),
    /// 16-bit multiplications, 16 at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2(int8_x86::Avx2Proof),
    /// `vpdpbusd`, 64 at a time.
    #[cfg(target_arch = "x86_64")]
    Vnni(int8_x86::VnniProof),
    /// `tdpbsud` for many tokens at a time, `vpdpbusd` for the rest.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(int8_amx::AmxProof),
}

impl Int8Kernel {
    /// The best within `isa`.
    pub(crate) fn best(isa: Isa) -> Self {
        Self::all(isa).last().unwrap_or(Int8Kernel::Portable(isa))
    }

    /// All within `isa`, slowest first.
    pub(crate) fn all(isa: Isa) -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let others = [
            int8_x86::Avx2Proof::of(isa).map(Int8Kernel::Avx2),
            int8_x86::VnniProof::of(isa).map(Int8Kernel::Vnni),
            #[cfg(target_os = "linux")]
            int8_amx::AmxProof::of(isa).map(Int8Kernel::Amx),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [Option<Self>; 0] = [];
        std::iter::once(Int8Kernel::Portable(isa)).chain(others.into_iter().flatten())
    }

    /// The sums of one block with each token, into `out`.
    ///
    /// # Panics
    /// If a slice does not fit the shape that `tokens` has.
    pub(crate) fn block(self, block: Int8Block<'_>, tokens: Int8Tokens<'_>, out: &mut [Sums]) {
        let (groups, parts) = (tokens.groups, tokens.groups * tokens.capacity);
        assert!(block.weights.len() == groups * TILE && block.scales.len() == groups * BLOCK_ROWS, "another width");
        assert!(tokens.count <= tokens.capacity && tokens.of.len() >= parts, "tokens are missing");
        assert!(tokens.planes.len() >= parts * 2 * GROUP && tokens.whole.len() >= parts * GROUP, "tokens outside");
        assert_eq!(out.len(), tokens.count, "as many results as tokens");
        match self {
            Int8Kernel::Portable(isa) => portable(isa, block, tokens, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Avx2(proof) => proof.block(block, tokens, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Vnni(proof) => proof.block_from(block, tokens, 0, out),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(proof) => proof.block(block, tokens, out),
        }
    }
}

crate::isa_fn! {
    fn portable(block: Int8Block<'_>, tokens: Int8Tokens<'_>, out: &mut [Sums]) {
        for (token, out) in out.iter_mut().enumerate() {
            *out = Sums::ZERO;
            for g in 0..tokens.groups {
                let part = g * tokens.capacity + token;
                let of = tokens.of[part];
                let x = &tokens.whole[part * GROUP..][..GROUP];
                let mut sum = [of.start; BLOCK_ROWS];
                let (steps, _) = block.weights[g * TILE..][..TILE].as_chunks::<{ 4 * BLOCK_ROWS }>();
                for (step, x) in steps.iter().zip(x.as_chunks::<4>().0) {
                    for r in 0..BLOCK_ROWS {
                        for c in 0..4 {
                            sum[r] += i32::from(step[4 * r + c]) * i32::from(x[c]);
                        }
                    }
                }
                let scales = &block.scales[g * BLOCK_ROWS..][..BLOCK_ROWS];
                for r in 0..BLOCK_ROWS {
                    let scale = f32::from_bits(u32::from(scales[r]) << 16);
                    out.product[r] = (sum[r] as f32).mul_add(scale * of.scale, out.product[r]);
                    out.norm[r] = scale.mul_add(of.norm, out.norm[r]);
                    out.error[r] = scale.mul_add(of.error, out.error[r]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes and integers at the ends of their ranges, and numbers of no pattern.
    #[test]
    fn kernels_agree_to_the_bit() {
        let noise = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        for (groups, count) in [(1, 1), (3, 2), (2, 3), (5, 7), (2, 16), (3, 35)] {
            for extreme in [false, true] {
                let whole: Vec<i16> = (0..groups * GROUP * count)
                    .map(|i| match extreme {
                        // One sign a group, so that its sum is as large as any.
                        true => (if (i / GROUP).is_multiple_of(2) { MOST } else { -MOST }) as i16,
                        false => ((noise(i) % (2 * MOST as u64 + 1)) as i32 - MOST) as i16,
                    })
                    .collect();
                let planes: Vec<i8> = whole
                    .chunks(GROUP)
                    .flat_map(|x| {
                        let high = x.iter().map(|&v| ((v - i16::from(v as i8)) >> 8) as i8);
                        high.chain(x.iter().map(|&v| v as i8))
                    })
                    .collect();
                let token_groups: Vec<TokenGroup> = whole
                    .chunks(GROUP)
                    .enumerate()
                    .map(|(i, x)| TokenGroup {
                        start: -128 * x.iter().map(|&v| i32::from(v)).sum::<i32>(),
                        scale: 1.0 / (noise(i + 5) % 1000 + 1) as f32,
                        norm: (noise(i) % 999) as f32,
                        error: 0.37,
                    })
                    .collect();
                let weights: Vec<u8> =
                    (0..groups * TILE).map(|i| if extreme { 255 } else { (noise(i + 9) % 255 + 1) as u8 }).collect();
                let scales: Vec<u16> = (0..groups * BLOCK_ROWS).map(|i| (noise(i + 3) % 0x7F00) as u16).collect();
                let tokens =
                    Int8Tokens { planes: &planes, whole: &whole, of: &token_groups, groups, capacity: count, count };
                let block = Int8Block { weights: &weights, scales: &scales };
                let mut expected = vec![Sums::ZERO; count];
                let portable = Isa::available().next().unwrap();
                Int8Kernel::Portable(portable).block(block, tokens, &mut expected);
                // Row 3 of the first token by the definition, in integers as wide as needed.
                let exact: f64 = (0..groups)
                    .map(|g| {
                        let sum: i64 = (0..GROUP)
                            .map(|c| {
                                let w = i64::from(weights[g * TILE + c / 4 * 64 + 3 * 4 + c % 4]) - 128;
                                w * i64::from(whole[g * count * GROUP + c])
                            })
                            .sum();
                        let scale = f32::from_bits(u32::from(scales[g * BLOCK_ROWS + 3]) << 16);
                        sum as f64 * f64::from(scale) * f64::from(token_groups[g * count].scale)
                    })
                    .sum();
                let found = f64::from(expected[0].product[3]);
                assert!((found - exact).abs() <= exact.abs() * 1e-4 || !found.is_finite(), "{found} {exact}");
                let bits = |sums: &[Sums]| -> Vec<u32> {
                    sums.iter()
                        .flat_map(|s| s.product.iter().chain(&s.norm).chain(&s.error).map(|v| v.to_bits()))
                        .collect()
                };
                crate::simd::Amx::request();
                for isa in Isa::available() {
                    for kernel in Int8Kernel::all(isa) {
                        let mut out = vec![Sums::ZERO; count];
                        kernel.block(block, tokens, &mut out);
                        assert_eq!(bits(&out), bits(&expected), "{kernel:?}, {groups} groups, {count} tokens");
                    }
                }
            }
        }
    }
}
