//! Matrix products in bf16 by Intel's AMX tiles: sixteen times the rate of f32, for finding candidates.
//!
//! Inputs are rounded to bf16, sums are f32 in an order of the hardware's, denormals are flushed. So these products are
//! never reported: what they point at is computed again by `dot/1`. The instructions have no stable intrinsics; they are
//! written as inline assembly.

use crate::error::{Error, Result, Status};
use crate::isa_fn;
use crate::memory::Aligned;
use crate::simd::Isa;

/// Tokens and rows of one step of the kernel: two tiles by two.
pub const AMX_BLOCK: usize = 32;
/// Elements that one tile row holds: 64 bytes of bf16.
const K_BLOCK: usize = 32;

/// Proof that this process may use AMX, and the instruction set of the conversions around it.
#[derive(Debug, Clone, Copy)]
pub struct Amx {
    isa: Isa,
}

/// A weight matrix rounded to bf16 and laid out as AMX takes it, with its bias.
#[derive(Debug)]
pub struct AmxWeights {
    /// For each group of 16 rows, for each 32 columns: 16 lines, line k holding columns 2k and 2k+1 of each row.
    packed: Aligned<u16>,
    /// `[rows rounded up]`, f32.
    bias: Aligned<f32>,
    cols: usize,
}

impl Amx {
    /// AMX, if the CPU has it and this process has been allowed to use it: by [`Amx::request`], or by whatever else in
    /// the process asked before.
    #[must_use]
    pub fn detect(isa: Isa) -> Option<Self> {
        (isa.level() == super::Level::Avx512 && system::has_amx() && system::is_allowed()).then_some(Amx { isa })
    }

    /// Asks the system to let this process use AMX; whether it may now.
    ///
    /// The permission is the process's, for good, and with it alternate signal stacks must be some kilobytes larger, or
    /// `sigaltstack` refuses them. So the library never asks by itself: that is for the program to decide. (Inference
    /// engines that use AMX have asked already.)
    pub fn request() -> bool {
        system::has_amx() && (system::is_allowed() || system::ask())
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod system {
    const ARCH_GET_XCOMP_PERM: libc::c_long = 0x1022;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    /// Tiles, and their products of bf16.
    pub(super) fn has_amx() -> bool {
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        (leaf.edx >> 24) & 1 == 1 && (leaf.edx >> 22) & 1 == 1
    }

    pub(super) fn is_allowed() -> bool {
        let mut features = 0_u64;
        // SAFETY: arch_prctl with this request writes 8 bytes to a valid u64. Kernels that do not know it return an error.
        let done = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &raw mut features) };
        done == 0 && (features >> XFEATURE_XTILEDATA) & 1 == 1
    }

    pub(super) fn ask() -> bool {
        // SAFETY: arch_prctl with this request takes a number and touches no memory of ours. Refused, it returns an error.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod system {
    pub(super) fn has_amx() -> bool {
        false
    }
    pub(super) fn is_allowed() -> bool {
        false
    }
    pub(super) fn ask() -> bool {
        false
    }
}

/// Rounds to nearest even. NaN and infinity stay what they are.
#[inline(always)]
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    // A NaN must not be rounded into infinity or zero.
    if value.is_nan() { ((bits >> 16) | 0x40) as u16 } else { (rounded >> 16) as u16 }
}

isa_fn! {
    /// Sixteen rows in groups of 32 columns, transposed pair by pair.
    fn pack_group(rows: &[f32], stride: usize, count: usize, cols: usize, out: &mut [u16]) {
        for (block, out) in out.chunks_exact_mut(K_BLOCK * 16).enumerate() {
            for r in 0..16 {
                let mut pairs = [0_u16; K_BLOCK];
                if r < count {
                    let from = &rows[r * stride + block * K_BLOCK..r * stride + cols.min((block + 1) * K_BLOCK)];
                    for (p, v) in pairs.iter_mut().zip(from) {
                        *p = round(*v);
                    }
                }
                for k in 0..16 {
                    out[k * 32 + r * 2] = pairs[2 * k];
                    out[k * 32 + r * 2 + 1] = pairs[2 * k + 1];
                }
            }
        }
    }
}

isa_fn! {
    fn round_row(from: &[f32], to: &mut [u16]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t = round(*f);
        }
    }
}

impl AmxWeights {
    /// Room for a matrix of `rows` x `cols`.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`].
    pub fn new(rows: usize, cols: usize) -> Result<Self> {
        let (padded_rows, padded_cols) = (rows.next_multiple_of(AMX_BLOCK), cols.next_multiple_of(K_BLOCK));
        if padded_rows.checked_mul(padded_cols).is_none() {
            return Err(Error::new(Status::OutOfMemory, format!("a matrix of {rows} x {cols} overflows")));
        }
        Ok(AmxWeights {
            packed: Aligned::zeroed(padded_rows * padded_cols, "bf16 weights")?,
            bias: Aligned::zeroed(padded_rows, "biases")?,
            cols,
        })
    }

    /// Elements from one token's products to the next: rows rounded up to whole blocks.
    #[must_use]
    pub fn out_stride(&self) -> usize {
        self.bias.len()
    }

    /// Elements of one token in bf16: columns rounded up.
    #[must_use]
    pub fn x_stride(&self) -> usize {
        self.cols.next_multiple_of(K_BLOCK)
    }

    /// The parts that [`Amx::pack`] fills, one for each block of 32 rows, to be divided among threads; and the biases.
    pub fn blocks_mut(&mut self) -> (&mut [u16], &mut [f32], usize) {
        let block = AMX_BLOCK * self.x_stride();
        (&mut self.packed, &mut self.bias, block)
    }
}

impl Amx {
    /// Packs up to 32 rows of f32, `stride` elements apart, into one block of an [`AmxWeights`].
    ///
    /// # Panics
    /// If `rows` is shorter than its shape or `out` is not a whole block.
    pub fn pack(self, rows: &[f32], stride: usize, count: usize, cols: usize, out: &mut [u16]) {
        let half = out.len() / 2;
        assert_eq!(out.len(), AMX_BLOCK * cols.next_multiple_of(K_BLOCK), "not a whole block");
        for (g, out) in out.chunks_exact_mut(half).enumerate() {
            let rows = &rows[(g * 16 * stride).min(rows.len())..];
            pack_group(self.isa, rows, stride, count.saturating_sub(g * 16).min(16), cols, out);
        }
    }

    /// Rounds tokens to bf16, rows `stride` apart in `x`, for [`Amx::products`]; tokens are padded to whole blocks by
    /// whatever `out` held.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn round_tokens(self, x: &[f32], stride: usize, tokens: usize, weights: &AmxWeights, out: &mut [u16]) {
        for t in 0..tokens {
            let to = &mut out[t * weights.x_stride()..][..weights.cols];
            round_row(self.isa, &x[t * stride..][..weights.cols], to);
        }
    }

    /// `out[t * out_stride + r]` ~ `weight[r] . x[t] + bias[r]` for all rows and the tokens of `x`, in bf16 with f32 sums.
    ///
    /// `x` is `[tokens, x_stride]` in bf16, 64-byte aligned, a multiple of 32 tokens; `out` is `[tokens, out_stride]`.
    ///
    /// # Panics
    /// If a slice is too short for its shape.
    pub fn products(self, weights: &AmxWeights, x: &[u16], tokens: usize, out: &mut [f32]) {
        let (x_stride, out_stride) = (weights.x_stride(), weights.out_stride());
        assert!(tokens.is_multiple_of(AMX_BLOCK), "tokens are not whole blocks");
        assert!(x.len() >= tokens * x_stride && out.len() >= tokens * out_stride, "tokens outside their slices");
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: an Amx is proof that the tile registers are there and granted. Each block reads 32 tokens of x and 32
        // rows of the packed weights and biases, and writes 32 x 32 products, all inside the slices as just asserted.
        unsafe {
            configure();
            let k_blocks = x_stride / K_BLOCK;
            for row in (0..out_stride).step_by(AMX_BLOCK) {
                let w = weights.packed.as_ptr().add(row * x_stride);
                let bias = weights.bias.as_ptr().add(row);
                for token in (0..tokens).step_by(AMX_BLOCK) {
                    let x = x.as_ptr().add(token * x_stride);
                    block(
                        x,
                        x_stride * 2,
                        w,
                        k_blocks,
                        bias,
                        out.as_mut_ptr().add(token * out_stride + row),
                        out_stride * 4,
                    );
                }
            }
            release();
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        unreachable!("an Amx exists only where AMX does");
    }
}

/// Sets all eight tiles to 16 rows of 64 bytes on this thread.
///
/// # Safety
/// The tile registers are there and granted.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) unsafe fn configure() {
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes_per_row: [u16; 16],
        rows: [u8; 16],
    }
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    config.bytes_per_row[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: reads 64 bytes of a valid configuration; the compiler itself never uses tile registers.
    unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
}

/// Gives the tile registers back, so that switching away from this thread need not save them.
///
/// # Safety
/// As for [`configure`].
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
}

/// 32 tokens by 32 rows.
///
/// # Safety
/// [`configure`] was called on this thread; 32 rows of `x`, `k_blocks * 2 * 1024` bytes of packed weights, and 32 biases
/// are readable; 32 rows of 32 products of `out` are writable.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe fn block(
    x: *const u16,
    x_bytes: usize,
    w: *const u16,
    k_blocks: usize,
    bias: *const f32,
    out: *mut f32,
    out_bytes: usize,
) {
    // SAFETY: the loop reads 64 bytes of each of 32 rows of x and 1,024 bytes of each of two groups of rows a k-block;
    // the stores write 64 bytes to each of two halves of 32 rows of out. All are the caller's promise.
    unsafe {
        std::arch::asm!(
            // A stride of zero: every row of an accumulator starts as the biases.
            "tileloadd tmm0, [{bias} + {zero}]",
            "tileloadd tmm1, [{bias} + {zero} + 64]",
            "tileloadd tmm2, [{bias} + {zero}]",
            "tileloadd tmm3, [{bias} + {zero} + 64]",
            "2:",
            "tileloadd tmm4, [{xa} + {xs}]",
            "tileloadd tmm6, [{wa} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{wb} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{xb} + {xs}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {xa}, 64",
            "add {xb}, 64",
            "add {wa}, 1024",
            "add {wb}, 1024",
            "dec {k}",
            "jnz 2b",
            "tilestored [{oa} + {os}], tmm0",
            "tilestored [{oa} + {os} + 64], tmm1",
            "tilestored [{ob} + {os}], tmm2",
            "tilestored [{ob} + {os} + 64], tmm3",
            bias = in(reg) bias,
            zero = in(reg) 0_usize,
            line = in(reg) 64_usize,
            xa = inout(reg) x => _,
            xb = inout(reg) x.byte_add(16 * x_bytes) => _,
            xs = in(reg) x_bytes,
            wa = inout(reg) w => _,
            wb = inout(reg) w.byte_add(k_blocks * 1024) => _,
            k = inout(reg) k_blocks => _,
            oa = in(reg) out,
            ob = in(reg) out.byte_add(16 * out_bytes),
            os = in(reg) out_bytes,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_rounded_inputs() {
        Amx::request();
        let Some(amx) = Isa::available().last().and_then(Amx::detect) else {
            eprintln!("no AMX here; nothing to check");
            return;
        };
        for (rows, cols, tokens) in [(32, 32, 32), (70, 100, 64), (96, 576, 32)] {
            let value = |i: usize| ((i * 2_654_435_761) % 2001) as f32 / 1000.0 - 1.0;
            let w: Vec<f32> = (0..rows * cols).map(value).collect();
            let x: Vec<f32> = (0..tokens * cols).map(|i| value(i + 77)).collect();
            let mut weights = AmxWeights::new(rows, cols).unwrap();
            let (packed, bias, block) = weights.blocks_mut();
            for (b, out) in packed.chunks_exact_mut(block).enumerate() {
                let first = b * AMX_BLOCK;
                amx.pack(&w[first * cols..], cols, (rows - first).min(AMX_BLOCK), cols, out);
            }
            for (r, b) in bias[..rows].iter_mut().enumerate() {
                *b = value(r * 31);
            }
            let bias = bias.to_vec();
            let mut rounded = Aligned::<u16>::zeroed(tokens * weights.x_stride(), "x").unwrap();
            amx.round_tokens(&x, cols, tokens, &weights, &mut rounded);
            let mut out = vec![f32::NAN; tokens * weights.out_stride()];
            amx.products(&weights, &rounded, tokens, &mut out);
            let bf16 = |v: f32| f64::from(half::bf16::from_f32(v).to_f32());
            for t in 0..tokens {
                for r in 0..rows {
                    let exact: f64 = (0..cols).map(|c| bf16(w[r * cols + c]) * bf16(x[t * cols + c])).sum();
                    let found = f64::from(out[t * weights.out_stride() + r]);
                    assert!((found - exact - f64::from(bias[r])).abs() < 1e-3, "{t} {r}: {found} {exact}");
                }
            }
        }
    }

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (round(value), half::bf16::from_f32(value).to_bits());
            assert!(ours == theirs || value.is_nan(), "{value}");
        }
    }
}
