//! The CUDA backend: all of a step on a device, from kernels in `cuda/`, replayed as one graph.
//!
//! A step is that of the CPU backend, in the same three parts. Token by token: pre-activations by one product, selection,
//! sparse decoding, the residual, the gradients of the K values and of the pre-activations behind them; in chunks of tokens,
//! so that pre-activations of all of them are never held. Then a stable sort turns "what each token touched" into "what touched each row". Then
//! row by row: the gradient goes straight into Adam. No sum's order depends on timing, so two runs on one device have
//! equal bits.
//!
//! On several ranks each does the first part for its own range of tokens and gathers what the others found of theirs; the
//! rest is the same on all, and so are its bits.
//!
//! In f32 everything is f32, without TF32. In bf16 the product, the gathered decoder rows, x and the residual are bf16,
//! with sums, masters and moments in f32.

mod abi;
mod bytes;
mod input;
mod launch;
mod parameters;
mod sort;
mod space;
mod step;

use super::cpu::DenseGradients;
use super::cpu::kernels::Adam;
use super::moments;
use super::{Backend, Batch, Precision, StepInput, StepSettings, StepStats, TrainState};
use crate::collective::{Collective, Single};
use crate::data::Normalisation;
use abi::Numbers;
use bytes::{as_bytes, as_bytes_mut};
use input::Input;
use kronsae::cuda::{Device, DeviceMemory, Element, Graph};
use kronsae::{Error, Result, Status};
use launch::Launcher;
use parameters::DeviceState;
use space::{Sizes, Space, found};
use std::sync::Arc;
use step::{Capture, Step};

/// The most latents of a token, as in the kernels.
const MOST_LATENTS: usize = 512;
/// Bytes of shared memory for each element of a row, in the kernel that needs most of it.
const SHARED_PER_ELEMENT: usize = 11;

/// How steps of whole batches are started.
enum Replay {
    /// Kernels are loaded by a first step.
    Cold,
    /// The next step is captured.
    Warm,
    /// One call a step.
    Captured(Graph),
    /// The device has no graphs, or none are wanted.
    Never,
}

/// Computes training steps on a device.
pub struct CudaBackend {
    // Dropped first: NCCL wants its graphs gone before its groups.
    replay: Replay,
    device: Arc<dyn Device>,
    collective: Arc<dyn Collective>,
    settings: StepSettings,
    sizes: Sizes,
    /// Parameters as of the last [`Backend::state`]; the number of tokens as of the last step.
    host: TrainState,
    state: DeviceState,
    space: Space,
    input: Input,
    /// Tokens of the step that was begun, and its number.
    begun: Option<(usize, u64)>,
    /// Whether this rank wishes to stop, and whether one did in the last step.
    wish: bool,
    stopping: bool,
}

/// What may be chosen about a [`CudaBackend`]; no result depends on it but for the rounding of sums over chunks: none.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaOptions {
    /// Tokens whose pre-activations are held at a time; `None`: as many as fit 256 MiB.
    pub chunk: Option<usize>,
    /// Start every kernel by itself instead of replaying a graph.
    pub without_graph: bool,
}

impl CudaBackend {
    /// A backend that goes on from `state`, for batches of at most `batch` tokens.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`]; [`Status::Unsupported`] for a K, an AuxK or a width that the kernels do not take.
    pub fn new(
        device: Arc<dyn Device>,
        state: TrainState,
        settings: StepSettings,
        batch: usize,
        options: CudaOptions,
    ) -> Result<Self> {
        Self::among(Arc::new(Single), device, state, settings, batch, options)
    }

    /// As [`CudaBackend::new`], one of several ranks that train together. All go on from the same state, are given the
    /// same batches, whole, and make the same calls; all end every step with the same bits.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn among(
        collective: Arc<dyn Collective>,
        device: Arc<dyn Device>,
        state: TrainState,
        settings: StepSettings,
        batch: usize,
        options: CudaOptions,
    ) -> Result<Self> {
        let element = match settings.precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        let ranks = collective.ranks();
        let sizes = Sizes::new(state.encoder, state.d_model(), batch, ranks, options.chunk, &settings, element);
        refuse(&sizes, device.shared_bytes())?;
        let graph = collective.can_be_captured() && !options.without_graph;
        Ok(CudaBackend {
            state: DeviceState::new(&device, &state, element, settings.moments)?,
            space: Space::new(&*device, &sizes)?,
            input: Input::new(&device),
            replay: if graph { Replay::Cold } else { Replay::Never },
            begun: None,
            wish: false,
            stopping: false,
            host: state,
            settings,
            sizes,
            collective,
            device,
        })
    }

    /// From now on batches may come as the shards have them.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`]; device errors.
    pub fn normalise_by(&mut self, normalisation: &Normalisation) -> Result<()> {
        assert_eq!(normalisation.mean.len(), self.sizes.d, "a mean of another width");
        self.input.normalise_by(normalisation)
    }

    /// The gradients of a batch's loss, AuxK included, without an update: for tests.
    ///
    /// # Errors
    /// As [`Backend::step`].
    pub fn gradients(&mut self, input: StepInput<'_>) -> Result<(StepStats, DenseGradients)> {
        let lengths = self.host.parameters().map(|(_, parameter)| parameter.value.len());
        let allocate = |bytes: usize| self.device.allocate(bytes, "gradients");
        let mut memory: Vec<DeviceMemory> = Vec::new();
        for length in lengths {
            memory.push(allocate(4 * length)?);
        }
        let Ok(parameters) = <[DeviceMemory; 4]>::try_from(memory) else { unreachable!("one for each of four") };
        let capture = Capture { parameters };
        self.stage(Batch::Normalised { x: input.x, rows: input.rows, stride: input.stride })?;
        let rows = self.prepare(input.step, input.learning_rate)?;
        let enqueued = self.enqueue(rows, Some(&capture));
        // Waits in any case.
        let found = self.read();
        enqueued?;
        let stats = self.stats(&found?, rows, input.step)?;
        let mut parameters = lengths.map(|length| vec![0.0_f32; length]);
        for (to, from) in parameters.iter_mut().zip(&capture.parameters) {
            self.device.download(from, 0, as_bytes_mut(to))?;
        }
        Ok((stats, DenseGradients { parameters }))
    }

    /// Bytes of the device's memory that hold parameters, their copies and moments.
    #[must_use]
    pub fn parameter_bytes(&self) -> usize {
        self.state.parameter_bytes()
    }

    /// Bytes of the device's memory that a step works in, its pinned buffers' counterparts included.
    #[must_use]
    pub fn working_bytes(&self) -> usize {
        self.space.bytes() + self.input.bytes()
    }

    /// Whether steps of whole batches are replayed from a graph.
    #[must_use]
    pub fn has_graph(&self) -> bool {
        matches!(self.replay, Replay::Captured(_))
    }

    /// Runs a step of number `step` on the batch that the last step left on the device: for measuring, where nothing but
    /// the device's own time should be. Returns before it is done. Its tokens are counted as those of any step.
    ///
    /// # Errors
    /// Device errors.
    pub fn again(&mut self, step: u64, learning_rate: f32) -> Result<()> {
        let rows = self.sizes.batch;
        self.write_numbers(rows, step, learning_rate)?;
        self.run(rows)?;
        self.host.tokens += rows as u64;
        Ok(())
    }

    fn launcher(&self) -> Launcher<'_> {
        // SAFETY: the modules of this backend start kernels with the arguments that cuda/ documents, on memory that `Space`,
        // `DeviceState` and `Input` allocated for these sizes (and, in `gradients`, as large as the parameters), which live as
        // long as `self`. Everything runs on the device's one stream; copies beside it go to memory that only the kernel
        // admitted behind them reads. Dropping memory waits for the work that uses it.
        unsafe { Launcher::new(&*self.device) }
    }

    /// Takes the staged batch and writes the step's numbers; returns its tokens.
    fn prepare(&mut self, step: u64, learning_rate: f32) -> Result<usize> {
        // SAFETY: as in `launcher`, borrowed for this call alone.
        let on = unsafe { Launcher::new(&*self.device) };
        let rows = self.input.admit(&on, &self.sizes, &self.space.x)?;
        self.write_numbers(rows, step, learning_rate)?;
        Ok(rows)
    }

    fn write_numbers(&self, rows: usize, step: u64, learning_rate: f32) -> Result<()> {
        let adam = Adam::new(self.settings.betas, self.settings.adam_epsilon, learning_rate, step);
        let numbers = Numbers {
            beta1: adam.beta1,
            beta2: adam.beta2,
            epsilon: adam.epsilon,
            rate: adam.rate,
            root: adam.root,
            clip: self.settings.clip.unwrap_or(0.0),
            tokens_before: self.host.tokens,
            tokens_after: self.host.tokens + rows as u64,
            seed: moments::seed_of_step(step),
            reserved: 0,
        };
        let flags = [0, u32::from(self.wish)];
        self.device.upload(&self.space.flags, 8 * self.collective.rank() as usize, as_bytes(&flags))?;
        self.device.upload(&self.space.numbers, 0, &numbers.to_bytes())
    }

    fn enqueue(&self, rows: usize, capture: Option<&Capture>) -> Result<()> {
        let step = Step {
            on: self.launcher(),
            collective: &*self.collective,
            sizes: &self.sizes,
            settings: &self.settings,
            state: &self.state,
            space: &self.space,
        };
        step.enqueue(rows, capture)
    }

    /// Starts a step: by one call where its graph was captured.
    fn run(&mut self, rows: usize) -> Result<()> {
        // A graph is of one number of tokens; batches of another (where tokens were skipped) are rare.
        if rows != self.sizes.batch {
            return self.enqueue(rows, None);
        }
        if let Replay::Warm = self.replay {
            let captured = self.device.capture(&mut || self.enqueue(rows, None))?;
            self.replay = captured.map_or(Replay::Never, Replay::Captured);
        }
        match &self.replay {
            // SAFETY: what was captured is a step of this backend, as in `launcher`; its memory lives as long as `self`.
            Replay::Captured(graph) => unsafe { self.device.replay(graph) },
            Replay::Never | Replay::Warm => self.enqueue(rows, None),
            Replay::Cold => {
                self.enqueue(rows, None)?;
                self.replay = Replay::Warm;
                Ok(())
            }
        }
    }

    /// Waits for the step, and reads what it found.
    fn read(&self) -> Result<[u8; found::BYTES]> {
        let mut bytes = [0_u8; found::BYTES];
        self.collective.wait(&*self.device)?;
        self.device.download(&self.space.found, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// What a step found of its `rows` tokens: the same on all ranks.
    fn stats(&self, found: &[u8; found::BYTES], rows: usize, step: u64) -> Result<StepStats> {
        let sum = |at: usize| f64::from_ne_bytes(std::array::from_fn(|i| found[at + i]));
        let count = |at: usize| count(found, at) as usize;
        let not_finite = count(found::NOT_FINITE);
        if not_finite > 0 {
            return Err(Error::new(
                Status::Internal,
                format!(
                    "training diverged at step {step}: the pre-activations of {not_finite} of {rows} tokens are not finite; try a lower learning rate"
                ),
            ));
        }
        let (squares, dead_latents) = (sum(found::SQUARES), count(found::DEAD_LATENTS));
        Ok(StepStats {
            loss: squares / (rows * self.sizes.d) as f64,
            auxk_loss: match (&self.space.aux, dead_latents) {
                (None, _) | (_, 0) => 0.0,
                _ => sum(found::AUX_SQUARES) / squares.max(1e-30),
            },
            explained_variance: 1.0 - squares / sum(found::NORMS).max(1e-30),
            l0: count(found::LATENTS) as f64 / rows as f64,
            dead_latents,
            dead_rows: count(found::DEAD_ROWS),
            revived_rows: count(found::REVIVED),
        })
    }
}

/// A number of what a step found.
fn count(found: &[u8; found::BYTES], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|i| found[at + i]))
}

/// Refuses what the kernels do not take.
fn refuse(sizes: &Sizes, shared_bytes: u32) -> Result<()> {
    let unsupported =
        |what: String| Err(Error::new(Status::Unsupported, format!("--backend cuda: {what}; use --backend cpu")));
    if sizes.k > MOST_LATENTS {
        return unsupported(format!("--k {}: at most {MOST_LATENTS}", sizes.k));
    }
    if sizes.k_aux > MOST_LATENTS {
        return unsupported(format!("--auxk-k {}: at most {MOST_LATENTS}", sizes.k_aux));
    }
    let widest = shared_bytes as usize / SHARED_PER_ELEMENT / 16 * 16;
    if sizes.stride > widest {
        return unsupported(format!("d_model {}: at most {widest} on this device", sizes.d));
    }
    Ok(())
}

impl Backend for CudaBackend {
    fn stage(&mut self, batch: Batch<'_>) -> Result<()> {
        self.input.stage(&self.sizes, batch)
    }

    fn begin(&mut self, step: u64, learning_rate: f32) -> Result<()> {
        assert!(self.begun.is_none(), "the step before has not been finished");
        let begun = self.prepare(step, learning_rate).and_then(|rows| {
            if rows > 0 {
                self.run(rows)?;
            }
            Ok(rows)
        });
        if begun.is_err() {
            // Whatever was started ends now; its own error is of no more interest.
            let _ = self.collective.wait(&*self.device).and_then(|()| self.device.synchronize());
        }
        self.begun = Some((begun?, step));
        Ok(())
    }

    fn finish(&mut self) -> Result<StepStats> {
        let (rows, step) = self.begun.take().expect("a step that was begun");
        if rows == 0 {
            return Ok(StepStats::default());
        }
        let found = self.read()?;
        let stats = self.stats(&found, rows, step)?;
        self.host.tokens += rows as u64;
        self.stopping = count(&found, found::STOPPING) > 0;
        Ok(stats)
    }

    fn agree_to_stop(&mut self, wish: bool) -> bool {
        // The wish travels with the next step, which all ranks end knowing of it.
        self.wish |= wish;
        self.stopping
    }

    fn takes_raw(&self) -> bool {
        self.input.takes_raw()
    }

    fn state(&mut self) -> Result<&TrainState> {
        self.state.download(&mut self.host, self.settings.clip.is_some())?;
        Ok(&self.host)
    }

    fn name(&self) -> String {
        let (device, element) = (self.device.name(), self.sizes.element.name());
        match self.collective.name() {
            "" => format!("cuda ({device}, {element})"),
            over => format!("cuda ({device}, {element}, {} ranks over {over})", self.collective.ranks()),
        }
    }
}
