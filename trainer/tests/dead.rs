//! The dead come back: a silent latent by AuxK, a silent encoder row by re-initialisation.

use kronsae::Aligned;
use kronsae::sae::Encoder;
use kronsae_trainer::backend::cpu::CpuBackend;
use kronsae_trainer::backend::{AuxK, Backend, Moments, Precision, StepInput, StepSettings, TrainState};
use kronsae_trainer::random::Stream;

const D: usize = 16;
const BATCH: usize = 256;

fn settings(auxk: bool, revive_rows: bool) -> StepSettings {
    StepSettings {
        k: 2,
        precision: Precision::F32,
        auxk: auxk.then_some(AuxK { k: 8, coefficient: 1.0 / 32.0 }),
        dead_after: 1024,
        revive_rows,
        mand_epsilon: 1e-6,
        betas: (0.9, 0.999),
        adam_epsilon: 1e-8,
        moments: Moments::F32,
        clip: None,
    }
}

/// Tokens that are sums of four of sixteen directions: more than K latents can say.
fn batch(step: u64) -> Aligned<f32> {
    let mut x = Aligned::zeroed(BATCH * D, "a batch").unwrap();
    let mut stream = Stream::new(3, &[step]);
    for row in x.chunks_mut(D) {
        for _ in 0..4 {
            let direction = (stream.bits() % 16) as usize;
            let strength = 1.0 + stream.unit() as f32;
            // A fixed rotation-like mixing, so that directions are not axes.
            for (c, v) in row.iter_mut().enumerate() {
                let angle = ((direction * 7 + c * 13 + direction * c) % 31) as f32;
                *v += strength * (angle / 31.0 * std::f32::consts::TAU).cos();
            }
        }
    }
    x
}

fn train(backend: &mut CpuBackend, steps: std::ops::Range<u64>) -> usize {
    let mut revived = 0;
    for step in steps {
        let x = batch(step);
        let input = StepInput { x: &x, rows: BATCH, stride: D, step, learning_rate: 3e-3 };
        revived += backend.step(input).unwrap().revived_rows;
    }
    revived
}

/// A dense SAE in which latent 0 is weak: its pre-activations are positive on
/// some tokens, but others always win.
fn weak_latent() -> TrainState {
    let mut state = TrainState::new(Encoder::Dense { latents: 24 }, D, 1).unwrap();
    state.encoder_weight.value[..D].iter_mut().for_each(|v| *v *= 0.02);
    state
}

#[test]
fn auxk_revives_a_latent_that_stays_dead_without_it() {
    let fired = |auxk: bool| {
        let mut backend = CpuBackend::new(weak_latent(), settings(auxk, false), BATCH, 2).unwrap();
        train(&mut backend, 0..1000);
        backend.state().unwrap().fired_at[0] > 0
    };
    assert!(!fired(false), "without AuxK the weak latent must stay dead, or this test shows nothing");
    assert!(fired(true), "AuxK did not revive the latent");
}

#[test]
fn a_dead_row_is_reinitialised_and_lives() {
    for encoder in [Encoder::Kron { heads: 6, base: 2, extension: 2 }, Encoder::Dense { latents: 24 }] {
        let dead_row = |revive: bool| {
            let mut state = TrainState::new(encoder, D, 2).unwrap();
            // Far below zero on every token: no gradient ever reaches this row.
            state.encoder_bias.value[1] = -1000.0;
            let mut backend = CpuBackend::new(state, settings(true, revive), BATCH, 2).unwrap();
            let revived = train(&mut backend, 0..60);
            let state = backend.state().unwrap();
            let fired = (0..encoder.latents()).filter(|&f| {
                let (a, b) = encoder.rows_of(f);
                (a == 1 || b == 1) && state.fired_at[f] > 0
            });
            (revived, state.positive_at[1], fired.count(), state.encoder_bias.value[1])
        };
        let (revived, positive_at, fired, bias) = dead_row(false);
        assert_eq!((revived, positive_at, fired), (0, 0, 0), "without the rule the row must stay dead");
        assert!(bias < -999.0);
        let (revived, positive_at, fired, bias) = dead_row(true);
        assert!(
            revived >= 1 && positive_at > 1024 && fired > 0 && bias.abs() < 5.0,
            "{revived} {positive_at} {fired} {bias}"
        );
    }
}
