//! The screened path against the plain one, bit for bit: every instruction set and thread count; random, tied and hostile
//! models and tokens; real activations.

mod common;

use common::{Rng, random_sae};
use kronsae::sae::{Config, Encoder as Shape, EncoderWeights, Matrix, Selection};
use kronsae::tensor_file::{TensorDtype, TensorFile};
use kronsae::{
    Activations, Aligned, Dtype, EncodePath, EncodeSummary, Encoder, EncoderOptions, Isa, Latents, ROW_NOT_FINITE, Sae,
    Selector, dtype,
};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Everything an encode reports, values as bits.
#[derive(Debug, PartialEq)]
struct Result {
    counts: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<u32>,
    active: Vec<u32>,
    flags: Vec<u8>,
    summary: EncodeSummary,
}

fn encode(encoder: &mut Encoder, x: &[f32]) -> Result {
    let config = encoder.sae().config();
    let mut latents = Latents::new(x.len() / config.d_model, config.selection.capacity()).unwrap();
    let view = Activations::from_f32(x, config.d_model).unwrap();
    let summary = encoder.encode(view, &mut latents.as_mut()).unwrap();
    Result {
        values: latents.values.iter().map(|v| v.to_bits()).collect(),
        counts: latents.counts,
        indices: latents.indices,
        active: latents.active,
        flags: latents.flags,
        summary,
    }
}

fn encoder(sae: &Arc<Sae>, path: EncodePath, threads: usize, isa: Isa) -> Encoder {
    // So that AMX is tested where there is any.
    kronsae::Amx::request();
    Encoder::with_isa(Arc::clone(sae), EncoderOptions { threads, path }, isa).unwrap()
}

/// Asserts that both paths agree on `x`, in one batch and token by token; returns the share of rows recomputed.
fn assert_paths_agree(sae: &Arc<Sae>, x: &[f32]) -> f64 {
    let d = sae.config().d_model;
    let mut share = 0.0;
    for isa in Isa::available() {
        let expected = encode(&mut encoder(sae, EncodePath::Plain, 1, isa), x);
        for threads in [1, 3] {
            let mut screened = encoder(sae, EncodePath::Screened, threads, isa);
            assert_eq!(encode(&mut screened, x), expected, "{} {threads} threads", isa.name());
            let recomputed = screened.screening().unwrap().recomputed_rows;
            share = recomputed as f64 / (x.len() / d * sae.config().encoder.rows()) as f64;
            let capacity = sae.config().selection.capacity();
            for (t, x) in x.chunks(d).enumerate().take(6) {
                let one = encode(&mut screened, x);
                assert_eq!(one.counts[0], expected.counts[t]);
                assert_eq!(one.indices, expected.indices[t * capacity..(t + 1) * capacity]);
                assert_eq!(one.values, expected.values[t * capacity..(t + 1) * capacity]);
                assert_eq!((one.active[0], one.flags[0]), (expected.active[t], expected.flags[t]));
            }
        }
    }
    share
}

fn model(shape: Shape, d: usize, selection: Selection, weights: &[f32], bias: &[f32], dtype: Dtype) -> Arc<Sae> {
    let rows = shape.rows();
    let config = Config::new(shape, d, selection, 1.0).unwrap();
    let weight = Matrix::from_rows(weights, [rows, d], d, dtype, "weights").unwrap();
    let mut biases = Aligned::zeroed(rows, "biases").unwrap();
    biases.copy_from_slice(bias);
    Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias: biases, threshold: None }, None).unwrap())
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        (1_usize..40, 1_usize..6, 1_usize..9).prop_map(|(heads, base, extension)| Shape::Kron {
            heads,
            base,
            extension
        }),
        Just(Shape::Kron { heads: 61, base: 4, extension: 4 }),
        Just(Shape::Kron { heads: 2, base: 20, extension: 30 }),
        (1_usize..200).prop_map(|latents| Shape::Dense { latents }),
    ]
}

fn selections(latents: usize) -> impl Strategy<Value = Selection> {
    let most = latents.min(70);
    prop_oneof![
        (1..=most).prop_map(Selection::TopK),
        (0.0_f32..3.0, 1..=most).prop_map(|(theta, max_latents)| Selection::Threshold { theta, max_latents }),
    ]
}

/// How weights are made.
#[derive(Debug, Clone, Copy)]
enum Weights {
    Random,
    /// Small integers: ties everywhere, also at the cut.
    Integers,
    /// All rows equal, but for one weight that is an ulp off in some: near-ties at the cut.
    Ulps,
    /// All rows equal.
    Equal,
    /// Some rows zero, the others of one sign each.
    Signs,
    Denormal,
    /// Rows of every magnitude; some overflow with large tokens.
    Wild,
    Outliers,
}

fn weights() -> impl Strategy<Value = Weights> {
    use Weights::*;
    proptest::sample::select(&[Random, Integers, Ulps, Equal, Signs, Denormal, Wild, Outliers][..])
}

fn make(kind: Weights, rows: usize, d: usize, rng: &mut Rng) -> Vec<f32> {
    let first = rng.vec(d);
    let mut all = Vec::new();
    for _ in 0..rows {
        let choice = rng.below(3);
        let exponent = rng.below(200) as i32 - 120;
        for c in 0..d {
            all.push(match kind {
                Weights::Random => rng.unit(),
                Weights::Integers => rng.below(5) as f32 - 2.0,
                Weights::Ulps if c == 0 && choice > 0 => [first[0].next_up(), first[0].next_down()][choice - 1],
                Weights::Ulps | Weights::Equal => first[c],
                Weights::Signs => rng.unit().abs() * (choice as f32 - 1.0),
                Weights::Denormal => rng.unit() * 1e-39,
                Weights::Wild => rng.unit() * 2.0_f32.powi(exponent),
                Weights::Outliers => rng.unit() * if rng.below(50) == 0 { 3000.0 } else { 1.0 },
            });
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn screened_equals_plain(
        (shape, selection) in shapes().prop_flat_map(|s| (Just(s), selections(s.latents()))),
        d in prop_oneof![1_usize..200, Just(320)],
        kind in weights(),
        integers in any::<bool>(),
        bf16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng(seed);
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let weights = make(kind, shape.rows(), d, &mut rng);
        let bias: Vec<f32> = (0..shape.rows())
            .map(|_| if integers { 0.0 } else { rng.unit() * 0.1 })
            .collect();
        let sae = model(shape, d, selection, &weights, &bias, dtype);
        let tokens = 19;
        let mut x: Vec<f32> =
            (0..tokens * d).map(|_| if integers { rng.below(3) as f32 - 1.0 } else { rng.unit() }).collect();
        let mut token = |t: usize, f: &mut dyn FnMut(&mut f32)| x[t * d..(t + 1) * d].iter_mut().for_each(f);
        token(2, &mut |v| *v = 0.0);
        token(4, &mut |v| *v *= 1e-30);
        token(5, &mut |v| *v *= 3e19);
        token(7, &mut |v| *v *= 1e-42);
        token(8, &mut |v| *v *= 3e38);
        token(9, &mut |v| *v = v.abs());
        token(10, &mut |v| *v = 1.0);
        x[3 * d] = f32::NAN;
        x[6 * d + d / 2] = f32::INFINITY;
        x[11 * d + d - 1] = f32::NEG_INFINITY;
        x[12 * d] *= 1e5;
        x[13 * d + d / 2] = f32::MAX;
        assert_paths_agree(&sae, &x);
    }
}

#[test]
fn weights_that_are_not_finite_change_nothing() {
    let shape = Shape::Kron { heads: 9, base: 3, extension: 3 };
    let mut rng = Rng(6);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let d = 70;
        let config = Config::new(shape, d, Selection::TopK(5), 1.0).unwrap();
        let mut weight = Matrix::zeroed(shape.rows(), d, "weights").unwrap();
        let stride = weight.stride();
        for row in weight.f32_mut().chunks_mut(stride) {
            row[..d].copy_from_slice(&rng.vec(d));
        }
        weight.f32_mut()[7 * stride + 65] = bad;
        let bias = Aligned::zeroed(shape.rows(), "biases").unwrap();
        let sae = Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap());
        assert_paths_agree(&sae, &rng.vec(d * 5));
    }
}

#[test]
fn thresholds_latent_by_latent() {
    let shape = Shape::Dense { latents: 300 };
    let mut rng = Rng(12);
    let d = 130;
    let selection = Selection::Threshold { theta: 0.0, max_latents: 40 };
    let config = Config::new(shape, d, selection, 1.0).unwrap();
    let weight = Matrix::from_rows(&rng.vec(300 * d), [300, d], d, Dtype::F32, "weights").unwrap();
    let bias = Aligned::zeroed(300, "biases").unwrap();
    let mut threshold = Aligned::zeroed(300, "thresholds").unwrap();
    threshold.iter_mut().for_each(|t| *t = 12.0 * rng.unit().abs());
    let encoder = EncoderWeights { weight, bias, threshold: Some(threshold) };
    let sae = Arc::new(Sae::from_parts(config, encoder, None).unwrap());
    let share = assert_paths_agree(&sae, &rng.vec(d * 20));
    assert!(share > 0.0 && share < 0.6, "{share} of the rows were recomputed");
}

/// The held-out activations of the sample, `[tokens, 576]`.
fn sample() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample/heldout.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut bytes = vec![0; file.require("activations").unwrap().bytes];
    file.read("activations", 0, &mut bytes).unwrap();
    let mut x = vec![0.0; bytes.len() / 2];
    dtype::widen(Dtype::F16, &bytes, &mut x);
    x
}

/// Weights as of a fresh model, in units of the sample: its mean and scale are folded in.
fn fresh(x: &[f32], rows: usize, d: usize, rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
    let count = (x.len() / d) as f64;
    let mut mean = vec![0.0_f64; d];
    for token in x.chunks(d) {
        mean.iter_mut().zip(token).for_each(|(m, v)| *m += f64::from(*v) / count);
    }
    let squares: f64 = x.chunks(d).flatten().zip(mean.iter().cycle()).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum();
    let by = 1.0 / ((d as f64).sqrt() * (squares / x.len() as f64).sqrt()) as f32;
    let weights: Vec<f32> = (0..rows * d).map(|_| (rng.unit() + rng.unit() + rng.unit()) * by).collect();
    let of_mean = |row: &[f32]| -row.iter().zip(&mean).map(|(w, m)| f64::from(*w) * m).sum::<f64>() as f32;
    let bias = weights.chunks(d).map(of_mean).collect();
    (weights, bias)
}

#[test]
fn real_activations() {
    let x = sample();
    let d = 576;
    let mut rng = Rng(1);
    for (shape, selection) in [
        (Shape::Kron { heads: 256, base: 4, extension: 4 }, Selection::TopK(32)),
        (Shape::Kron { heads: 256, base: 4, extension: 4 }, Selection::Threshold { theta: 2.0, max_latents: 100 }),
        (Shape::Dense { latents: 2048 }, Selection::TopK(32)),
    ] {
        let (weights, bias) = fresh(&x, shape.rows(), d, &mut rng);
        let sae = model(shape, d, selection, &weights, &bias, Dtype::Bf16);
        // Tokens from all over the texts.
        let every = x.len() / d / 150;
        let picked: Vec<f32> = x.chunks(d).step_by(every).flatten().copied().collect();
        let share = assert_paths_agree(&sae, &picked);
        assert!(share > 0.0 && share < 0.5, "{shape:?} {selection:?}: {share} of the rows were recomputed");
        eprintln!("{shape:?} {selection:?}: {:.2} % of the rows recomputed", share * 100.0);
    }
}

/// A trained model and all shards of a folder, the sample's if none is named: `KRONSAE_MODEL=model.safetensors
/// KRONSAE_ACTIVATIONS=folder cargo test --release --test screen -- --ignored --nocapture`.
#[test]
#[ignore = "needs a trained model, and minutes"]
fn trained_model_on_all_activations() {
    let path = std::env::var("KRONSAE_MODEL").expect("KRONSAE_MODEL names a model of 576 dimensions");
    let sae = Arc::new(Sae::open(path).unwrap());
    let d = sae.config().d_model;
    let folder = match std::env::var_os("KRONSAE_ACTIVATIONS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample"),
    };
    let isa = Isa::detect().unwrap();
    let mut plain = encoder(&sae, EncodePath::Plain, 2, isa);
    // By tiles, where there are any; by the high plane first.
    let mut large = encoder(&sae, EncodePath::Screened, 2, isa);
    let mut small = encoder(&sae, EncodePath::Screened, 2, isa);
    let mut fast = encoder(&sae, EncodePath::Fast, 2, isa);
    let (mut tokens, mut misses) = (0, Misses::default());
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = TensorFile::open(&path).unwrap();
        let entry = file.require("activations").unwrap();
        let mut bytes = vec![0; entry.bytes];
        file.read("activations", 0, &mut bytes).unwrap();
        let dtype = match entry.dtype {
            TensorDtype::F16 => Dtype::F16,
            TensorDtype::BF16 => Dtype::Bf16,
            TensorDtype::F32 => Dtype::F32,
            other => panic!("activations are {other:?}"),
        };
        let mut x = vec![0.0; bytes.len() / dtype.size()];
        dtype::widen(dtype, &bytes, &mut x);
        for batch in x.chunks(d * 1000) {
            let expected = encode(&mut plain, batch);
            assert_eq!(encode(&mut large, batch), expected);
            let capacity = expected.indices.len() / expected.counts.len();
            for (i, few) in batch.chunks(d * 5).enumerate() {
                let found = encode(&mut small, few);
                let at = i * 5 * capacity;
                assert_eq!(found.indices, expected.indices[at..at + found.indices.len()]);
                assert_eq!(found.values, expected.values[at..at + found.values.len()]);
            }
            misses.add(&encode(&mut fast, batch), &expected);
            tokens += batch.len() / d;
        }
    }
    assert!(tokens > 0, "no shard in {}", folder.display());
    let share = |rows: usize| 100.0 * rows as f64 / (tokens * sae.config().encoder.rows()) as f64;
    for (name, encoder) in [("by tiles", &large), ("few at a time", &small), ("fast", &fast)] {
        let screening = encoder.screening().unwrap();
        eprintln!(
            "{name}: {tokens} tokens; {:.2} % of the rows by both planes, {:.2} % recomputed",
            share(screening.refined_rows),
            share(screening.recomputed_rows)
        );
    }
    eprintln!("fast: {misses:?}");
}

/// What the fast path did otherwise.
#[derive(Debug, Default)]
struct Misses {
    latents: usize,
    missing: usize,
    tokens: usize,
    tokens_with_any: usize,
}

impl Misses {
    fn add(&mut self, found: &Result, expected: &Result) {
        let capacity = expected.indices.len() / expected.counts.len();
        for (t, (&count, &wanted)) in found.counts.iter().zip(&expected.counts).enumerate() {
            let row = |of: &Result, count: u32| -> Vec<(u32, u32)> {
                let range = t * capacity..t * capacity + count as usize;
                of.indices[range.clone()].iter().copied().zip(of.values[range].iter().copied()).collect()
            };
            let (found, expected) = (row(found, count), row(expected, wanted));
            let missing = expected.iter().filter(|latent| !found.contains(latent)).count();
            self.latents += expected.len();
            self.missing += missing;
            self.tokens += 1;
            self.tokens_with_any += usize::from(missing > 0);
        }
    }
}

#[test]
fn the_fast_path_misses_little_and_values_are_canonical() {
    let x = sample();
    let d = 576;
    let mut rng = Rng(2);
    let shape = Shape::Kron { heads: 256, base: 4, extension: 4 };
    let (weights, bias) = fresh(&x, shape.rows(), d, &mut rng);
    for selection in [Selection::TopK(32), Selection::Threshold { theta: 2.0, max_latents: 100 }] {
        let sae = model(shape, d, selection, &weights, &bias, Dtype::F32);
        let x = &x[..d * 640];
        for isa in Isa::available() {
            let expected = encode(&mut encoder(&sae, EncodePath::Plain, 1, isa), x);
            for tokens in [3, 64] {
                let mut fast = encoder(&sae, EncodePath::Fast, 2, isa);
                let mut misses = Misses::default();
                for (i, x) in x.chunks(d * tokens).enumerate() {
                    let found = encode(&mut fast, x);
                    let rows = i * tokens..i * tokens + found.counts.len();
                    let capacity = expected.indices.len() / expected.counts.len();
                    let entries = rows.start * capacity..rows.end * capacity;
                    let part = Result {
                        counts: expected.counts[rows].to_vec(),
                        indices: expected.indices[entries.clone()].to_vec(),
                        values: expected.values[entries].to_vec(),
                        active: Vec::new(),
                        flags: Vec::new(),
                        summary: EncodeSummary::default(),
                    };
                    misses.add(&found, &part);
                }
                assert!(misses.missing * 2000 < misses.latents, "{} {selection:?}: {misses:?}", isa.name());
                let rows = fast.screening().unwrap().recomputed_rows as f64;
                let share = rows / (misses.tokens * shape.rows()) as f64;
                assert!(share < 0.3, "{share} of the rows were recomputed");
            }
        }
    }
}

#[test]
fn a_token_that_is_not_covered_is_computed_in_full_and_others_are_not() {
    let mut rng = Rng(3);
    let shape = Shape::Kron { heads: 300, base: 4, extension: 4 };
    let d = 512;
    let sae = Arc::new(random_sae(shape, d, Selection::TopK(5), Dtype::F32, &mut rng));
    let isa = Isa::detect().unwrap();
    let mut screened = encoder(&sae, EncodePath::Screened, 1, isa);
    let mut x = rng.vec(d);
    encode(&mut screened, &x);
    let usual = screened.screening().unwrap().recomputed_rows;
    assert!(usual > 0 && usual < shape.rows() / 4, "{usual} of {} rows", shape.rows());
    x[9] = f32::NAN;
    assert_eq!(encode(&mut screened, &x).flags, [ROW_NOT_FINITE]);
    assert_eq!(screened.screening().unwrap().recomputed_rows, usual + shape.rows());
}

#[test]
fn the_path_is_chosen_by_batch_and_model() {
    let mut rng = Rng(3);
    let isa = Isa::detect().unwrap();
    let small = random_sae(Shape::Dense { latents: 60 }, 8, Selection::TopK(5), Dtype::F32, &mut rng);
    assert_eq!(encoder(&Arc::new(small), EncodePath::Plain, 1, isa).screening(), None);
    let shape = Shape::Kron { heads: 512, base: 4, extension: 4 };
    let sae = Arc::new(random_sae(shape, 512, Selection::TopK(5), Dtype::Bf16, &mut rng));
    let forced = encoder(&sae, EncodePath::Screened, 1, isa).screening().unwrap();
    assert_eq!(forced.most_rows, usize::MAX);
    // 1 byte a weight and 20 a row in one plane.
    assert_eq!(forced.copy_bytes[0], shape.rows() * (512 + 20));
    // Both planes, their rows at an odd number of cache lines.
    assert_eq!(forced.held_bytes, shape.rows() * (2 * 576 + 20) + 512 * 4);
}

/// Where all rows tie, nothing can be ruled out; the encoder notices, and results stay what they are.
#[test]
fn screening_pauses_where_it_rules_out_nothing() {
    let shape = Shape::Kron { heads: 256, base: 4, extension: 4 };
    let d = 512;
    let mut rng = Rng(21);
    let row = rng.vec(d);
    let weights: Vec<f32> = (0..shape.rows()).flat_map(|_| row.iter().map(|w| w.abs())).collect();
    let sae = model(shape, d, Selection::TopK(5), &weights, &vec![0.0; shape.rows()], Dtype::Bf16);
    let isa = Isa::detect().unwrap();
    let mut auto = encoder(&sae, EncodePath::Auto, 1, isa);
    let mut plain = encoder(&sae, EncodePath::Plain, 1, isa);
    let forced = std::env::var_os("KRONSAE_ENCODE").is_some_and(|value| !value.is_empty());
    if auto.screening().is_none() || forced {
        eprintln!("nothing is screened by choice here; nothing to check");
        return;
    }
    let x: Vec<f32> = row.iter().map(|w| w.abs()).collect();
    let expected = encode(&mut plain, &x);
    for _ in 0..3 {
        assert_eq!(encode(&mut auto, &x), expected);
        assert_eq!(auto.screening().unwrap().recomputed_rows, shape.rows(), "the first call alone is screened");
    }
    for _ in 0..100 {
        assert_eq!(encode(&mut auto, &x), expected);
    }
    assert_eq!(auto.screening().unwrap().recomputed_rows, 2 * shape.rows(), "and tried again later");
}

/// The selection that follows gets zeros where rows were ruled out; no rule may select them.
#[test]
fn zeros_are_never_selected() {
    for shape in [Shape::Kron { heads: 5, base: 2, extension: 3 }, Shape::Dense { latents: 20 }] {
        for selection in [Selection::TopK(4), Selection::Threshold { theta: 0.0, max_latents: 4 }] {
            for isa in Isa::available() {
                let mut selector = Selector::new(shape, selection, None, isa).unwrap();
                selector.select(&vec![0.0; shape.rows()]);
                assert_eq!(selector.count(), 0);
            }
        }
    }
}
