//! From nothing to the first latents: opening a model, making its encoder, one encode; and the memory that stays.
//!
//! Memory is that of the process, so [`measure`] must be the first thing that a process does.

use super::contender::Shape;
use super::ours::{fill_normals, normals};
use super::table::{aligned, duration};
use kronsae::sae::{Config, ElementsRef, LoadOptions, ModelWriter, Selection, tensors};
use kronsae::tensor_file::{TensorDtype, TensorFile, TensorOut};
use kronsae::{Activations, Aligned, Dtype, EncodePath, Encoder, EncoderOptions, Error, Latents, Result, Sae};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What one process measured: nanoseconds, and resident memory in bytes after each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// Whether the decoder was left in the file.
    pub encoder_only: bool,
    /// Threads of the encoder.
    pub threads: usize,
    /// Bytes of the encoder's weights as f32.
    pub encoder_f32_bytes: u64,
    /// Element type of the encoder's weights in the file.
    pub dtype: String,
    /// Whether encoders of this model have an int8 copy of its weights.
    pub has_copy: bool,
    /// Reading and checking the file.
    pub open_ns: f64,
    /// Making the encoder, its int8 copy included.
    pub encoder_ns: f64,
    /// The first encode, of one token.
    pub first_encode_ns: f64,
    /// The second.
    pub second_encode_ns: f64,
    /// All three steps until the first latents are there.
    pub until_latents_ns: f64,
    /// Before all.
    pub rss_at_start: u64,
    /// After opening.
    pub rss_opened: u64,
    /// With the encoder.
    pub rss_encoder: u64,
    /// After the first encode.
    pub rss_encoded: u64,
    /// The same as a multiple of the encoder's weights in f32.
    pub rss_multiple: f64,
    /// The most that was resident at any time.
    pub rss_peak: u64,
    /// Measured afterwards: reading as many bytes of the file as opening does, into a small buffer.
    pub read_ns: f64,
    /// Memory for the weights that were opened, filled with zeros.
    pub memory_ns: f64,
    /// Making an encoder whose copy is there already.
    pub workspace_ns: f64,
}

/// Resident memory: now and at its peak.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] where the system does not tell.
fn resident() -> Result<[u64; 2]> {
    let unknown = || Error::new(kronsae::Status::Unsupported, "the system does not tell how much memory is resident");
    let text = std::fs::read_to_string("/proc/self/status").map_err(|_| unknown())?;
    let of = |key: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    };
    Ok([of("VmRSS:").ok_or_else(unknown)?, of("VmHWM:").ok_or_else(unknown)?])
}

fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let out = run()?;
    Ok((out, start.elapsed().as_nanos() as f64))
}

/// Opens the model at `path`, makes an encoder and encodes a token, once. What opening is made of is measured afterwards.
///
/// # Errors
/// Those of opening the model and of the encoder; where the system does not tell how much memory is resident.
pub fn measure(path: &Path, encoder_only: bool, threads: usize) -> Result<Opening> {
    let [rss_at_start, _] = resident()?;
    let (sae, open_ns) = timed(|| Sae::open_with(path, LoadOptions { encoder_only }).map(Arc::new))?;
    let [rss_opened, _] = resident()?;
    let options = EncoderOptions { threads, path: EncodePath::Auto };
    let (mut encoder, encoder_ns) = timed(|| Encoder::new(Arc::clone(&sae), options))?;
    let [rss_encoder, _] = resident()?;
    let d = sae.config().d_model;
    let x = normals(5, d, 1.0);
    let mut latents = Latents::new(1, sae.config().selection.capacity())?;
    let mut encode = || timed(|| encoder.encode(Activations::from_f32(&x, d)?, &mut latents.as_mut()));
    let (_, first_encode_ns) = encode()?;
    let [rss_encoded, rss_peak] = resident()?;
    let (_, second_encode_ns) = encode()?;

    let weight = sae.encoder().weight.as_ref();
    let (_, workspace_ns) = timed(|| Encoder::new(Arc::clone(&sae), options))?;
    let file = TensorFile::open(path)?;
    let names = [tensors::ENCODER_WEIGHT, tensors::DECODER_WEIGHT];
    let read: &[&str] = if encoder_only { &names[..1] } else { &names };
    let ((), read_ns) = timed(|| read.iter().try_for_each(|tensor| read_through(&file, tensor)))?;
    let bytes = |weight: kronsae::sae::MatrixRef<'_>| match weight.data {
        ElementsRef::F32(data) => size_of_val(data),
        ElementsRef::Bf16(data) => size_of_val(data),
    };
    let held = [bytes(weight), sae.decoder().map_or(0, |decoder| bytes(decoder.weight.as_ref()))];
    let dtype = format!("{:?}", file.require(tensors::ENCODER_WEIGHT)?.dtype);
    let encoder_f32_bytes = weight.rows as u64 * weight.cols as u64 * 4;
    let has_copy = encoder.screening().is_some();
    // The system finds memory for them as easily as it did at the start only once theirs is given back.
    drop((encoder, sae));
    let (_, memory_ns) = timed(|| Ok(held.map(|bytes| Aligned::<u8>::zeroed(bytes, "weights"))))?;
    Ok(Opening {
        encoder_only,
        threads,
        encoder_f32_bytes,
        dtype,
        has_copy,
        until_latents_ns: open_ns + encoder_ns + first_encode_ns,
        open_ns,
        encoder_ns,
        first_encode_ns,
        second_encode_ns,
        rss_at_start,
        rss_opened,
        rss_encoder,
        rss_encoded,
        rss_multiple: rss_encoded as f64 / encoder_f32_bytes.max(1) as f64,
        rss_peak,
        read_ns,
        memory_ns,
        workspace_ns,
    })
}

/// Reads a tensor through a small buffer. The file is in the page cache then, if it was not before.
fn read_through(file: &TensorFile<'_>, tensor: &str) -> Result<()> {
    let bytes = file.require(tensor)?.bytes;
    let mut buffer = vec![0_u8; bytes.min(512 << 10)];
    for at in (0..bytes).step_by(buffer.len().max(1)) {
        let part = buffer.len().min(bytes - at);
        file.read(tensor, at, &mut buffer[..part])?;
    }
    std::hint::black_box(&buffer);
    Ok(())
}

/// Brings a model file into the page cache.
///
/// # Errors
/// Those of opening and reading it.
pub fn warm(path: &Path) -> Result<()> {
    let file = TensorFile::open(path)?;
    file.tensor_names().iter().try_for_each(|tensor| read_through(&file, tensor))
}

/// Writes a model of random weights and `shape` to `path`, in `dtype`: F32 or BF16.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if K is above F or the dtype is F16; [`kronsae::Status::Io`].
pub fn write_random(path: &Path, shape: &Shape, k: usize, dtype: Dtype) -> Result<()> {
    let (encoder, d) = (shape.kron(), shape.d_model);
    let config = Config::new(encoder, d, Selection::TopK(k), 1.0)?;
    let matrix = |name: &str, seed: u64, rows: usize| -> Result<TensorOut<'_>> {
        let tensor = match dtype {
            Dtype::F32 => TensorDtype::F32,
            Dtype::Bf16 => TensorDtype::BF16,
            Dtype::F16 => return Err(Error::invalid("models are written as F32 or BF16, not F16")),
        };
        // A row at a time: the decoder of a large model need not fit memory twice.
        let write = move |sink: &mut dyn std::io::Write| {
            let (mut row, mut bytes) = (vec![0.0; d], Vec::new());
            for at in 0..rows as u64 {
                fill_normals(seed + at, (d as f32).sqrt().recip(), &mut row);
                bytes.clear();
                for value in &row {
                    match dtype {
                        Dtype::F32 => bytes.extend(value.to_le_bytes()),
                        _ => bytes.extend(half::bf16::from_f32(*value).to_le_bytes()),
                    }
                }
                sink.write_all(&bytes)?;
            }
            Ok(())
        };
        Ok(TensorOut::new(name, tensor, &[rows, d], Box::new(write)))
    };
    ModelWriter {
        config: &config,
        encoder_weight: matrix(tensors::ENCODER_WEIGHT, 1, encoder.rows())?,
        encoder_bias: &vec![0.0; encoder.rows()],
        encoder_threshold: None,
        decoder_weight: matrix(tensors::DECODER_WEIGHT, 1 << 40, encoder.latents())?,
        decoder_bias: &vec![0.0; d],
        calibration: None,
    }
    .write(path)
}

/// The medians of several processes.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn median(openings: &[Opening]) -> Opening {
    let middle = |of: fn(&Opening) -> f64| {
        let mut all: Vec<f64> = openings.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let bytes = |of: fn(&Opening) -> u64| {
        let mut all: Vec<u64> = openings.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    Opening {
        open_ns: middle(|o| o.open_ns),
        encoder_ns: middle(|o| o.encoder_ns),
        first_encode_ns: middle(|o| o.first_encode_ns),
        second_encode_ns: middle(|o| o.second_encode_ns),
        until_latents_ns: middle(|o| o.until_latents_ns),
        rss_multiple: middle(|o| o.rss_multiple),
        rss_at_start: bytes(|o| o.rss_at_start),
        rss_opened: bytes(|o| o.rss_opened),
        rss_encoder: bytes(|o| o.rss_encoder),
        rss_encoded: bytes(|o| o.rss_encoded),
        rss_peak: bytes(|o| o.rss_peak),
        read_ns: middle(|o| o.read_ns),
        memory_ns: middle(|o| o.memory_ns),
        workspace_ns: middle(|o| o.workspace_ns),
        ..openings[0].clone()
    }
}

/// What `kronsae bench open` reports of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenReport {
    /// The model: its path or its shape.
    pub model: String,
    /// Processes that each kind of opening was measured in; figures are their medians.
    pub processes: usize,
    /// Encoder-only, and whole.
    pub openings: Vec<Opening>,
}

/// The report as a table, a column for each kind of opening.
#[must_use]
pub fn markdown(report: &OpenReport) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&Opening) -> String| {
        rows.push(std::iter::once(name.to_owned()).chain(report.openings.iter().map(of)).collect());
    };
    let memory = |bytes: u64, o: &Opening| {
        let multiple = bytes as f64 / o.encoder_f32_bytes.max(1) as f64;
        format!("{:.1} MB, {multiple:.3} x the encoder in f32", bytes as f64 / 1e6)
    };
    // Parts are measured apart, so on a busy machine they may come to more than the whole.
    let rest = |ns: f64| if ns > 0.0 { duration(ns) } else { "too little to tell".to_owned() };
    row(&report.model, &|o| if o.encoder_only { "encoder-only" } else { "whole" }.to_owned());
    row("encoder's weights in the file", &|o| o.dtype.clone());
    row("opening", &|o| duration(o.open_ns));
    row("- of that reading the file", &|o| duration(o.read_ns));
    row("- memory for the weights", &|o| duration(o.memory_ns));
    row("- the rest: placing, checking", &|o| rest(o.open_ns - o.read_ns - o.memory_ns));
    row("making the encoder", &|o| duration(o.encoder_ns));
    row("- of that workspace and threads", &|o| duration(o.workspace_ns));
    row("- the rest: the int8 copy", &|o| {
        if o.has_copy { rest(o.encoder_ns - o.workspace_ns) } else { "none is made".to_owned() }
    });
    row("first encode, one token", &|o| duration(o.first_encode_ns));
    row("second encode", &|o| duration(o.second_encode_ns));
    row("until the first latents", &|o| duration(o.until_latents_ns));
    row("resident at the start", &|o| memory(o.rss_at_start, o));
    row("resident, opened", &|o| memory(o.rss_opened, o));
    row("resident, with the encoder", &|o| memory(o.rss_encoder, o));
    row("resident, after the first encode", &|o| memory(o.rss_encoded, o));
    row("- of that above 30 MB", &|o| memory(o.rss_encoded.saturating_sub(30_000_000), o));
    row("resident at the most", &|o| memory(o.rss_peak, o));
    let processes = format!(
        "\nMedians of {} processes each, the encoder on {} threads, the file in the page cache. The parts of a step are \
         measured apart from it, afterwards.\n",
        report.processes,
        report.openings.first().map_or(0, |o| o.threads)
    );
    aligned(&rows) + &processes
}
