//! `cargo bench -p kronsae`: selection alone and its share, encode at several batch sizes and by each path, decode. All at (d576, h1024, m4, n4, K50), an
//! F of 16,384, on real activations from `data/sample`; W is random, of unit-variance pre-activations like a fresh model.
//!
//! Criterion reports time per call and elements per second; an element is a token.

#[path = "../tests/common/mod.rs"]
mod common;

use common::Rng;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kronsae::sae::{Config, Encoder as Shape, MatrixRef, ModelWriter, Selection, Which};
use kronsae::tensor_file::TensorFile;
use kronsae::{
    Activations, Dtype, EncodePath, Encoder, EncoderOptions, Isa, Latents, RowOutcome, Sae, Selector, dtype,
    pre_activations,
};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const D: usize = 576;
const KRON: Shape = Shape::Kron { heads: 1024, base: 4, extension: 4 };
const DENSE: Shape = Shape::Dense { latents: 16_384 };
const K: usize = 50;
/// Tokens whose pre-activations are selected from in turn: a tile, as the encoder has them in its cache.
const TILE: usize = 48;

/// The held-out tokens, `[tokens, D]`.
fn tokens() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample/heldout.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut bytes = vec![0; file.require("activations").unwrap().bytes];
    file.read("activations", 0, &mut bytes).unwrap();
    let mut x = vec![0.0; bytes.len() / 2];
    dtype::widen(Dtype::F16, &bytes, &mut x);
    x
}

/// W and b for raw activations: normal rows of variance 1/D over normalised ones, mean and scale folded in.
fn weights(x: &[f32], rows: usize, rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
    let count = (x.len() / D) as f64;
    let mut mean = vec![0.0_f64; D];
    for token in x.chunks(D) {
        mean.iter_mut().zip(token).for_each(|(m, v)| *m += f64::from(*v) / count);
    }
    let squares: f64 = x.chunks(D).flatten().zip(mean.iter().cycle()).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum();
    let scale = (squares / x.len() as f64).sqrt();
    // The sum of three uniform numbers has variance 1.
    let weight: Vec<f32> =
        (0..rows * D).map(|_| (rng.unit() + rng.unit() + rng.unit()) / ((D as f64).sqrt() * scale) as f32).collect();
    let bias = weight
        .chunks(D)
        .map(|row| -row.iter().zip(&mean).map(|(w, m)| f64::from(*w) * m).sum::<f64>() as f32)
        .collect();
    (weight, bias)
}

fn model(x: &[f32], shape: Shape, dtype: Dtype) -> Arc<Sae> {
    let mut rng = Rng(1);
    let config = Config::new(shape, D, Selection::TopK(K), 1.0).unwrap();
    let (weight, bias) = weights(x, shape.rows(), &mut rng);
    let decoder = rng.vec(shape.latents() * D);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weight, [shape.rows(), D], D, dtype),
        encoder_bias: &bias,
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &decoder, [shape.latents(), D], D, dtype),
        decoder_bias: &[0.0; D],
        calibration: None,
    }
    .write(&path)
    .unwrap();
    Arc::new(Sae::open(&path).unwrap())
}

fn selection(c: &mut Criterion) {
    let x = tokens();
    let isa = Isa::detect().unwrap();
    let mut group = c.benchmark_group("select");
    group.throughput(Throughput::Elements(TILE as u64));
    // Thresholds that give about as many latents as TopK does, on this input.
    for (name, shape, theta) in [("kron", KRON, 1.8), ("dense", DENSE, 2.9)] {
        let rows = shape.rows();
        let (weight, bias) = weights(&x, rows, &mut Rng(1));
        let weight = MatrixRef::f32(&weight, rows, D, D);
        let mut y = vec![0.0; TILE * rows];
        // Tokens from all over the texts.
        let spread = x.len() / D / TILE;
        let picked: Vec<f32> = x.chunks(D).step_by(spread).take(TILE).flatten().copied().collect();
        pre_activations(isa, weight, &bias, &picked, D, TILE, 0..rows, &mut y, rows);
        for (rule, selection) in
            [("topk50", Selection::TopK(K)), ("threshold", Selection::Threshold { theta, max_latents: 4 * K })]
        {
            let mut selector = Selector::new(shape, selection, None, isa).unwrap();
            let mut active = 0;
            group.bench_function(BenchmarkId::new(name, rule), |b| {
                b.iter(|| {
                    active = 0;
                    for y in y.chunks_exact(rows) {
                        match selector.select(black_box(y)) {
                            RowOutcome::Selected { active: n } => active += n,
                            RowOutcome::NotFinite => unreachable!("the sample is finite"),
                        }
                    }
                    active
                });
            });
            eprintln!("  {name} {rule}: {:.1} latents a token", active as f64 / TILE as f64);
        }
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let x = tokens();
    let mut group = c.benchmark_group("encode");
    for (name, shape, dtype) in
        [("kron-f32", KRON, Dtype::F32), ("kron-bf16", KRON, Dtype::Bf16), ("dense-bf16", DENSE, Dtype::Bf16)]
    {
        let sae = model(&x, shape, dtype);
        for threads in [1, 2] {
            for batch in [1, 64, 1024] {
                if name == "dense-bf16" && batch == 1024 {
                    continue; // the same per token as 64, in ten times the time
                }
                let mut encoder =
                    Encoder::new(Arc::clone(&sae), EncoderOptions { threads, ..EncoderOptions::default() }).unwrap();
                let mut latents = Latents::new(batch, K).unwrap();
                let mut batches = x.chunks_exact(batch * D).cycle();
                group.throughput(Throughput::Elements(batch as u64));
                group.bench_function(BenchmarkId::new(format!("{name}/{threads}-threads"), batch), |b| {
                    b.iter(|| {
                        let x = Activations::from_f32(batches.next().unwrap(), D).unwrap();
                        encoder.encode(x, &mut latents.as_mut()).unwrap()
                    });
                });
            }
        }
    }
    group.finish();
}

/// One batch by each path, on one thread.
fn screening(c: &mut Criterion) {
    let x = tokens();
    let mut group = c.benchmark_group("screening");
    let sae = model(&x, KRON, Dtype::F32);
    for (name, path) in [("screened", EncodePath::Screened), ("fast", EncodePath::Fast), ("plain", EncodePath::Plain)] {
        let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions { threads: 1, path }).unwrap();
        for batch in [1, 64] {
            let mut latents = Latents::new(batch, K).unwrap();
            let mut batches = x.chunks_exact(batch * D).cycle();
            let (mut calls, before) = (0, encoder.screening().map_or(0, |screening| screening.recomputed_rows));
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter(|| {
                    calls += 1;
                    let x = Activations::from_f32(batches.next().unwrap(), D).unwrap();
                    encoder.encode(x, &mut latents.as_mut()).unwrap()
                });
            });
            if let Some(screening) = encoder.screening() {
                let share = (screening.recomputed_rows - before) as f64 / (calls * batch * KRON.rows()) as f64;
                eprintln!("  {name}, batch {batch}: {:.2} % of the rows computed exactly", 100.0 * share);
            }
        }
    }
    group.finish();
}

/// Selection beside the encode that it is part of: the same 64 tokens, on one thread, by the path that the encoder chooses.
fn selection_share(c: &mut Criterion) {
    const BATCH: usize = 64;
    let x = tokens();
    let x = &x[..BATCH * D];
    let sae = model(x, KRON, Dtype::F32);
    let (isa, rows) = (Isa::detect().unwrap(), KRON.rows());
    let mut y = vec![0.0; BATCH * rows];
    let weights = sae.encoder();
    pre_activations(isa, weights.weight.as_ref(), &weights.bias, x, D, BATCH, 0..rows, &mut y, rows);
    let mut selector = Selector::new(KRON, Selection::TopK(K), None, isa).unwrap();
    let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
    let mut latents = Latents::new(BATCH, K).unwrap();
    let mut select = || {
        y.chunks_exact(rows).for_each(|y| {
            black_box(selector.select(black_box(y)));
        });
    };
    let mut encode = || {
        encoder.encode(Activations::from_f32(black_box(x), D).unwrap(), &mut latents.as_mut()).unwrap();
    };
    // In turns, so that what else the machine does falls on both.
    let timed = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    let mut best = [Duration::MAX; 2];
    for _ in 0..20 {
        best = [best[0].min(timed(&mut select)), best[1].min(timed(&mut encode))];
    }
    let share = 100.0 * best[0].as_secs_f64() / best[1].as_secs_f64();
    eprintln!("  selection from all pre-activations: {share:.1} % of the encode of {BATCH} tokens, best of each");
    let mut group = c.benchmark_group("selection-share");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("select", |b| b.iter(&mut select));
    group.bench_function("encode", |b| b.iter(&mut encode));
    group.finish();
}

fn decode(c: &mut Criterion) {
    const BATCH: usize = 64;
    let x = tokens();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(BATCH as u64));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let sae = model(&x, KRON, dtype);
        let mut latents = Latents::new(BATCH, K).unwrap();
        let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
        encoder.encode(Activations::from_f32(&x[..BATCH * D], D).unwrap(), &mut latents.as_mut()).unwrap();
        let mut out = vec![0.0; BATCH * D];
        group.bench_function(BenchmarkId::new(format!("kron-{dtype}"), BATCH), |b| {
            b.iter(|| sae.decode(black_box((&latents).into()), &mut out).unwrap());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // Short: what is measured is steady, and the machine is often shared.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = selection, selection_share, encode, screening, decode
}
criterion_main!(benches);
