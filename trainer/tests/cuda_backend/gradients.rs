//! Gradients of a batch against those of the CPU backend, whose own are tested against finite differences.

use crate::common::*;
use kronsae::sae::Encoder;
use kronsae_trainer::backend::StepSettings;
use kronsae_trainer::backend::cpu::CpuBackend;

/// Relative to the largest element of each parameter's gradient.
const TOLERANCE: f32 = 1e-5;

fn check(encoder: Encoder, d: usize, rows: usize, chunk: Option<usize>, settings: StepSettings, seed: u64) {
    let what = format!("{encoder:?}, d {d}, {rows} tokens in chunks of {chunk:?}, AuxK {:?}", settings.auxk);
    let x = batch(rows, d, seed);
    let mut cpu = CpuBackend::new(state(encoder, d, seed), settings, rows, 1).unwrap();
    let (expected_stats, expected) = cpu.gradients(input(&x, rows, d, 0)).unwrap();
    // Room for more tokens than there are.
    let mut cuda = backend(state(encoder, d, seed), settings, rows + 3, chunk);
    let (stats, found) = cuda.gradients(input(&x, rows, d, 0)).unwrap();

    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1e-6);
    assert!(close(stats.loss, expected_stats.loss), "{what}: {stats:?} against {expected_stats:?}");
    assert!(close(stats.auxk_loss, expected_stats.auxk_loss), "{what}: {stats:?} against {expected_stats:?}");
    assert!(close(stats.explained_variance, expected_stats.explained_variance), "{what}: {stats:?}");
    assert_eq!((stats.l0, stats.dead_latents), (expected_stats.l0, expected_stats.dead_latents), "{what}");
    assert_eq!(settings.auxk.is_some(), stats.auxk_loss > 0.0, "{what}: nothing is dead");
    for (which, (found, expected)) in found.parameters.iter().zip(&expected.parameters).enumerate() {
        let scale = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
        assert!(scale > 0.0, "{what}: no gradient at all in parameter {which}");
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let off = (found - expected).abs();
            assert!(off <= TOLERANCE * scale, "{what}: parameter {which}, element {at}: {found} against {expected}");
        }
    }
}

#[test]
fn kron_and_dense_with_and_without_auxk() {
    let _turn = turn();
    for (seed, encoder) in [KRON, SQUARE, WIDE, DENSE].into_iter().enumerate() {
        for auxk in [None, Some(4)] {
            check(encoder, 11, 9, None, settings(3, auxk), seed as u64);
        }
    }
}

#[test]
fn odd_sizes_and_chunks() {
    let _turn = turn();
    for (seed, (d, rows, chunk)) in
        [(1, 1, None), (7, 70, Some(16)), (33, 67, Some(13)), (40, 30, Some(1)), (130, 12, Some(100))]
            .into_iter()
            .enumerate()
    {
        check(KRON, d, rows, chunk, settings(4, Some(5)), 20 + seed as u64);
        check(DENSE, d, rows, chunk, settings(2, None), 40 + seed as u64);
    }
}

#[test]
fn more_latents_asked_for_than_are_positive() {
    let _turn = turn();
    check(KRON, 11, 20, None, settings(30, Some(200)), 60);
    check(DENSE, 11, 20, Some(7), settings(21, Some(21)), 61);
}

#[test]
fn rows_that_every_token_touches() {
    // More than 512 touches of a row: they are summed in parts.
    let _turn = turn();
    let encoder = Encoder::Kron { heads: 1, base: 2, extension: 2 };
    check(encoder, 5, 700, Some(256), settings(4, None), 70);
}

#[test]
fn gradients_change_nothing() {
    let _turn = turn();
    let mut cuda = backend(state(KRON, 11, 3), settings(3, Some(4)), 9, None);
    let before = bits(kronsae_trainer::backend::Backend::state(&mut cuda).unwrap());
    let x = batch(9, 11, 3);
    let first = cuda.gradients(input(&x, 9, 11, 0)).unwrap();
    assert!(bits(kronsae_trainer::backend::Backend::state(&mut cuda).unwrap()) == before);
    let second = cuda.gradients(input(&x, 9, 11, 0)).unwrap();
    assert!(first.0 == second.0 && first.1.parameters == second.1.parameters);
}
