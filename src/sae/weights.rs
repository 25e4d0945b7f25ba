//! Weight matrices in memory: rows aligned and padded for SIMD, in F32 or, where the file has it, BF16.

use crate::dtype::{Dtype, widen};
use crate::error::{Error, Result};
use crate::memory::{Aligned, Plain};

/// Rows start at a multiple of this many elements: one cache line of f32.
const PAD: usize = 16;

/// Bytes that are read at a time.
const PART_BYTES: usize = 512 << 10;

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
        Self::read(dtype, rows, cols, what, |first, bytes| {
            for (row, bytes) in bytes.chunks_exact_mut((cols * dtype.size()).max(1)).enumerate() {
                let row = &from[(first + row) * stride..][..cols];
                match dtype {
                    Dtype::F32 => {
                        bytes.as_chunks_mut::<4>().0.iter_mut().zip(row).for_each(|(b, v)| *b = v.to_le_bytes());
                    }
                    _ => bytes
                        .as_chunks_mut::<2>()
                        .0
                        .iter_mut()
                        .zip(row)
                        .for_each(|(b, v)| *b = half::bf16::from_f32(*v).to_le_bytes()),
                }
            }
            Ok(())
        })
    }

    /// Reads a matrix whose elements are of `dtype`, some rows at a time, by `read(first row, bytes of whole rows)`. The bytes
    /// are little-endian, rows follow each other without padding.
    ///
    /// F16 is widened to F32, exactly; F32 and BF16 are kept, and read in place where rows need no padding.
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
        // A system call a row would be slow for narrow rows; of a part this large, what is read is still in the cache when
        // it is checked.
        let part_rows = PART_BYTES.div_ceil((cols * dtype.size()).max(1)).min(rows.max(1));
        let in_place = stride == cols && dtype != Dtype::F16 && cfg!(target_endian = "little");
        let not_finite =
            |row: usize| Error::format(format!("`{what}` has a value that is not finite in row {row}; refused"));
        let buffer_bytes = if in_place { 0 } else { part_rows * cols * dtype.size() };
        let mut buffer = crate::memory::try_vec(buffer_bytes, 0_u8, what)?;
        let data = match dtype {
            Dtype::F32 | Dtype::F16 => {
                let mut out = Aligned::<f32>::zeroed(len, what)?;
                let is_finite = |row: &[f32]| row.iter().fold(true, |all, v| all & v.is_finite());
                let widen = |bytes: &[u8], to: &mut [f32]| widen(dtype, bytes, to);
                parts(
                    &mut out,
                    &mut buffer,
                    [rows, cols, part_rows],
                    dtype.size(),
                    &mut read,
                    widen,
                    |first, part| {
                        part.chunks_exact(stride)
                            .position(|row| !is_finite(row))
                            .map_or(Ok(()), |at| Err(not_finite(first + at)))
                    },
                )?;
                MatrixData::F32(out)
            }
            Dtype::Bf16 => {
                let mut out = Aligned::<u16>::zeroed(len, what)?;
                let is_finite = |row: &[u16]| row.iter().fold(true, |all, v| all & (v & 0x7F80 != 0x7F80));
                let keep = |bytes: &[u8], to: &mut [u16]| {
                    to.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(t, b)| *t = u16::from_le_bytes(*b));
                };
                parts(&mut out, &mut buffer, [rows, cols, part_rows], dtype.size(), &mut read, keep, |first, part| {
                    part.chunks_exact(stride)
                        .position(|row| !is_finite(row))
                        .map_or(Ok(()), |at| Err(not_finite(first + at)))
                })?;
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

/// Fills `out`, `[rows, padded(cols)]`, from what `read` gives: part by part through `buffer`, of which `convert` makes rows,
/// or in place where `buffer` is empty. Each part is checked while it is in the cache.
///
/// # Errors
/// Those of `read` and `check`.
fn parts<T: Plain>(
    out: &mut Aligned<T>,
    buffer: &mut [u8],
    [rows, cols, part_rows]: [usize; 3],
    element: usize,
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<()>,
    convert: impl Fn(&[u8], &mut [T]),
    check: impl Fn(usize, &[T]) -> Result<()>,
) -> Result<()> {
    let (stride, row_bytes) = (padded(cols), cols * element);
    for first in (0..rows).step_by(part_rows) {
        let count = part_rows.min(rows - first);
        let within = first * stride..(first + count) * stride;
        if buffer.is_empty() {
            read(first, &mut out.as_bytes_mut()[within.start * element..within.end * element])?;
        } else {
            let bytes = &mut buffer[..count * row_bytes];
            read(first, bytes)?;
            for (to, bytes) in out[within.clone()].chunks_exact_mut(stride).zip(bytes.chunks_exact(row_bytes)) {
                convert(bytes, &mut to[..cols]);
            }
        }
        check(first, &out[within])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with and without padding, in one part and in several: as they were, and refused where one is not finite.
    #[test]
    fn rows_are_read_as_they_are() {
        for (rows, cols) in [(3, 16), (700, 1024), (5, 7), (9000, 33), (1, 1)] {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let value = |at: usize| (at % 251) as f32 - 100.0;
                let bytes_of = |at: usize| match dtype {
                    Dtype::F32 => value(at).to_le_bytes().to_vec(),
                    Dtype::Bf16 => half::bf16::from_f32(value(at)).to_le_bytes().to_vec(),
                    Dtype::F16 => half::f16::from_f32(value(at)).to_le_bytes().to_vec(),
                };
                let mut file: Vec<u8> = (0..rows * cols).flat_map(bytes_of).collect();
                let row_bytes = cols * dtype.size();
                let read = |file: &[u8]| {
                    Matrix::read(dtype, rows, cols, "w", |first, bytes| {
                        bytes.copy_from_slice(&file[first * row_bytes..][..bytes.len()]);
                        Ok(())
                    })
                };
                let matrix = read(&file).unwrap();
                let mut row = vec![0.0; cols];
                for r in 0..rows {
                    matrix.widen_row(r, &mut row);
                    assert!(row.iter().enumerate().all(|(c, v)| *v == value(r * cols + c)), "{dtype} {rows} {cols}");
                }
                // NaN in any of the three.
                let bad = rows * 2 / 3;
                file[bad * row_bytes..bad * row_bytes + dtype.size()].fill(0xFF);
                let error = read(&file).unwrap_err();
                assert!(error.message().contains(&format!("in row {bad}; refused")), "{error}");
            }
        }
    }
}
