//! Whole steps: the loss curve of the CPU backend, equal bits where that is promised, the dead, clipping, and faults.

use crate::common::*;
use kronsae::sae::{Encoder, padded};
use kronsae::{Dtype, Status};
use kronsae_trainer::backend::cpu::CpuBackend;
use kronsae_trainer::backend::cuda::{CudaBackend, CudaOptions};
use kronsae_trainer::backend::{Backend, Batch, Moments, Precision, StepSettings, StepStats, TrainState};
use kronsae_trainer::checkpoint::{self, Header};
use kronsae_trainer::data::Normalisation;
use std::ops::Range;

const D: usize = 24;
const ROWS: usize = 48;
const TRAINED: Encoder = Encoder::Kron { heads: 12, base: 2, extension: 3 };
const TRAINED_DENSE: Encoder = Encoder::Dense { latents: 40 };

fn train(backend: &mut dyn Backend, steps: Range<u64>) -> Vec<StepStats> {
    steps
        .map(|step| {
            let x = batch(ROWS, D, step);
            backend.step(input(&x, ROWS, D, step)).unwrap()
        })
        .collect()
}

fn fresh(encoder: Encoder) -> TrainState {
    TrainState::new(encoder, D, 1).unwrap()
}

fn follows(encoder: Encoder, settings: StepSettings) {
    let steps = 200;
    let expected = train(&mut CpuBackend::new(fresh(encoder), settings, ROWS, 1).unwrap(), 0..steps);
    let found = train(&mut backend(fresh(encoder), settings, ROWS, Some(20)), 0..steps);
    assert!(expected[199].loss < 0.5 * expected[0].loss, "it learns nothing: {:?}", expected[199]);
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found.loss - expected.loss).abs();
        assert!(off <= 1e-4 * expected.loss, "step {step}: {found:?} against {expected:?}");
        assert_eq!(found.revived_rows, expected.revived_rows, "step {step}");
    }
}

#[test]
fn the_loss_follows_the_cpu_backends_kron() {
    let _turn = turn();
    follows(TRAINED, StepSettings { dead_after: 2000, ..settings(4, Some(8)) });
}

#[test]
fn the_loss_follows_the_cpu_backends_dense_and_clipped() {
    let _turn = turn();
    follows(TRAINED_DENSE, StepSettings { dead_after: 2000, clip: Some(0.02), ..settings(4, None) });
}

#[test]
fn two_runs_and_other_chunks_have_equal_bits() {
    let _turn = turn();
    for precision in [Precision::F32, Precision::Bf16] {
        let settings = StepSettings { dead_after: 600, precision, clip: Some(0.05), ..settings(4, Some(8)) };
        let mut runs = Vec::new();
        for (chunk, schedule) in [(None, 0), (None, 2), (Some(7), 1), (Some(32), 9)] {
            let device = device();
            // SAFETY: as in `device`.
            let scheduler =
                unsafe { kronsae::cuda::EmulatedDevice::open(library(), kronsae::cuda::Accumulate::F32) }.unwrap();
            scheduler.set_schedule(schedule);
            let options = CudaOptions { chunk, without_graph: chunk.is_some() };
            let mut run = CudaBackend::new(device, fresh(TRAINED), settings, ROWS, options).unwrap();
            let stats = train(&mut run, 0..25);
            runs.push((stats, bits(run.state().unwrap())));
            scheduler.set_schedule(0);
        }
        assert!(runs.iter().all(|run| *run == runs[0]), "{precision:?}");
        assert!(runs[0].0.iter().any(|stats| stats.dead_latents > 0), "{precision:?}: AuxK had nothing to do");
    }
}

#[test]
fn stopped_and_gone_on_through_a_checkpoint() {
    let _turn = turn();
    for (encoder, precision, moments) in [
        (TRAINED, Precision::F32, Moments::F32),
        (TRAINED, Precision::Bf16, Moments::F32),
        (TRAINED, Precision::Bf16, Moments::Bf16),
        (TRAINED_DENSE, Precision::F32, Moments::Bf16),
    ] {
        let settings = StepSettings { dead_after: 600, precision, moments, clip: Some(0.05), ..settings(4, Some(8)) };
        let mut whole = backend(fresh(encoder), settings, ROWS, None);
        let all = train(&mut whole, 0..24);

        let mut first = backend(fresh(encoder), settings, ROWS, None);
        let mut stats = train(&mut first, 0..11);
        let folder = tempfile::tempdir().unwrap();
        let header = Header { step: 11, skipped: 0, seconds: 1.0, settings: "s".into(), data: "d".into() };
        let normalisation = Normalisation { mean: vec![0.5; D], scale: 2.0 };
        checkpoint::save(folder.path(), &header, first.state().unwrap(), &normalisation).unwrap();
        drop(first);
        let (_, loaded, _) =
            checkpoint::load_newest(folder.path(), encoder, D, &mut |e| panic!("{e}")).unwrap().unwrap();
        let mut second = backend(loaded, settings, ROWS, Some(9));
        stats.extend(train(&mut second, 11..24));
        assert!(stats == all, "{encoder:?} {precision:?} {moments:?}");
        let same = bits(second.state().unwrap()) == bits(whole.state().unwrap());
        assert!(same, "{encoder:?} {precision:?} {moments:?}");
    }
}

#[test]
fn moments_in_bf16_take_half_the_room_and_follow_the_cpu() {
    let _turn = turn();
    let in_f32 = settings(4, Some(8));
    let in_bf16 = StepSettings { moments: Moments::Bf16, ..in_f32 };
    let bytes = |settings| backend(fresh(TRAINED), settings, ROWS, None).parameter_bytes();
    let large = (TRAINED.rows() + TRAINED.latents()) * padded(D);
    assert_eq!(bytes(in_f32) - bytes(in_bf16), 2 * 2 * large);
    // Rows of a dense encoder are updated by the same kernel.
    let (encoder, steps) = (TRAINED, 160);
    let mut cpu = CpuBackend::new(fresh(encoder), in_bf16, ROWS, 1).unwrap();
    let expected = train(&mut cpu, 0..steps);
    let mut cuda = backend(fresh(encoder), in_bf16, ROWS, Some(20));
    let found = train(&mut cuda, 0..steps);
    let plain = train(&mut CpuBackend::new(fresh(encoder), in_f32, ROWS, 1).unwrap(), 0..steps);
    assert!(expected != plain, "rounding changes nothing");
    // A moment on the border between two bf16 may be rounded to either: curves part a little, as two of f32 would not.
    let mean = |stats: &[StepStats]| stats[140..].iter().map(|s| s.loss).sum::<f64>() / 20.0;
    let [found, expected, plain] = [mean(&found), mean(&expected), mean(&plain)];
    assert!((found / expected - 1.0).abs() < 5e-3, "{encoder:?}: {found} against {expected}");
    assert!((expected / plain - 1.0).abs() < 2e-2, "{encoder:?}: {expected} in bf16, {plain} in f32");
    for (name, parameter) in cuda.state().unwrap().parameters() {
        let narrow = |values: &[f32]| values.iter().all(|v| v.to_bits() & 0xFFFF == 0);
        let large = name.ends_with("weight");
        assert_eq!(narrow(&parameter.first) && narrow(&parameter.second), large, "{name}");
    }
}

#[test]
fn a_run_begun_on_the_cpu_goes_on() {
    let _turn = turn();
    let settings = StepSettings { dead_after: 2000, ..settings(4, Some(8)) };
    let mut cpu = CpuBackend::new(fresh(TRAINED), settings, ROWS, 1).unwrap();
    train(&mut cpu, 0..40);
    let folder = tempfile::tempdir().unwrap();
    let header = Header { step: 40, skipped: 0, seconds: 1.0, settings: "s".into(), data: "d".into() };
    let normalisation = Normalisation { mean: vec![0.5; D], scale: 2.0 };
    checkpoint::save(folder.path(), &header, cpu.state().unwrap(), &normalisation).unwrap();
    let (_, loaded, _) = checkpoint::load_newest(folder.path(), TRAINED, D, &mut |e| panic!("{e}")).unwrap().unwrap();
    let expected = train(&mut cpu, 40..60);
    let found = train(&mut backend(loaded, settings, ROWS, None), 40..60);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found.loss - expected.loss).abs() <= 1e-4 * expected.loss, "{found:?} against {expected:?}");
    }
}

#[test]
fn a_dead_row_is_reinitialised_and_lives() {
    let _turn = turn();
    for (encoder, precision) in [(TRAINED, Precision::F32), (TRAINED_DENSE, Precision::F32), (TRAINED, Precision::Bf16)]
    {
        let dead_row = |revive_rows: bool| {
            let mut state = fresh(encoder);
            // Far below zero on every token: no gradient ever reaches this row.
            state.encoder_bias.value[1] = -1000.0;
            let settings = StepSettings { dead_after: 480, revive_rows, precision, ..settings(4, Some(8)) };
            let mut cuda = backend(state, settings, ROWS, None);
            let stats = train(&mut cuda, 0..40);
            let state = cuda.state().unwrap();
            (stats.iter().map(|s| s.revived_rows).sum::<usize>(), state.positive_at[1], state.encoder_bias.value[1])
        };
        let (revived, positive_at, bias) = dead_row(false);
        assert_eq!((revived, positive_at), (0, 0), "without the rule the row must stay dead");
        assert!(bias < -999.0);
        let (revived, positive_at, bias) = dead_row(true);
        assert!(revived >= 1 && positive_at > 480 && bias.abs() < 5.0, "{encoder:?} {revived} {positive_at} {bias}");
    }
}

#[test]
fn batches_that_are_short_or_empty() {
    let _turn = turn();
    let settings = settings(4, Some(8));
    let mut cpu = CpuBackend::new(fresh(TRAINED), settings, ROWS, 1).unwrap();
    let mut cuda = backend(fresh(TRAINED), settings, ROWS, Some(20));
    for (step, rows) in [ROWS, 17, ROWS, 0, 1, ROWS, ROWS].into_iter().enumerate() {
        let x = batch(ROWS, D, step as u64);
        let expected = cpu.step(input(&x, rows, D, step as u64)).unwrap();
        let found = cuda.step(input(&x, rows, D, step as u64)).unwrap();
        assert!((found.loss - expected.loss).abs() <= 1e-4 * expected.loss, "{found:?} against {expected:?}");
        assert_eq!(found.l0, expected.l0);
    }
    assert_eq!(cuda.state().unwrap().tokens, cpu.state().unwrap().tokens);
}

#[test]
fn raw_batches_are_those_the_host_normalises() {
    let _turn = turn();
    let normalisation = Normalisation { mean: (0..D).map(|c| c as f32 * 0.37 - 3.0).collect(), scale: 1.7 };
    for (dtype, precision) in [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .flat_map(|dtype| [(dtype, Precision::F32), (dtype, Precision::Bf16)])
    {
        let settings = StepSettings { precision, ..settings(4, None) };
        let run = |raw: bool| {
            let mut cuda = backend(fresh(TRAINED), settings, ROWS, None);
            cuda.normalise_by(&normalisation).unwrap();
            assert!(cuda.takes_raw());
            for step in 0..3 {
                let from = batch(ROWS, D, step);
                let (mut bytes, mut x) = (Vec::new(), vec![0.0_f32; ROWS * padded(D)]);
                for (row, to) in from.chunks(padded(D)).zip(x.chunks_mut(padded(D))) {
                    for (c, &v) in row[..D].iter().enumerate() {
                        let start = bytes.len();
                        match dtype {
                            Dtype::F32 => bytes.extend(v.to_le_bytes()),
                            Dtype::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
                            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
                        }
                        let mut wide = [0.0];
                        kronsae::dtype::widen(dtype, &bytes[start..], &mut wide);
                        to[c] = (wide[0] - normalisation.mean[c]) * normalisation.scale.recip();
                    }
                }
                cuda.stage(match raw {
                    true => Batch::Raw { bytes: &bytes, rows: ROWS, dtype },
                    false => Batch::Normalised { x: &x, rows: ROWS, stride: padded(D) },
                })
                .unwrap();
                cuda.begin(step, 3e-3).unwrap();
                cuda.finish().unwrap();
            }
            bits(cuda.state().unwrap())
        };
        assert!(run(true) == run(false), "{dtype:?} {precision:?}");
    }
}

#[test]
fn a_batch_staged_while_a_step_is_computed_waits_its_turn() {
    let _turn = turn();
    let settings = settings(4, Some(8));
    let mut one = backend(fresh(TRAINED), settings, ROWS, None);
    let expected = train(&mut one, 0..6);
    let mut ahead = backend(fresh(TRAINED), settings, ROWS, None);
    let stage = |cuda: &mut CudaBackend, step: u64| {
        let x = batch(ROWS, D, step);
        cuda.stage(Batch::Normalised { x: &x, rows: ROWS, stride: padded(D) }).unwrap();
    };
    stage(&mut ahead, 0);
    for step in 0..6 {
        ahead.begin(step, 3e-3).unwrap();
        if step < 5 {
            stage(&mut ahead, step + 1);
        }
        assert_eq!(ahead.finish().unwrap(), expected[step as usize]);
    }
    assert!(bits(ahead.state().unwrap()) == bits(one.state().unwrap()));
}

#[test]
fn tokens_that_are_not_finite_end_the_run_and_change_nothing() {
    let _turn = turn();
    for precision in [Precision::F32, Precision::Bf16] {
        let settings = StepSettings { precision, ..settings(4, Some(8)) };
        let mut cuda = backend(fresh(TRAINED), settings, ROWS, Some(20));
        train(&mut cuda, 0..2);
        let before = bits(cuda.state().unwrap());
        let mut x = batch(ROWS, D, 2);
        x[33 * padded(D) + 2] = f32::NAN;
        let error = cuda.step(input(&x, ROWS, D, 2)).unwrap_err();
        assert_eq!(error.status(), Status::Internal);
        assert!(error.message().contains("diverged at step 2") && error.message().contains("1 of 48"), "{error}");
        let after = bits(cuda.state().unwrap());
        // Norms of gradients aside, which nothing was clipped by.
        assert!(before == after, "{precision:?}");
    }
}

#[test]
fn what_kernels_do_not_take_is_refused() {
    let _turn = turn();
    let refused = |encoder: Encoder, d: usize, settings: StepSettings, word: &str| {
        let state = TrainState::empty(encoder, d).unwrap();
        let Err(error) = CudaBackend::new(device(), state, settings, 4, CudaOptions::default()) else {
            panic!("{word} was taken")
        };
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.message().contains(word) && error.message().contains("--backend cpu"), "{error}");
    };
    let dense = Encoder::Dense { latents: 2000 };
    refused(dense, 8, settings(513, None), "--k 513");
    refused(dense, 8, settings(4, Some(600)), "--auxk-k 600");
    refused(Encoder::Dense { latents: 4 }, 30_000, settings(2, None), "d_model 30000");
}

/// bf16 learns what f32 learns, on recorded activations.
#[test]
fn bf16_explains_as_much_of_real_activations() {
    let _turn = turn();
    let shard = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sample/train-0.safetensors");
    let data = kronsae_trainer::data::Dataset::open(&[shard]).unwrap();
    let d = data.d_model();
    let normalisation = Normalisation::measure(&data, 0..data.rows(), 1 << 14, &mut |_| {}).unwrap();
    let (rows, steps) = (128, 60);
    let encoder = Encoder::Kron { heads: 32, base: 4, extension: 4 };
    let mut ends = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        let settings = StepSettings { precision, dead_after: 100_000, ..settings(16, None) };
        let state = TrainState::new(encoder, d, 0).unwrap();
        let mut run: Box<dyn Backend> = match precision {
            Precision::F32 => Box::new(CpuBackend::new(state, settings, rows, 2).unwrap()),
            Precision::Bf16 => Box::new(backend(state, settings, rows, None)),
        };
        let mut last = Vec::new();
        for step in 0..steps {
            let first = step as usize * rows % (data.rows() - rows);
            let mut raw = vec![0.0_f32; rows * d];
            data.read(first, rows, &mut raw).unwrap();
            let stride = padded(d);
            let mut x = vec![0.0_f32; rows * stride];
            for (to, from) in x.chunks_mut(stride).zip(raw.chunks(d)) {
                for ((to, from), mean) in to.iter_mut().zip(from).zip(&normalisation.mean) {
                    *to = (from - mean) / normalisation.scale;
                }
            }
            let stats = run.step(input(&x, rows, d, step)).unwrap();
            if step >= steps - 10 {
                last.push(stats.explained_variance);
            }
        }
        ends.push(last.iter().sum::<f64>() / last.len() as f64);
    }
    assert!(ends[0] > 0.3, "too little to compare: {ends:?}");
    assert!((ends[0] - ends[1]).abs() < 0.003, "explained variance, f32 and bf16: {ends:?}");
}
