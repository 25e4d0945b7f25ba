//! Golden vectors: that `data/golden` is what the naive reference makes, and that the library returns it bit for bit on
//! every instruction set, batch size and thread count. `cargo xtask golden` writes the files anew.

mod common;

use common::{Rng, dot1, naive_decode, naive_latents, rounded};
use kronsae::sae::{Config, Encoder as Shape, Selection};
use kronsae::tensor_file::{self, TensorDtype, TensorFile, TensorOut};
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Isa, Latents, ROW_NOT_FINITE, RowOutcome, Sae, Selector};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden")
}

// ---------------------------------------------------------------------------------------------------- making them

const TOPK_KRON: Shape = Shape::Kron { heads: 11, base: 3, extension: 4 };
const WIDE_KRON: Shape = Shape::Kron { heads: 2, base: 12, extension: 18 };
/// Enough heads for a whole vector of them, and a remainder.
const SQUARE_KRON: Shape = Shape::Kron { heads: 21, base: 4, extension: 4 };
const DENSE: Shape = Shape::Dense { latents: 53 };

/// Pre-activations to latents: name, shape, rule.
const SELECTIONS: [(&str, Shape, Selection); 7] = [
    ("kron-topk", TOPK_KRON, Selection::TopK(9)),
    ("kron-all", TOPK_KRON, Selection::TopK(132)),
    ("kron-wide-topk", WIDE_KRON, Selection::TopK(20)),
    ("kron-threshold", TOPK_KRON, Selection::Threshold { theta: 0.75, max_latents: 8 }),
    ("dense-topk", DENSE, Selection::TopK(9)),
    ("dense-threshold", DENSE, Selection::Threshold { theta: 0.75, max_latents: 8 }),
    ("kron-square-topk", SQUARE_KRON, Selection::TopK(12)),
];

/// Activations to latents through a model file.
struct EncodeCase {
    name: &'static str,
    shape: Shape,
    d: usize,
    selection: Selection,
    weights: Dtype,
    activations: Dtype,
    /// Weights and activations are small whole numbers, so that latents tie everywhere.
    integers: bool,
    thresholds: bool,
}

const ENCODES: [EncodeCase; 7] = [
    encode_case("kron-topk", Shape::Kron { heads: 6, base: 2, extension: 3 }, 20, Selection::TopK(5)),
    EncodeCase {
        weights: Dtype::Bf16,
        activations: Dtype::Bf16,
        ..encode_case("kron-bf16", Shape::Kron { heads: 8, base: 4, extension: 4 }, 36, Selection::TopK(12))
    },
    EncodeCase {
        weights: Dtype::F16,
        activations: Dtype::F16,
        ..encode_case("kron-f16", Shape::Kron { heads: 5, base: 2, extension: 2 }, 16, Selection::TopK(4))
    },
    EncodeCase {
        integers: true,
        ..encode_case("kron-ties", Shape::Kron { heads: 7, base: 2, extension: 4 }, 9, Selection::TopK(6))
    },
    encode_case(
        "kron-threshold",
        Shape::Kron { heads: 6, base: 3, extension: 3 },
        20,
        Selection::Threshold { theta: 0.25, max_latents: 6 },
    ),
    encode_case("dense-topk", Shape::Dense { latents: 40 }, 24, Selection::TopK(7)),
    EncodeCase {
        thresholds: true,
        ..encode_case(
            "dense-jumprelu",
            Shape::Dense { latents: 40 },
            24,
            Selection::Threshold { theta: 0.0, max_latents: 8 },
        )
    },
];

const fn encode_case(name: &'static str, shape: Shape, d: usize, selection: Selection) -> EncodeCase {
    let (weights, activations) = (Dtype::F32, Dtype::F32);
    EncodeCase { name, shape, d, selection, weights, activations, integers: false, thresholds: false }
}

fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Rows of pre-activations that meet every rule of the order.
fn pre_activation_rows(width: usize, rng: &mut Rng) -> Vec<f32> {
    let mut rows = Vec::new();
    let mut push = |row: Vec<f32>| rows.extend(row);
    push(rng.vec(width).iter().map(|v| v * 2.0).collect());
    push(rng.vec(width).iter().map(|v| v * 2.0 + 1.0).collect());
    push(vec![0.0; width]);
    push(vec![-0.0; width]);
    push(rng.vec(width).iter().map(|v| -v.abs()).collect());
    push(vec![1.0; width]); // everything ties
    for levels in [2, 3, 5] {
        push((0..width).map(|_| rng.below(levels) as f32).collect());
        push((0..width).map(|_| rng.below(levels + 2) as f32 - 2.0).collect());
    }
    // Fewer positive rows than K needs.
    push((0..width).map(|_| if rng.below(9) == 0 { 1.0 + rng.unit() } else { -1.0 }).collect());
    // Products that are subnormal, that underflow to 0 in part, and that all do.
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(-66)).collect());
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(-75)).collect());
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(-80)).collect());
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(-140)).collect());
    // Products just within the range, and past it.
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(63)).collect());
    push(rng.vec(width).iter().map(|v| v * 2.0_f32.powi(70)).collect());
    for special in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, width / 2, width - 1] {
            let mut row = rng.vec(width);
            row[at] = special;
            push(row);
        }
    }
    rows
}

fn activation_rows(case: &EncodeCase, rng: &mut Rng) -> Vec<f32> {
    let d = case.d;
    let mut rows = Vec::new();
    for _ in 0..8 {
        if case.integers {
            rows.extend((0..d).map(|_| rng.below(3) as f32 - 1.0));
        } else {
            rows.extend(rng.vec(d).iter().map(|v| v * 3.0));
        }
    }
    rows.extend(vec![0.0; d]);
    // Far below what the products can hold, around it, and past the other end.
    for scale in [2.0_f32.powi(-140), 2.0_f32.powi(-80), 2.0_f32.powi(-68), 2.0_f32.powi(63), 2.0_f32.powi(80)] {
        rows.extend(rng.vec(d).iter().map(|v| v * scale));
    }
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = rng.vec(d);
        row[rng.below(d)] = special;
        rows.extend(row);
    }
    rows
}

/// The tensors that hold the expected latents, the same in every file.
fn write_vectors(
    path: &Path,
    config: &Config,
    inputs: Vec<TensorOut<'_>>,
    y: &[f32],
    latents: &common::NaiveLatents,
    reconstruction: Option<&[f32]>,
) {
    let (rows, capacity) = (latents.counts.len(), config.selection.capacity());
    let (counts, indices, active) =
        (u32_bytes(&latents.counts), u32_bytes(&latents.indices), u32_bytes(&latents.active));
    let mut tensors = inputs;
    tensors.push(TensorOut::f32("pre_activations", &[rows, config.encoder.rows()], y));
    tensors.push(TensorOut::bytes("counts", TensorDtype::U32, &[rows], &counts));
    tensors.push(TensorOut::bytes("indices", TensorDtype::U32, &[rows, capacity], &indices));
    tensors.push(TensorOut::f32("values", &[rows, capacity], &latents.values));
    tensors.push(TensorOut::bytes("active", TensorDtype::U32, &[rows], &active));
    if let Some(reconstruction) = reconstruction {
        tensors.push(TensorOut::f32("reconstruction", &[rows, config.d_model], reconstruction));
    }
    tensors.push(TensorOut::bytes("flags", TensorDtype::U8, &[rows], &latents.flags));
    let metadata =
        BTreeMap::from([("format".to_owned(), "golden/1".to_owned()), ("config".to_owned(), config.to_json())]);
    tensor_file::write(path, &metadata, tensors).unwrap();
}

fn make_selection(to: &Path, name: &str, shape: Shape, selection: Selection, rng: &mut Rng) {
    let y = pre_activation_rows(shape.rows(), rng);
    // The width of activations plays no part here; it is the number of rows, as an identity encoder would have it.
    let config = Config::new(shape, shape.rows(), selection, 1.0).unwrap();
    let latents = naive_latents(&y, shape, selection, None);
    write_vectors(&to.join(format!("selection-{name}.safetensors")), &config, vec![], &y, &latents, None);
}

fn make_encode(to: &Path, case: &EncodeCase, rng: &mut Rng) {
    let (shape, d) = (case.shape, case.d);
    let config = Config::new(shape, d, case.selection, 1.5).unwrap();
    let mut draw = |n: usize| -> Vec<f32> {
        if case.integers {
            return (0..n).map(|_| rng.below(3) as f32 - 1.0).collect();
        }
        rng.vec(n)
    };
    let (weight_bytes, weight) = rounded(case.weights, &draw(shape.rows() * d));
    let (decoder_bytes, decoder) = rounded(case.weights, &draw(shape.latents() * d));
    let bias: Vec<f32> = draw(shape.rows()).iter().map(|b| b * if case.integers { 1.0 } else { 0.125 }).collect();
    let decoder_bias = draw(d);
    let thresholds: Option<Vec<f32>> = case.thresholds.then(|| draw(shape.latents()).iter().map(|t| t.abs()).collect());
    let dtype = |dtype: Dtype| match dtype {
        Dtype::F32 => TensorDtype::F32,
        Dtype::F16 => TensorDtype::F16,
        Dtype::Bf16 => TensorDtype::BF16,
    };

    // Written tensor by tensor: the library itself never writes F16.
    let mut tensors = vec![
        TensorOut::bytes("encoder.weight", dtype(case.weights), &[shape.rows(), d], &weight_bytes),
        TensorOut::f32("encoder.bias", &[shape.rows()], &bias),
        TensorOut::bytes("decoder.weight", dtype(case.weights), &[shape.latents(), d], &decoder_bytes),
        TensorOut::f32("decoder.bias", &[d], &decoder_bias),
    ];
    tensors.extend(thresholds.as_deref().map(|t| TensorOut::f32("encoder.threshold", &[shape.latents()], t)));
    let metadata =
        BTreeMap::from([("format".to_owned(), "kronsae/1".to_owned()), ("config".to_owned(), config.to_json())]);
    tensor_file::write(&to.join(format!("model-{}.safetensors", case.name)), &metadata, tensors).unwrap();

    let (x_bytes, x) = rounded(case.activations, &activation_rows(case, rng));
    let rows = x.len() / d;
    let y: Vec<f32> = x
        .chunks(d)
        .flat_map(|x| weight.chunks(d).zip(&bias).map(move |(w, b)| dot1(w, x, *b)))
        // The bits of a NaN are not part of any promise.
        .map(|y| if y.is_nan() { f32::NAN } else { y })
        .collect();
    let latents = naive_latents(&y, shape, case.selection, thresholds.as_deref());
    let capacity = case.selection.capacity();
    let reconstruction: Vec<f32> = (0..rows)
        .flat_map(|r| {
            let pairs: Vec<_> = (r * capacity..r * capacity + latents.counts[r] as usize)
                .map(|at| (latents.indices[at], latents.values[at]))
                .collect();
            naive_decode(&pairs, &decoder, &decoder_bias, 1.5)
        })
        .collect();
    let input = TensorOut::bytes("activations", dtype(case.activations), &[rows, d], &x_bytes);
    let path = to.join(format!("encode-{}.safetensors", case.name));
    write_vectors(&path, &config, vec![input], &y, &latents, Some(&reconstruction));
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
}

#[test]
fn golden_files_are_what_the_reference_makes() {
    let made = tempfile::tempdir().unwrap();
    for (at, (name, shape, selection)) in SELECTIONS.into_iter().enumerate() {
        make_selection(made.path(), name, shape, selection, &mut Rng(100 + at as u64));
    }
    for (at, case) in ENCODES.iter().enumerate() {
        make_encode(made.path(), case, &mut Rng(200 + at as u64));
    }
    if std::env::var("KRONSAE_GOLDEN").is_ok_and(|value| value == "write") {
        for name in names(&folder()) {
            std::fs::remove_file(folder().join(name)).unwrap();
        }
        for name in names(made.path()) {
            std::fs::copy(made.path().join(&name), folder().join(&name)).unwrap();
        }
    }
    assert_eq!(names(&folder()), names(made.path()));
    for name in names(made.path()) {
        let (found, expected) = (std::fs::read(folder().join(&name)), std::fs::read(made.path().join(&name)));
        assert!(
            found.unwrap() == expected.unwrap(),
            "{name} is not what the reference makes; see `cargo xtask golden`"
        );
    }
}

// -------------------------------------------------------------------------------------------------- checking them

/// The expected latents of a file, and its config.
struct Expected {
    config: Config,
    counts: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<u32>,
    active: Vec<u32>,
    flags: Vec<u8>,
}

fn bytes(file: &TensorFile<'_>, tensor: &str) -> Vec<u8> {
    let mut out = vec![0; file.require(tensor).unwrap().bytes];
    file.read(tensor, 0, &mut out).unwrap();
    out
}

fn words(file: &TensorFile<'_>, tensor: &str) -> Vec<u32> {
    bytes(file, tensor).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn floats(file: &TensorFile<'_>, tensor: &str) -> Vec<f32> {
    words(file, tensor).into_iter().map(f32::from_bits).collect()
}

impl Expected {
    fn read(file: &TensorFile<'_>) -> Self {
        assert_eq!(file.metadata("format"), Some("golden/1"));
        Expected {
            config: Config::from_json(file.metadata("config").unwrap()).unwrap(),
            counts: words(file, "counts"),
            indices: words(file, "indices"),
            values: words(file, "values"),
            active: words(file, "active"),
            flags: bytes(file, "flags"),
        }
    }

    /// Latents of a row: index and value bits.
    fn row(&self, row: usize) -> Vec<(u32, u32)> {
        let start = row * self.config.selection.capacity();
        let range = start..start + self.counts[row] as usize;
        self.indices[range.clone()].iter().copied().zip(self.values[range].iter().copied()).collect()
    }
}

fn files(prefix: &str) -> Vec<PathBuf> {
    let found: Vec<_> = names(&folder()).iter().filter(|n| n.starts_with(prefix)).map(|n| folder().join(n)).collect();
    assert!(!found.is_empty(), "no {prefix}* in data/golden");
    found
}

#[test]
fn pre_activations_to_latents() {
    for path in files("selection-") {
        let file = TensorFile::open(&path).unwrap();
        let expected = Expected::read(&file);
        let shape = expected.config.encoder;
        let kron = matches!(shape, Shape::Kron { .. });
        let y = floats(&file, "pre_activations");
        for isa in Isa::available() {
            let mut selector = Selector::new(shape, expected.config.selection, None, isa).unwrap();
            for (row, y) in y.chunks(shape.rows()).enumerate() {
                let what = format!("{} row {row} on {}", path.display(), isa.name());
                match selector.select(y) {
                    RowOutcome::NotFinite => assert_eq!(expected.flags[row], ROW_NOT_FINITE, "{what}"),
                    RowOutcome::Selected { active } => {
                        assert_eq!(expected.flags[row] & ROW_NOT_FINITE, 0, "{what}");
                        let value = |v: f32| if kron { v.sqrt() } else { v };
                        let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, value(v).to_bits())).collect();
                        assert_eq!(found, expected.row(row), "{what}");
                        assert_eq!(active as u32, expected.active[row], "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn activations_to_latents_to_reconstruction() {
    for path in files("encode-") {
        let file = TensorFile::open(&path).unwrap();
        let expected = Expected::read(&file);
        let name = path.file_name().unwrap().to_str().unwrap().replace("encode-", "model-");
        let sae = Arc::new(Sae::open(path.with_file_name(name)).unwrap());
        assert_eq!(sae.config().to_json(), expected.config.to_json());
        let (d, capacity) = (sae.config().d_model, sae.config().selection.capacity());
        let dtype = match file.require("activations").unwrap().dtype {
            TensorDtype::F32 => Dtype::F32,
            TensorDtype::F16 => Dtype::F16,
            _ => Dtype::Bf16,
        };
        let x = bytes(&file, "activations");
        let stride = d * dtype.size();
        let rows = x.len() / stride;
        for (isa, threads, batch) in
            Isa::available().flat_map(|isa| [1, 3].map(|t| (isa, t))).flat_map(|(i, t)| [1, 4, rows].map(|b| (i, t, b)))
        {
            let mut encoder =
                Encoder::with_isa(Arc::clone(&sae), EncoderOptions { threads, ..EncoderOptions::default() }, isa)
                    .unwrap();
            for start in (0..rows).step_by(batch) {
                let count = batch.min(rows - start);
                let view = Activations::from_bytes(&x[start * stride..], dtype, count, d, stride).unwrap();
                let mut latents = Latents::new(count, capacity).unwrap();
                encoder.encode(view, &mut latents.as_mut()).unwrap();
                for r in 0..count {
                    let what = format!(
                        "{} row {}, {}, {threads} threads, batch {batch}",
                        path.display(),
                        start + r,
                        isa.name()
                    );
                    let (indices, values) = latents.row(r);
                    let found: Vec<_> = indices.iter().copied().zip(values.iter().map(|v| v.to_bits())).collect();
                    assert_eq!(found, expected.row(start + r), "{what}");
                    assert_eq!(latents.active[r], expected.active[start + r], "{what}");
                    assert_eq!(latents.flags[r], expected.flags[start + r], "{what}");
                }
            }
        }
        check_decode(&sae, &file, &expected);
    }
}

fn check_decode(sae: &Sae, file: &TensorFile<'_>, expected: &Expected) {
    let values: Vec<f32> = expected.values.iter().map(|&bits| f32::from_bits(bits)).collect();
    let capacity = expected.config.selection.capacity();
    let latents =
        kronsae::LatentsRef { counts: &expected.counts, indices: &expected.indices, values: &values, capacity };
    let mut out = vec![0.0; expected.counts.len() * sae.config().d_model];
    sae.decode(latents, &mut out).unwrap();
    let found: Vec<u32> = out.iter().map(|v| v.to_bits()).collect();
    assert!(found == words(file, "reconstruction"), "{}: reconstruction", file.name());
}

/// The vectors are worth something only if they hold what they are said to hold.
#[test]
fn vectors_cover_the_rules() {
    let (mut not_finite, mut truncated, mut fewer, mut empty, mut tied, mut subnormal) = (0, 0, 0, 0, 0, 0);
    for path in files("selection-").into_iter().chain(files("encode-")) {
        let expected = Expected::read(&TensorFile::open(&path).unwrap());
        let topk = matches!(expected.config.selection, Selection::TopK(_));
        for row in 0..expected.counts.len() {
            let latents = expected.row(row);
            not_finite += usize::from(expected.flags[row] == 1);
            truncated += usize::from(expected.flags[row] == 2);
            empty += usize::from(latents.is_empty() && expected.flags[row] == 0);
            fewer += usize::from(topk && !latents.is_empty() && latents.len() < expected.config.selection.capacity());
            tied += latents.windows(2).filter(|w| w[0].1 == w[1].1 && w[0].0 < w[1].0).count();
            // Square roots of subnormal products are about 1e-19 and below.
            subnormal += latents.iter().filter(|(_, v)| f32::from_bits(*v) < 1.0e-19).count();
        }
    }
    for (what, count) in [
        ("rows that are not finite", not_finite),
        ("truncated rows", truncated),
        ("rows with fewer than K", fewer),
        ("empty rows", empty),
        ("ties", tied),
        ("subnormal products", subnormal),
    ] {
        assert!(count >= 3, "only {count} {what}");
    }
}
