//! The emulated device, states in the middle of training, and batches.

use kronsae::Aligned;
use kronsae::cuda::{Accumulate, Device, EMULATION, EmulatedDevice};
use kronsae::sae::{Encoder, padded};
use kronsae_trainer::backend::cuda::{CudaBackend, CudaOptions};
use kronsae_trainer::backend::{AuxK, Moments, Precision, StepInput, StepSettings, TrainState};
use kronsae_trainer::random::Stream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(crate) const KRON: Encoder = Encoder::Kron { heads: 5, base: 2, extension: 3 };
pub(crate) const SQUARE: Encoder = Encoder::Kron { heads: 7, base: 3, extension: 3 };
pub(crate) const WIDE: Encoder = Encoder::Kron { heads: 2, base: 5, extension: 9 };
pub(crate) const DENSE: Encoder = Encoder::Dense { latents: 21 };

/// One test at a time: the emulated kernels' schedule is their library's.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library that the environment names, or one that is built here.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if let Some(path) = std::env::var_os(EMULATION) {
            return path.into();
        }
        let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libkronsae_emulate_backend.so");
        let built = Command::new("sh").arg(cuda.join("emulate/build.sh")).arg(&library).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        library
    })
}

pub(crate) fn device() -> Arc<dyn Device> {
    // SAFETY: the library that cuda/emulate/build.sh makes.
    Arc::new(unsafe { EmulatedDevice::open(library(), Accumulate::F32) }.unwrap())
}

pub(crate) fn backend(state: TrainState, settings: StepSettings, batch: usize, chunk: Option<usize>) -> CudaBackend {
    CudaBackend::new(device(), state, settings, batch, CudaOptions { chunk, without_graph: false }).unwrap()
}

pub(crate) fn settings(k: usize, auxk: Option<usize>) -> StepSettings {
    StepSettings {
        k,
        precision: Precision::F32,
        auxk: auxk.map(|k| AuxK { k, coefficient: 0.25 }),
        dead_after: 500,
        revive_rows: true,
        mand_epsilon: 1e-6,
        betas: (0.9, 0.999),
        adam_epsilon: 1e-8,
        moments: Moments::F32,
        clip: None,
    }
}

/// A state in the middle of training: every third latent dead, biases not zero.
pub(crate) fn state(encoder: Encoder, d: usize, seed: u64) -> TrainState {
    let mut state = TrainState::new(encoder, d, seed).unwrap();
    let mut stream = Stream::new(seed, &[99]);
    for v in state.encoder_bias.value.iter_mut().take(encoder.rows()) {
        *v = stream.normals().0 as f32 * 0.3;
    }
    for v in state.decoder_bias.value.iter_mut().take(d) {
        *v = stream.normals().0 as f32 * 0.2;
    }
    state.tokens = 1000;
    state.positive_at.fill(1000);
    for (f, at) in state.fired_at.iter_mut().enumerate() {
        *at = if f.is_multiple_of(3) { 0 } else { 1000 };
    }
    state
}

/// Tokens that are sums of four of twenty directions and a little noise: `[rows, padded(d)]`.
pub(crate) fn batch(rows: usize, d: usize, step: u64) -> Aligned<f32> {
    let stride = padded(d);
    let mut x = Aligned::zeroed(rows * stride, "a batch").unwrap();
    let mut stream = Stream::new(3, &[step]);
    for row in x.chunks_mut(stride) {
        for _ in 0..4 {
            let direction = (stream.bits() % 20) as usize;
            let strength = 0.5 + stream.unit() as f32;
            for (c, v) in row[..d].iter_mut().enumerate() {
                let angle = ((direction * 7 + c * 13 + direction * c) % 31) as f32;
                *v += strength * (angle / 31.0 * std::f32::consts::TAU).cos();
            }
        }
        for v in &mut row[..d] {
            *v += stream.normals().0 as f32 * 0.05;
        }
    }
    x
}

pub(crate) fn input(x: &[f32], rows: usize, d: usize, step: u64) -> StepInput<'_> {
    StepInput { x, rows, stride: padded(d), step, learning_rate: 3e-3 }
}

/// All that training changes, as bits.
pub(crate) fn bits(state: &TrainState) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for (_, p) in state.parameters() {
        for values in [&p.value, &p.first, &p.second] {
            all.push(values.iter().map(|v| v.to_bits()).collect());
        }
    }
    for counts in [&state.fired_at, &state.positive_at] {
        all.push(counts.iter().flat_map(|&c| [c as u32, (c >> 32) as u32]).collect());
    }
    all.push(state.gradient_norms.iter().flat_map(|n| [n.to_bits() as u32, (n.to_bits() >> 32) as u32]).collect());
    all.push(vec![state.tokens as u32]);
    all
}
