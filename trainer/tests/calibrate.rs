//! Calibration: theta, statistics and what happens to the file.

mod fixtures;

use fixtures::{Rng, activations, write_model, write_shards};
use kronsae::sae::{Encoder, Selection};
use kronsae::tensor_file::TensorFile;
use kronsae::{Activations, EncoderOptions, Latents, Sae};
use kronsae_trainer::calibrate::{CalibrateOptions, LEVELS, Select, calibrate};
use kronsae_trainer::data::Dataset;
use std::path::PathBuf;
use std::sync::Arc;

const D: usize = 16;
const ROWS: usize = 3000;

struct Case {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: Dataset,
    x: Vec<f32>,
}

fn case(encoder: Encoder, selection: Selection) -> Case {
    let mut rng = Rng(21);
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("data");
    std::fs::create_dir(&shards).unwrap();
    // Tokens of very different strength: some have far more than 4K latents above any theta.
    let mut x = activations(ROWS, D, &mut rng);
    for (row, x) in x.chunks_exact_mut(D).enumerate() {
        let strength = [0.01, 0.05, 1.0, 20.0][row % 4];
        x.iter_mut().for_each(|v| *v = (*v % 3.0) * strength);
    }
    write_shards(&shards, &x, D, 1100);
    let model = write_model(folder.path(), encoder, D, selection, &mut rng);
    let data = Dataset::open(&[&shards]).unwrap();
    Case { folder, model, data, x }
}

/// All latents of all tokens under `selection`.
fn encode(case: &Case, selection: Selection) -> Latents {
    let sae = Sae::open(&case.model).unwrap().with_selection(selection).unwrap();
    let mut latents = Latents::new(ROWS, selection.capacity()).unwrap();
    let mut encoder = kronsae::Encoder::new(Arc::new(sae), EncoderOptions::default()).unwrap();
    encoder.encode(Activations::from_f32(&case.x, D).unwrap(), &mut latents.as_mut()).unwrap();
    latents
}

#[test]
fn theta_makes_k_latents_active_on_average() {
    let kron = Encoder::Kron { heads: 32, base: 2, extension: 4 };
    for (encoder, k) in [(kron, 6), (Encoder::Dense { latents: 96 }, 3)] {
        let case = case(encoder, Selection::TopK(k));
        let options = CalibrateOptions { select: Some(Select::Threshold), threads: 2, ..CalibrateOptions::default() };
        let mut stages = Vec::new();
        let found = calibrate(Sae::open(&case.model).unwrap(), &case.data, &options, &mut |stage, _| {
            if stages.last().is_none_or(|s| s != stage) {
                stages.push(stage.to_owned());
            }
        })
        .unwrap();
        assert!(stages.iter().any(|s| s.ends_with("again")), "the hard case was meant: {stages:?}");
        let search = found.search.as_ref().unwrap();
        let theta = search.theta.theta;
        assert!((search.theta.mean_active - k as f64).abs() < 0.01 * k as f64, "{:?}", search.theta);
        let latents = encode(&case, Selection::Threshold { theta, max_latents: 1 });
        let active: u64 = latents.active.iter().map(|&n| u64::from(n)).sum();
        assert_eq!(search.theta.mean_active, active as f64 / ROWS as f64, "the mean that is reported is exact");
        assert_eq!(search.max_latents, 4 * k);
        assert!((search.topk.l0 - k as f64).abs() < 0.5 * k as f64 && search.threshold.l0 <= search.theta.mean_active);

        // Statistics against the definition, from all values.
        let latents = encode(&case, Selection::Threshold { theta, max_latents: 4 * k });
        let mut values = vec![Vec::new(); encoder.latents()];
        for row in 0..ROWS {
            let (indices, chosen) = latents.row(row);
            indices.iter().zip(chosen).for_each(|(&f, &v)| values[f as usize].push(v));
        }
        let s = &found.statistics;
        for (f, values) in values.iter_mut().enumerate() {
            assert_eq!(s.rate[f], (values.len() as f64 / ROWS as f64) as f32);
            if values.is_empty() {
                assert!(s.mean[f].is_nan() && s.quantiles[f * 4].is_nan());
                continue;
            }
            let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
            assert!((f64::from(s.mean[f]) - mean).abs() <= 1e-6 * mean);
            values.sort_by(f32::total_cmp);
            for (at, level) in LEVELS.iter().enumerate() {
                let exact = values[((level * values.len() as f64).ceil() as usize).max(1) - 1];
                let error = f64::from((s.quantiles[f * 4 + at] - exact).abs() / exact);
                assert!(error <= found.quantile_error * 1.0001 + 1e-6, "latent {f}, {level}: off by {error}");
            }
        }
    }
}

#[test]
fn the_file_keeps_its_weights_and_unknown_keys() {
    let case = case(Encoder::Kron { heads: 8, base: 2, extension: 3 }, Selection::TopK(5));
    let options = CalibrateOptions { corpus: Some("a test".to_owned()), ..CalibrateOptions::default() };
    let out = case.folder.path().join("calibrated.safetensors");
    let original = std::fs::read(&case.model).unwrap();
    let found = calibrate(Sae::open(&case.model).unwrap(), &case.data, &options, &mut |_, _| ()).unwrap();
    found.write(&case.model, &out).unwrap();
    assert!(std::fs::read(&case.model).unwrap() == original, "the model itself is not touched where --out is given");

    let (before, after) = (TensorFile::open(&case.model).unwrap(), TensorFile::open(&out).unwrap());
    for name in before.tensor_names() {
        let bytes = |file: &TensorFile<'_>| {
            let mut bytes = vec![0; file.require(&name).unwrap().bytes];
            file.read(&name, 0, &mut bytes).unwrap();
            bytes
        };
        assert!(bytes(&before) == bytes(&after), "{name}");
        assert_eq!(before.require(&name).unwrap().dtype, after.require(&name).unwrap().dtype);
    }
    let sae = Sae::open(&out).unwrap();
    assert_eq!(sae.config().selection, Selection::TopK(5), "the selection stays unless another is asked for");
    assert_eq!(sae.config().json["later"], serde_json::json!({"kept": [1, 2]}));
    let about = &sae.config().json["calibration"];
    assert_eq!(
        (about["tokens"].as_u64(), about["k"].as_u64(), about["corpus"].as_str()),
        (Some(3000), Some(5), Some("a test"))
    );
    assert_eq!(about["levels"], serde_json::json!(LEVELS));
    assert!(about["explained_variance"]["threshold"]["pooled"].is_f64());
    let calibration = sae.calibration().unwrap();
    assert_eq!(calibration.rate.as_deref(), Some(&found.statistics.rate[..]));
    assert_eq!(calibration.levels, LEVELS.len());

    // Again, in place, to the threshold: K comes from the first calibration, nothing is there twice.
    let options = CalibrateOptions { select: Some(Select::Threshold), ..CalibrateOptions::default() };
    calibrate(sae, &case.data, &options, &mut |_, _| ()).unwrap().write(&out, &out).unwrap();
    let sae = Sae::open(&out).unwrap();
    let Selection::Threshold { theta, max_latents: 20 } = sae.config().selection else {
        panic!("{:?}", sae.config().selection)
    };
    assert_eq!(theta, found.search.as_ref().unwrap().theta.theta);
    assert!(!sae.config().json["calibration"].as_object().unwrap().contains_key("corpus"));
    let again = calibrate(sae, &case.data, &CalibrateOptions::default(), &mut |_, _| ()).unwrap();
    assert_eq!((again.select, again.search.unwrap().k), (Select::Threshold, 5));
    assert_eq!(TensorFile::open(&out).unwrap().tensor_names().len(), before.tensor_names().len() + 3);

    // Through a link, which stays one.
    let link = case.folder.path().join("latest.safetensors");
    std::os::unix::fs::symlink("calibrated.safetensors", &link).unwrap();
    let options = CalibrateOptions { select: Some(Select::Topk), ..CalibrateOptions::default() };
    let sae = Sae::open(&link).unwrap();
    calibrate(sae, &case.data, &options, &mut |_, _| ()).unwrap().write(&link, &link).unwrap();
    assert!(link.is_symlink());
    assert_eq!(Sae::open(&out).unwrap().config().selection, Selection::TopK(5));
}

#[test]
fn options_that_do_not_fit_are_refused_before_any_work() {
    let case = case(Encoder::Dense { latents: 20 }, Selection::Threshold { theta: 0.5, max_latents: 20 });
    let run = |options: CalibrateOptions| {
        let sae = Sae::open(&case.model).unwrap();
        calibrate(sae, &case.data, &options, &mut |_, _| panic!("no pass was to start")).unwrap_err()
    };
    let none = CalibrateOptions::default();
    assert!(run(none.clone()).message().contains("--k"));
    assert!(run(CalibrateOptions { k: Some(21), ..none.clone() }).message().contains("k = 21"));
    assert!(run(CalibrateOptions { k: Some(2), max_latents: Some(0), ..none }).message().contains("max_latents = 0"));
}
