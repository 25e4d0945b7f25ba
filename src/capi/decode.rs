//! Reconstruction and steering.

use super::buffers::{Extent, disjoint, slice, slice_mut};
use super::error::{boundary, kronsae_error};
use super::handle;
use super::sae::kronsae_sae;
use super::status::kronsae_status;
use super::structs::{self, LARGEST};
use super::views::{Batch, kronsae_activations_mut, kronsae_latents};
use crate::decode::{LatentsRef, SteerTerm};
use crate::dtype::Dtype;
use crate::encode::check_width;
use crate::error::{Error, Result, Status};
use crate::sae::Sae;
use std::borrow::Cow;

/// A latent to add to activations, and how much of it. An array of these is passed with the size of one.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_steer_term {
    /// The latent's index, below F.
    pub latent: u32,
    /// How much is added, in units of latent values: a row changes by `coefficient * output_scale * decoder row`.
    pub coefficient: f32,
}

const _: () = assert!(size_of::<kronsae_steer_term>() == 8 && size_of::<SteerTerm>() == 8);

/// Reconstructs activations from latents: `out[r] = output_scale * sum of value * decoder row + decoder bias`, in raw
/// units, F32.
///
/// latents: counts, indices and values of the first out->rows rows, as `kronsae_encode` wrote them or changed since; the
/// other fields are not looked at. Terms are added in the order given. out: rows, [rows, d_model], dtype
/// `KRONSAE_DTYPE_F32`, data and row_stride multiples of 4.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a count above the capacity or an index not below F;
/// `KRONSAE_STATUS_UNSUPPORTED` if the model was opened encoder-only or out is not F32. Nothing is written then.
///
/// Threads: any number at once on one model.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_decode(
    sae: *const kronsae_sae,
    latents: *const kronsae_latents,
    out: *const kronsae_activations_mut,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: the header asks for pointers that are valid where they are not null (so everywhere below).
        let sae = unsafe { handle::borrow(sae) }?;
        // SAFETY: as above.
        unsafe { decode(&sae.model.sae, latents, out) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_decode", error, body) }
}

/// # Safety
/// The structs and what they point to are as the header asks, where they are not visibly otherwise.
unsafe fn decode(sae: &Sae, latents: *const kronsae_latents, out: *const kronsae_activations_mut) -> Result<()> {
    // SAFETY: the caller's promise.
    let (from, out) = unsafe { (structs::read(latents)?, structs::read(out)?) };
    sae.require_decoder()?;
    let batch = out.batch()?;
    let (rows, d) = (batch.rows, batch.d_model);
    check_width(d, sae.config().d_model)?;
    if batch.dtype != Dtype::F32 {
        return Err(Error::new(
            Status::Unsupported,
            format!("reconstructions are written as F32, not {}", batch.dtype),
        ));
    }
    if rows > 1 && !batch.row_stride.is_multiple_of(4) {
        return Err(Error::invalid(format!(
            "out: a row stride of {} bytes, expected a multiple of 4",
            batch.row_stride
        )));
    }
    let entries = from.entries(rows)?;
    disjoint(&[batch.extent(out.data)], &from.extents(rows, entries)[..3])?;
    // SAFETY: the caller's promise.
    let (counts, indices, values) = unsafe {
        (
            slice(from.counts.cast_const(), rows, "counts")?,
            slice(from.indices.cast_const(), entries, "indices")?,
            slice(from.values.cast_const(), entries, "values")?,
        )
    };
    // All is checked before anything is written: a caller need not wonder which rows are new.
    check_indices(counts, indices, from.capacity, sae.config().encoder.latents())?;
    for part in rows_at_once(&batch) {
        let (first, n) = (part.start, part.len());
        let data = out.data.cast::<u8>().wrapping_add(first * batch.row_stride).cast::<f32>();
        // SAFETY: rows `part` lie one after the other from there, inside what the caller vouches for.
        let to = unsafe { slice_mut(data, n * d, "out") }?;
        let entries = first * from.capacity..part.end * from.capacity;
        let latents = LatentsRef {
            counts: &counts[part],
            indices: &indices[entries.clone()],
            values: &values[entries],
            capacity: from.capacity,
        };
        sae.decode(latents, to)?;
    }
    Ok(())
}

fn check_indices(counts: &[u32], indices: &[u32], capacity: usize, latents: usize) -> Result<()> {
    for (row, &count) in counts.iter().enumerate() {
        let count = count as usize;
        if count > capacity {
            return Err(Error::invalid(format!(
                "latents: count {count} of row {row} is above the capacity {capacity}"
            )));
        }
        if let Some(index) = indices[row * capacity..][..count].iter().find(|index| **index as usize >= latents) {
            return Err(Error::invalid(format!("latents: index {index} in row {row} is not below F = {latents}")));
        }
    }
    Ok(())
}

/// The parts of a batch that are contiguous: all of it, or row by row.
fn rows_at_once(batch: &Batch) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (rows, step) = (batch.rows, if batch.row_stride == batch.row_bytes() { batch.rows.max(1) } else { 1 });
    (0..rows).step_by(step).map(move |first| first..(first + step).min(rows))
}

/// Adds multiples of latents' decoder rows to activations, in place: the same to each row. The sum of the terms is formed
/// in F32, then added to each element with one rounding to F32 and one to the dtype.
///
/// activations: [rows, d_model], any dtype, any alignment. terms: n_terms elements, term_size (sizeof(kronsae_steer_term))
/// bytes each; may be NULL if n_terms is 0.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a latent not below F or a coefficient that is not finite;
/// `KRONSAE_STATUS_UNSUPPORTED` if the model was opened encoder-only; `KRONSAE_STATUS_OUT_OF_MEMORY`. Nothing is changed
/// then.
///
/// Threads: any number at once on one model, on different activations.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_steer(
    sae: *const kronsae_sae,
    activations: *const kronsae_activations_mut,
    terms: *const kronsae_steer_term,
    n_terms: usize,
    term_size: usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_decode.
        let (sae, x) = unsafe { (handle::borrow(sae)?, structs::read(activations)?) };
        let batch = x.batch()?;
        let size = n_terms.checked_mul(term_size).ok_or_else(|| Error::invalid("terms: their size overflows"))?;
        disjoint(&[batch.extent(x.data)], &[Extent::new("terms", terms.cast::<u8>(), size)])?;
        // SAFETY: as above.
        let terms = unsafe { read_terms(terms, n_terms, term_size) }?;
        // SAFETY: as above; the rows do not overlap, as checked.
        unsafe {
            sae.model.sae.steer_raw(x.data.cast(), batch.dtype, batch.rows, batch.d_model, batch.row_stride, &terms)
        }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_steer", error, body) }
}

/// The caller's terms: as they are where they have this version's size, copied where a newer caller's are longer.
///
/// # Safety
/// `terms` is null, misaligned or `n` elements of `size` readable bytes.
unsafe fn read_terms<'a>(terms: *const kronsae_steer_term, n: usize, size: usize) -> Result<Cow<'a, [SteerTerm]>> {
    let known = size_of::<kronsae_steer_term>();
    if size < known || size > LARGEST || !size.is_multiple_of(align_of::<kronsae_steer_term>()) {
        let message = format!("term_size is {size}, expected sizeof(kronsae_steer_term) = {known}");
        return Err(Error::invalid(message));
    }
    let words_each = size / size_of::<u32>();
    // SAFETY: the caller's promise; a term is made of 4-byte words and aligned like one.
    let words = unsafe { slice(terms.cast::<u32>(), n.saturating_mul(words_each), "terms") }?;
    if size == known {
        // SAFETY: SteerTerm is repr(C) of the same two fields, valid for any bits, and not more aligned than a word.
        return Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), n) }));
    }
    let mut copied = crate::memory::try_vec(n, SteerTerm { latent: 0, coefficient: 0.0 }, "steering terms")?;
    for ((at, term), from) in copied.iter_mut().enumerate().zip(words.chunks_exact(words_each)) {
        if from[2..].iter().any(|word| *word != 0) {
            let version = env!("CARGO_PKG_VERSION");
            return Err(Error::invalid(format!("term {at} sets a field that version {version} does not know")));
        }
        *term = SteerTerm { latent: from[0], coefficient: f32::from_bits(from[1]) };
    }
    Ok(Cow::Owned(copied))
}
