//! Offline encoding: the latents of a whole data set in one file, format `latents/1`.
//!
//! A safetensors file of three tensors, row r for token r of the data set: `indices`, U32 `[N, K]`, and `values`, F32
//! `[N, K]`, in the order of the format (strongest first); `counts`, U32 `[N]`; K is the selection's capacity, entries past the count
//! are 0. Metadata: `format`, the file name of the model, its config, and what the shards say of the activations.
//!
//! The file holds one tensor after another while a token makes a piece of each: indices go straight into the file, values
//! and counts into unnamed temporary files in its folder, and from there behind them. One pass, memory of a chunk, and
//! half as much disk again while it is written.

use crate::data::Dataset;
use crate::rewrite::Failure;
use crate::stream::encode_rows;
use kronsae::tensor_file::{self, TensorDtype, TensorOut, write_f32};
use kronsae::{ROW_NOT_FINITE, ROW_TRUNCATED, Result, Sae};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;
use std::sync::Arc;

/// The `format` string of a file of latents.
pub const FORMAT: &str = "latents/1";

/// What [`encode_file`] wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Encoded {
    /// N, tokens of the data set.
    pub tokens: u64,
    /// K, entries a token.
    pub capacity: usize,
    /// Latents of all tokens.
    pub latents: u64,
    /// Tokens without latents because they are not finite.
    pub non_finite_tokens: u64,
    /// Tokens that had more latents than K.
    pub truncated_tokens: u64,
}

/// Encodes all of `data` into the file `out`, which is replaced when it is complete. `model` names the model in the
/// file's metadata. `progress` is called with the number of tokens done.
///
/// # Errors
/// As [`encode_rows`], and [`kronsae::Status::Io`] if the file cannot be written; `out` is as it was then.
pub fn encode_file(
    sae: &Arc<Sae>,
    model: &str,
    data: &Dataset,
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Encoded> {
    let (rows, capacity) = (data.rows(), sae.config().selection.capacity());
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let spill = || {
        let name = folder.display().to_string();
        tempfile::tempfile_in(folder).map_err(|e| kronsae::Error::io("create a temporary file in", &name, &e))
    };
    let (values, counts) = (spill()?, spill()?);
    let mut encoded = Encoded { tokens: rows as u64, capacity, ..Encoded::default() };
    let failed = Failure::default();

    let indices = |sink: &mut dyn Write| -> io::Result<()> {
        let mut values_out = BufWriter::with_capacity(1 << 20, &values);
        let mut counts_out = BufWriter::new(&counts);
        let (mut row_indices, mut row_values) = (vec![0_u8; capacity * 4], vec![0_f32; capacity]);
        let mut wrote = Ok(());
        let read = encode_rows(sae, data, 0..rows, threads, &mut |chunk| {
            for r in 0..chunk.rows {
                let (indices, chosen) = chunk.latents.row(r);
                row_indices.fill(0);
                row_values.fill(0.0);
                row_values[..chosen.len()].copy_from_slice(chosen);
                for (to, index) in row_indices.as_chunks_mut::<4>().0.iter_mut().zip(indices) {
                    *to = index.to_le_bytes();
                }
                let count = indices.len() as u32;
                wrote = sink
                    .write_all(&row_indices)
                    .and_then(|()| write_f32(&mut values_out, &row_values))
                    .and_then(|()| counts_out.write_all(&count.to_le_bytes()));
                if let Err(error) = &wrote {
                    // Ends the stream; the true error is returned below.
                    return Err(kronsae::Error::io("write", "latents", error));
                }
                let flags = chunk.latents.flags[r];
                encoded.latents += u64::from(count);
                encoded.non_finite_tokens += u64::from(flags & ROW_NOT_FINITE != 0);
                encoded.truncated_tokens += u64::from(flags & ROW_TRUNCATED != 0);
            }
            progress(chunk.start + chunk.rows);
            Ok(())
        });
        wrote?;
        failed.keep(read)?;
        values_out.flush()?;
        counts_out.flush()
    };
    let tensors = vec![
        TensorOut::new("indices", TensorDtype::U32, &[rows, capacity], Box::new(indices)),
        TensorOut::new("values", TensorDtype::F32, &[rows, capacity], copy_of(&values)),
        TensorOut::new("counts", TensorDtype::U32, &[rows], copy_of(&counts)),
    ];
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("model".to_owned(), model.to_owned()),
        ("config".to_owned(), sae.config().to_json()),
    ]);
    for key in ["model", "hook", "layer"] {
        metadata.extend(data.metadata(key).map(|v| (format!("activations.{key}"), v.to_owned())));
    }
    failed.explain(tensor_file::write(out, &metadata, tensors))?;
    Ok(encoded)
}

/// Writes all of a temporary file.
fn copy_of(file: &File) -> tensor_file::TensorSource<'_> {
    Box::new(move |sink| {
        let mut file = file;
        file.rewind()?;
        io::copy(&mut file, sink).map(drop)
    })
}
