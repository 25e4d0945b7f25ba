//! Any text as rules, for tests and the fuzz target: refused, or run.

#![allow(dead_code, reason = "each program uses its own part of this")]

use kronsae::Sae;
use kronsae::monitor::{Requests, Rules, SiteRules, TokenTag};
use kronsae::sae::{Config, Encoder, ModelWriter, Selection, Which};
use std::sync::Arc;

/// A model of 16 latents, whose quantiles at the trainer's levels are 1, 2, 3 and 4.
pub(crate) fn model() -> Sae {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut config = Config::new(Encoder::Dense { latents: 16 }, 2, Selection::TopK(4), 1.0).unwrap();
    config.json.insert("calibration".into(), serde_json::json!({"levels": [0.5, 0.9, 0.99, 0.999]}));
    let weights = [1.0_f32; 32];
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weights, [16, 2], 2, kronsae::Dtype::F32),
        encoder_bias: &[0.0; 16],
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &weights, [16, 2], 2, kronsae::Dtype::F32),
        decoder_bias: &[0.0; 2],
        calibration: Some((&[0.1; 16], &[1.0; 16], [[1.0, 2.0, 3.0, 4.0]; 16].as_flattened())),
    }
    .write(&path)
    .unwrap();
    Sae::open(&path).unwrap()
}

/// Whether `text` is a rules file that fits `sae`; if so, its rules have run over some tokens, and what they emitted made
/// sense.
///
/// # Panics
/// If it did not.
pub(crate) fn run(sae: &Sae, text: &str, mut seed: u64) -> bool {
    let rules = match Rules::parse(text) {
        Ok(rules) => rules,
        Err(error) => {
            assert_eq!(error.status(), kronsae::Status::Format);
            assert!(!error.message().is_empty() && !error.message().contains('\n'), "{error:?}");
            return false;
        }
    };
    let Ok(site) = SiteRules::compile(&rules, "layer15", sae) else { return false };
    let site = Arc::new(site);
    let latents = sae.config().encoder.latents();
    assert!(site.latents().iter().all(|latent| (*latent as usize) < latents));
    let mut requests = Requests::new(Arc::clone(&site), 2).unwrap();
    // Matches that are not retracted, by handle.
    let mut standing = std::collections::BTreeMap::new();
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut position = 0_i32;
    for step in 0..60 {
        position += [1, 1, 1, 2, -2][random(5) as usize];
        let tag = TokenTag { request: random(3), position, token: step, flags: random(3) as u32 };
        let mut emit = |m: kronsae::monitor::Match<'_>| {
            assert!(m.rule < site.len());
            if m.retracts {
                assert_eq!(standing.remove(&m.handle), Some((m.rule, m.tag, m.gap)));
            } else {
                assert!(m.tag == tag && m.latents.iter().any(|latent| latent.value > 0.0));
                assert_eq!(standing.insert(m.handle, (m.rule, m.tag, m.gap)), None);
            }
        };
        if random(10) == 0 {
            requests.rewind(tag.request, position - 3, &mut emit);
            continue;
        }
        let indices: Vec<u32> = (0..random(5) as u32).map(|i| i * 3 % 16).collect();
        let values: Vec<f32> = indices.iter().map(|_| 0.25 * (1 + random(24)) as f32).collect();
        requests.observe(&tag, 1, step as u64 * 300_000_000, &indices, &values, &mut emit);
    }
    assert!(requests.alive() <= 2);
    true
}
