//! The runtime's encoder on the device: checked against a selection on the CPU's terms, and timed, against the bare product
//! of its shape and against reading the weights once.

use super::measures::median;
use super::{Check, Measure, Options, Report};
use crate::bench::contender::random_sae;
use crate::bench::traffic::Peaks;
use crate::random::Stream;
use kronsae::cuda::{Compute, Device, DeviceActivations, DeviceEncoder, DeviceLatents, DeviceSae, DeviceSaeOptions};
use kronsae::sae::Encoder as Shape;
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Latents, Result};
use std::sync::Arc;

pub(super) fn tokens(rows: usize, d: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(rows * d);
    for t in 0..rows {
        let mut stream = Stream::new(6, &[t as u64]);
        x.extend((0..d).map(|_| stream.normals().0 as f32));
    }
    x
}

/// In f32 the device and the CPU choose the same latents but where values are nearly equal.
pub(super) fn check(device: &Arc<dyn Device>) -> Result<Check> {
    let (d, k, rows) = (64, 16, 40);
    let sae = Arc::new(random_sae(Shape::Kron { heads: 128, base: 2, extension: 4 }, d, k)?);
    let x = tokens(rows, d);
    let batch = Activations::from_f32(&x, d)?;
    let (mut expected, mut found) = (Latents::new(rows, k)?, Latents::new(rows, k)?);
    let mut cpu = Encoder::new(Arc::clone(&sae), EncoderOptions { threads: 1, ..EncoderOptions::default() })?;
    cpu.encode(batch, &mut expected.as_mut())?;
    let options = DeviceSaeOptions { compute: Compute::F32, ..DeviceSaeOptions::default() };
    let mut encoder = DeviceEncoder::new(Arc::new(DeviceSae::upload(Arc::clone(device), &sae, options)?));
    encoder.encode(batch, &mut found.as_mut())?;
    let (mut same, mut all, mut worst) = (0, 0, 0.0_f32);
    for row in 0..rows {
        let ((indices, values), (others, theirs)) = (expected.row(row), found.row(row));
        all += indices.len();
        for (index, value) in indices.iter().zip(values) {
            if let Some(at) = others.iter().position(|other| other == index) {
                same += 1;
                worst = worst.max((value - theirs[at]).abs() / value.abs());
            }
        }
    }
    let passed = same * 1000 >= all * 995 && worst < 1e-4;
    let found = format!("{same} of {all} latents the same, values at most {worst:.1e} apart");
    Ok(Check { name: "f32 encode chooses what the CPU chooses".to_owned(), passed, found })
}

/// A batch and its buffers on the device.
struct Room {
    memory: Vec<kronsae::cuda::DeviceMemory>,
    x: DeviceActivations,
    out: DeviceLatents,
    workspace: (u64, usize),
}

impl Room {
    fn new(device: &dyn Device, sae: &DeviceSae, rows: usize) -> Result<Self> {
        let (d, k) = (sae.d_model(), sae.selection().capacity());
        let row_stride = 2 * d;
        let mut memory = Vec::new();
        let mut allocate = |bytes: usize| -> Result<u64> {
            memory.push(device.allocate(bytes.max(16), "a batch")?);
            Ok(memory[memory.len() - 1].address())
        };
        let workspace_bytes = sae.workspace_bytes(rows)?;
        let (data, workspace) = (allocate(rows * row_stride)?, allocate(workspace_bytes)?);
        let out = DeviceLatents {
            counts: allocate(4 * rows)?,
            indices: allocate(4 * rows * k)?,
            values: allocate(4 * rows * k)?,
            capacity: k,
            active: 0,
            flags: 0,
            skipped: 0,
        };
        let rounded = tokens(rows, d).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes());
        device.upload(&memory[0], 0, &rounded.collect::<Vec<u8>>())?;
        let x = DeviceActivations { data, dtype: Dtype::Bf16, rows, d_model: d, row_stride };
        Ok(Room { memory, x, out, workspace: (workspace, workspace_bytes) })
    }
}

pub(super) fn run(
    device: &Arc<dyn Device>,
    options: &Options,
    product: f64,
    report: &mut Report,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let step = &options.step;
    progress("making a model to encode with");
    let host = random_sae(step.encoder, step.d_model, step.k)?;
    let choose = DeviceSaeOptions { compute: Compute::Bf16, ..DeviceSaeOptions::default() };
    let sae = DeviceSae::upload(Arc::clone(device), &host, choose)?;
    drop(host);
    // By the bandwidth of the datasheet, which no reading quite reaches.
    let reading = 1e3 * (step.encoder.rows() * step.d_model * 2) as f64 / Peaks::h200(2).bandwidth;
    for (rows, against, least, target) in [
        (step.batch, "bare product of its shape", product, 1.25),
        (1, "reading W once", reading, 1.6),
        (64, "reading W once", reading, 1.75),
    ] {
        progress(&format!("measuring the encode of {rows} tokens"));
        let room = Room::new(&**device, &sae, rows)?;
        let (workspace, bytes) = room.workspace;
        let encode = || {
            // SAFETY: the buffers of `Room`, as large as documented, which live until the device has been waited for.
            unsafe { sae.encode(&room.x, &room.out, workspace, bytes, device.stream()) }
        };
        encode()?;
        device.synchronize()?;
        let graph = device.capture(&mut || encode())?;
        // Calls as short as these are timed many at a time, so that waiting for the device is no part of them.
        let many = if rows < step.batch { 50 } else { 1 };
        let many = if report.emulated { 1 } else { many };
        let time = median(&**device, options.calls, || {
            for _ in 0..many {
                match &graph {
                    // SAFETY: as above.
                    Some(graph) => unsafe { device.replay(graph)? },
                    None => encode()?,
                }
            }
            Ok(())
        })? / f64::from(many);
        let how = if graph.is_some() { "graph replay" } else { "no graphs on this device" };
        report.measures.push(Measure::plain(format!("encode, {rows} tokens"), time, "ms", how));
        report.measures.push(Measure::at_most(
            format!("encode of {rows} tokens / {against}"),
            time / least,
            "x",
            target,
            format!("{least:.3} ms"),
        ));
        device.synchronize()?;
        drop(room.memory);
    }
    progress("measuring a device tap's submit");
    report.measures.push(super::taps::run(device, options.calls)?);
    Ok(())
}
