//! Which backend a run gets.

use super::cpu::{self, CpuBackend};
use super::{AuxK, Backend, Precision, StepSettings, TrainState};
use crate::data::Normalisation;
use crate::settings::{BackendKind, PrecisionChoice, Settings};
use kronsae::Result;

#[cfg(feature = "cuda")]
type Opened = std::sync::Arc<dyn kronsae::cuda::Device>;
#[cfg(not(feature = "cuda"))]
type Opened = std::convert::Infallible;

/// What stays the same in all steps of a run.
#[must_use]
pub fn step_settings(settings: &Settings) -> StepSettings {
    StepSettings {
        k: settings.k,
        precision: settings.precision,
        auxk: (settings.auxk > 0.0).then_some(AuxK { k: settings.auxk_k, coefficient: settings.auxk as f32 }),
        dead_after: settings.dead_after,
        revive_rows: settings.revive_rows,
        mand_epsilon: 1e-6,
        betas: (0.9, 0.999),
        adam_epsilon: 1e-8,
        moments: settings.moments,
        clip: (settings.clip > 0.0).then_some(settings.clip as f32),
    }
}

/// The backend that the settings ask for; `note` is told where `auto` has to do without a GPU.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] naming what is missing; those of the backend.
pub fn backend(
    settings: &Settings,
    state: TrainState,
    normalisation: &Normalisation,
    note: &mut dyn FnMut(&str),
) -> Result<Box<dyn Backend>> {
    let step = step_settings(settings);
    let opened = match settings.backend {
        BackendKind::Cpu => None,
        BackendKind::Cuda => Some(open().map_err(|e| e.within("--backend cuda"))?),
        BackendKind::Auto => match open() {
            Ok(device) => Some(device),
            Err(e) => {
                note(&format!("training on the CPU: {e}"));
                None
            }
        },
    };
    match opened {
        None => Ok(Box::new(CpuBackend::new(state, step, settings.batch, settings.threads)?)),
        Some(device) => on_device(device, state, step, settings.batch, normalisation),
    }
}

/// The precision that was chosen, or the fastest one of the backend that the run will get.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] if the backend cannot be had.
pub fn precision(backend: BackendKind, choice: PrecisionChoice) -> Result<Precision> {
    if backend == BackendKind::Cuda {
        // Before anything is read or written for a run that cannot begin.
        open().map_err(|e| e.within("--backend cuda"))?;
    }
    match choice {
        PrecisionChoice::F32 => Ok(Precision::F32),
        PrecisionChoice::Bf16 => Ok(Precision::Bf16),
        PrecisionChoice::Auto => match backend {
            BackendKind::Cuda => Ok(Precision::Bf16),
            BackendKind::Auto if open().is_ok() => Ok(Precision::Bf16),
            BackendKind::Auto | BackendKind::Cpu => cpu::fastest_precision(),
        },
    }
}

#[cfg(feature = "cuda")]
fn on_device(
    device: Opened,
    state: TrainState,
    step: StepSettings,
    batch: usize,
    normalisation: &Normalisation,
) -> Result<Box<dyn Backend>> {
    use super::cuda::{CudaBackend, CudaOptions};
    let mut backend = CudaBackend::new(device, state, step, batch, CudaOptions::default())?;
    backend.normalise_by(normalisation)?;
    Ok(Box::new(backend))
}

#[cfg(not(feature = "cuda"))]
fn on_device(
    device: Opened,
    _state: TrainState,
    _step: StepSettings,
    _batch: usize,
    _normalisation: &Normalisation,
) -> Result<Box<dyn Backend>> {
    match device {}
}

/// The first CUDA device; or, in builds for tests, the emulated one that the environment names.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] naming what is missing.
#[cfg(feature = "cuda")]
pub fn open() -> Result<Opened> {
    use std::sync::Arc;
    #[cfg(feature = "cuda-emulation")]
    {
        use kronsae::cuda::{Accumulate, EmulatedDevice};
        // SAFETY: in a build for tests, whoever sets the variable names what cuda/emulate/build.sh made.
        if let Some(device) = unsafe { EmulatedDevice::from_environment(Accumulate::F32) }? {
            return Ok(Arc::new(device));
        }
    }
    Ok(Arc::new(kronsae::cuda::CudaDevice::open(0)?))
}

/// Whether [`open`] gives an emulated device.
#[cfg(feature = "cuda")]
#[must_use]
pub fn is_emulated() -> bool {
    #[cfg(feature = "cuda-emulation")]
    return std::env::var_os(kronsae::cuda::EMULATION).is_some();
    #[cfg(not(feature = "cuda-emulation"))]
    return false;
}

/// # Errors
/// Always: it was built without.
#[cfg(not(feature = "cuda"))]
fn open() -> Result<Opened> {
    Err(kronsae::Error::new(kronsae::Status::Unsupported, "this build has no CUDA backend (cargo feature `cuda`)"))
}
