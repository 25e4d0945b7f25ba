//! Models whose products are exact, batches on the device, and a monitor with one site.

use crate::common::Rng;
use kronsae::cuda::{Accumulate, Device, DeviceActivations, DeviceMemory, DeviceSaeOptions, EmulatedDevice, Stream};
use kronsae::monitor::{
    Counters, DeviceTap, DeviceTapOptions, Monitor, MonitorOptions, Sampling, SiteId, SiteOptions, TokenTag,
};
use kronsae::sae::{Config, Encoder, EncoderWeights, Matrix, Selection, padded};
use kronsae::{Activations, Aligned, Dtype, Sae};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const D: usize = 24;

/// A small integer, so that sums of products are exact in f32 and in any order, and ties are many.
pub(crate) fn small(random: &mut Rng) -> f32 {
    random.below(7) as f32 - 3.0
}

pub(crate) fn device() -> Arc<EmulatedDevice> {
    // SAFETY: the test's step names the library that cuda/emulate/build.sh made.
    let device = unsafe { EmulatedDevice::from_environment(Accumulate::F32) }.unwrap();
    Arc::new(device.expect("KRONSAE_CUDA_EMULATION names no library: run cargo xtask test --only cuda-encode"))
}

pub(crate) fn as_dyn(device: &Arc<EmulatedDevice>) -> Arc<dyn Device> {
    Arc::<EmulatedDevice>::clone(device)
}

pub(crate) fn sae(seed: u64, encoder: Encoder, d: usize, selection: Selection) -> Arc<Sae> {
    let mut random = Rng(seed);
    let (rows, stride) = (encoder.rows(), padded(d));
    let mut weight = vec![0.0; rows * stride];
    for row in weight.chunks_exact_mut(stride) {
        row[..d].fill_with(|| small(&mut random));
    }
    let mut bias = Aligned::zeroed(rows, "bias").unwrap();
    bias.fill_with(|| small(&mut random));
    let weight = Matrix::from_rows(&weight, [rows, d], stride, Dtype::F32, "weight").unwrap();
    let config = Config::new(encoder, d, selection, 1.0).unwrap();
    Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap())
}

/// A model of 128 latents and D.
pub(crate) fn plain(seed: u64, k: usize) -> Arc<Sae> {
    sae(seed, Encoder::Kron { heads: 16, base: 2, extension: 4 }, D, Selection::TopK(k))
}

pub(crate) fn named(name: &str) -> SiteOptions {
    SiteOptions { name: name.into(), ..Default::default() }
}

pub(crate) fn monitor_of(sae: &Arc<Sae>) -> (Monitor, SiteId) {
    let monitor = Monitor::new(MonitorOptions { events: 100_000, ..Default::default() }).unwrap();
    let site = monitor.add_site(named("resid"), Arc::clone(sae)).unwrap();
    (monitor, site)
}

/// Few rows and slots, so that batches are cut and slots run out.
pub(crate) fn options(slots: usize, rows: usize, sampling: Sampling) -> DeviceTapOptions {
    DeviceTapOptions { sae: DeviceSaeOptions { tile: 6, ..Default::default() }, slots, rows, controls: 64, sampling }
}

pub(crate) fn tag(request: u64, position: usize) -> TokenTag {
    TokenTag { request, position: position as i32, token: 7, flags: 0 }
}

/// Activations in bytes, with what is between the rows full of NaN, on the host and on the device.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    memory: DeviceMemory,
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    d: usize,
    stride: usize,
}

impl Batch {
    pub(crate) fn new(device: &EmulatedDevice, values: &[f32], dtype: Dtype, d: usize, stride: usize) -> Self {
        let rows = values.len() / d;
        let mut bytes = vec![0xFF_u8; rows * stride + 64];
        for (row, values) in values.chunks_exact(d).enumerate() {
            for (at, value) in values.iter().enumerate() {
                let at = row * stride + at * dtype.size();
                match dtype {
                    Dtype::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
                    Dtype::F16 => bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
                    Dtype::Bf16 => bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
                }
            }
        }
        let memory = device.allocate(bytes.len(), "a test").unwrap();
        device.upload(&memory, 0, &bytes).unwrap();
        Batch { bytes, memory, dtype, rows, d, stride }
    }

    /// Contiguous rows of D small integers.
    pub(crate) fn small(device: &EmulatedDevice, rows: usize, random: &mut Rng) -> Self {
        let values: Vec<f32> = (0..rows * D).map(|_| small(random)).collect();
        Self::new(device, &values, Dtype::F32, D, D * 4)
    }

    pub(crate) fn on_host(&self) -> Activations<'_> {
        Activations::from_bytes(&self.bytes, self.dtype, self.rows, self.d, self.stride).unwrap()
    }

    pub(crate) fn on_device(&self) -> DeviceActivations {
        let Batch { dtype, rows, d, stride, .. } = *self;
        DeviceActivations { data: self.memory.address(), dtype, rows, d_model: d, row_stride: stride }
    }
}

/// A stream of the emulated device, which has but one.
pub(crate) const STREAM: Stream = Stream(std::ptr::null_mut());

pub(crate) fn submit(tap: &mut DeviceTap, batch: &Batch, tags: impl Fn(usize) -> TokenTag) -> usize {
    // SAFETY: the batch lives for as long as the test's device does; kernels are done when the call returns.
    unsafe { tap.submit(&batch.on_device(), STREAM, tags) }.unwrap()
}

pub(crate) fn accounted(counters: Counters) -> bool {
    let Counters { submitted, encoded, sampled_out, dropped, not_finite, queued } = counters;
    submitted == encoded + sampled_out + dropped + not_finite + queued
}

pub(crate) fn counters(monitor: &Monitor) -> Counters {
    let counters = monitor.snapshot().sites[0].counters;
    assert!(accounted(counters), "{counters:?}");
    counters
}
