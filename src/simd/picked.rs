//! `dot/1` of one token and some rows, which lie far apart: what screening leaves to be computed.

use super::{F32x16, Isa, Tile, Weight, portable};
#[cfg(target_arch = "x86_64")]
use super::{Level, x86};
use crate::sae::{ElementsRef, MatrixRef};

/// Pre-activations by `dot/1` of one token and the rows `picks`, each written to its own place in `out`.
///
/// # Safety
/// `V`'s instruction set is available; every pick is a row of `tile` and an element of `out`; the rows and the one token
/// are padded to whole vectors.
#[inline(always)]
pub(super) unsafe fn picked_body<V: F32x16, W: Weight>(tile: &Tile<'_, W>, picks: &[u32], out: *mut f32) {
    // SAFETY: loads are inside the padded rows and token that the caller vouches for; prefetching faults nowhere.
    unsafe {
        let whole = tile.cols / 16 * 16;
        let of = |pick: u32| tile.weight.as_ptr().add(pick as usize * tile.stride);
        for (c, four) in picks.chunks(4).enumerate() {
            // A short last group repeats its first row; the surplus is dropped below.
            let pick = |of: &[u32], r: usize| of.get(r).or(of.first()).copied();
            let rows: [_; 4] = std::array::from_fn(|r| of(pick(four, r).unwrap_or(0)));
            // Rows lie far apart: the next ones are asked for while these are used.
            let ahead = picks.get(4 * c + 4..).unwrap_or(four);
            let ahead: [_; 4] = std::array::from_fn(|r| pick(ahead, r).map_or(rows[r], of));
            let mut acc = [V::zero(); 4];
            let mut at = 0;
            while at < whole {
                let x = V::load(tile.x.as_ptr().add(at));
                for r in 0..4 {
                    prefetch(ahead[r].wrapping_add(at));
                    acc[r] = W::load::<V>(rows[r].add(at)).fma(x, acc[r]);
                }
                at += 16;
            }
            let rest = tile.cols - whole;
            if rest > 0 {
                let x = V::load(tile.x.as_ptr().add(at));
                for r in 0..4 {
                    acc[r] = W::load::<V>(rows[r].add(at)).fma_first(x, acc[r], rest);
                }
            }
            for (&row, sum) in four.iter().zip(V::sum4(acc)) {
                let row = row as usize;
                *out.add(row) = sum + tile.bias.get_unchecked(row);
            }
        }
    }
}

/// Asks for the cache line at any address.
#[inline(always)]
fn prefetch<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; any address is allowed.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Pre-activations by `dot/1` of one token and some rows: `out[r] = weight[r] . x + bias[r]` for each r of `picks`. Bits
/// are those of [`super::pre_activations`].
///
/// `x` is padded to a multiple of 16 elements.
///
/// # Safety
/// `out` must be valid for writes at each pick, and nobody else may access those elements meanwhile; it has as many
/// elements as the matrix rows.
///
/// # Panics
/// If a slice is too short for its shape or a pick is not a row.
pub(crate) unsafe fn picked_pre_activations(
    isa: Isa,
    weight: MatrixRef<'_>,
    bias: &[f32],
    x: &[f32],
    picks: &[u32],
    out: *mut f32,
) {
    let needed = weight.cols.next_multiple_of(16);
    let held = match weight.data {
        ElementsRef::F32(data) => data.len(),
        ElementsRef::Bf16(data) => data.len(),
    };
    assert!(x.len() >= needed && bias.len() >= weight.rows, "x or the biases are too short");
    assert!(weight.stride >= needed && held >= weight.rows * weight.stride, "weight rows are not padded");
    assert!(picks.iter().all(|&row| (row as usize) < weight.rows), "a row outside the matrix");
    macro_rules! run {
        ($data:expr, $module:ident :: $f:ident) => {{
            let cols = weight.cols;
            let tile = Tile { weight: $data, stride: weight.stride, cols, bias, x, x_stride: x.len(), tokens: 1 };
            // SAFETY: an Isa is proof of its instruction set; extents and picks were asserted; `out` is the caller's
            // promise.
            unsafe { $module::$f(&tile, picks, out) }
        }};
    }
    match (isa.level(), weight.data) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, ElementsRef::F32(data)) => run!(data, x86::avx512_picked_f32),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, ElementsRef::Bf16(data)) => run!(data, x86::avx512_picked_bf16),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, ElementsRef::F32(data)) => run!(data, x86::avx2_picked_f32),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, ElementsRef::Bf16(data)) => run!(data, x86::avx2_picked_bf16),
        (_, ElementsRef::F32(data)) => run!(data, portable::picked),
        (_, ElementsRef::Bf16(data)) => run!(data, portable::picked),
    }
}
