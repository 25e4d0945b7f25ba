//! Steps of the device against steps of the CPU and gradients in f64.

use crate::cases::{CASES, Case, RUNS, runs};
use crate::emulator::{Buffer, Element, Emulator};
use crate::reference::{self, Gradients};
use crate::step::{HOT, Outcome, Problem, Resident, numbers, step};
use half::bf16;
use kronsae_trainer::backend::cpu::CpuBackend;
use kronsae_trainer::backend::{Backend, Moments, Parameter, StepInput, StepSettings, TrainState};

const NAMES: [&str; 4] = ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"];

fn input<'a>(problem: &Problem<'a>) -> StepInput<'a> {
    StepInput {
        x: problem.x,
        rows: problem.tokens,
        stride: problem.state.encoder_weight.stride,
        step: problem.step,
        learning_rate: problem.learning_rate,
    }
}

fn cpu(state: TrainState, settings: StepSettings, tokens: usize) -> CpuBackend {
    CpuBackend::new(state, settings, tokens, 1).unwrap()
}

/// Row by row: no element further from what it should be than `tolerance` of the row's largest (or of a thousandth of
/// the whole's, for rows that cancel).
fn close(what: &str, found: &[f32], expected: &[f64], row: usize, tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = |row: &[f64]| row.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
    let floor = 1e-3 * largest(expected);
    for (r, (found, expected)) in found.chunks(row).zip(expected.chunks(row)).enumerate() {
        let scale = largest(expected).max(floor);
        for (c, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let off = (f64::from(found) - expected).abs();
            assert!(off <= tolerance * scale, "{what} [{r}, {c}]: {found} for {expected}, off {off:e} of {scale:e}");
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Without padding, which has to be 0.
fn unpadded(values: &[f32], like: &Parameter) -> Vec<f32> {
    let rows = values.chunks(like.stride).take(like.rows);
    rows.flat_map(|row| {
        assert!(row[like.cols..].iter().all(|&v| v == 0.0), "padding was written to");
        row[..like.cols].iter().copied()
    })
    .collect()
}

/// Everything that a step left, as bits.
pub(crate) fn bits<T: Element>(outcome: &Outcome<T>) -> Vec<Vec<u32>> {
    fn of<E: Element>(buffer: &Buffer<E>) -> Vec<u32> {
        buffer.get().iter().map(|v| v.widen().to_bits()).collect()
    }
    let parameter = |p: &Resident<T>| [of(&p.value), of(&p.first), of(&p.second), of(&p.copy)];
    let mut all: Vec<Vec<u32>> = outcome.parameters.iter().flat_map(parameter).collect();
    all.extend(outcome.parameters.iter().filter_map(|p| p.narrow.as_ref()).flatten().map(of));
    all.extend(outcome.gradients.iter().map(of));
    all.extend([of(&outcome.residual), of(&outcome.squares), of(&outcome.norms), of(&outcome.row_coefficients)]);
    all.push(outcome.row_ids.get().to_vec());
    if let Some(aux) = &outcome.aux {
        all.extend([of(&aux.residual), of(&aux.row_coefficients), aux.row_ids.get().to_vec()]);
    }
    let words = |v: u64| [v as u32, (v >> 32) as u32];
    for floats in [&outcome.sums, &outcome.gradient_norms] {
        all.push(floats.get().iter().flat_map(|v| words(v.to_bits())).collect());
    }
    all.push(words(outcome.aux_loss.to_bits()).to_vec());
    for times in [&outcome.fired_at, &outcome.positive_at] {
        all.push(times.get().iter().flat_map(|&v| words(v)).collect());
    }
    all.extend([outcome.dead_latents.clone(), outcome.dead_rows.clone(), vec![outcome.revived]]);
    all
}

/// A step, run in every way: all must leave the same bits.
fn step_in_all_ways<T: Element>(case: &Case, problem: &Problem<'_>) -> Outcome<T> {
    let emulator = Emulator::new();
    let first = step::<T>(&emulator, RUNS[0], problem);
    let expected = bits(&first);
    for &run in runs() {
        let again = bits(&step::<T>(&emulator, run, problem));
        for (i, (again, expected)) in again.iter().zip(&expected).enumerate() {
            assert!(again == expected, "{}: output {i} differs when run as {run:?}", case.name);
        }
    }
    first
}

fn compare<T: Element>(case: &Case, problem: &Problem<'_>, outcome: &Outcome<T>, tolerance: f64) -> Gradients {
    let expected = reference::gradients(problem, outcome);
    let d = case.d;
    let state = problem.state;
    let stride = state.encoder_weight.stride;
    let rows = |values: &Buffer<T>| -> Vec<f32> {
        values.get().chunks(stride).flat_map(|row| row[..d].iter().map(|v| v.widen())).collect()
    };
    close(&format!("{}: residual", case.name), &rows(&outcome.residual), &expected.residual, d, tolerance);
    if let Some(aux) = outcome.aux.as_ref().filter(|_| !outcome.dead_latents.is_empty()) {
        close(&format!("{}: AuxK's residual", case.name), &rows(&aux.residual), &expected.aux_residual, d, tolerance);
    }
    // From the residuals on nothing but sums is rounded to f32, whatever T is.
    let of_sums = 1e-5;
    for (i, (_, parameter)) in state.parameters().into_iter().enumerate() {
        let found = unpadded(outcome.gradients[i].get(), parameter);
        let name = format!("{}: gradient of {}", case.name, NAMES[i]);
        close(&name, &found, &expected.parameters[i], parameter.cols, of_sums);
    }
    let near =
        |a: f64, b: f64, what: &str| assert!((a - b).abs() <= 1e-5 * b.abs(), "{}: {what} {a} for {b}", case.name);
    near(outcome.sums.get()[0], expected.squares, "squares");
    near(outcome.aux_loss, expected.aux_loss, "AuxK's loss");
    expected
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn gradients_are_those_of_the_cpu_and_of_f64() {
    let (mut hot, mut hot_aux, mut empty, mut merged) = (0, 0, 0, 0);
    for case in CASES {
        let filled = case.fill();
        let problem = filled.problem(true);
        let outcome = step_in_all_ways::<f32>(&case, &problem);
        compare(&case, &problem, &outcome, 1e-5);
        let long = |starts: &[u32]| starts.windows(2).filter(|w| (w[1] - w[0]) as usize > HOT).count();
        hot += long(outcome.by_encoder_row.starts.get());
        if let Some((by_latent, by_row)) = &outcome.aux_sorted {
            hot_aux += long(by_latent.starts.get()).min(long(by_row.starts.get()));
        }
        empty += outcome.by_latent.starts.get().windows(2).filter(|w| w[0] == w[1]).count();
        let used = outcome.by_encoder_row.count.get()[0] as usize;
        let slots = outcome.row_ids.get().len() / problem.tokens;
        let pair = |i: usize| {
            (outcome.by_encoder_row.keys.get()[i], outcome.by_encoder_row.positions.get()[i] as usize / slots)
        };
        merged += (1..used).filter(|&i| pair(i) == pair(i - 1)).count();

        let mut cpu = cpu(case.fill().state, problem.settings, problem.tokens);
        let (stats, expected) = cpu.gradients(input(&problem)).unwrap();
        for (i, (_, parameter)) in problem.state.parameters().into_iter().enumerate() {
            let found = unpadded(outcome.gradients[i].get(), parameter);
            let expected = wide(&unpadded(&expected.parameters[i], parameter));
            let name = format!("{}: gradient of {}, by the CPU's", case.name, NAMES[i]);
            close(&name, &found, &expected, parameter.cols, 1e-5);
        }
        let [squares, norms] = *outcome.sums.get() else { unreachable!() };
        let near = |a: f64, b: f64, what: &str| {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-3), "{}: {what} {a} for {b}", case.name);
        };
        near(squares / (problem.tokens * case.d) as f64, stats.loss, "loss");
        near(1.0 - squares / norms, stats.explained_variance, "explained variance");
        near(outcome.aux_loss, stats.auxk_loss, "AuxK's loss");
        near(f64::from(outcome.by_latent.count.get()[0]) / problem.tokens as f64, stats.l0, "L0");
        assert_eq!(outcome.dead_latents.len(), stats.dead_latents, "{}", case.name);
    }
    assert!(hot > 0 && hot_aux > 0 && empty > 0 && merged > 0, "{hot} {hot_aux} {empty} {merged}: cases are missing");
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn bf16_gradients_are_those_of_f64_from_the_same_bf16() {
    for case in CASES {
        let filled = case.fill();
        let problem = filled.problem(true);
        let outcome = step_in_all_ways::<bf16>(&case, &problem);
        // Half a unit of bf16's last place is up to 2^-8 of the element.
        compare(&case, &problem, &outcome, 4e-3);
    }
}

/// What a step makes of the state, by the CPU.
fn compare_states(case: &Case, outcome: &Outcome<f32>, expected: &TrainState) {
    for (i, (_, parameter)) in expected.parameters().into_iter().enumerate() {
        let found = &outcome.parameters[i];
        for (what, found, expected, tolerance) in [
            ("", &found.value, &parameter.value, 1e-5),
            (", mean", &found.first, &parameter.first, 1e-5),
            (", square", &found.second, &parameter.second, 2e-5),
        ] {
            let name = format!("{}: {}{what}", case.name, NAMES[i]);
            let (found, expected) = (unpadded(found.get(), parameter), wide(&unpadded(expected, parameter)));
            close(&name, &found, &expected, parameter.cols, tolerance);
        }
        for (copy, value) in found.copy.get().iter().zip(found.value.get()) {
            // b_dec has no copy.
            assert!(i == 3 || copy.to_bits() == value.to_bits(), "{}: a copy of {}", case.name, NAMES[i]);
        }
    }
    assert_eq!(outcome.fired_at.get(), expected.fired_at, "{}", case.name);
    assert_eq!(outcome.positive_at.get(), expected.positive_at, "{}", case.name);
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn a_step_is_that_of_the_cpu() {
    let (mut revived, mut clipped) = (0, 0);
    for case in CASES {
        let filled = case.fill();
        let problem = filled.problem(false);
        let outcome = step_in_all_ways::<f32>(&case, &problem);
        let mut cpu = cpu(case.fill().state, problem.settings, problem.tokens);
        let stats = cpu.step(input(&problem)).unwrap();
        let expected = cpu.state().unwrap();
        compare_states(&case, &outcome, expected);
        assert_eq!(
            (outcome.dead_rows.len(), outcome.revived as usize),
            (stats.dead_rows, stats.revived_rows),
            "{}",
            case.name
        );
        revived += stats.revived_rows;
        if problem.settings.clip.is_some() {
            for (found, expected) in outcome.gradient_norms.get().iter().zip(expected.gradient_norms) {
                assert!((found - expected).abs() <= 1e-5 * expected, "{}: norm {found} for {expected}", case.name);
            }
            clipped += 1;
        }
        // A row that nothing touched sees Adam's decay alone: the same roundings, so the same bits.
        let (starts, weight) = (outcome.by_encoder_row.starts.get(), &expected.encoder_weight);
        let auxk = outcome.aux.is_some() && !outcome.dead_latents.is_empty();
        for row in (0..weight.rows).filter(|&row| starts[row] == starts[row + 1] && !auxk) {
            let range = row * weight.stride..(row + 1) * weight.stride;
            if case.silent.contains(&row) && outcome.revived > 0 {
                continue;
            }
            let found = &outcome.parameters[0].value.get()[range.clone()];
            let same = found.iter().zip(&weight.value[range]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: row {row} was not touched", case.name);
        }
    }
    assert!(revived >= 3 && clipped > 0, "{revived} {clipped}: cases are missing");
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn clipping_by_the_last_norms_changes_the_step() {
    let case = CASES.iter().find(|case| case.clip.is_some()).unwrap();
    let mut filled = case.fill();
    let emulator = Emulator::new();
    let clipped = step::<f32>(&emulator, RUNS[0], &filled.problem(false));
    filled.settings.clip = None;
    let free = step::<f32>(&emulator, RUNS[0], &filled.problem(false));
    // Norms of the last step: .03, .06, .04, .2; clipped to .05.
    let first = |outcome: &Outcome<f32>, i: usize| outcome.parameters[i].first.get().to_vec();
    for (i, is_clipped) in [false, true, false, true].into_iter().enumerate() {
        assert_eq!(first(&clipped, i) != first(&free, i), is_clipped, "{}", NAMES[i]);
    }
}

/// One row of a parameter after Adam, in f64.
fn adam(problem: &Problem<'_>, from: &Parameter, row: usize, gradient: &[f64], project: bool) -> [Vec<f64>; 3] {
    let n = numbers(problem);
    let range = row * from.stride..row * from.stride + from.cols;
    let mut w = wide(&from.value[range.clone()]);
    let along: f64 = if project { w.iter().zip(gradient).map(|(w, g)| w * g).sum() } else { 0.0 };
    let (mut m, mut v) = (wide(&from.first[range.clone()]), wide(&from.second[range]));
    for c in 0..from.cols {
        let g = gradient[c] - along * w[c];
        m[c] += (g - m[c]) * (1.0 - f64::from(n.beta1));
        v[c] += (g * g - v[c]) * (1.0 - f64::from(n.beta2));
        w[c] -= f64::from(n.rate) * m[c] / (v[c].sqrt() * f64::from(n.root) + f64::from(n.epsilon));
    }
    if project {
        let norm = w.iter().map(|w| w * w).sum::<f64>().sqrt();
        w.iter_mut().for_each(|w| *w /= norm);
    }
    [w, m, v]
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn a_bf16_step_keeps_f32_masters_and_rounds_its_copies() {
    for case in CASES {
        let mut filled = case.fill();
        filled.settings.revive_rows = false;
        filled.settings.clip = None;
        let gradients = {
            let emulator = Emulator::new();
            let problem = filled.problem(true);
            let captured = step::<bf16>(&emulator, RUNS[0], &problem);
            reference::gradients(&problem, &captured)
        };
        let problem = filled.problem(false);
        let outcome = step_in_all_ways::<bf16>(&case, &problem);
        for (i, (_, parameter)) in problem.state.parameters().into_iter().enumerate() {
            let found = &outcome.parameters[i];
            let [mut w, mut m, mut v] = [vec![], vec![], vec![]];
            for (row, gradient) in gradients.parameters[i].chunks(parameter.cols).enumerate() {
                let [a, b, c] = adam(&problem, parameter, row, gradient, i == 2);
                w.extend(a);
                m.extend(b);
                v.extend(c);
            }
            let pairs = [("", &found.value, w), (", mean", &found.first, m), (", square", &found.second, v)];
            for (what, found, expected) in pairs {
                let name = format!("{}: {}{what} (bf16)", case.name, NAMES[i]);
                close(&name, &unpadded(found.get(), parameter), &expected, parameter.cols, 2e-5);
            }
            for (copy, value) in found.copy.get().iter().zip(found.value.get()) {
                assert!(i == 3 || *copy == bf16::from_f32(*value), "{}: a copy of {}", case.name, NAMES[i]);
            }
        }
    }
}

/// Rounded by the same bits as the CPU's: they differ where the moments in f32 do, by a last bit that carries.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn bf16_moments_are_those_of_the_cpu() {
    let (mut same, mut all, mut revived) = (0, 0, 0);
    for case in CASES {
        let filled_with_moments = || {
            let mut filled = case.fill();
            filled.settings.moments = Moments::Bf16;
            for (_, parameter) in filled.state.parameters_mut() {
                for moments in [&mut parameter.first, &mut parameter.second] {
                    moments.iter_mut().for_each(|m| *m = bf16::from_f32(*m).to_f32());
                }
            }
            filled
        };
        let filled = filled_with_moments();
        let problem = filled.problem(false);
        step_in_all_ways::<bf16>(&case, &problem);
        let outcome = step_in_all_ways::<f32>(&case, &problem);
        revived += outcome.revived;
        let mut cpu = cpu(filled_with_moments().state, problem.settings, problem.tokens);
        cpu.step(input(&problem)).unwrap();
        let expected = cpu.state().unwrap();
        for (i, (_, parameter)) in expected.parameters().into_iter().enumerate() {
            let found = &outcome.parameters[i];
            let (value, of_cpu) =
                (unpadded(found.value.get(), parameter), wide(&unpadded(&parameter.value, parameter)));
            close(&format!("{}: {}", case.name, NAMES[i]), &value, &of_cpu, parameter.cols, 1e-5);
            let Some(moments) = &found.narrow else {
                assert!(i == 1 || i == 3, "{} has moments in f32", NAMES[i]);
                continue;
            };
            for (found, expected) in moments.iter().zip([&parameter.first, &parameter.second]) {
                let largest = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
                for (found, expected) in found.get().iter().zip(expected.iter()) {
                    let found = found.to_f32();
                    same += u32::from(found.to_bits() == expected.to_bits());
                    all += 1;
                    let off = (found - expected).abs();
                    let step = (expected.abs() / 64.0).max(1e-5 * largest);
                    assert!(off <= step, "{}: moments of {}: {found} against {expected}", case.name, NAMES[i]);
                }
            }
        }
    }
    assert!(revived > 0, "no case revives a row");
    assert!(all - same <= all / 500, "{same} of {all} moments are those of the CPU");
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn revived_rows_have_bf16_copies_too() {
    let case = CASES.iter().find(|case| case.silent.len() > 3).unwrap();
    let filled = case.fill();
    let outcome = step_in_all_ways::<bf16>(case, &filled.problem(false));
    assert!(outcome.revived > 0);
    for parameter in &outcome.parameters[..3] {
        for (copy, value) in parameter.copy.get().iter().zip(parameter.value.get()) {
            assert_eq!(*copy, bf16::from_f32(*value));
        }
    }
    // A row that began anew has the norm of a typical one, its latents unit norm.
    let state = &filled.state;
    let stride = state.encoder_weight.stride;
    let norm = |values: &Buffer<f32>, row: usize| {
        wide(&values.get()[row * stride..(row + 1) * stride]).iter().map(|v| v * v).sum::<f64>().sqrt()
    };
    let [first, second] = [0, 1].map(|i| norm(&outcome.parameters[0].value, outcome.dead_rows[i] as usize));
    assert!((first / second - 1.0).abs() < 1e-5 && first > 0.3, "{first} {second}");
    for latent in 0..state.encoder.latents() {
        assert!((norm(&outcome.parameters[2].value, latent) - 1.0).abs() < 1e-5);
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn tokens_that_are_not_finite_change_nothing() {
    for case in CASES {
        let filled = case.fill();
        let mut problem = filled.problem(false);
        problem.halt = true;
        let outcome = step_in_all_ways::<f32>(&case, &problem);
        for (found, (_, expected)) in outcome.parameters.iter().zip(problem.state.parameters()) {
            assert_eq!(found.value.get(), &*expected.value, "{}", case.name);
            assert_eq!(found.first.get(), &*expected.first, "{}", case.name);
            assert_eq!(found.second.get(), &*expected.second, "{}", case.name);
        }
        assert_eq!(outcome.fired_at.get(), problem.state.fired_at, "{}", case.name);
        assert_eq!(outcome.positive_at.get(), problem.state.positive_at, "{}", case.name);
        assert_eq!(outcome.revived, 0);
    }
}
