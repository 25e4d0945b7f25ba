//! ONNX export: what is refused, what is written, and, with the feature `onnxruntime` and the library at hand, that ONNX
//! Runtime computes from it what the encoder does.

mod fixtures;

use fixtures::{Rng, write_model};
use kronsae::sae::{Encoder, LoadOptions, Selection};
use kronsae::{Sae, Status};
use kronsae_trainer::onnx::{ExportOptions, data_path, decoder_path, export};
use std::process::{Command, Output};

const KRON: Encoder = Encoder::Kron { heads: 8, base: 2, extension: 3 };

fn convert(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let arguments = arguments.iter().map(AsRef::as_ref);
    Command::new(env!("CARGO_BIN_EXE_kronsae")).arg("convert").args(arguments).output().unwrap()
}

#[test]
fn thresholds_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let selection = Selection::Threshold { theta: 0.5, max_latents: 4 };
    let model = write_model(folder.path(), KRON, 16, selection, &mut Rng(1));
    let out = folder.path().join("model.onnx");
    let refused = convert(&[&"--model", &model, &"--to", &"onnx", &"--out", &out]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("by a threshold") && text.contains("safetensors"), "{text}");
    assert!(!out.exists());
}

#[test]
fn outputs_over_inputs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = write_model(folder.path(), KRON, 16, Selection::TopK(4), &mut Rng(2));
    let before = std::fs::read(&model).unwrap();
    assert!(!convert(&[&"--model", &model, &"--to", &"onnx", &"--out", &model]).status.success());
    // The weights of `m` would be written over the model `m.data`.
    let data = folder.path().join("m.data");
    std::fs::rename(&model, &data).unwrap();
    let out = folder.path().join("m");
    assert!(!convert(&[&"--model", &data, &"--to", &"onnx", &"--out", &out, &"--external-data"]).status.success());
    assert_eq!(std::fs::read(&data).unwrap(), before);
    assert!(!convert(&[&"--model", &data, &"--to", &"tflite", &"--out", &out]).status.success());
    assert!(!out.exists());
}

#[test]
fn files_hold_the_weights_inside_or_beside() {
    let folder = tempfile::tempdir().unwrap();
    let model = write_model(folder.path(), KRON, 16, Selection::TopK(4), &mut Rng(3));
    let sae = Sae::open(&model).unwrap();
    let weights = |matrix: &kronsae::sae::Matrix| {
        let mut row = vec![0.0; matrix.cols()];
        let mut bytes = Vec::new();
        for at in 0..matrix.rows() {
            matrix.widen_row(at, &mut row);
            bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        }
        bytes
    };
    let (encoder, decoder) = (weights(&sae.encoder().weight), weights(&sae.decoder().unwrap().weight));
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);

    let out = folder.path().join("inside.onnx");
    let printed = convert(&[&"--model", &model, &"--to", &"onnx", &"--out", &out, &"--with-decoder"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert_eq!(String::from_utf8(printed.stdout).unwrap().lines().count(), 2);
    let graphs = [std::fs::read(&out).unwrap(), std::fs::read(decoder_path(&out)).unwrap()];
    assert!(holds(&graphs[0], &encoder) && !holds(&graphs[0], &decoder) && holds(&graphs[1], &decoder));
    assert!(holds(&graphs[0], b"kronsae.config") && !data_path(&out).exists());

    let out = folder.path().join("beside.onnx");
    let options = ExportOptions { with_decoder: true, external_data: true, ..ExportOptions::default() };
    let exported = export(&sae, &out, options).unwrap();
    let decoder_graph = decoder_path(&out);
    assert_eq!(exported.files, [data_path(&out), out.clone(), data_path(&decoder_graph), decoder_graph.clone()]);
    assert_eq!(std::fs::read(data_path(&out)).unwrap()[..encoder.len()], encoder);
    assert_eq!(std::fs::read(data_path(&decoder_graph)).unwrap()[..decoder.len()], decoder);
    assert!(!holds(&std::fs::read(&out).unwrap(), &encoder[..64]));

    let encoder_only = Sae::open_with(&model, LoadOptions { encoder_only: true }).unwrap();
    let error = export(&encoder_only, &folder.path().join("no.onnx"), options).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(!folder.path().join("no.onnx").exists());
}

/// What ONNX Runtime makes of the graphs.
#[cfg(feature = "onnxruntime")]
mod with_onnx_runtime {
    use super::*;
    use kronsae::sae::{Config, EncoderWeights, Matrix};
    use kronsae::{Activations, Aligned, Dtype, EncoderOptions, Latents};
    use kronsae_trainer::data::Dataset;
    use kronsae_trainer::onnx::TopKOver;
    use kronsae_trainer::onnx::runtime::{OnnxDecoder, OnnxEncoder, Runtime};
    use std::path::Path;
    use std::sync::Arc;

    /// The library, or nothing after saying what is missing.
    fn runtime() -> Option<&'static Runtime> {
        match Runtime::get(None) {
            Ok(runtime) => Some(runtime),
            // Whoever names a library wants it used.
            Err(error) if std::env::var_os("ORT_DYLIB_PATH").is_some_and(|p| !p.is_empty()) => panic!("{error}"),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// How the outputs of two encoders differ.
    #[derive(Debug, Default)]
    struct Differences {
        entries: usize,
        /// Entries that hold another latent than ours.
        swapped: usize,
        /// Rows with fewer than K positive latents.
        short_rows: usize,
        /// Largest relative difference of a value.
        relative: f32,
    }

    /// Encodes `x` by both. Each entry of ONNX Runtime's must be the latent it names, within `tolerance` relative, and
    /// must stand where ours has a latent of the same value within that.
    fn compare(sae: Sae, x: &[f32], over: TopKOver, external_data: bool, tolerance: f32) -> Option<Differences> {
        let runtime = runtime()?;
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("model.onnx");
        let options = ExportOptions { with_decoder: sae.decoder().is_some(), external_data, top_k_over: over };
        let k = export(&sae, &out, options).unwrap().k;
        let d = sae.config().d_model;
        let (shape, rows) = (sae.config().encoder, x.len() / d);
        let sae = Arc::new(sae);
        let mut ours = Latents::new(rows, k).unwrap();
        let mut encoder = kronsae::Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
        encoder.encode(Activations::from_f32(x, d).unwrap(), &mut ours.as_mut()).unwrap();

        // Every latent of every row, from all pre-activations.
        let every = sae.encoder().weight.rows();
        let stride = kronsae::sae::padded(d);
        let mut padded = Aligned::<f32>::zeroed(stride, "a token").unwrap();
        let mut y = vec![0.0; every];
        let (indices, values) = OnnxEncoder::open(runtime, &out, 2)
            .unwrap()
            .run(x, d, |indices, values| (indices.to_vec(), values.to_vec()))
            .unwrap();
        assert_eq!((indices.len(), values.len()), (rows * k, rows * k));
        let mut found = Differences::default();
        for row in 0..rows {
            padded[..d].copy_from_slice(&x[row * d..][..d]);
            let weights = sae.encoder();
            let matrix = weights.weight.as_ref();
            kronsae::pre_activations(encoder.isa(), matrix, &weights.bias, &padded, stride, 1, 0..every, &mut y, every);
            let value = |latent: usize| {
                let (base, extension) = shape.rows_of(latent);
                match shape {
                    Encoder::Kron { .. } => (y[base].max(0.0) * y[extension].max(0.0)).sqrt(),
                    Encoder::Dense { .. } => y[base].max(0.0),
                }
            };
            let near = |a: f32, b: f32| (a - b).abs() <= tolerance * a.max(b);
            let (our_indices, our_values) = ours.row(row);
            let mut seen = std::collections::BTreeSet::new();
            found.short_rows += usize::from(our_values.len() < k);
            for at in 0..k {
                let (index, theirs) = (indices[row * k + at] as usize, values[row * k + at]);
                let Some(&expected) = our_values.get(at) else {
                    assert_eq!(theirs, 0.0, "row {row}, entry {at}: fewer latents are positive");
                    continue;
                };
                assert!(seen.insert(index), "row {row}: latent {index} twice");
                assert!(near(theirs, expected), "row {row}, entry {at}: {theirs}, ours {expected}");
                assert!(near(theirs, value(index)), "row {row}: latent {index} is {}, not {theirs}", value(index));
                found.entries += 1;
                found.swapped += usize::from(our_indices[at] as usize != index);
                found.relative = found.relative.max((theirs - expected).abs() / expected);
            }
        }
        if let Some(decoder) = sae.decoder() {
            let mut graph = OnnxDecoder::open(runtime, &decoder_path(&out)).unwrap();
            let theirs = graph.run(&indices, &values, rows).unwrap();
            let mut expected = vec![0.0; x.len()];
            sae.decode((&ours).into(), &mut expected).unwrap();
            let scale = expected.iter().fold(decoder.bias[0].abs(), |m, v| m.max(v.abs()));
            for (a, b) in theirs.iter().zip(&expected) {
                assert!((a - b).abs() <= 2e-4 * scale, "reconstruction: {a}, ours {b}");
            }
        }
        Some(found)
    }

    #[test]
    fn random_models_agree() {
        let kron = |heads, base, extension| Encoder::Kron { heads, base, extension };
        let mut swapped = Vec::new();
        for (at, (encoder, k, external)) in [
            (kron(64, 4, 4), 12, false),
            (kron(64, 4, 4), 12, true),
            (kron(40, 2, 5), 39, false),
            // As many heads as K, fewer, and one.
            (kron(12, 3, 4), 12, false),
            (kron(4, 4, 8), 32, true),
            (kron(1, 3, 3), 5, false),
            (Encoder::Dense { latents: 300 }, 20, false),
            (Encoder::Dense { latents: 7 }, 7, true),
        ]
        .into_iter()
        .enumerate()
        {
            for over in [TopKOver::Heads, TopKOver::Latents] {
                let mut rng = Rng(50 + at as u64);
                let folder = tempfile::tempdir().unwrap();
                let model = write_model(folder.path(), encoder, 48, Selection::TopK(k), &mut rng);
                let x = rng.vec(48 * 33);
                let Some(found) = compare(Sae::open(&model).unwrap(), &x, over, external, 1e-4) else { return };
                assert!(found.entries > 0, "{encoder:?}: nothing was compared");
                swapped.push((found.swapped, found.entries));
            }
        }
        let (swaps, entries) = swapped.iter().fold((0, 0), |(s, e), (a, b)| (s + a, e + b));
        assert!(swaps * 100 <= entries, "{swaps} of {entries} entries hold another latent");
    }

    /// Small integers: every GEMM gives the same sums, and equal products abound.
    #[test]
    fn ties_go_to_the_lower_latent() {
        for (encoder, k) in
            [(Encoder::Kron { heads: 30, base: 3, extension: 4 }, 9), (Encoder::Dense { latents: 90 }, 9)]
        {
            let d = 24;
            let mut rng = Rng(7);
            let rows = encoder.rows();
            let weight: Vec<f32> = (0..rows * d).map(|_| (rng.next() % 3) as f32 - 1.0).collect();
            let x: Vec<f32> = (0..64 * d).map(|_| (rng.next() % 3) as f32 - 1.0).collect();
            for over in [TopKOver::Heads, TopKOver::Latents] {
                let weight = Matrix::from_rows(&weight, [rows, d], d, Dtype::F32, "weight").unwrap();
                let sae = in_memory(encoder, d, k, weight, &vec![0.0; rows]);
                let Some(found) = compare(sae, &x, over, false, 0.0) else { return };
                assert_eq!((found.swapped, found.relative), (0, 0.0));
                assert!(found.entries > 64);
            }
        }
    }

    #[test]
    fn rows_with_few_positive_latents_are_filled_with_zeros() {
        let encoder = Encoder::Kron { heads: 20, base: 2, extension: 2 };
        let (d, rows) = (16, encoder.rows());
        let mut rng = Rng(9);
        let weight = Matrix::from_rows(&rng.vec(rows * d), [rows, d], d, Dtype::F32, "weight").unwrap();
        let sae = in_memory(encoder, d, 15, weight, &vec![-2.0; rows]);
        let Some(found) = compare(sae, &rng.vec(d * 50), TopKOver::Heads, false, 1e-3) else { return };
        assert!(found.short_rows > 10, "{found:?}");
    }

    /// Real activations have a mean that dwarfs what varies; the bias takes it away, as that of a trained model does.
    #[test]
    fn real_activations_agree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let data = Dataset::open(&[root.join("data/sample/heldout.safetensors")]).unwrap();
        let (d, rows) = (data.d_model(), 512.min(data.rows()));
        let mut x = vec![0.0; rows * d];
        data.read(0, rows, &mut x).unwrap();
        let mut mean = vec![0.0_f64; d];
        for (at, v) in x.iter().enumerate() {
            mean[at % d] += f64::from(*v) / rows as f64;
        }
        let variance = x.iter().enumerate().map(|(at, v)| (f64::from(*v) - mean[at % d]).powi(2)).sum::<f64>();
        let scale = (variance / x.len() as f64).sqrt();
        for encoder in [Encoder::Kron { heads: 256, base: 4, extension: 4 }, Encoder::Dense { latents: 2048 }] {
            let mut rng = Rng(21);
            let width = 3.0_f32.sqrt() / (d as f32).sqrt() / scale as f32;
            let weight: Vec<f32> = (0..encoder.rows() * d).map(|_| rng.unit() * width).collect();
            let bias: Vec<f32> = weight
                .chunks_exact(d)
                .map(|row| -row.iter().zip(&mean).map(|(w, m)| f64::from(*w) * m).sum::<f64>() as f32)
                .collect();
            let weight = Matrix::from_rows(&weight, [encoder.rows(), d], d, Dtype::F32, "weight").unwrap();
            let sae = in_memory(encoder, d, 32, weight, &bias);
            let Some(found) = compare(sae, &x, TopKOver::Heads, false, 1e-4) else { return };
            assert_eq!((found.entries, found.short_rows), (rows * 32, 0));
            assert!(found.swapped * 100 <= found.entries, "{found:?}");
        }
    }

    fn in_memory(encoder: Encoder, d: usize, k: usize, weight: Matrix, bias: &[f32]) -> Sae {
        let config = Config::new(encoder, d, Selection::TopK(k), 1.0).unwrap();
        let mut held = Aligned::zeroed(bias.len(), "bias").unwrap();
        held.copy_from_slice(bias);
        Sae::from_parts(config, EncoderWeights { weight, bias: held, threshold: None }, None).unwrap()
    }
}
