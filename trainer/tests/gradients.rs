//! The CPU backend's gradients against finite differences of a naive loss in f64: kron and dense, AuxK on and off; and the
//! eps form of mAND's gradient. Selection is frozen, as the format of the method has it.

use kronsae::sae::Encoder;
use kronsae_trainer::backend::cpu::CpuBackend;
use kronsae_trainer::backend::{AuxK, Moments, Precision, StepInput, StepSettings, TrainState};
use kronsae_trainer::random::Stream;

const D: usize = 11;
const STRIDE: usize = 16;
const BATCH: usize = 9;
const K: usize = 3;

fn settings(auxk: bool, epsilon: f32) -> StepSettings {
    StepSettings {
        k: K,
        precision: Precision::F32,
        auxk: auxk.then_some(AuxK { k: 4, coefficient: 0.25 }),
        dead_after: 500,
        revive_rows: true,
        mand_epsilon: epsilon,
        betas: (0.9, 0.999),
        adam_epsilon: 1e-8,
        moments: Moments::F32,
        clip: None,
    }
}

/// A state in the middle of training: every third latent dead, biases and moments not zero.
fn state(encoder: Encoder, seed: u64) -> TrainState {
    let mut state = TrainState::new(encoder, D, seed).unwrap();
    let mut stream = Stream::new(seed, &[99]);
    for v in state.encoder_bias.value.iter_mut().take(encoder.rows()) {
        *v = stream.normals().0 as f32 * 0.3;
    }
    for v in state.decoder_bias.value.iter_mut().take(D) {
        *v = stream.normals().0 as f32 * 0.2;
    }
    state.tokens = 1000;
    state.positive_at.fill(1000);
    for (f, at) in state.fired_at.iter_mut().enumerate() {
        *at = if f.is_multiple_of(3) { 0 } else { 1000 };
    }
    state
}

/// Parameters in f64, without padding: encoder weight, encoder bias, decoder weight, decoder bias.
type Parameters = [Vec<f64>; 4];

fn parameters(state: &TrainState) -> Parameters {
    state.parameters().map(|(_, p)| (0..p.rows).flat_map(|r| p.row(r).iter().map(|&v| f64::from(v))).collect())
}

fn pre_activations(p: &Parameters, x: &[f64], rows: usize) -> Vec<f64> {
    (0..rows).map(|r| (0..D).map(|c| p[0][r * D + c] * x[c]).sum::<f64>() + p[1][r]).collect()
}

/// The strongest of the latents that `among` allows, by the product p*q (dense: y).
fn top(encoder: Encoder, y: &[f64], k: usize, among: impl Fn(usize) -> bool) -> Vec<usize> {
    let product = |f: usize| match encoder.rows_of(f) {
        (a, b) if a == b => y[a].max(0.0),
        (a, b) => y[a].max(0.0) * y[b].max(0.0),
    };
    let mut all: Vec<usize> = (0..encoder.latents()).filter(|&f| among(f) && product(f) > 0.0).collect();
    all.sort_by(|&f, &g| product(g).total_cmp(&product(f)).then(f.cmp(&g)));
    all.truncate(k);
    all
}

/// What is frozen while parameters move: selections, the residual AuxK explains, and z at the start.
struct Frozen {
    selected: Vec<Vec<usize>>,
    dead: Vec<Vec<usize>>,
    residual: Vec<Vec<f64>>,
    start: Parameters,
}

/// A latent's value. With eps = 0 it is sqrt(p q); with eps its *derivative* is the eps form, and its value at the start
/// is still sqrt(p q).
fn value(encoder: Encoder, y: &[f64], y0: &[f64], f: usize, eps: f64) -> f64 {
    match encoder.rows_of(f) {
        (a, b) if a == b => y[a],
        (a, b) => (y0[a] * y0[b]).sqrt() + (y[a] * y[b] + eps).sqrt() - (y0[a] * y0[b] + eps).sqrt(),
    }
}

fn loss(encoder: Encoder, p: &Parameters, xs: &[Vec<f64>], frozen: &Frozen, aux: f64, eps: f64) -> f64 {
    let (mut main, mut auxiliary, mut squares) = (0.0, 0.0, 0.0);
    for (t, x) in xs.iter().enumerate() {
        let y = pre_activations(p, x, encoder.rows());
        let y0 = pre_activations(&frozen.start, x, encoder.rows());
        let decode = |latents: &[usize], c: usize| -> f64 {
            latents.iter().map(|&f| value(encoder, &y, &y0, f, eps) * p[2][f * D + c]).sum()
        };
        for c in 0..D {
            main += (decode(&frozen.selected[t], c) + p[3][c] - x[c]).powi(2);
            auxiliary += (decode(&frozen.dead[t], c) - frozen.residual[t][c]).powi(2);
            squares += frozen.residual[t][c].powi(2);
        }
    }
    main / (BATCH * D) as f64 + aux * auxiliary / squares
}

fn check(encoder: Encoder, aux: bool, eps: f32, seed: u64) {
    let mut stream = Stream::new(seed, &[7]);
    let mut x = vec![0.0_f32; BATCH * STRIDE];
    for row in x.chunks_mut(STRIDE) {
        row[..D].iter_mut().for_each(|v| *v = stream.normals().0 as f32 * 1.5);
    }
    let xs: Vec<Vec<f64>> = x.chunks(STRIDE).map(|r| r[..D].iter().map(|&v| f64::from(v)).collect()).collect();
    let state = state(encoder, seed);
    let start = parameters(&state);
    let dead = |f: usize| f.is_multiple_of(3);
    let mut frozen = Frozen { selected: vec![], dead: vec![], residual: vec![], start: start.clone() };
    for x in &xs {
        let y = pre_activations(&start, x, encoder.rows());
        let selected = top(encoder, &y, K, |_| true);
        frozen.dead.push(if aux { top(encoder, &y, 4, dead) } else { vec![] });
        let x_hat = |c: usize| -> f64 {
            selected.iter().map(|&f| value(encoder, &y, &y, f, 0.0) * start[2][f * D + c]).sum::<f64>() + start[3][c]
        };
        frozen.residual.push((0..D).map(|c| x[c] - x_hat(c)).collect());
        if eps == 0.0
            && let Encoder::Kron { .. } = encoder
        {
            // Where p*q is small the root is too bent for finite differences; such a seed is no use.
            for &f in selected.iter().chain(&frozen.dead[frozen.dead.len() - 1]) {
                let (a, b) = encoder.rows_of(f);
                assert!(y[a] * y[b] >= 1e-3, "choose another seed: p*q = {}", y[a] * y[b]);
            }
        }
        frozen.selected.push(selected);
    }

    let weight = if aux { 0.25 } else { 0.0 };
    let total = |p: &Parameters| loss(encoder, p, &xs, &frozen, weight, f64::from(eps));
    let mut gradients_of_threads = Vec::new();
    for threads in [1, 2, 3] {
        let state = self::state(encoder, seed);
        let mut backend = CpuBackend::new(state, settings(aux, eps), BATCH, threads).unwrap();
        let input = StepInput { x: &x, rows: BATCH, stride: STRIDE, step: 0, learning_rate: 1e-3 };
        let (stats, gradients) = backend.gradients(input).unwrap();
        let main = loss(encoder, &start, &xs, &frozen, 0.0, f64::from(eps));
        assert!((stats.loss - main).abs() < 1e-5 * main, "loss {} against {main}", stats.loss);
        if aux {
            let expected = (total(&start) - main) / weight;
            assert!((stats.auxk_loss - expected).abs() < 1e-5, "AuxK loss {} against {expected}", stats.auxk_loss);
            assert_eq!(stats.dead_latents, encoder.latents().div_ceil(3));
        }
        gradients_of_threads.push(gradients);
    }
    for other in &gradients_of_threads[1..] {
        assert_eq!(other.parameters, gradients_of_threads[0].parameters, "gradients depend on threads");
    }
    let gradients = &gradients_of_threads[0];
    let shapes = [(encoder.rows(), D, STRIDE), (1, encoder.rows(), 0), (encoder.latents(), D, STRIDE), (1, D, 0)];
    for (which, (rows, cols, stride)) in shapes.into_iter().enumerate() {
        let found: Vec<f64> = (0..rows)
            .flat_map(|r| gradients.parameters[which][r * stride..r * stride + cols].iter().map(|&v| f64::from(v)))
            .collect();
        let scale = found.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
        assert!(scale > 0.0, "no gradient at all in parameter {which}");
        let step = 1e-5;
        for (i, &found) in found.iter().enumerate() {
            let (mut up, mut down) = (start.clone(), start.clone());
            up[which][i] += step;
            down[which][i] -= step;
            let expected = (total(&up) - total(&down)) / (2.0 * step);
            assert!(
                (found - expected).abs() < 2e-4 * scale,
                "{encoder:?}, AuxK {aux}: parameter {which}, element {i}: {found} against {expected} (scale {scale})"
            );
        }
    }
}

const KRON: Encoder = Encoder::Kron { heads: 5, base: 2, extension: 3 };
const DENSE: Encoder = Encoder::Dense { latents: 21 };

#[test]
fn kron_without_auxk() {
    check(KRON, false, 0.0, 1);
}

#[test]
fn kron_with_auxk() {
    check(KRON, true, 0.0, 5);
}

#[test]
fn dense_without_auxk() {
    check(DENSE, false, 0.0, 3);
}

#[test]
fn dense_with_auxk() {
    check(DENSE, true, 0.0, 4);
}

#[test]
fn the_eps_form_of_mand() {
    // An eps as large as the products themselves: a gradient without it would be far off.
    check(KRON, false, 0.5, 6);
    check(KRON, true, 0.5, 7);
}
