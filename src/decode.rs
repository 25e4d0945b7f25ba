//! Latents to reconstruction, and steering.

use crate::dtype::{Dtype, widen};
use crate::encode::check_width;
use crate::error::{Error, Result};
use crate::float_env::FloatEnv;
use crate::isa_fn;
use crate::sae::{DecoderWeights, ElementsRef, Sae};
use crate::simd::Isa;

/// Sparse latents to decode, in the layout of [`crate::LatentsMut`].
#[derive(Debug, Clone, Copy)]
pub struct LatentsRef<'a> {
    /// Entries used of each row; its length is the number of rows.
    pub counts: &'a [u32],
    /// Latent indices, `[rows, capacity]`.
    pub indices: &'a [u32],
    /// Latent values, `[rows, capacity]`.
    pub values: &'a [f32],
    /// Entries a row.
    pub capacity: usize,
}

impl<'a> From<&'a crate::Latents> for LatentsRef<'a> {
    fn from(latents: &'a crate::Latents) -> Self {
        LatentsRef {
            counts: &latents.counts,
            indices: &latents.indices,
            values: &latents.values,
            capacity: latents.capacity,
        }
    }
}

/// A latent to add to activations, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct SteerTerm {
    /// The latent's index, below F.
    pub latent: u32,
    /// How much is added, in the units of latent values: the row is changed by `coefficient * s * decoder row`.
    pub coefficient: f32,
}

impl Sae {
    /// Reconstructs activations: `out[r] = s * sum of value * D[index] + b_dec`, f32, rows `d_model` long.
    ///
    /// Terms are added in the order given, each with one rounding, so that equal latents give equal bits anywhere. Any
    /// number of threads may decode at once.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if a buffer is too short, a count is above the capacity or an index is not
    /// below F (rows before that one are written); [`crate::Status::Unsupported`] if opened encoder-only.
    pub fn decode(&self, latents: LatentsRef<'_>, out: &mut [f32]) -> Result<()> {
        let (rows, d) = (latents.counts.len(), self.config().d_model);
        let entries = rows.saturating_mul(latents.capacity);
        for (what, found, expected) in [
            ("indices", latents.indices.len(), entries),
            ("values", latents.values.len(), entries),
            ("out", out.len(), rows.saturating_mul(d)),
        ] {
            if found < expected {
                return Err(Error::invalid(format!("decode: {what} has {found} entries, {rows} rows need {expected}")));
            }
        }
        let decoder = self.require_decoder()?;
        let isa = Isa::detect()?;
        let _env = FloatEnv::enter();
        for (row, to) in out.chunks_exact_mut(d).take(rows).enumerate() {
            let count = latents.counts[row] as usize;
            if count > latents.capacity {
                return Err(Error::invalid(format!(
                    "decode: count {count} of row {row} is above the capacity {}",
                    latents.capacity
                )));
            }
            to.fill(0.0);
            let range = row * latents.capacity..row * latents.capacity + count;
            for (&index, &value) in latents.indices[range.clone()].iter().zip(&latents.values[range]) {
                self.check_latent(index)?;
                add_row(isa, decoder, index as usize, value, to);
            }
            let scale = self.config().output_scale;
            scale_and_add(isa, to, scale, &decoder.bias);
        }
        Ok(())
    }

    /// Adds multiples of latents' decoder rows to activations, in place: the same to each of `rows` rows.
    ///
    /// The sum of the terms is formed in f32 first, then added to each element with one rounding to f32 and one to `dtype`.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if the width is not the model's, a row ends past `bytes`, rows overlap, or an
    /// index is not below F, in all of which nothing is changed; [`crate::Status::Unsupported`] if opened encoder-only;
    /// [`crate::Status::OutOfMemory`].
    pub fn steer(
        &self,
        bytes: &mut [u8],
        dtype: Dtype,
        rows: usize,
        d_model: usize,
        row_stride: usize,
        terms: &[SteerTerm],
    ) -> Result<()> {
        // The checks of a read-only view are those of this one.
        crate::Activations::from_bytes(bytes, dtype, rows, d_model, row_stride)?;
        // Of no rows, the width has not been looked at yet.
        let row_bytes = d_model.saturating_mul(dtype.size());
        if rows > 1 && row_stride < row_bytes {
            return Err(Error::invalid(format!(
                "steer: a stride of {row_stride} bytes makes rows of {row_bytes} bytes overlap"
            )));
        }
        // SAFETY: rows lie inside `bytes`, which is exclusively borrowed, and do not overlap.
        unsafe { self.steer_raw(bytes.as_mut_ptr(), dtype, rows, d_model, row_stride, terms) }
    }

    /// As [`Sae::steer`] behind a pointer; the bytes between rows are not touched.
    ///
    /// # Errors
    /// As [`Sae::steer`].
    ///
    /// # Safety
    /// For every row `r < rows`, the `d_model * dtype.size()` bytes at `data + r * row_stride` must be readable and
    /// writable, untouched by others meanwhile, and the rows must not overlap.
    pub unsafe fn steer_raw(
        &self,
        data: *mut u8,
        dtype: Dtype,
        rows: usize,
        d_model: usize,
        row_stride: usize,
        terms: &[SteerTerm],
    ) -> Result<()> {
        check_width(d_model, self.config().d_model)?;
        let decoder = self.require_decoder()?;
        terms.iter().try_for_each(|term| self.check_latent(term.latent))?;
        if let Some(term) = terms.iter().find(|term| !term.coefficient.is_finite()) {
            return Err(Error::invalid(format!(
                "steer: the coefficient of latent {} is {}",
                term.latent, term.coefficient
            )));
        }
        let isa = Isa::detect()?;
        let _env = FloatEnv::enter();
        let mut sum = crate::memory::try_vec(d_model, 0.0_f32, "a steering vector")?;
        let mut row = crate::memory::try_vec(d_model, 0.0_f32, "a steered row")?;
        for term in terms {
            add_row(isa, decoder, term.latent as usize, term.coefficient, &mut sum);
        }
        let scale = self.config().output_scale;
        for r in 0..rows {
            // SAFETY: the caller vouches for this row's bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(data.add(r * row_stride), d_model * dtype.size()) };
            widen(dtype, bytes, &mut row);
            for (x, &s) in row.iter_mut().zip(&sum) {
                *x = s.mul_add(scale, *x);
            }
            narrow(dtype, &row, bytes);
        }
        Ok(())
    }

    fn check_latent(&self, latent: u32) -> Result<()> {
        let latents = self.config().encoder.latents();
        if (latent as usize) < latents {
            return Ok(());
        }
        Err(Error::invalid(format!("latent {latent} is not below F = {latents}")))
    }
}

/// `to += value * D[latent]`, one rounding an element.
fn add_row(isa: Isa, decoder: &DecoderWeights, latent: usize, value: f32, to: &mut [f32]) {
    let matrix = decoder.weight.as_ref();
    let range = latent * matrix.stride..latent * matrix.stride + matrix.cols;
    match matrix.data {
        ElementsRef::F32(data) => add_f32(isa, &data[range], value, to),
        ElementsRef::Bf16(data) => add_bf16(isa, &data[range], value, to),
    }
}

isa_fn! {
    fn add_f32(row: &[f32], value: f32, to: &mut [f32]) {
        for (t, &w) in to.iter_mut().zip(row) {
            *t = w.mul_add(value, *t);
        }
    }
}

isa_fn! {
    fn add_bf16(row: &[u16], value: f32, to: &mut [f32]) {
        for (t, &w) in to.iter_mut().zip(row) {
            *t = f32::from_bits(u32::from(w) << 16).mul_add(value, *t);
        }
    }
}

isa_fn! {
    /// `to = scale * to + bias`, one rounding an element.
    fn scale_and_add(to: &mut [f32], scale: f32, bias: &[f32]) {
        for (t, &b) in to.iter_mut().zip(bias) {
            *t = t.mul_add(scale, b);
        }
    }
}

/// Rounds to nearest even into little-endian bytes of any alignment.
fn narrow(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    match dtype {
        Dtype::F32 => out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes()),
        Dtype::F16 => {
            out.as_chunks_mut::<2>()
                .0
                .iter_mut()
                .zip(values)
                .for_each(|(o, v)| *o = half::f16::from_f32(*v).to_le_bytes());
        }
        Dtype::Bf16 => {
            out.as_chunks_mut::<2>()
                .0
                .iter_mut()
                .zip(values)
                .for_each(|(o, v)| *o = half::bf16::from_f32(*v).to_le_bytes());
        }
    }
}
