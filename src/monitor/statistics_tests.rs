use super::*;
use crate::Dtype;
use crate::sae::{Config, Encoder, LoadOptions, ModelWriter, Selection, Which};

fn sae(rates: Option<&[f32]>, tokens: Option<u64>) -> Arc<Sae> {
    let f = rates.map_or(4, <[f32]>::len);
    let mut config = Config::new(Encoder::Dense { latents: f }, 1, Selection::TopK(1), 1.0).unwrap();
    if let Some(tokens) = tokens {
        config.json.insert("calibration".into(), serde_json::json!({ "tokens": tokens }));
    }
    let (weight, bias) = (vec![1.0; f], vec![0.0; f]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let quantiles = vec![0.0; f];
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weight, [f, 1], 1, Dtype::F32),
        encoder_bias: &bias,
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &weight, [f, 1], 1, Dtype::F32),
        decoder_bias: &[0.0],
        calibration: rates.map(|rates| (rates, &quantiles[..], &quantiles[..])),
    }
    .write(&path)
    .unwrap();
    Arc::new(Sae::open_with(&path, LoadOptions::default()).unwrap())
}

/// By the definition: every token kept.
fn naive_rate(fired: &[bool], half_life: f64) -> f64 {
    let n = fired.len();
    let weight = |t: usize| (-((n - 1 - t) as f64) / half_life).exp2();
    let sum: f64 = (0..n).map(weight).sum();
    (0..n).filter(|&t| fired[t]).map(weight).sum::<f64>() / sum
}

#[test]
fn rates_are_those_of_the_definition_across_rescalings() {
    let half_life = 3.0;
    let statistics = Statistics::new(sae(None, None), None, half_life).unwrap();
    let mut fired = Vec::new();
    for t in 0..4000_u32 {
        let on = t % 7 < 2 || t % 31 == 5;
        fired.push(on);
        statistics.observe(if on { &[2] } else { &[] }, if on { &[0.5] } else { &[] });
        if t % 97 == 0 || t > 3990 {
            let found = statistics.latent(2).unwrap();
            let expected = naive_rate(&fired, half_life);
            assert!((f64::from(found.rate) - expected).abs() < 1e-6, "token {t}: {} for {expected}", found.rate);
        }
    }
    assert!(statistics.landmark.load(Ordering::Relaxed) > 0, "never rescaled");
    let of = statistics.latent(2).unwrap();
    assert_eq!(of.count, fired.iter().filter(|on| **on).count() as u64);
    assert!((of.mean - 0.5).abs() < 1e-6 && of.drift.is_nan());
    assert!(statistics.latent(1).unwrap().mean.is_nan());
    assert!(statistics.latent(9).is_none());
    assert!((statistics.l0() - of.count as f64 / 4000.0).abs() < 1e-12);
}

#[test]
fn effective_tokens_start_at_one_each_and_tend_to_a_limit() {
    let statistics = Statistics::new(sae(None, None), None, 1000.0).unwrap();
    for n in 1..=50_000_u32 {
        statistics.observe(&[], &[]);
        let effective = statistics.reading().effective;
        if n <= 3 {
            assert!((effective - f64::from(n)).abs() < 0.01, "{n}: {effective}");
        }
    }
    let limit = 2.0 * 1000.0 / std::f64::consts::LN_2;
    assert!((statistics.reading().effective / limit - 1.0).abs() < 1e-3);
}

#[test]
fn drift_counts_standard_errors() {
    // By hand: r = .2 on 100, c = .1 on 400: p = .12, error = sqrt(.12 * .88 * (1/100 + 1/400)) = .036332
    assert!((drift(0.2, 0.1, 100.0, Some(400.0)) - 0.1 / 0.036_331_804).abs() < 1e-4);
    assert_eq!(drift(0.0, 0.0, 100.0, Some(400.0)), 0.0);
    assert!(drift(0.1, 0.0, 100.0, Some(400.0)) > 3.0);
    assert!(drift(0.0, 0.3, 100.0, None) < -3.0);
}

#[test]
fn divergence_is_zero_for_the_calibrated_and_one_for_disjoint_firing() {
    let rates = [0.5, 0.25, 0.25, 0.0];
    let observe = |pattern: &[u32]| {
        let statistics = Statistics::new(sae(Some(&rates), Some(1000)), None, 1e9).unwrap();
        for cell in pattern.iter().cycle().take(4000) {
            statistics.observe(&[*cell], &[1.0]);
        }
        statistics
    };
    let same = observe(&[0, 1, 0, 2]);
    assert!(same.drift() < 1e-6, "{}", same.drift());
    assert!(same.latent(0).unwrap().drift.abs() < 0.1);
    let other = observe(&[3]);
    assert!((other.drift() - 1.0).abs() < 1e-9, "{}", other.drift());
    assert_eq!(other.strongest(2)[0].latent, 3);
    // By hand: P = (1, 0), Q = (.5, .5): M = (.75, .25), H(M) = .811278, H(Q) = 1 / 2.
    let half = [0.5, 0.5];
    let statistics = Statistics::new(sae(Some(&half), None), None, 100.0).unwrap();
    statistics.observe(&[0], &[1.0]);
    assert!((statistics.drift() - 0.311_278).abs() < 1e-5, "{}", statistics.drift());
    assert!(Statistics::new(sae(None, None), None, 1.0).unwrap().drift().is_nan());
}

#[test]
fn watched_latents_alone() {
    let only = Some(vec![3, 1].into_boxed_slice());
    let statistics = Statistics::new(sae(Some(&[0.1; 4]), None), only, 10.0).unwrap();
    statistics.observe(&[1], &[2.0]);
    assert_eq!((statistics.latent(1).unwrap().count, statistics.latent(3).unwrap().count), (1, 0));
    assert!(statistics.latent(0).is_none());
    assert_eq!(statistics.strongest(8).len(), 1);
}
