//! One generic body for each kernel, thin wrappers for each instruction set, picked once at run time.
//!
//! `dot/1` (the canonical pre-activation) is defined on 16 accumulators, so the unit of every kernel is a vector of 16
//! f32 ([`F32x16`]): one AVX-512 register, two AVX registers, or an array. All give the same bits.

mod amx;
pub(crate) mod int8;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod int8_amx;
#[cfg(target_arch = "x86_64")]
mod int8_x86;
mod picked;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use amx::{AMX_BLOCK, Amx, AmxWeights};
pub(crate) use picked::picked_pre_activations;

use crate::error::{Error, Result, Status};
use crate::sae::{ElementsRef, MatrixRef};
use std::ops::Range;
use std::sync::OnceLock;

/// An instruction set that this CPU has: a value of this type is the proof, so kernels need not ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

/// The instruction sets this build has kernels for. Not a proof that the CPU has one; see [`Isa`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No assumption beyond the target's baseline. Slow where that lacks a fused multiply-add, and right everywhere.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl Isa {
    /// The name used in `KRONSAE_ISA` and in reports: `portable`, `avx2` or `avx512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// For [`isa_fn`](crate::isa_fn).
    #[doc(hidden)]
    #[must_use]
    pub fn level(self) -> Level {
        self.0
    }

    /// All instruction sets that this CPU has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Level::ALL.into_iter().filter(|level| level.is_available()).map(Isa)
    }

    /// The best this CPU has, or the one the environment variable `KRONSAE_ISA` names. Looked at once a process.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if the variable names something unknown or something this CPU lacks.
    pub fn detect() -> Result<Isa> {
        static CHOICE: OnceLock<Result<Isa>> = OnceLock::new();
        CHOICE.get_or_init(|| Self::choose(std::env::var("KRONSAE_ISA").ok().as_deref())).clone()
    }

    fn choose(forced: Option<&str>) -> Result<Isa> {
        let best = Isa::available().last().unwrap_or(Isa(Level::Portable));
        let Some(name) = forced.filter(|name| !name.is_empty()) else { return Ok(best) };
        Isa::available().find(|isa| isa.name() == name).ok_or_else(|| {
            let have: Vec<_> = Isa::available().map(Isa::name).collect();
            let known = Level::ALL.iter().any(|level| level.name() == name);
            let what = if known { "not available on this CPU" } else { "not an instruction set this build knows" };
            Error::new(Status::Unsupported, format!("KRONSAE_ISA={name}: {what}; here: {}", have.join(", ")))
        })
    }
}

/// 16 lanes of f32. Lane j of a product kernel is accumulator j of `dot/1`.
///
/// # Safety
/// All methods may only be called where the implementing instruction set is available.
trait F32x16: Copy {
    unsafe fn zero() -> Self;
    /// 16 f32 from any address.
    unsafe fn load(from: *const f32) -> Self;
    /// 16 bf16 from any address, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes the 16 lanes to any address.
    unsafe fn store(self, to: *mut f32);
    /// The same value in all lanes.
    unsafe fn splat(value: f32) -> Self;
    /// `self * by + to`, rounded once, in each lane.
    unsafe fn fma(self, by: Self, to: Self) -> Self;
    /// As `fma` in the first `lanes` lanes; the others keep `to`.
    unsafe fn fma_first(self, by: Self, to: Self, lanes: usize) -> Self;
    /// The sums of four vectors by the tree of `dot/1`: j += j+8, j+4, j+2, j+1.
    unsafe fn sum4(of: [Self; 4]) -> [f32; 4];
}

/// An element of a weight matrix in memory.
trait Weight: Copy {
    /// 16 of them as f32 lanes.
    unsafe fn load<V: F32x16>(from: *const Self) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<V: F32x16>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<V: F32x16>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

/// A tile of pre-activations: rows `rows` of the matrix, all tokens of `x`.
#[derive(Clone, Copy)]
struct Tile<'a, W> {
    weight: &'a [W],
    stride: usize,
    cols: usize,
    bias: &'a [f32],
    /// Tokens, `[tokens, x_stride]`, rows padded to a multiple of 16.
    x: &'a [f32],
    x_stride: usize,
    tokens: usize,
}

/// `R` x `T` products by `dot/1`, written to `out[token * out_stride + row]`.
///
/// # Safety
/// `V`'s instruction set is available; rows `row..row+R` and tokens `token..token+T` exist, padded to whole vectors; the
/// `out` of each of those tokens and rows may be written.
#[inline(always)]
unsafe fn micro<V: F32x16, W: Weight, const R: usize, const T: usize>(
    tile: &Tile<'_, W>,
    row: usize,
    token: usize,
    out: *mut f32,
    out_stride: usize,
) {
    const { assert!(R == 4 || R == 1 || R == 2) }
    // SAFETY: every load stays inside the padded rows that the caller vouches for; every store is to an element that
    // the caller vouches for.
    unsafe {
        let w = tile.weight.as_ptr().add(row * tile.stride);
        let x = tile.x.as_ptr().add(token * tile.x_stride);
        let mut acc = [[V::zero(); 4]; T];
        let whole = tile.cols / 16 * 16;
        let mut at = 0;
        while at < whole {
            let mut weights = [V::zero(); R];
            for r in 0..R {
                weights[r] = W::load::<V>(w.add(r * tile.stride + at));
            }
            for t in 0..T {
                let x = V::load(x.add(t * tile.x_stride + at));
                for r in 0..R {
                    acc[t][r] = weights[r].fma(x, acc[t][r]);
                }
            }
            at += 16;
        }
        let rest = tile.cols - whole;
        if rest > 0 {
            for t in 0..T {
                let x = V::load(x.add(t * tile.x_stride + at));
                for r in 0..R {
                    let weight = W::load::<V>(w.add(r * tile.stride + at));
                    acc[t][r] = weight.fma_first(x, acc[t][r], rest);
                }
            }
        }
        for t in 0..T {
            let sums = V::sum4(acc[t]);
            for r in 0..R {
                *out.add((token + t) * out_stride + row + r) = sums[r] + tile.bias[row + r];
            }
        }
    }
}

/// All tokens against rows `rows`, in register tiles of `R` x `T`, `T` at most 6.
///
/// # Safety
/// As for [`micro`], for all rows of `rows` and all tokens.
#[inline(always)]
unsafe fn rows_by_tokens<V: F32x16, W: Weight, const R: usize, const T: usize>(
    tile: &Tile<'_, W>,
    rows: Range<usize>,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller's promise, passed on for parts of the same rows and tokens.
    unsafe {
        let mut token = 0;
        while token < tile.tokens {
            let left = tile.tokens - token;
            // A group of tokens stays in the first-level cache while all the rows of the block pass by.
            macro_rules! group {
                ($t:literal) => {{
                    let mut row = rows.start;
                    while row + R <= rows.end {
                        micro::<V, W, R, $t>(tile, row, token, out, out_stride);
                        row += R;
                    }
                    while row < rows.end {
                        micro::<V, W, 1, $t>(tile, row, token, out, out_stride);
                        row += 1;
                    }
                    token += $t;
                }};
            }
            match left.min(T) {
                6 => group!(6),
                5 => group!(5),
                4 => group!(4),
                3 => group!(3),
                2 => group!(2),
                _ => group!(1),
            }
        }
    }
}

/// Pre-activations by `dot/1`: for each token t and each row r of `rows`, writes `weight[r] . x[t] + bias[r]` to
/// `out[t * out_stride + r]`.
///
/// `x` holds `tokens` rows, `x_stride` elements apart, a multiple of 16, the padding readable.
///
/// # Safety
/// `out` must be valid for writes at each of those elements, and nobody else may access them meanwhile.
///
/// # Panics
/// If a slice is too short for its shape.
pub(crate) unsafe fn pre_activations(
    isa: Isa,
    weight: MatrixRef<'_>,
    bias: &[f32],
    x: &[f32],
    x_stride: usize,
    tokens: usize,
    rows: Range<usize>,
    out: *mut f32,
    out_stride: usize,
) {
    let needed = weight.cols.next_multiple_of(16);
    assert!(x_stride >= needed && x.len() >= tokens * x_stride, "x is too short for its tokens");
    assert!(rows.end <= weight.rows && rows.end <= bias.len() && rows.end <= out_stride, "rows outside the matrix");
    let held = match weight.data {
        ElementsRef::F32(data) => data.len(),
        ElementsRef::Bf16(data) => data.len(),
    };
    assert!(weight.stride >= needed && held >= rows.end * weight.stride, "weight rows are not padded");
    macro_rules! run {
        ($data:expr, $module:ident :: $f:ident) => {{
            let cols = weight.cols;
            let tile = Tile { weight: $data, stride: weight.stride, cols, bias, x, x_stride, tokens };
            // SAFETY: an Isa is proof of its instruction set; the extents were asserted; `out` is the caller's promise.
            unsafe { $module::$f(&tile, rows, out, out_stride) }
        }};
    }
    match (isa.0, weight.data) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, ElementsRef::F32(data)) => run!(data, x86::avx512_f32),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, ElementsRef::Bf16(data)) => run!(data, x86::avx512_bf16),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, ElementsRef::F32(data)) => run!(data, x86::avx2_f32),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, ElementsRef::Bf16(data)) => run!(data, x86::avx2_bf16),
        (_, ElementsRef::F32(data)) => run!(data, portable::f32),
        (_, ElementsRef::Bf16(data)) => run!(data, portable::bf16),
    }
}

/// One term of a sparse combination of rows: which row, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Index of the row.
    pub row: u32,
    /// Its coefficient.
    pub coefficient: f32,
}

/// `out += sum of coefficient * rows[row]`, term by term in order, one rounding each.
///
/// # Safety
/// `V`'s instruction set is available; every term's row lies inside `rows`; `out` is no longer than the stride and both
/// are multiples of 16.
#[inline(always)]
unsafe fn gathered_sum_body<V: F32x16>(rows: &[f32], stride: usize, terms: &[Term], out: &mut [f32]) {
    // SAFETY: columns at..at + 16 * N are inside `out` and so inside each row; the caller vouches for the rows.
    unsafe {
        let mut at = 0;
        macro_rules! block {
            ($n:literal) => {
                while at + 16 * $n <= out.len() {
                    let to = out.as_mut_ptr().add(at);
                    let mut acc = [V::zero(); $n];
                    for v in 0..$n {
                        acc[v] = V::load(to.add(16 * v));
                    }
                    for term in terms {
                        let row = rows.as_ptr().add(term.row as usize * stride + at);
                        let coefficient = V::splat(term.coefficient);
                        for v in 0..$n {
                            acc[v] = V::load(row.add(16 * v)).fma(coefficient, acc[v]);
                        }
                    }
                    for v in 0..$n {
                        acc[v].store(to.add(16 * v));
                    }
                    at += 16 * $n;
                }
            };
        }
        // Blocks of a width that stays in registers on every instruction set.
        block!(6);
        block!(1);
    }
}

/// `out[i] = rows[picks[i]] . x`, each by the accumulators and the tree of `dot/1`.
///
/// # Safety
/// `V`'s instruction set is available; every pick's row lies inside `rows`; `x` is no longer than the stride and both are
/// multiples of 16; `out` is as long as `picks`.
#[inline(always)]
unsafe fn gathered_dots_body<V: F32x16>(rows: &[f32], stride: usize, picks: &[u32], x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise; loads are at multiples of 16 below x.len().
    unsafe {
        for (picks, out) in picks.chunks(4).zip(out.chunks_mut(4)) {
            // A short last group repeats its first row; the surplus is dropped below.
            let row = |i: usize| rows.as_ptr().add(*picks.get(i).unwrap_or(&picks[0]) as usize * stride);
            let from = [row(0), row(1), row(2), row(3)];
            let mut acc = [V::zero(); 4];
            let mut at = 0;
            while at < x.len() {
                let x = V::load(x.as_ptr().add(at));
                for r in 0..4 {
                    acc[r] = V::load(from[r].add(at)).fma(x, acc[r]);
                }
                at += 16;
            }
            out.copy_from_slice(&V::sum4(acc)[..out.len()]);
        }
    }
}

fn check_rows(rows: &[f32], stride: usize, width: usize, mut picks: impl Iterator<Item = u32>) {
    assert!(width <= stride && stride.is_multiple_of(16) && width.is_multiple_of(16), "rows are not padded");
    let count = rows.len() / stride.max(1);
    assert!(picks.all(|row| (row as usize) < count), "a row outside the matrix");
}

/// `out += sum of coefficient * rows[row]`: sparse decoding, and the sparse sums of the backward pass.
///
/// Computes in the caller's floating-point environment; see [`FloatEnv`](crate::FloatEnv).
///
/// Terms are added in order, each with one rounding, so that the bits depend on nothing but the arguments. `rows` are
/// `stride` elements apart; `stride` and the length of `out` are multiples of 16.
///
/// # Panics
/// If a row is outside `rows` or a length is not a multiple of 16.
pub fn gathered_sum(isa: Isa, rows: &[f32], stride: usize, terms: &[Term], out: &mut [f32]) {
    check_rows(rows, stride, out.len(), terms.iter().map(|t| t.row));
    // SAFETY: an Isa is proof of its instruction set; rows and widths were just checked.
    unsafe {
        match isa.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::avx512_sum(rows, stride, terms, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::avx2_sum(rows, stride, terms, out),
            _ => portable::sum(rows, stride, terms, out),
        }
    }
}

/// `out[i] = rows[picks[i]] . x`: the gradient of sparse latents' values, for one token.
///
/// Computes in the caller's floating-point environment; see [`FloatEnv`](crate::FloatEnv).
///
/// # Panics
/// If a row is outside `rows`, a length is not a multiple of 16, or `out` is not as long as `picks`.
pub fn gathered_dots(isa: Isa, rows: &[f32], stride: usize, picks: &[u32], x: &[f32], out: &mut [f32]) {
    check_rows(rows, stride, x.len(), picks.iter().copied());
    assert_eq!(picks.len(), out.len(), "as many results as rows");
    // SAFETY: an Isa is proof of its instruction set; rows and widths were just checked.
    unsafe {
        match isa.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::avx512_dots(rows, stride, picks, x, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::avx2_dots(rows, stride, picks, x, out),
            _ => portable::dots(rows, stride, picks, x, out),
        }
    }
}

/// Defines a function compiled once for each instruction set: its body is inlined into wrappers that enable them, so
/// that the compiler vectorises it and `f32::mul_add` becomes one instruction. The [`Isa`] is a new first argument.
///
/// Lane-wise code gives the same bits on every instruction set; the compiler does not reorder float operations.
#[macro_export]
macro_rules! isa_fn {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name(isa: $crate::Isa, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            match isa.level() {
                // SAFETY: an Isa is proof that the CPU has it.
                #[cfg(target_arch = "x86_64")]
                $crate::IsaLevel::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::IsaLevel::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_kernels_agree_on_every_isa() {
        let value = |i: usize| ((i * 7919) % 1000) as f32 / 500.0 - 1.0;
        for width in [16, 48, 96, 112, 208] {
            let rows: Vec<f32> = (0..9 * width).map(value).collect();
            let x: Vec<f32> = (0..width).map(|i| value(i + 31)).collect();
            let picks = [8, 0, 3, 3, 7, 1, 2];
            let terms: Vec<Term> =
                picks.iter().map(|&row| Term { row, coefficient: value(row as usize * 13) }).collect();
            let mut sum = x.clone();
            for term in &terms {
                for (s, r) in sum.iter_mut().zip(&rows[term.row as usize * width..]) {
                    *s = r.mul_add(term.coefficient, *s);
                }
            }
            let exact =
                |row: u32| (0..width).map(|i| f64::from(rows[row as usize * width + i]) * f64::from(x[i])).sum::<f64>();
            for isa in Isa::available() {
                let mut out = x.clone();
                gathered_sum(isa, &rows, width, &terms, &mut out);
                assert_eq!(out, sum, "{}", isa.name());
                let mut dots = vec![0.0; picks.len()];
                gathered_dots(isa, &rows, width, &picks, &x, &mut dots);
                let mut portable = vec![0.0; picks.len()];
                gathered_dots(Isa(Level::Portable), &rows, width, &picks, &x, &mut portable);
                assert_eq!(dots, portable);
                for (dot, &row) in dots.iter().zip(&picks) {
                    assert!((f64::from(*dot) - exact(row)).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn forced_choice() {
        assert_eq!(Isa::choose(Some("portable")), Ok(Isa(Level::Portable)));
        assert_eq!(Isa::choose(None), Ok(Isa::available().last().unwrap()));
        let error = Isa::choose(Some("mmx")).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.message().contains("mmx") && error.message().contains("portable"), "{error}");
    }
}
