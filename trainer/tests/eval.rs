//! Evaluation against its definitions, written down naively.

mod fixtures;

use fixtures::{Rng, activations, write_model, write_shards};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, EncoderOptions, Latents, LatentsRef, Sae};
use kronsae_trainer::data::Dataset;
use kronsae_trainer::eval::{EvalOptions, Evaluation, evaluate};
use std::sync::Arc;

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{what}: {found}, expected {expected}");
}

/// Everything at once, token by token, dimension by dimension.
fn check(found: &Evaluation, sae: &Arc<Sae>, x: &[f32]) {
    let d = sae.config().d_model;
    let rows = x.len() / d;
    let mut latents = Latents::new(rows, sae.config().selection.capacity()).unwrap();
    let mut encoder = kronsae::Encoder::new(Arc::clone(sae), EncoderOptions::default()).unwrap();
    encoder.encode(Activations::from_f32(x, d).unwrap(), &mut latents.as_mut()).unwrap();
    let mut decoded = vec![0.0; x.len()];
    sae.decode(LatentsRef::from(&latents), &mut decoded).unwrap();

    let taken: Vec<usize> = (0..rows).filter(|r| latents.flags[*r] & kronsae::ROW_NOT_FINITE == 0).collect();
    let n = taken.len() as f64;
    let at = |r: usize, c: usize| f64::from(x[r * d + c]);
    let mean: Vec<f64> = (0..d).map(|c| taken.iter().map(|&r| at(r, c)).sum::<f64>() / n).collect();
    let (mut sse, mut sst, mut ratios) = (0.0, 0.0, 0.0);
    for &r in &taken {
        let residual: f64 = (0..d).map(|c| (at(r, c) - f64::from(decoded[r * d + c])).powi(2)).sum();
        let spread: f64 = (0..d).map(|c| (at(r, c) - mean[c]).powi(2)).sum();
        (sse, sst, ratios) = (sse + residual, sst + spread, ratios + 1.0 - residual / spread);
    }
    close(found.explained_variance.pooled, 1.0 - sse / sst, "pooled");
    close(found.explained_variance.per_token_mean, ratios / n, "per token");
    close(found.fvu, sse / sst, "fvu");
    close(found.mse, sse / n / d as f64, "mse");
    let mut fired = vec![0_u64; sae.config().encoder.latents()];
    let all = taken.iter().flat_map(|&r| latents.row(r).0).inspect(|&&f| fired[f as usize] += 1).count();
    close(found.l0, all as f64 / n, "l0");
    let dead = fired.iter().filter(|n| **n == 0).count();
    assert_eq!((found.dead_latents, found.latents), (dead as u64, fired.len() as u64));
    close(found.dead_share, dead as f64 / fired.len() as f64, "dead share");
    assert_eq!((found.tokens, found.non_finite_tokens), (taken.len() as u64, (rows - taken.len()) as u64));
    assert_eq!(found.firing_density.counts.iter().sum::<u64>() + found.dead_latents, found.latents);
    match (sae.config().encoder, &found.head_usage) {
        (Encoder::Kron { heads, .. }, Some(usage)) => {
            assert_eq!(usage.len(), heads);
            let each = fired.len() / heads;
            for (head, share) in usage.iter().enumerate() {
                let sum: u64 = fired[head * each..(head + 1) * each].iter().sum();
                close(*share, sum as f64 / all as f64, "head usage");
            }
        }
        (Encoder::Dense { .. }, None) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn agrees_with_the_definitions_on_any_number_of_threads() {
    let kron = Encoder::Kron { heads: 9, base: 2, extension: 3 };
    let dense = Encoder::Dense { latents: 40 };
    for (seed, encoder, selection) in [
        (1, kron, Selection::TopK(6)),
        (2, dense, Selection::TopK(6)),
        (3, kron, Selection::Threshold { theta: 1.0, max_latents: 12 }),
    ] {
        let mut rng = Rng(seed);
        let folder = tempfile::tempdir().unwrap();
        let d = 24;
        // More than two chunks, over several shards.
        let mut x = activations(2300, d, &mut rng);
        let shards = folder.path().join("data");
        std::fs::create_dir(&shards).unwrap();
        // A broken activation, and one that overflows only inside the model.
        x[700 * d + 3] = f32::NAN;
        x[1900 * d..1901 * d].fill(3e38);
        write_shards(&shards, &x, d, 999);
        let data = Dataset::open(&[&shards]).unwrap();
        let sae = Arc::new(Sae::open(write_model(folder.path(), encoder, d, selection, &mut rng)).unwrap());

        let mut done = Vec::new();
        let options = EvalOptions { threads: 1 };
        let one = evaluate(&sae, &data, 0..2300, &options, &mut |rows| done.push(rows)).unwrap();
        check(&one, &sae, &x);
        assert_eq!(done.last(), Some(&2300));
        let three = evaluate(&sae, &data, 0..2300, &EvalOptions { threads: 3 }, &mut |_| ()).unwrap();
        assert_eq!(one, three);

        let part = evaluate(&sae, &data, 400..1500, &options, &mut |_| ()).unwrap();
        check(&part, &sae, &x[400 * d..1500 * d]);
    }
}

#[test]
fn a_constant_data_set_has_no_variance_to_explain() {
    let mut rng = Rng(4);
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &[3.0; 8 * 5], 8, 5);
    let data = Dataset::open(&[folder.path()]).unwrap();
    let models = tempfile::tempdir().unwrap();
    let model = write_model(models.path(), Encoder::Dense { latents: 12 }, 8, Selection::TopK(2), &mut rng);
    let sae = Arc::new(Sae::open(model).unwrap());
    let found = evaluate(&sae, &data, 0..5, &EvalOptions::default(), &mut |_| ()).unwrap();
    assert!(found.explained_variance.pooled.is_nan() && found.explained_variance.per_token_mean.is_nan());
    assert!(found.mse.is_finite());
}

#[test]
fn refuses_ranges_and_widths_that_do_not_fit() {
    let mut rng = Rng(5);
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &rng.vec(8 * 5), 8, 5);
    let data = Dataset::open(&[folder.path()]).unwrap();
    let models = tempfile::tempdir().unwrap();
    let model = write_model(models.path(), Encoder::Dense { latents: 12 }, 6, Selection::TopK(2), &mut rng);
    let sae = Arc::new(Sae::open(model).unwrap());
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    for rows in [0..0, 0..6, 4..2] {
        let error = evaluate(&sae, &data, rows, &EvalOptions::default(), &mut |_| ()).unwrap_err();
        assert!(error.message().contains("of the 5 tokens"), "{error}");
    }
    let error = evaluate(&sae, &data, 0..5, &EvalOptions::default(), &mut |_| ()).unwrap_err();
    assert!(error.message().contains("d_model 8, the model expects 6"), "{error}");
}
