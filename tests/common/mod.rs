//! Naive references and makers of models, shared by the runtime's tests. Nothing here is fast or clever.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use kronsae::sae::{Config, Encoder, LoadOptions, ModelWriter, Selection, Which};
use kronsae::{Dtype, Sae};
use std::path::Path;

/// SplitMix64: a seed in, reproducible numbers out.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// `dot/1` as the format describes it, one row and one token.
pub(crate) fn dot1(w: &[f32], x: &[f32], bias: f32) -> f32 {
    let mut acc = [0.0_f32; 16];
    for (at, (w, x)) in w.iter().zip(x).enumerate() {
        acc[at % 16] = w.mul_add(*x, acc[at % 16]);
    }
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            acc[j] += acc[j + half];
        }
    }
    acc[0] + bias
}

/// Every latent of one token, in the order of the format: (index, value). `None` for a row that is not finite.
///
/// Forms all F products, as the library never does.
pub(crate) fn naive_select(
    y: &[f32],
    encoder: Encoder,
    selection: Selection,
    thresholds: Option<&[f32]>,
) -> Option<Vec<(u32, f32)>> {
    if y.iter().any(|v| v.is_nan() || *v == f32::INFINITY) {
        return None;
    }
    let mut all: Vec<(u32, f32)> = Vec::new();
    match encoder {
        Encoder::Kron { heads, base: m, extension: n } => {
            for head in 0..heads {
                let rows = &y[head * (m + n)..][..m + n];
                for i in 0..m {
                    for j in 0..n {
                        all.push(((head * m * n + i * n + j) as u32, rows[i].max(0.0) * rows[m + j].max(0.0)));
                    }
                }
            }
        }
        Encoder::Dense { .. } => all.extend(y.iter().enumerate().map(|(f, v)| (f as u32, v.max(0.0)))),
    }
    if all.iter().any(|(_, product)| !product.is_finite()) {
        return None;
    }
    all.retain(|(_, product)| *product > 0.0);
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if matches!(encoder, Encoder::Kron { .. }) {
        for latent in &mut all {
            latent.1 = latent.1.sqrt();
        }
    }
    match selection {
        Selection::TopK(k) => all.truncate(k),
        Selection::Threshold { theta, max_latents } => {
            all.retain(|(f, value)| *value > thresholds.map_or(theta, |t| t[*f as usize]));
            all.truncate(max_latents);
        }
    }
    Some(all)
}

/// A model file of random weights; returns nothing, the file is the result.
pub(crate) fn write_random_model(
    path: &Path,
    encoder: Encoder,
    d: usize,
    selection: Selection,
    dtype: Dtype,
    rng: &mut Rng,
) {
    let config = Config::new(encoder, d, selection, 1.5).unwrap();
    let weight = rng.vec(encoder.rows() * d);
    let decoder = rng.vec(encoder.latents() * d);
    let bias: Vec<f32> = (0..encoder.rows()).map(|_| rng.unit() * 0.1).collect();
    let decoder_bias = rng.vec(d);
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weight, [encoder.rows(), d], d, dtype),
        encoder_bias: &bias,
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &decoder, [encoder.latents(), d], d, dtype),
        decoder_bias: &decoder_bias,
        calibration: None,
    }
    .write(path)
    .unwrap();
}

/// As [`write_random_model`], loaded.
pub(crate) fn random_sae(encoder: Encoder, d: usize, selection: Selection, dtype: Dtype, rng: &mut Rng) -> Sae {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_random_model(&path, encoder, d, selection, dtype, rng);
    // The file is gone when this returns; its bytes, too, have an id.
    Sae::from_bytes(&std::fs::read(&path).unwrap(), LoadOptions::default()).unwrap()
}

/// The encoder's weights as plain rows.
pub(crate) fn weight_rows(sae: &Sae) -> Vec<Vec<f32>> {
    let d = sae.config().d_model;
    (0..sae.config().encoder.rows())
        .map(|r| {
            let mut row = vec![0.0; d];
            sae.encoder().weight.widen_row(r, &mut row);
            row
        })
        .collect()
}

/// What the library must return for token `x`.
pub(crate) fn naive_encode(sae: &Sae, rows: &[Vec<f32>], x: &[f32]) -> Option<Vec<(u32, f32)>> {
    let y: Vec<f32> = rows.iter().zip(sae.encoder().bias.iter()).map(|(w, b)| dot1(w, x, *b)).collect();
    let config = sae.config();
    naive_select(&y, config.encoder, config.selection, sae.encoder().threshold.as_deref())
}

/// The latents of a batch as the format lays them out: unused entries are 0.
pub(crate) struct NaiveLatents {
    pub(crate) counts: Vec<u32>,
    pub(crate) indices: Vec<u32>,
    pub(crate) values: Vec<f32>,
    /// Latents that passed before the cut to `max_latents`; for TopK the count.
    pub(crate) active: Vec<u32>,
    /// 1: not finite, 2: truncated.
    pub(crate) flags: Vec<u8>,
}

/// Selects from rows of pre-activations, `[rows, encoder.rows()]`.
pub(crate) fn naive_latents(
    y: &[f32],
    encoder: Encoder,
    selection: Selection,
    thresholds: Option<&[f32]>,
) -> NaiveLatents {
    let mut out = NaiveLatents { counts: vec![], indices: vec![], values: vec![], active: vec![], flags: vec![] };
    for y in y.chunks(encoder.rows()) {
        let latents = naive_select(y, encoder, selection, thresholds);
        let uncut = match selection {
            Selection::TopK(_) => latents.clone(),
            Selection::Threshold { theta, .. } => {
                naive_select(y, encoder, Selection::Threshold { theta, max_latents: usize::MAX }, thresholds)
            }
        };
        let active = uncut.map_or(0, |all| all.len());
        let finite = latents.is_some();
        let mut latents = latents.unwrap_or_default();
        out.counts.push(latents.len() as u32);
        out.active.push(active as u32);
        out.flags.push(if !finite { 1 } else { 2 * u8::from(active > latents.len()) });
        latents.resize(selection.capacity(), (0, 0.0));
        out.indices.extend(latents.iter().map(|(f, _)| f));
        out.values.extend(latents.iter().map(|(_, v)| v));
    }
    out
}

/// `s * sum of value * D[index] + b_dec`, terms in order, each with one rounding.
pub(crate) fn naive_decode(latents: &[(u32, f32)], decoder: &[f32], bias: &[f32], scale: f32) -> Vec<f32> {
    let d = bias.len();
    let mut out = vec![0.0_f32; d];
    for &(f, value) in latents {
        for c in 0..d {
            out[c] = decoder[f as usize * d + c].mul_add(value, out[c]);
        }
    }
    (0..d).map(|c| out[c].mul_add(scale, bias[c])).collect()
}

/// `values` rounded to `dtype`: their little-endian bytes, and what those bytes mean.
pub(crate) fn rounded(dtype: Dtype, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    };
    let mut exact = vec![0.0; values.len()];
    kronsae::dtype::widen(dtype, &bytes, &mut exact);
    (bytes, exact)
}
