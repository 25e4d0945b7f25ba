//! Weight matrices in memory: rows aligned and padded for SIMD, in F32 or, where the file has it, BF16.

use crate::dtype::{Dtype, widen};
use crate::error::{Error, Result};
use crate::memory::Aligned;

/// Rows start at a multiple of this many elements: one cache line of f32.
const PAD: usize = 16;

/// Elements from one padded row of `cols` to the next.
#[must_use]
pub fn padded(cols: usize) -> usize {
    cols.next_multiple_of(PAD)
}

/// A row-major matrix of weights, `[rows, cols]`, each row padded with zeros to a multiple of 16 elements.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    stride: usize,
    data: MatrixData,
}

#[derive(Debug)]
enum MatrixData {
    F32(Aligned<f32>),
    /// Kept as it is in the file: half the memory, and widened exactly in registers.
    Bf16(Aligned<u16>),
}

/// A borrowed matrix of padded rows, as the kernels take it.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row that count.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// The elements, at least `(rows - 1) * stride + cols` of them.
    pub data: ElementsRef<'a>,
}

/// Borrowed elements of a matrix.
#[derive(Debug, Clone, Copy)]
pub enum ElementsRef<'a> {
    /// binary32.
    F32(&'a [f32]),
    /// The upper halves of binary32s.
    Bf16(&'a [u16]),
}

impl<'a> MatrixRef<'a> {
    /// A matrix over f32 rows of `cols`, `stride` elements apart.
    ///
    /// # Panics
    /// If `data` is shorter than the rows need, or `stride < cols`.
    #[must_use]
    pub fn f32(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(stride >= cols && (rows == 0 || data.len() >= (rows - 1) * stride + cols), "matrix outside its data");
        MatrixRef { rows, cols, stride, data: ElementsRef::F32(data) }
    }
}

impl Matrix {
    /// An f32 matrix of zeros.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub fn zeroed(rows: usize, cols: usize, what: &str) -> Result<Self> {
        let stride = padded(cols);
        let data = MatrixData::F32(Aligned::zeroed(rows.saturating_mul(stride), what)?);
        Ok(Matrix { rows, cols, stride, data })
    }

    /// A matrix of the given rows, `stride` elements apart in `from`, held as F32 or, rounded to nearest even, as BF16.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`]; [`crate::Status::Format`] if a value is not finite; [`crate::Status::Unsupported`]
    /// for F16.
    ///
    /// # Panics
    /// If `from` is too short.
    pub fn from_rows(from: &[f32], [rows, cols]: [usize; 2], stride: usize, dtype: Dtype, what: &str) -> Result<Self> {
        if dtype == Dtype::F16 {
            return Err(Error::new(crate::Status::Unsupported, "weights are held as F32 or BF16, not F16"));
        }
        Self::read(dtype, rows, cols, what, |row, bytes| {
            let row = &from[row * stride..][..cols];
            match dtype {
                Dtype::F32 => bytes.as_chunks_mut::<4>().0.iter_mut().zip(row).for_each(|(b, v)| *b = v.to_le_bytes()),
                _ => bytes
                    .as_chunks_mut::<2>()
                    .0
                    .iter_mut()
                    .zip(row)
                    .for_each(|(b, v)| *b = half::bf16::from_f32(*v).to_le_bytes()),
            }
            Ok(())
        })
    }

    /// Reads a matrix whose elements are of `dtype`, row by row, by `read(row, bytes of the row)`.
    ///
    /// F16 is widened to F32, exactly; F32 and BF16 are kept.
    ///
    /// # Errors
    /// Those of `read`; [`crate::Status::OutOfMemory`]; [`crate::Status::Format`] if an element is not finite.
    pub(crate) fn read(
        dtype: Dtype,
        rows: usize,
        cols: usize,
        what: &str,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let stride = padded(cols);
        let len = rows.saturating_mul(stride);
        let not_finite =
            |row: usize| Error::format(format!("`{what}` has a value that is not finite in row {row}; refused"));
        let data = match dtype {
            Dtype::F32 | Dtype::F16 => {
                let mut out = Aligned::<f32>::zeroed(len, what)?;
                let mut bytes = crate::memory::try_vec(cols * dtype.size(), 0_u8, what)?;
                for (row, to) in out.chunks_exact_mut(stride).enumerate() {
                    read(row, &mut bytes)?;
                    widen(dtype, &bytes, &mut to[..cols]);
                    if !to.iter().fold(true, |all, v| all & v.is_finite()) {
                        return Err(not_finite(row));
                    }
                }
                MatrixData::F32(out)
            }
            Dtype::Bf16 => {
                let mut out = Aligned::<u16>::zeroed(len, what)?;
                let mut bytes = crate::memory::try_vec(cols * 2, 0_u8, what)?;
                for (row, to) in out.chunks_exact_mut(stride).enumerate() {
                    read(row, &mut bytes)?;
                    for (t, b) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *t = u16::from_le_bytes(*b);
                    }
                    if !to.iter().fold(true, |all, v| all & (v & 0x7F80 != 0x7F80)) {
                        return Err(not_finite(row));
                    }
                }
                MatrixData::Bf16(out)
            }
        };
        Ok(Matrix { rows, cols, stride, data })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type held in memory: F32 or BF16.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self.data {
            MatrixData::F32(_) => Dtype::F32,
            MatrixData::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The borrowed form, as the kernels take it.
    #[must_use]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        let data = match &self.data {
            MatrixData::F32(data) => ElementsRef::F32(data),
            MatrixData::Bf16(data) => ElementsRef::Bf16(data),
        };
        MatrixRef { rows: self.rows, cols: self.cols, stride: self.stride, data }
    }

    /// Row `row` widened to f32, into the first `cols` elements of `out`.
    ///
    /// # Panics
    /// If there is no such row or `out` is too short.
    pub fn widen_row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.stride..row * self.stride + self.cols;
        match &self.data {
            MatrixData::F32(data) => out[..self.cols].copy_from_slice(&data[range]),
            MatrixData::Bf16(data) => {
                for (o, &v) in out[..self.cols].iter_mut().zip(&data[range]) {
                    *o = f32::from_bits(u32::from(v) << 16);
                }
            }
        }
    }

    /// All rows of an F32 matrix, padded, to fill it.
    ///
    /// # Panics
    /// If the matrix holds BF16.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            MatrixData::F32(data) => data,
            MatrixData::Bf16(_) => panic!("the matrix holds BF16"),
        }
    }

    /// Elements from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }
}
