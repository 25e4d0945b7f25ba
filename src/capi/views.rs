//! Batches as the caller describes them: activations to read, activations to write, latents.

use super::buffers::Extent;
use super::structs::Versioned;
use crate::activations::Activations;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::mem::offset_of;

/// An element type: one of `KRONSAE_DTYPE_*`, little-endian.
pub type kronsae_dtype = i32;

/// IEEE 754 binary32.
pub const KRONSAE_DTYPE_F32: kronsae_dtype = 1;
/// IEEE 754 binary16.
pub const KRONSAE_DTYPE_F16: kronsae_dtype = 2;
/// bfloat16: the upper half of a binary32.
pub const KRONSAE_DTYPE_BF16: kronsae_dtype = 3;

/// Bit of a row's flags: a pre-activation or a product was not finite; the row has no latents.
pub const KRONSAE_ROW_NOT_FINITE: u8 = 1;
/// Bit of a row's flags: more latents were active than the model's `max_latents` or the capacity; the strongest were
/// kept.
pub const KRONSAE_ROW_TRUNCATED: u8 = 2;

const _: () = assert!(KRONSAE_DTYPE_F32 == Dtype::F32 as i32);
const _: () = assert!(KRONSAE_DTYPE_F16 == Dtype::F16 as i32);
const _: () = assert!(KRONSAE_DTYPE_BF16 == Dtype::Bf16 as i32);
const _: () = assert!(KRONSAE_ROW_NOT_FINITE == crate::encode::ROW_NOT_FINITE);
const _: () = assert!(KRONSAE_ROW_TRUNCATED == crate::encode::ROW_TRUNCATED);

/// A batch of activations to read, [rows, d_model], in the caller's memory. Start from `KRONSAE_ACTIVATIONS_INIT`.
///
/// Any alignment will do. Bytes between rows are never read. Nobody may write to the rows during the call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_activations {
    /// sizeof(kronsae_activations).
    pub struct_size: u32,
    /// `KRONSAE_DTYPE_*`. There is no default.
    pub dtype: kronsae_dtype,
    /// The first row. May be NULL if rows is 0.
    pub data: *const c_void,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Elements of a row; must be the model's d_model.
    pub d_model: usize,
    /// Bytes from one row to the next; 0: the rows are contiguous. Rows may overlap.
    pub row_stride: usize,
}

/// A batch of activations to write, [rows, d_model], in the caller's memory. Start from `KRONSAE_ACTIVATIONS_MUT_INIT`.
///
/// Rows must not overlap, and bytes between them are not touched. Nobody else may touch the rows during the call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_activations_mut {
    /// sizeof(kronsae_activations_mut).
    pub struct_size: u32,
    /// `KRONSAE_DTYPE_*`. There is no default.
    pub dtype: kronsae_dtype,
    /// The first row. May be NULL if rows is 0.
    pub data: *mut c_void,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Elements of a row; must be the model's d_model.
    pub d_model: usize,
    /// Bytes from one row to the next; 0: the rows are contiguous.
    pub row_stride: usize,
}

/// Sparse latents of a batch, in buffers of the caller. Start from `KRONSAE_LATENTS_INIT`.
///
/// Row r is at `r * capacity` of `indices` and `values`: its first `counts[r]` entries, strongest first (by the
/// product under the root; equal products by index); entries past them stay untouched. Buffers must be aligned for their
/// type and must not overlap.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_latents {
    /// sizeof(kronsae_latents).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Rows the buffers have room for, at least as many as the activations have.
    pub rows: usize,
    /// Entries a row. With TopK selection at least K; with a threshold, rows of more keep the strongest and are flagged.
    pub capacity: usize,
    /// [rows]: entries written.
    pub counts: *mut u32,
    /// [rows, capacity]: latent indices, below F.
    pub indices: *mut u32,
    /// [rows, capacity]: latent values, in units of normalised activations.
    pub values: *mut f32,
    /// [rows], or NULL: how many latents were active before any cut. With TopK selection the same as counts.
    pub active: *mut u32,
    /// [rows], or NULL: `KRONSAE_ROW_*` bits.
    pub row_flags: *mut u8,
    /// Output of kronsae_encode: rows with KRONSAE_ROW_NOT_FINITE.
    pub skipped_rows: usize,
    /// Output of kronsae_encode: rows with KRONSAE_ROW_TRUNCATED.
    pub truncated_rows: usize,
}

// SAFETY: repr(C) without padding, struct_size first; integers and raw pointers, for which zeroes are a value.
unsafe impl Versioned for kronsae_activations {
    const NAME: &'static str = "kronsae_activations";
    const FIRST_SIZE: usize = offset_of!(Self, row_stride) + size_of::<usize>();
}
// SAFETY: as above.
unsafe impl Versioned for kronsae_activations_mut {
    const NAME: &'static str = "kronsae_activations_mut";
    const FIRST_SIZE: usize = offset_of!(Self, row_stride) + size_of::<usize>();
}
// SAFETY: as above.
unsafe impl Versioned for kronsae_latents {
    const NAME: &'static str = "kronsae_latents";
    const FIRST_SIZE: usize = offset_of!(Self, truncated_rows) + size_of::<usize>();
}

pub(super) fn dtype(number: kronsae_dtype) -> Result<Dtype> {
    Dtype::from_number(number).ok_or_else(|| {
        Error::invalid(format!(
            "dtype is {number}, expected KRONSAE_DTYPE_F32 (1), KRONSAE_DTYPE_F16 (2) or KRONSAE_DTYPE_BF16 (3)"
        ))
    })
}

/// The shape of a batch, every number checked.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) d_model: usize,
    pub(super) row_stride: usize,
    /// Bytes from the first of the first row to the last of the last.
    bytes: usize,
}

impl Batch {
    fn new(dtype: Dtype, data: *const c_void, rows: usize, d_model: usize, row_stride: usize) -> Result<Self> {
        let overflow = || {
            Error::invalid(format!(
                "activations: {rows} rows of {d_model} {dtype} at a stride of {row_stride} bytes overflow"
            ))
        };
        let row_bytes = d_model.checked_mul(dtype.size()).ok_or_else(overflow)?;
        let row_stride = if row_stride == 0 { row_bytes } else { row_stride };
        let bytes = match rows.checked_sub(1) {
            None => 0,
            Some(others) => {
                others.checked_mul(row_stride).and_then(|b| b.checked_add(row_bytes)).ok_or_else(overflow)?
            }
        };
        data.addr().checked_add(bytes).ok_or_else(overflow)?;
        if rows > 0 && data.is_null() {
            return Err(Error::invalid(format!("activations: data is null, expected {rows} rows")));
        }
        Ok(Batch { dtype, rows, d_model, row_stride, bytes })
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.d_model * self.dtype.size()
    }

    pub(super) fn extent(&self, data: *const c_void) -> Extent {
        Extent::new("activations", data.cast::<u8>(), self.bytes)
    }
}

impl kronsae_activations {
    pub(super) fn batch(&self) -> Result<Batch> {
        Batch::new(dtype(self.dtype)?, self.data, self.rows, self.d_model, self.row_stride)
    }

    /// The view to encode from.
    ///
    /// # Safety
    /// The rows that the struct describes are readable and unchanged during `'a`.
    pub(super) unsafe fn view<'a>(&self, batch: Batch) -> Result<Activations<'a>> {
        // SAFETY: the caller's promise.
        unsafe { Activations::from_raw(self.data.cast(), batch.dtype, batch.rows, batch.d_model, batch.row_stride) }
    }
}

impl kronsae_activations_mut {
    /// The batch, whose rows do not overlap.
    pub(super) fn batch(&self) -> Result<Batch> {
        let batch = Batch::new(dtype(self.dtype)?, self.data, self.rows, self.d_model, self.row_stride)?;
        if batch.rows > 1 && batch.row_stride < batch.row_bytes() {
            return Err(Error::invalid(format!(
                "activations: a stride of {} bytes makes rows of {} bytes overlap",
                batch.row_stride,
                batch.row_bytes()
            )));
        }
        Ok(batch)
    }
}

impl kronsae_latents {
    /// Entries in `indices` and in `values` of the first `rows` rows.
    pub(super) fn entries(&self, rows: usize) -> Result<usize> {
        if self.reserved != 0 {
            return Err(Error::invalid(format!("kronsae_latents: reserved is {}, expected 0", self.reserved)));
        }
        if rows > self.rows {
            return Err(Error::invalid(format!(
                "kronsae_latents: room for {} rows, the activations have {rows}",
                self.rows
            )));
        }
        rows.checked_mul(self.capacity).ok_or_else(|| {
            Error::invalid(format!("kronsae_latents: {rows} rows of capacity {} overflow", self.capacity))
        })
    }

    /// Where the buffers of the first `rows` rows are.
    pub(super) fn extents(&self, rows: usize, entries: usize) -> [Extent; 5] {
        [
            Extent::new("counts", self.counts.cast_const(), rows),
            Extent::new("indices", self.indices.cast_const(), entries),
            Extent::new("values", self.values.cast_const(), entries),
            Extent::new("active", self.active.cast_const(), rows),
            Extent::new("row_flags", self.row_flags.cast_const(), rows),
        ]
    }
}
