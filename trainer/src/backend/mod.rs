//! Who computes a training step. The loop knows only [`Backend`]; a device backend stands behind the same boundary.

pub mod choose;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod moments;
mod state;

pub use moments::{Moments, seed_of_step as moment_seed};
pub use state::{Parameter, TrainState};

use kronsae::{Dtype, Result};

/// The AuxK loss and the rules for the dead (KRONSAE.md section 5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AuxK {
    /// Dead latents a token may use.
    pub k: usize,
    /// Weight of the loss, 1/32 in the paper.
    pub coefficient: f32,
}

/// How pre-activations are computed in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// In f32.
    F32,
    /// In bf16 with f32 sums, to choose latents by; the values and gradients of those are f32 all the same.
    Bf16,
}

/// What a run keeps for all its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// K of TopK.
    pub k: usize,
    /// How pre-activations are computed.
    pub precision: Precision,
    /// AuxK, or none.
    pub auxk: Option<AuxK>,
    /// Tokens without firing after which a latent is dead, and without a positive pre-activation after which a row is.
    pub dead_after: u64,
    /// Whether dead rows are re-initialised from the tokens with the largest error.
    pub revive_rows: bool,
    /// eps of mAND's gradient; 1e-6 in training.
    pub mand_epsilon: f32,
    /// Adam's decay of the mean and of the square.
    pub betas: (f32, f32),
    /// Adam's epsilon.
    pub adam_epsilon: f32,
    /// How Adam's moments of the large parameters are kept.
    pub moments: Moments,
    /// Clip each parameter's gradient to this norm, by the norm of the previous step; `None`: no clipping.
    pub clip: Option<f32>,
}

/// What changes from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepInput<'a> {
    /// Normalised activations, `[rows, stride]`, padded with zeros.
    pub x: &'a [f32],
    /// Tokens.
    pub rows: usize,
    /// Elements from one token to the next.
    pub stride: usize,
    /// The step's number, from 0: Adam's bias correction and the choice of tokens for revival depend on it.
    pub step: u64,
    /// Learning rate of this step.
    pub learning_rate: f32,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepStats {
    /// Mean squared error an element, in normalised units, before the update.
    pub loss: f64,
    /// AuxK's loss before its coefficient; 0 where no latent is dead.
    pub auxk_loss: f64,
    /// 1 - SSE/SST of the batch about the training mean.
    pub explained_variance: f64,
    /// Mean latents a token.
    pub l0: f64,
    /// Latents that have not fired for the window.
    pub dead_latents: usize,
    /// Encoder rows positive on no token of the window.
    pub dead_rows: usize,
    /// Dead rows re-initialised in this step.
    pub revived_rows: usize,
}

/// A batch of activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Batch<'a> {
    /// Normalised, `[rows, stride]`, padded with zeros.
    Normalised {
        /// The activations.
        x: &'a [f32],
        /// Tokens.
        rows: usize,
        /// Elements from one token to the next.
        stride: usize,
    },
    /// As the shards have them, `[rows, d_model]`, every element finite. For backends that take them so.
    Raw {
        /// The activations.
        bytes: &'a [u8],
        /// Tokens.
        rows: usize,
        /// Type of an element.
        dtype: Dtype,
    },
}

impl Batch<'_> {
    /// Tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        match *self {
            Batch::Normalised { rows, .. } | Batch::Raw { rows, .. } => rows,
        }
    }
}

/// Computes training steps on some device.
///
/// A step is staged, begun and finished, so that a device computes while the host makes the next batch: after a step was
/// begun, the batch of the next one may be staged before it is finished.
pub trait Backend {
    /// Takes the batch of the step to be begun next. The batch has been copied when this returns.
    ///
    /// # Errors
    /// Device errors.
    ///
    /// # Panics
    /// If the batch staged before has not been begun, the batch is of another width or has more tokens than promised, or
    /// it is raw and [`Backend::takes_raw`] said no.
    fn stage(&mut self, batch: Batch<'_>) -> Result<()>;

    /// Begins forward, backward and update for the staged batch. `step` is the step's number, from 0.
    ///
    /// # Errors
    /// As [`Backend::finish`].
    ///
    /// # Panics
    /// If no batch was staged, or the step begun before has not been finished.
    fn begin(&mut self, step: u64, learning_rate: f32) -> Result<()>;

    /// Waits for the step that was begun.
    ///
    /// # Errors
    /// [`kronsae::Status::Internal`] if training has diverged (pre-activations are not finite); device errors.
    ///
    /// # Panics
    /// If no step has been begun.
    fn finish(&mut self) -> Result<StepStats>;

    /// One whole step.
    ///
    /// # Errors
    /// As [`Backend::finish`].
    ///
    /// # Panics
    /// As the three it is made of.
    fn step(&mut self, input: StepInput<'_>) -> Result<StepStats> {
        self.stage(Batch::Normalised { x: input.x, rows: input.rows, stride: input.stride })?;
        self.begin(input.step, input.learning_rate)?;
        self.finish()
    }

    /// Whether to stop after the step that was finished: whether `wish`; or, where several ranks train together, whether one
    /// of them has wished so by the time the step began, so that all stop after the same.
    fn agree_to_stop(&mut self, wish: bool) -> bool {
        wish
    }

    /// Whether batches may come as the shards have them, to be normalised on the device.
    fn takes_raw(&self) -> bool {
        false
    }

    /// The state after the last step, on the host.
    ///
    /// # Errors
    /// Device errors.
    fn state(&mut self) -> Result<&TrainState>;

    /// A name for reports: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;
}
