//! The borrowed view of a batch of activations.

use crate::dtype::{Dtype, widen};
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// A borrowed batch of activations, `[rows, d_model]`, of any [`Dtype`], alignment and byte stride.
///
/// Row `r` starts `r * row_stride` bytes after the first. Rows may overlap (a stride of 0 repeats one row), and the
/// bytes between rows are never read.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    data: *const u8,
    dtype: Dtype,
    rows: usize,
    d_model: usize,
    row_stride: usize,
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: a shared, read-only borrow, like &[u8]; whoever made it promised that nobody writes meanwhile.
unsafe impl Send for Activations<'_> {}
// SAFETY: as above.
unsafe impl Sync for Activations<'_> {}

impl<'a> Activations<'a> {
    /// A contiguous batch of f32, `data.len() / d_model` rows.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if `d_model` is 0 or does not divide the length.
    pub fn from_f32(data: &'a [f32], d_model: usize) -> Result<Self> {
        if d_model == 0 || !data.len().is_multiple_of(d_model) {
            return Err(Error::invalid(format!(
                "activations: {} values are not a whole number of rows of d_model {d_model}",
                data.len()
            )));
        }
        // SAFETY: f32 may be read as bytes; the slice outlives 'a.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        Self::from_bytes(bytes, Dtype::F32, data.len() / d_model, d_model, d_model * 4)
    }

    /// A batch inside `bytes`, with `row_stride` bytes from one row to the next.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if `d_model` is 0 or the last row would end past `bytes`.
    pub fn from_bytes(bytes: &'a [u8], dtype: Dtype, rows: usize, d_model: usize, row_stride: usize) -> Result<Self> {
        let needed = Self::extent(dtype, rows, d_model, row_stride)?;
        if needed > bytes.len() {
            return Err(Error::invalid(format!(
                "activations: {rows} rows of {d_model} {dtype} at a stride of {row_stride} bytes need {needed} bytes, found {}",
                bytes.len()
            )));
        }
        // SAFETY: every byte of every row lies inside `bytes`, as just checked.
        unsafe { Self::from_raw(bytes.as_ptr(), dtype, rows, d_model, row_stride) }
    }

    /// A batch behind a raw pointer.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if `d_model` is 0, the extent overflows, or `data` is null while `rows > 0`.
    ///
    /// # Safety
    /// For every row `r < rows`, the `d_model * dtype.size()` bytes at `data + r * row_stride` must be readable and
    /// unchanged during `'a`.
    pub unsafe fn from_raw(
        data: *const u8,
        dtype: Dtype,
        rows: usize,
        d_model: usize,
        row_stride: usize,
    ) -> Result<Self> {
        Self::extent(dtype, rows, d_model, row_stride)?;
        if data.is_null() && rows > 0 {
            return Err(Error::invalid("activations: data is null"));
        }
        Ok(Activations { data, dtype, rows, d_model, row_stride, borrow: PhantomData })
    }

    /// Bytes from the start of the first row to the end of the last.
    fn extent(dtype: Dtype, rows: usize, d_model: usize, row_stride: usize) -> Result<usize> {
        if d_model == 0 {
            return Err(Error::invalid("activations: d_model is 0"));
        }
        if rows == 0 {
            return Ok(0);
        }
        let overflow = || {
            Error::invalid(format!(
                "activations: {rows} rows of {d_model} {dtype} at a stride of {row_stride} bytes overflow"
            ))
        };
        (rows - 1)
            .checked_mul(row_stride)
            .and_then(|start| start.checked_add(d_model.checked_mul(dtype.size())?))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(overflow)
    }

    /// Number of rows (tokens).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    #[must_use]
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Where row 0 starts; only for reading the rows' own bytes.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.data
    }

    /// Bytes from one row to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The rows `range`, as a view of their own.
    ///
    /// # Panics
    /// If the range is not inside `0..rows`.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        // The pointer of an empty range may lie past the last row; it is never read. wrapping_add keeps that defined.
        let data = self.data.wrapping_add(range.start.wrapping_mul(self.row_stride));
        Activations { data, rows: range.len(), ..*self }
    }

    /// Copies row `row` as it is into `out`.
    ///
    /// # Panics
    /// If `row >= rows` or `out` is not exactly as long as a row.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn copy_row(&self, row: usize, out: &mut [u8]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the constructor promised that this row's bytes are readable for 'a; u8 has no alignment.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.data.add(row * self.row_stride), self.d_model * self.dtype.size())
        };
        out.copy_from_slice(bytes);
    }

    /// Widens row `row` to f32, exactly, into the first `d_model` elements of `out`.
    ///
    /// # Panics
    /// If `row >= rows` or `out` is shorter than `d_model`.
    pub fn widen_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the constructor promised that this row's bytes are readable for 'a; u8 has no alignment.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.data.add(row * self.row_stride), self.d_model * self.dtype.size())
        };
        widen(self.dtype, bytes, &mut out[..self.d_model]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_and_alignments() {
        // bf16 rows of 3 at an odd stride and an odd start
        let mut bytes = [0_u8; 1 + 7 * 4 + 6];
        for row in 0..4_u16 {
            for c in 0..3_u16 {
                let v = (f32::from(row * 10 + c).to_bits() >> 16) as u16;
                bytes[1 + usize::from(row) * 7 + usize::from(c) * 2..][..2].copy_from_slice(&v.to_le_bytes());
            }
        }
        let x = Activations::from_bytes(&bytes[1..], Dtype::Bf16, 4, 3, 7).unwrap();
        let mut out = [0.0; 3];
        x.slice(2..4).widen_row(1, &mut out);
        assert_eq!(out, [30.0, 31.0, 32.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let bytes = [0_u8; 16];
        assert!(Activations::from_bytes(&bytes, Dtype::F32, 2, 3, 12).is_err());
        assert!(Activations::from_bytes(&bytes, Dtype::F32, 1, 4, 12).is_ok());
        assert!(Activations::from_bytes(&bytes, Dtype::F32, usize::MAX, 4, usize::MAX).is_err());
        assert!(Activations::from_f32(&[0.0; 5], 2).is_err());
        assert!(Activations::from_f32(&[], 0).is_err());
        assert_eq!(Activations::from_f32(&[], 2).unwrap().rows(), 0);
    }
}
