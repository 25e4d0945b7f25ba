//! What must hold before a time means anything.

use super::Check;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::{AuxK, Backend, Moments, Precision, StepInput, StepSettings, StepStats, TrainState};
use crate::random::Stream;
use kronsae::cuda::Device;
use kronsae::sae::{Encoder, padded};
use kronsae::{Aligned, Result};
use std::ops::Range;
use std::sync::Arc;

/// A problem that is small enough for the CPU backend and large enough to have ties, dead latents and long rows.
struct Problem {
    encoder: Encoder,
    d: usize,
    rows: usize,
    steps: u64,
    settings: StepSettings,
}

impl Problem {
    fn new(encoder: Encoder, emulated: bool) -> Self {
        let (d, rows, steps) = if emulated { (24, 40, 30) } else { (96, 512, 200) };
        let settings = StepSettings {
            k: 4,
            precision: Precision::F32,
            auxk: Some(AuxK { k: 8, coefficient: 1.0 / 32.0 }),
            dead_after: rows as u64 * 12,
            revive_rows: true,
            mand_epsilon: 1e-6,
            betas: (0.9, 0.999),
            adam_epsilon: 1e-8,
            moments: Moments::F32,
            clip: None,
        };
        Problem { encoder, d, rows, steps, settings }
    }

    fn state(&self) -> Result<TrainState> {
        TrainState::new(self.encoder, self.d, 1)
    }

    fn on(&self, device: &Arc<dyn Device>, state: TrainState, without_graph: bool) -> Result<CudaBackend> {
        let options = CudaOptions { chunk: None, without_graph };
        CudaBackend::new(Arc::clone(device), state, self.settings, self.rows, options)
    }

    /// Tokens that are sums of four of forty directions, and a little noise.
    fn batch(&self, step: u64) -> Result<Aligned<f32>> {
        let stride = padded(self.d);
        let mut x = Aligned::zeroed(self.rows * stride, "a batch")?;
        let mut stream = Stream::new(3, &[step]);
        for row in x.chunks_mut(stride) {
            for _ in 0..4 {
                let direction = stream.bits() % 40;
                let strength = 0.5 + stream.unit() as f32;
                let mut along = Stream::new(4, &[direction]);
                row[..self.d].iter_mut().for_each(|v| *v += strength * along.normals().0 as f32);
            }
            row[..self.d].iter_mut().for_each(|v| *v += 0.05 * stream.normals().0 as f32);
        }
        Ok(x)
    }

    fn train(&self, backend: &mut dyn Backend, steps: Range<u64>) -> Result<Vec<StepStats>> {
        let mut all = Vec::new();
        for step in steps {
            let x = self.batch(step)?;
            let (rows, stride) = (self.rows, padded(self.d));
            all.push(backend.step(StepInput { x: &x, rows, stride, step, learning_rate: 2e-3 })?);
        }
        Ok(all)
    }
}

pub(super) fn run(device: &Arc<dyn Device>, emulated: bool, progress: &mut dyn FnMut(&str)) -> Result<Vec<Check>> {
    progress("checking the runtime's encoder");
    let mut checks = vec![super::encodes::check(device)?];
    progress("checking a monitor's tap");
    checks.push(super::taps::check(device)?);
    let shapes = [
        ("kron", Encoder::Kron { heads: 24, base: 2, extension: 4 }),
        ("wide heads", Encoder::Kron { heads: 3, base: 8, extension: 12 }),
        ("dense", Encoder::Dense { latents: 160 }),
    ];
    for (name, encoder) in shapes {
        let mut problem = Problem::new(encoder, emulated);
        let mut add = |what: &str, passed: bool, found: String| {
            checks.push(Check { name: format!("{what}, {name}"), passed, found });
        };
        progress(&format!("checking {name}: against the CPU backend"));
        let mut cpu = CpuBackend::new(problem.state()?, problem.settings, problem.rows, 1)?;
        let expected = problem.train(&mut cpu, 0..problem.steps)?;
        let mut one = problem.on(device, problem.state()?, false)?;
        let found = problem.train(&mut one, 0..problem.steps)?;
        let off = found.iter().zip(&expected).map(|(f, e)| (f.loss - e.loss).abs() / e.loss).fold(0.0, f64::max);
        let steps = problem.steps;
        add("f32 loss curve equal to the CPU's to 1e-4", off <= 1e-4, format!("{off:.1e} at most over {steps} steps"));

        for (precision, moments, text) in [
            (Precision::F32, Moments::F32, "f32"),
            (Precision::Bf16, Moments::F32, "bf16"),
            (Precision::Bf16, Moments::Bf16, "bf16 with moments in bf16"),
        ] {
            (problem.settings.precision, problem.settings.moments) = (precision, moments);
            progress(&format!("checking {name}, {text}: determinism, resuming, graphs"));
            let half = problem.steps / 3;
            let mut whole = problem.on(device, problem.state()?, false)?;
            let all = problem.train(&mut whole, 0..2 * half)?;
            let state = bits(whole.state()?);

            let mut again = problem.on(device, problem.state()?, false)?;
            let same = problem.train(&mut again, 0..2 * half)? == all && bits(again.state()?) == state;
            add(&format!("{text}: two runs, equal bits"), same, format!("{} steps", 2 * half));

            let mut direct = problem.on(device, problem.state()?, true)?;
            let same = problem.train(&mut direct, 0..2 * half)? == all && bits(direct.state()?) == state;
            // Emulated devices capture nothing; there is nothing to check then.
            if !emulated {
                let passed = same && whole.has_graph() && !direct.has_graph();
                let found = if whole.has_graph() { "captured and replayed" } else { "nothing was captured" };
                add(&format!("{text}: a graph's bits are those of single launches"), passed, found.to_owned());
            }

            let mut first = problem.on(device, problem.state()?, false)?;
            let mut stats = problem.train(&mut first, 0..half)?;
            let stopped = copied(first.state()?)?;
            drop(first);
            let mut second = problem.on(device, stopped, false)?;
            stats.extend(problem.train(&mut second, half..2 * half)?);
            let same = stats == all && bits(second.state()?) == state;
            add(&format!("{text}: stopped and gone on, equal bits"), same, format!("after step {half}"));
        }
        let end = |stats: &[StepStats]| {
            let last = &stats[stats.len() - stats.len() / 10..];
            last.iter().map(|s| s.explained_variance).sum::<f64>() / last.len() as f64
        };
        for (moments, what) in [(Moments::F32, "bf16"), (Moments::Bf16, "bf16 with moments in bf16")] {
            progress(&format!("checking {name}: explained variance in {what}"));
            problem.settings.moments = moments;
            let mut bf16 = problem.on(device, problem.state()?, false)?;
            let found = problem.train(&mut bf16, 0..problem.steps)?;
            let (narrow, wide) = (end(&found), end(&expected));
            // A tenth of so short a run is a noisy end: of emulated kernels, which run a sixth of it, more is allowed.
            let most = if emulated { 0.02 } else { 0.003 };
            let off = (narrow - wide).abs();
            add(
                &format!("{what} explains as much as f32"),
                off <= most,
                format!("{narrow:.4} against {wide:.4}, at most {most} apart"),
            );
        }
    }
    Ok(checks)
}

/// All that training changes.
fn bits(state: &TrainState) -> Vec<u32> {
    let parameters = state.parameters();
    let values = parameters.iter().flat_map(|(_, p)| [&p.value, &p.first, &p.second]);
    let mut all: Vec<u32> = values.flat_map(|values| values.iter().map(|v| v.to_bits())).collect();
    for counts in [&state.fired_at, &state.positive_at] {
        all.extend(counts.iter().flat_map(|&c| [c as u32, (c >> 32) as u32]));
    }
    all
}

fn copied(from: &TrainState) -> Result<TrainState> {
    let mut to = TrainState::empty(from.encoder, from.d_model())?;
    for ((_, to), (_, from)) in to.parameters_mut().into_iter().zip(from.parameters()) {
        to.value.copy_from_slice(&from.value);
        to.first.copy_from_slice(&from.first);
        to.second.copy_from_slice(&from.second);
    }
    to.fired_at.copy_from_slice(&from.fired_at);
    to.positive_at.copy_from_slice(&from.positive_at);
    (to.tokens, to.gradient_norms) = (from.tokens, from.gradient_norms);
    Ok(to)
}
