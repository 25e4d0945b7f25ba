//! Streams a range of a data set through an encoder, a chunk of tokens at a time: what evaluation, examples, offline
//! encoding and calibration have in common.

use crate::data::Dataset;
use kronsae::{Activations, Aligned, EncodePath, Encoder, EncoderOptions, Error, Latents, Result, Sae};
use std::ops::Range;
use std::sync::Arc;

/// Elements of the largest buffer of a chunk: some 4 MB of f32.
const CHUNK_ELEMENTS: usize = 1 << 20;
/// The most tokens of a chunk.
const CHUNK_TOKENS: usize = 1024;

/// Tokens of a data set with their latents, as [`encode_rows`] hands them on.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Row of the data set at which the chunk starts.
    pub start: usize,
    /// Number of tokens.
    pub rows: usize,
    /// Their activations, `[rows, d_model]`.
    pub x: &'a [f32],
    /// Their latents; only the first `rows` rows are of this chunk.
    pub latents: &'a Latents,
}

/// Tokens of a chunk where the widest buffer of a token has `width` elements. A function of the shape alone, so that no
/// result that depends on it depends on the machine.
pub(crate) fn chunk_tokens(width: usize) -> usize {
    (CHUNK_ELEMENTS / width.max(1)).clamp(1, CHUNK_TOKENS)
}

/// Checks that `rows` is a range of tokens of `data`, and not empty.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`].
pub(crate) fn check_rows(data: &Dataset, rows: &Range<usize>) -> Result<()> {
    if rows.start < rows.end && rows.end <= data.rows() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "rows {}..{} were asked for, expected a range that is not empty of the {} tokens of the data set",
        rows.start,
        rows.end,
        data.rows()
    )))
}

/// Checks that `data` is as wide as `sae` expects.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`].
pub(crate) fn check_width(sae: &Sae, data: &Dataset) -> Result<()> {
    let (found, expected) = (data.d_model(), sae.config().d_model);
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the activations have d_model {found}, the model expects {expected}: of another layer?"
    )))
}

/// Encodes tokens `rows` of `data` in order and calls `each` for every chunk of them, on the calling thread.
///
/// Memory is bounded by the chunk (some 4 MB a buffer), not by the range.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if the range is empty or outside, the widths differ, or `threads` is 0 or above
/// 1,024; those of reading the shards; those of `each`.
pub fn encode_rows(
    sae: &Arc<Sae>,
    data: &Dataset,
    rows: Range<usize>,
    threads: usize,
    each: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
) -> Result<()> {
    check_rows(data, &rows)?;
    check_width(sae, data)?;
    let d = sae.config().d_model;
    let capacity = sae.config().selection.capacity();
    let tokens = chunk_tokens(d.max(capacity)).min(rows.len());
    // Chunks are large: an int8 copy of the weights would not be used.
    let mut encoder = Encoder::new(Arc::clone(sae), EncoderOptions { threads, path: EncodePath::Plain })?;
    let mut latents = Latents::new(tokens, capacity)?;
    let mut x = Aligned::zeroed(tokens * d, "a chunk of tokens")?;
    let mut start = rows.start;
    while start < rows.end {
        let count = tokens.min(rows.end - start);
        let x = &mut x[..count * d];
        data.read(start, count, x)?;
        encoder.encode(Activations::from_f32(x, d)?, &mut latents.as_mut())?;
        each(Chunk { start, rows: count, x, latents: &latents })?;
        start += count;
    }
    Ok(())
}
