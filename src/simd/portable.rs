//! 16 lanes as an array: right on every CPU, and left to the compiler to vectorise.

use super::picked::picked_body;
use super::{F32x16, Term, Tile, Weight, gathered_dots_body, gathered_sum_body, rows_by_tokens};
use std::ops::Range;

#[derive(Clone, Copy)]
struct Lanes([f32; 16]);

impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Lanes([0.0; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 readable elements.
        Lanes(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 readable elements.
        let halves = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Lanes(halves.map(|half| f32::from_bits(u32::from(half) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 16 writable elements.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Lanes([value; 16])
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        Lanes(std::array::from_fn(|j| self.0[j].mul_add(by.0[j], to.0[j])))
    }
    #[inline(always)]
    unsafe fn fma_first(self, by: Self, to: Self, lanes: usize) -> Self {
        Lanes(std::array::from_fn(|j| if j < lanes { self.0[j].mul_add(by.0[j], to.0[j]) } else { to.0[j] }))
    }
    #[inline(always)]
    unsafe fn sum4(of: [Self; 4]) -> [f32; 4] {
        of.map(|Lanes(mut lanes)| {
            for half in [8, 4, 2, 1] {
                for j in 0..half {
                    lanes[j] += lanes[j + half];
                }
            }
            lanes[0]
        })
    }
}

/// # Safety
/// As for [`rows_by_tokens`].
pub(super) unsafe fn f32(tile: &Tile<'_, f32>, rows: Range<usize>, out: *mut f32, out_stride: usize) {
    // SAFETY: the caller's promise; no instruction set is assumed.
    unsafe { rows_by_tokens::<Lanes, f32, 1, 1>(tile, rows, out, out_stride) }
}

/// # Safety
/// As for [`rows_by_tokens`].
pub(super) unsafe fn bf16(tile: &Tile<'_, u16>, rows: Range<usize>, out: *mut f32, out_stride: usize) {
    // SAFETY: the caller's promise; no instruction set is assumed.
    unsafe { rows_by_tokens::<Lanes, u16, 1, 1>(tile, rows, out, out_stride) }
}

/// # Safety
/// As for [`gathered_sum_body`].
pub(super) unsafe fn sum(rows: &[f32], stride: usize, terms: &[Term], out: &mut [f32]) {
    // SAFETY: the caller's promise; no instruction set is assumed.
    unsafe { gathered_sum_body::<Lanes>(rows, stride, terms, out) }
}

/// # Safety
/// As for [`gathered_dots_body`].
pub(super) unsafe fn dots(rows: &[f32], stride: usize, picks: &[u32], x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise; no instruction set is assumed.
    unsafe { gathered_dots_body::<Lanes>(rows, stride, picks, x, out) }
}

/// # Safety
/// As for [`picked_body`].
pub(super) unsafe fn picked<W: Weight>(tile: &Tile<'_, W>, picks: &[u32], out: *mut f32) {
    // SAFETY: the caller's promise; no instruction set is assumed.
    unsafe { picked_body::<Lanes, W>(tile, picks, out) }
}
