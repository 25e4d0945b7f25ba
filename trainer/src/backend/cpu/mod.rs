//! The CPU backend: sparse forward and backward, on any number of threads, with results that do not depend on it.
//!
//! A step has three parts. Token by token: pre-activations by `dot/1` (the same kernel and bits as the runtime's),
//! selection, sparse decoding, the residual, and the gradients of the K values and of the at most 2 K pre-activations
//! behind them. Then a counting sort turns these lists from "what a token touched" into "what touched a row". Then row by
//! row: the gradient, a sum over the tokens that touched the row, goes straight into Adam.

mod auxk;
mod forward;
pub(super) mod kernels;
mod linear;
mod pairs;
mod revive;
mod update;

use super::moments;
use super::{Backend, Batch, Moments, Precision, StepInput, StepSettings, StepStats, TrainState};
use forward::{Scratch, Sums, Token};
use kronsae::sae::{Encoder, Selection};
use kronsae::threads::{Divided, Pool};
use kronsae::{Aligned, Amx, Error, Isa, Result, Selector, Status};
use linear::{Linear, TILE, TileSpace};
use pairs::{ByRow, Touched};
use std::sync::atomic::{AtomicUsize, Ordering};
use update::{Gradients, Sink};

/// Computes training steps on the CPU.
pub struct CpuBackend {
    settings: StepSettings,
    state: TrainState,
    isa: Isa,
    pool: Pool,
    linear: Linear,
    workers: Vec<WorkerSpace>,
    /// Gradient of the loss by x_hat, `[batch, stride]`.
    residual: Aligned<f32>,
    latents: Touched,
    rows: Touched,
    by_latent: ByRow,
    by_row: ByRow,
    /// The batch of the step to come, `[batch, stride]`, and its tokens; allocated when it is first used.
    staged: (Aligned<f32>, Option<usize>),
    /// What the step that was begun has found.
    begun: Option<StepStats>,
}

struct WorkerSpace {
    scratch: Scratch,
    tile: TileSpace,
    /// Which rows were positive for some token of this step.
    positive: Vec<u32>,
}

/// Gradients as a dense whole, `[rows, stride]` as the parameters: for tests against finite differences.
#[derive(Debug)]
pub struct DenseGradients {
    /// Encoder weight, encoder bias, decoder weight, decoder bias.
    pub parameters: [Vec<f32>; 4],
}

impl CpuBackend {
    /// A backend that goes on from `state`, for batches of at most `batch` tokens.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`]; [`Status::InvalidArgument`] for a bad thread count or K.
    pub fn new(state: TrainState, settings: StepSettings, batch: usize, threads: usize) -> Result<Self> {
        let isa = Isa::detect()?;
        let encoder = state.encoder;
        let rows = encoder.rows();
        let slots = match encoder {
            Encoder::Kron { .. } => 2 * settings.k,
            Encoder::Dense { .. } => settings.k,
        };
        let amx = match settings.precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(bf16(isa)?),
        };
        // First: it refuses thread counts that nothing below could be allocated for.
        let pool = Pool::new(threads, "train")?;
        let linear = Linear::new(amx, &state)?;
        let mut workers = Vec::new();
        for _ in 0..threads {
            workers.push(WorkerSpace {
                scratch: Scratch::new(Selector::new(encoder, Selection::TopK(settings.k), None, isa)?),
                tile: linear.space(&state)?,
                positive: vec![0; rows],
            });
        }
        Ok(CpuBackend {
            settings,
            isa,
            pool,
            linear,
            workers,
            residual: Aligned::zeroed(batch * state.encoder_weight.stride, "residuals")?,
            latents: Touched::new(batch, settings.k),
            rows: Touched::new(batch, slots),
            by_latent: ByRow::new(encoder.latents()),
            by_row: ByRow::new(rows),
            staged: (Aligned::zeroed(0, "a batch")?, None),
            begun: None,
            state,
        })
    }

    /// The gradients of a batch's loss, AuxK included, without an update: for tests.
    ///
    /// # Errors
    /// As [`Backend::step`].
    pub fn gradients(&mut self, input: StepInput<'_>) -> Result<(StepStats, DenseGradients)> {
        let sizes = self.state.parameters().map(|(_, parameter)| parameter.value.len());
        let mut parameters = sizes.map(|len| vec![0.0_f32; len]);
        let [a, b, c, d] = &mut parameters;
        let sink = Sink::Capture([a, b, c, d].map(|to| Divided::of(to)));
        let stats = self.pass(input, &sink)?;
        Ok((stats, DenseGradients { parameters }))
    }

    fn pass(&mut self, input: StepInput<'_>, sink: &Sink<'_>) -> Result<StepStats> {
        let d = self.state.d_model();
        let stride = input.stride;
        assert!(
            stride == self.state.encoder_weight.stride && input.x.len() >= input.rows * stride,
            "batch of another width"
        );
        if input.rows == 0 {
            return Ok(StepStats::default());
        }
        let scale = 2.0 / (input.rows as f32 * d as f32);
        let (sums, decoder_bias) = self.tokens(&input, scale)?;
        if sums.not_finite > 0 {
            return Err(Error::new(
                Status::Internal,
                format!(
                    "training diverged at step {}: the pre-activations of {} of {} tokens are not finite; try a lower learning rate",
                    input.step, sums.not_finite, input.rows
                ),
            ));
        }

        let dead = revive::dead_latents(&self.state, self.settings.dead_after);
        let mut stats = StepStats {
            loss: sums.error / (input.rows * d) as f64,
            auxk_loss: 0.0,
            explained_variance: 1.0 - sums.error / sums.norm.max(1e-30),
            l0: sums.latents as f64 / input.rows as f64,
            dead_latents: dead.len(),
            dead_rows: 0,
            revived_rows: 0,
        };
        let aux = match self.settings.auxk {
            Some(auxk) if !dead.is_empty() => {
                let (pool, residual) = (&mut self.pool, &self.residual);
                let (state, settings) = (&self.state, &self.settings);
                Some(auxk::gradients(
                    pool, self.isa, state, settings, auxk, &dead, &input, residual, scale, sums.error,
                )?)
            }
            _ => None,
        };
        stats.auxk_loss = aux.as_ref().map_or(0.0, |aux| aux.loss);

        let mut aux_latents = aux.as_ref().map(|_| ByRow::new(self.state.encoder.latents()));
        {
            let (by_latent, by_row) =
                (std::sync::Mutex::new(&mut self.by_latent), std::sync::Mutex::new(&mut self.by_row));
            let aux_latents = std::sync::Mutex::new(aux_latents.as_mut());
            let row_lists: Vec<&Touched> =
                [Some(&self.rows), aux.as_ref().map(|a| &a.rows)].into_iter().flatten().collect();
            let latents = &self.latents;
            // Two sorts, on two threads where there are two. The locks are never contended; they lend the lists out.
            self.pool.run(&|worker| {
                let lend = std::sync::PoisonError::into_inner;
                if worker.index == 0 {
                    by_row.lock().unwrap_or_else(lend).sort(&row_lists, input.rows);
                }
                if worker.index == worker.count - 1 {
                    by_latent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).sort(&[latents], input.rows);
                    let mut sorted = aux_latents.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if let (Some(sorted), Some(aux)) = (sorted.as_mut(), &aux) {
                        sorted.sort(&[&aux.latents], input.rows);
                    }
                }
            })?;
        }

        let gradients = Gradients {
            x: input.x,
            residual: &self.residual,
            stride,
            latents: &self.by_latent,
            rows: &self.by_row,
            decoder_bias: &decoder_bias,
            aux: aux.as_ref().zip(aux_latents.as_ref()),
        };
        let clip = self.settings.clip.is_some();
        let norms = update::apply(&mut self.pool, self.isa, &mut self.state, &gradients, sink, clip)?;
        if matches!(sink, Sink::Capture(_)) {
            return Ok(stats);
        }
        if clip {
            self.state.gradient_norms = norms;
        }
        self.note_the_living(input.rows);
        let dead_rows = revive::dead_rows(&self.state, self.settings.dead_after);
        stats.dead_rows = dead_rows.len();
        if self.settings.revive_rows && !dead_rows.is_empty() {
            stats.revived_rows = revive::revive(&mut self.state, &dead_rows, &self.residual, input.rows, stride);
        }
        Ok(stats)
    }

    /// The part of a step that goes token by token. Returns the sums over tokens and the gradient of b_dec.
    fn tokens(&mut self, input: &StepInput<'_>, scale: f32) -> Result<(Sums, Vec<f32>)> {
        let (stride, rows) = (input.stride, self.state.encoder.rows());
        let tiles = input.rows.div_ceil(TILE);
        let mut sums = vec![Sums::default(); tiles];
        let mut biases = vec![0.0_f32; tiles * stride];
        self.linear.prepare(&mut self.pool, &self.state)?;
        let exact = self.linear.is_exact();
        let (k, row_slots) = (self.latents.slots, self.rows.slots);
        {
            let to_sums = Divided::of(&mut sums);
            let to_biases = Divided::of(&mut biases);
            let workers = Divided::of(&mut self.workers);
            let residual = Divided::of(&mut self.residual);
            let latents = Divided::of(&mut self.latents.entries);
            let latent_counts = Divided::of(&mut self.latents.counts);
            let row_entries = Divided::of(&mut self.rows.entries);
            let row_counts = Divided::of(&mut self.rows.counts);
            let (state, settings, isa, linear) = (&self.state, &self.settings, self.isa, &self.linear);
            let next = AtomicUsize::new(0);
            self.pool.run(&|worker| {
                // SAFETY: each thread takes the space of its own index.
                let space = unsafe { &mut workers.slice(worker.index..worker.index + 1)[0] };
                space.positive.fill(0);
                loop {
                    let tile = next.fetch_add(1, Ordering::Relaxed);
                    if tile >= tiles {
                        return;
                    }
                    let tokens = tile * TILE..((tile + 1) * TILE).min(input.rows);
                    let x = &input.x[tokens.start * stride..tokens.end * stride];
                    linear.tile(isa, state, x, stride, tokens.len(), &mut space.tile);
                    let mut sum = Sums::default();
                    // SAFETY: every tile, and so every token, belongs to one thread.
                    let bias = unsafe { to_biases.slice(tile * stride..(tile + 1) * stride) };
                    for (t, token) in tokens.enumerate() {
                        let y = &mut space.tile.y[t * space.tile.stride..][..rows];
                        kernels::mark_positive(isa, y, &mut space.positive);
                        // SAFETY: as above.
                        let mut to = unsafe {
                            Token {
                                gradient: residual.slice(token * stride..(token + 1) * stride),
                                latents: latents.slice(token * k..(token + 1) * k),
                                rows: row_entries.slice(token * row_slots..(token + 1) * row_slots),
                            }
                        };
                        let x = &input.x[token * stride..(token + 1) * stride];
                        let (used, rows) =
                            space.scratch.token(isa, state, settings, exact, x, y, scale, &mut to, &mut sum);
                        kernels::add(isa, bias, to.gradient);
                        // SAFETY: as above.
                        unsafe {
                            latent_counts.slice(token..token + 1)[0] = used as u32;
                            row_counts.slice(token..token + 1)[0] = rows as u32;
                        }
                    }
                    // SAFETY: as above.
                    unsafe { to_sums.slice(tile..tile + 1)[0] = sum };
                }
            })?;
        }
        let mut total = Sums::default();
        let mut bias = vec![0.0_f32; stride];
        for (sum, part) in sums.iter().zip(biases.chunks_exact(stride)) {
            total.error += sum.error;
            total.norm += sum.norm;
            total.latents += sum.latents;
            total.not_finite += sum.not_finite;
            kernels::add(self.isa, &mut bias, part);
        }
        Ok((total, bias))
    }

    /// Notes which latents fired and which rows were positive in a step of `tokens` tokens.
    fn note_the_living(&mut self, tokens: usize) {
        self.state.tokens += tokens as u64;
        let now = self.state.tokens;
        for (latent, at) in self.state.fired_at.iter_mut().enumerate() {
            if !self.by_latent.of(latent).is_empty() {
                *at = now;
            }
        }
        for (row, at) in self.state.positive_at.iter_mut().enumerate() {
            if self.workers.iter().any(|worker| worker.positive[row] != 0) {
                *at = now;
            }
        }
    }
}

impl Backend for CpuBackend {
    fn stage(&mut self, batch: Batch<'_>) -> Result<()> {
        let Batch::Normalised { x, rows, stride } = batch else {
            panic!("this backend takes normalised batches only");
        };
        let (len, room) = (rows * stride, self.residual.len());
        assert!(stride == self.state.encoder_weight.stride && len <= room, "batch of another width or size");
        assert!(self.staged.1.is_none(), "the batch before has not been begun");
        if self.staged.0.len() != room {
            self.staged.0 = Aligned::zeroed(room, "a batch")?;
        }
        self.staged.0[..len].copy_from_slice(&x[..len]);
        self.staged.1 = Some(rows);
        Ok(())
    }

    fn begin(&mut self, step: u64, learning_rate: f32) -> Result<()> {
        assert!(self.begun.is_none(), "the step before has not been finished");
        let rows = self.staged.1.take().expect("a batch that was staged");
        let empty = Aligned::zeroed(0, "a batch")?;
        let x = std::mem::replace(&mut self.staged.0, empty);
        let stride = self.state.encoder_weight.stride;
        let stats = self.step(StepInput { x: &x, rows, stride, step, learning_rate });
        self.staged.0 = x;
        self.begun = Some(stats?);
        Ok(())
    }

    fn finish(&mut self) -> Result<StepStats> {
        Ok(self.begun.take().expect("a step that was begun"))
    }

    fn step(&mut self, input: StepInput<'_>) -> Result<StepStats> {
        let settings = self.settings;
        let numbers = kernels::Adam::new(settings.betas, settings.adam_epsilon, input.learning_rate, input.step);
        let factors = self.state.gradient_norms.map(|norm| match settings.clip {
            Some(clip) if norm > f64::from(clip) => (f64::from(clip) / norm) as f32,
            _ => 1.0,
        });
        let seed = moments::seed_of_step(input.step);
        let rounding = (settings.moments == Moments::Bf16).then(|| [0, 1].map(|of| moments::seed_of(seed, of)));
        self.pass(input, &Sink::Adam { numbers, factors, rounding })
    }

    fn state(&mut self) -> Result<&TrainState> {
        Ok(&self.state)
    }

    fn name(&self) -> String {
        let products = if self.linear.is_exact() { "f32" } else { "bf16 products by AMX" };
        format!("cpu ({}, {products}, {} threads)", self.isa.name(), self.pool.threads())
    }
}

/// The fastest precision that this CPU has: what `--precision auto` means here.
///
/// # Errors
/// As [`Isa::detect`].
pub fn fastest_precision() -> Result<Precision> {
    // The trainer is a program of its own, and may decide that for its process.
    Amx::request();
    Ok(if Amx::detect(Isa::detect()?).is_some() { Precision::Bf16 } else { Precision::F32 })
}

fn bf16(isa: Isa) -> Result<Amx> {
    Amx::request();
    Amx::detect(isa).ok_or_else(|| {
        Error::new(
            Status::Unsupported,
            "--precision bf16 needs a CPU with AMX (and KRONSAE_ISA not below avx512); use --precision f32 or auto",
        )
    })
}
