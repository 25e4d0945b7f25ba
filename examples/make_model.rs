//! Writes small model files: `cargo run --example make_model -- FOLDER`.
//!
//! The C and C++ tests use them. `tiny.safetensors` and `threshold.safetensors` can be checked by hand: the encoder is
//! the identity, so that latent `k*4 + i*2 + j` of token x is `sqrt(x[4k + i] * x[4k + 2 + j])`, and decoder row f is
//! the unit vector f. `random.safetensors` is of a more usual shape. `overhead.safetensors` is so small that the way into the
//! library shows.

use kronsae::Dtype;
use kronsae::sae::{Config, Encoder, ModelWriter, Selection, Which};
use serde_json::json;
use std::path::Path;

struct Shape {
    name: &'static str,
    encoder: Encoder,
    d_model: usize,
    selection: Selection,
    output_scale: f32,
    dtype: Dtype,
}

fn write(folder: &Path, shape: &Shape, fill: impl Fn(usize, usize) -> f32) -> kronsae::Result<()> {
    let (rows, latents, d) = (shape.encoder.rows(), shape.encoder.latents(), shape.d_model);
    let mut config = Config::new(shape.encoder, d, shape.selection, shape.output_scale)?;
    config.json.insert("source".into(), json!({"model": "made by make_model", "hook": "none", "layer": 15}));
    let matrix = |rows: usize| -> Vec<f32> { (0..rows * d).map(|at| fill(at / d, at % d)).collect() };
    let (encoder, decoder) = (matrix(rows), matrix(latents));
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &encoder, [rows, d], d, shape.dtype),
        encoder_bias: &vec![0.0; rows],
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &decoder, [latents, d], d, shape.dtype),
        decoder_bias: &vec![0.5; d],
        calibration: None,
    }
    .write(&folder.join(shape.name))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: make_model FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let identity = |row: usize, column: usize| if row == column { 1.0 } else { 0.0 };
    let small = Encoder::Kron { heads: 2, base: 2, extension: 2 };
    let topk = Selection::TopK(3);
    let tiny = Shape {
        name: "tiny.safetensors",
        encoder: small,
        d_model: 8,
        selection: topk,
        output_scale: 2.0,
        dtype: Dtype::F32,
    };
    write(folder, &tiny, identity)?;
    let threshold = Selection::Threshold { theta: 2.0, max_latents: 4 };
    write(folder, &Shape { name: "threshold.safetensors", selection: threshold, ..tiny }, identity)?;

    let random = Shape {
        name: "random.safetensors",
        encoder: Encoder::Kron { heads: 40, base: 4, extension: 4 },
        d_model: 100,
        selection: Selection::TopK(24),
        output_scale: 0.7,
        dtype: Dtype::Bf16,
    };
    // Weights without a pattern: the upper bits of a multiplicative hash, in -0.1 to 0.1.
    write(folder, &random, |row, column| {
        let hash = ((row * 100 + column) as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        (hash as f32 / 32768.0 - 1.0) * 0.1
    })?;

    let overhead = Shape {
        name: "overhead.safetensors",
        encoder: Encoder::Kron { heads: 4, base: 2, extension: 2 },
        d_model: 16,
        selection: Selection::TopK(4),
        output_scale: 1.0,
        dtype: Dtype::F32,
    };
    write(folder, &overhead, |row, column| ((row * 16 + column + 1) as f32).sin())?;
    Ok(())
}
