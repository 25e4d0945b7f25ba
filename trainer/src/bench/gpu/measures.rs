//! Times and memory, against what the traffic model says and what peers need.

use super::{Measure, Options, Report};
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::{AuxK, Batch, Moments, Precision, StepSettings, TrainState};
use crate::bench::traffic::{Peaks, Step};
use crate::random::Stream;
use kronsae::cuda::{Device, Element, Product};
use kronsae::sae::{Encoder, padded};
use kronsae::{Aligned, Result};
use std::sync::Arc;
use std::time::Instant;

/// Milliseconds of the median of `calls` calls, each waited for; a few before them are not timed.
pub(super) fn median(device: &dyn Device, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..3 {
        call()?;
    }
    device.synchronize()?;
    let mut times = Vec::new();
    for _ in 0..calls.max(1) {
        let start = Instant::now();
        call()?;
        device.synchronize()?;
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn settings(step: &Step) -> StepSettings {
    StepSettings {
        k: step.k,
        precision: if step.element == 2 { Precision::Bf16 } else { Precision::F32 },
        auxk: Some(AuxK { k: 4 * step.k, coefficient: 1.0 / 32.0 }),
        // Nothing dies in so few steps, unless that is measured.
        dead_after: if step.aux > 0 { 1 } else { 1 << 40 },
        revive_rows: step.aux == 0,
        mand_epsilon: 1e-6,
        betas: (0.9, 0.999),
        adam_epsilon: 1e-8,
        moments: step.moments,
        clip: None,
    }
}

/// A backend with a batch of random tokens on the device.
fn prepared(device: &Arc<dyn Device>, step: &Step) -> Result<CudaBackend> {
    let state = TrainState::new(step.encoder, step.d_model, 0)?;
    let mut backend = CudaBackend::new(Arc::clone(device), state, settings(step), step.batch, CudaOptions::default())?;
    let stride = padded(step.d_model);
    let mut x = Aligned::zeroed(step.batch * stride, "a batch")?;
    for (t, row) in x.chunks_mut(stride).enumerate() {
        let mut stream = Stream::new(5, &[t as u64]);
        row[..step.d_model].iter_mut().for_each(|v| *v = stream.normals().0 as f32);
    }
    use crate::backend::Backend as _;
    backend.stage(Batch::Normalised { x: &x, rows: step.batch, stride })?;
    backend.begin(0, 1e-5)?;
    backend.finish()?;
    Ok(backend)
}

fn step_time(device: &Arc<dyn Device>, step: &Step, calls: usize) -> Result<(f64, CudaBackend)> {
    let mut backend = prepared(device, step)?;
    let mut number = 0;
    let time = median(&**device, calls, || {
        number += 1;
        backend.again(number, 1e-5)
    })?;
    Ok((time, backend))
}

/// The bare product of the encoder's shape.
fn product_time(device: &dyn Device, step: &Step, tokens: usize, calls: usize) -> Result<f64> {
    let element = if step.element == 2 { Element::Bf16 } else { Element::F32 };
    let (stride, rows) = (padded(step.d_model), step.encoder.rows());
    let ldy = rows.next_multiple_of(16);
    let allocate = |elements: usize| device.allocate(elements * element.size(), "a product");
    let (x, w, y) = (allocate(tokens * stride)?, allocate(rows * stride)?, allocate(tokens * ldy)?);
    let product = Product {
        tokens: tokens as u32,
        rows: rows as u32,
        inner: step.d_model as u32,
        input: element,
        output: element,
        x: x.address(),
        x_stride: stride as u32,
        w: w.address(),
        w_stride: stride as u32,
        bias: 0,
        y: y.address(),
        y_stride: ldy as u32,
        workspace: 0,
    };
    // SAFETY: three allocations of these sizes, which live until the last product has been waited for.
    median(device, calls, || unsafe { device.product(&product) })
}

pub(super) fn run(
    device: &Arc<dyn Device>,
    options: &Options,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let (step, calls) = (&options.step, options.calls);
    let peaks = Peaks::h200(step.element);
    progress("measuring the bare product");
    let product = product_time(&**device, step, step.batch, calls)?;
    report.measures.push(Measure::plain("product alone", product, "ms", format!("{} tokens", step.batch)));

    super::encodes::run(device, options, product, report, progress)?;
    progress("measuring a training step");
    let before = device.memory_in_use()?;
    let (time, backend) = step_time(device, step, calls)?;
    let floor = 1e3 * step.floor(peaks, true);
    report.measures.push(Measure::plain("training step", time, "ms", format!("{} tokens", step.batch)));
    report.measures.push(Measure::at_most(
        "training step / floor of its traffic",
        time / floor,
        "x",
        1.5,
        format!("{floor:.2} ms, every gather from memory"),
    ));
    let parameters = backend.parameter_bytes();
    // What the device says counts workspaces and graphs too; where it says nothing, what was allocated.
    let (working, how) = match (before, device.memory_in_use()?) {
        (Some(before), Some(now)) => (now as f64 - before as f64 - parameters as f64, "in use by the device's account"),
        _ => (backend.working_bytes() as f64, "allocated"),
    };
    let unit = (step.batch * step.encoder.rows() * 2) as f64;
    report.measures.push(Measure::at_most(
        "memory beyond parameters, copies and moments / (B h (m + n) 2 bytes)",
        working / unit,
        "x",
        2.0,
        format!("{:.3} GB {how}; {:.3} GB of parameters", working / 1e9, parameters as f64 / 1e9),
    ));
    drop(backend);

    progress("measuring a step with dead latents");
    let dead = Step { aux: (4 * step.k).min(512), ..*step };
    let (with_dead, backend) = step_time(device, &dead, calls)?;
    drop(backend);
    report.measures.push(Measure::plain(
        "training step while AuxK has dead latents",
        with_dead,
        "ms",
        format!("{} a token at most", dead.aux),
    ));
    progress("measuring a step with moments in bf16");
    let narrow = Step { moments: Moments::Bf16, ..*step };
    let (with_narrow, backend) = step_time(device, &narrow, calls)?;
    let bytes = backend.parameter_bytes();
    drop(backend);
    report.measures.push(Measure::plain(
        "training step with moments in bf16",
        with_narrow,
        "ms",
        format!("{:.2} ms is its floor; {:.3} GB of parameters", 1e3 * narrow.floor(peaks, true), bytes as f64 / 1e9),
    ));
    compare(report, time);
    if options.sweep {
        sweep(device, options, report, progress)?;
    } else {
        report.skipped.push("step time over F: not asked for".to_owned());
    }
    Ok(())
}

/// Ours beside what `tools/gpu_peers.py` measured in the same session.
fn compare(report: &mut Report, time: f64) {
    let Some(peers) = report.peers.clone() else {
        report.skipped.push("peers: tools/gpu_peers.py was not run".to_owned());
        return;
    };
    for (mark, target) in [("as in the paper's listing", 5.0), ("sparse decoder", 0.0), ("sparsify", 1.8)] {
        let named = |peer: &&serde_json::Value| peer["name"].as_str().is_some_and(|name| name.contains(mark));
        let peer = peers["peers"].as_array().and_then(|all| all.iter().find(named));
        let Some(median) = peer.and_then(|peer| peer["step"]["median_ms"].as_f64()) else {
            report.skipped.push(format!("the peer \"{mark}\": not among what tools/gpu_peers.py measured"));
            continue;
        };
        let name = peer.and_then(|peer| peer["name"].as_str()).unwrap_or(mark);
        report.measures.push(Measure {
            name: format!("step of {name} / ours"),
            value: median / time,
            unit: "x",
            target: (target > 0.0).then_some(target),
            at_least: true,
            note: format!("{median:.2} ms"),
        });
    }
    for skipped in peers["skipped"].as_array().into_iter().flatten().filter_map(|s| s.as_str()) {
        report.skipped.push(format!("peer {skipped}"));
    }
}

/// Step times from F = 2^15 to 2^20 at the same number of encoder rows.
fn sweep(
    device: &Arc<dyn Device>,
    options: &Options,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let peaks = Peaks::h200(options.step.element);
    let mut rest = Vec::new();
    for (heads, base, extension) in
        [(16_384, 1, 2), (8192, 2, 4), (4096, 4, 8), (2048, 8, 16), (1024, 16, 32), (512, 32, 64)]
    {
        let step = Step { encoder: Encoder::Kron { heads, base, extension }, ..options.step };
        progress(&format!("measuring a step of {} latents", step.encoder.latents()));
        let (time, backend) = step_time(device, &step, options.calls)?;
        drop(backend);
        let growing = 1e3 * step.growing(peaks);
        rest.push(time - growing);
        report.measures.push(Measure::plain(
            format!("step, m {base}, n {extension}, F {}", step.encoder.latents()),
            time,
            "ms",
            format!("{growing:.2} ms of it is the floor of decoder and optimiser"),
        ));
    }
    let growth = 100.0 * (rest[rest.len() - 1] / rest[0] - 1.0);
    report.measures.push(Measure::at_most(
        "growth from F = 2^15 to 2^20 outside the floor of decoder and optimiser",
        growth,
        "%",
        10.0,
        "of the first".to_owned(),
    ));
    Ok(())
}
