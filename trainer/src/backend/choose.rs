//! Which backend a run gets.

use super::cpu::{self, CpuBackend};
use super::{AuxK, Backend, Precision, StepSettings, TrainState};
use crate::collective::Launch;
#[cfg(feature = "cuda")]
use crate::collective::{self, Collective, Wanted};
use crate::data::Normalisation;
use crate::settings::{BackendKind, PrecisionChoice, Settings};
use kronsae::{Error, Result};
use std::path::Path;

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

/// Where a run is computed: on the CPU, or on a device, alone or among ranks.
pub struct Place {
    launch: Launch,
    /// None: the CPU.
    on: Option<OnDevice>,
}

impl Place {
    /// What the settings ask for; `note` is told where `auto` has to do without a GPU. Among several ranks, waits for the
    /// others. `run`: the run's folder.
    ///
    /// # Errors
    /// [`kronsae::Status::Unsupported`] naming what is missing, or if several ranks have no device; those of the collective.
    pub fn find(settings: &Settings, run: &Path, note: &mut dyn FnMut(&str)) -> Result<Place> {
        let launch = settings.launch.clone();
        let opened = match settings.backend {
            BackendKind::Cpu => None,
            BackendKind::Cuda => Some(open(settings.device).map_err(|e| e.within("--backend cuda"))?),
            BackendKind::Auto => match open(settings.device) {
                Ok(device) => Some(device),
                Err(e) if launch.ranks > 1 => return Err(without_device(&launch, &e.to_string())),
                Err(e) => {
                    note(&format!("training on the CPU: {e}"));
                    None
                }
            },
        };
        match opened {
            None if launch.ranks > 1 => Err(without_device(&launch, "--backend cpu")),
            None => Ok(Place { launch, on: None }),
            Some(device) => {
                let on = OnDevice::among(device, settings, run, &launch);
                Ok(Place { on: Some(on.map_err(|e| e.within(&launch.to_string()))?), launch })
            }
        }
    }

    /// Whether this rank writes files: the first, or the only one.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.launch.rank == 0
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// [`kronsae::Status::Internal`] if a rank is lost.
    pub fn barrier(&self) -> Result<()> {
        self.on.as_ref().map_or(Ok(()), OnDevice::barrier)
    }

    /// Refuses to go on, on all ranks, where `own` is not the same text on all.
    ///
    /// # Errors
    /// [`kronsae::Status::InvalidArgument`] naming the ranks; [`kronsae::Status::Internal`] if a rank is lost.
    pub fn agree(&self, own: &str) -> Result<()> {
        self.on.as_ref().map_or(Ok(()), |on| on.agree(own))
    }

    /// This rank ends for this reason: the others are told, or ended, as far as can be. What comes back says which rank it
    /// is, where there are several.
    #[must_use]
    pub fn give_up(&self, error: Error) -> Error {
        let error = if self.launch.ranks > 1 { error.within(&self.launch.to_string()) } else { error };
        match &self.on {
            Some(on) => on.give_up(error),
            None => error,
        }
    }

    /// The backend there.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn backend(
        &self,
        settings: &Settings,
        state: TrainState,
        normalisation: &Normalisation,
    ) -> Result<Box<dyn Backend>> {
        let step = step_settings(settings);
        match &self.on {
            None => Ok(Box::new(CpuBackend::new(state, step, settings.batch, settings.threads)?)),
            Some(on) => on.backend(state, step, settings.batch, normalisation),
        }
    }
}

fn without_device(launch: &Launch, why: &str) -> Error {
    let message = format!(
        "{} started {} ranks, and only GPUs train together ({why}); start one process, or give --collective none to train \
         alone in each",
        launch.launcher, launch.ranks
    );
    Error::new(kronsae::Status::Unsupported, message)
}

/// A device and the ranks around it.
#[cfg(feature = "cuda")]
struct OnDevice {
    device: Opened,
    collective: std::sync::Arc<dyn Collective>,
}

#[cfg(feature = "cuda")]
impl OnDevice {
    fn among(device: Opened, settings: &Settings, run: &Path, launch: &Launch) -> Result<Self> {
        let wanted = Wanted { kind: settings.collective, emulated: is_emulated(), run };
        Ok(OnDevice { collective: collective::open(wanted, launch, &device)?, device })
    }

    fn barrier(&self) -> Result<()> {
        self.collective.barrier(&*self.device)
    }

    fn agree(&self, own: &str) -> Result<()> {
        collective::agree(&*self.collective, &*self.device, own)
    }

    fn give_up(&self, error: Error) -> Error {
        self.collective.give_up(error)
    }

    fn backend(
        &self,
        state: TrainState,
        step: StepSettings,
        batch: usize,
        normalisation: &Normalisation,
    ) -> Result<Box<dyn Backend>> {
        use super::cuda::{CudaBackend, CudaOptions};
        let (device, collective) = (Opened::clone(&self.device), std::sync::Arc::clone(&self.collective));
        let mut backend = CudaBackend::among(collective, device, state, step, batch, CudaOptions::default())?;
        backend.normalise_by(normalisation)?;
        Ok(Box::new(backend))
    }
}

/// There is none in this build.
#[cfg(not(feature = "cuda"))]
struct OnDevice(std::convert::Infallible);

#[cfg(not(feature = "cuda"))]
impl OnDevice {
    fn among(device: std::convert::Infallible, _: &Settings, _: &Path, _: &Launch) -> Result<Self> {
        match device {}
    }

    fn barrier(&self) -> Result<()> {
        match self.0 {}
    }

    fn agree(&self, _own: &str) -> Result<()> {
        match self.0 {}
    }

    fn give_up(&self, _error: Error) -> Error {
        match self.0 {}
    }

    fn backend(&self, _: TrainState, _: StepSettings, _: usize, _: &Normalisation) -> Result<Box<dyn Backend>> {
        match self.0 {}
    }
}

/// The precision that was chosen, or the fastest one of the backend that the run will get.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] if the backend cannot be had.
pub fn precision(backend: BackendKind, choice: PrecisionChoice, device: u32) -> Result<Precision> {
    if backend == BackendKind::Cuda {
        // Before anything is read or written for a run that cannot begin.
        open(device).map_err(|e| e.within("--backend cuda"))?;
    }
    match choice {
        PrecisionChoice::F32 => Ok(Precision::F32),
        PrecisionChoice::Bf16 => Ok(Precision::Bf16),
        PrecisionChoice::Auto => match backend {
            BackendKind::Cuda => Ok(Precision::Bf16),
            BackendKind::Auto if open(device).is_ok() => Ok(Precision::Bf16),
            BackendKind::Auto | BackendKind::Cpu => cpu::fastest_precision(),
        },
    }
}

#[cfg(feature = "cuda")]
type Opened = std::sync::Arc<dyn kronsae::cuda::Device>;

/// CUDA device `ordinal` of those that the driver shows; or, in builds for tests, the emulated one that the environment names.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] naming what is missing.
#[cfg(feature = "cuda")]
pub fn open(ordinal: u32) -> Result<Opened> {
    use std::sync::Arc;
    #[cfg(feature = "cuda-emulation")]
    {
        use kronsae::cuda::{Accumulate, EmulatedDevice};
        // SAFETY: in a build for tests, whoever sets the variable names what cuda/emulate/build.sh made.
        if let Some(device) = unsafe { EmulatedDevice::from_environment(Accumulate::F32) }? {
            return Ok(Arc::new(device));
        }
    }
    Ok(Arc::new(kronsae::cuda::CudaDevice::open(ordinal)?))
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
fn open(_ordinal: u32) -> Result<std::convert::Infallible> {
    Err(Error::new(kronsae::Status::Unsupported, "this build has no CUDA backend (cargo feature `cuda`)"))
}
