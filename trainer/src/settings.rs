//! What a training run is told: flags and a TOML file with the same names, merged over defaults.

use crate::backend::{Moments, Precision, choose};
use crate::collective::Launch;
use clap::{Args, ValueEnum};
use kronsae::sae::Encoder;
use kronsae::{Dtype, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Kind of encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderKind {
    /// KronSAE: heads of base and extension rows.
    Kron,
    /// An ordinary TopK SAE.
    Dense,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// A GPU where there is one, else the CPU.
    Auto,
    /// The sparse CPU backend.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// What carries data between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectiveKind {
    /// NCCL between GPUs, where a launcher says that there are several ranks.
    Auto,
    /// This process trains alone, whatever the environment says.
    None,
    /// MPI, through the host's memory; in builds with the cargo feature `mpi`.
    Mpi,
    /// NCCL.
    Nccl,
}

/// How pre-activations are computed in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// bf16 where the device multiplies it much faster, else f32.
    Auto,
    /// f32 throughout.
    F32,
    /// CPU: latents are chosen by bf16 products; their values and all gradients are f32. GPU: products, gathered rows and residuals are bf16, with sums, weights and moments in f32.
    Bf16,
}

/// How Adam's two moments of encoder and decoder weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentsChoice {
    /// In f32.
    F32,
    /// In bf16, rounded at random by step and element, so that runs repeat: less memory and traffic on a GPU, none less on a CPU.
    Bf16,
}

impl MomentsChoice {
    /// The backend's name for it.
    #[must_use]
    pub fn moments(self) -> Moments {
        match self {
            MomentsChoice::F32 => Moments::F32,
            MomentsChoice::Bf16 => Moments::Bf16,
        }
    }

    fn of(moments: Moments) -> Self {
        match moments {
            Moments::F32 => MomentsChoice::F32,
            Moments::Bf16 => MomentsChoice::Bf16,
        }
    }
}

/// Element type of the weights in the model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// Exact.
    F32,
    /// Half the size; the reported quality is that of the rounded weights.
    Bf16,
}

impl WeightDtype {
    /// The runtime's name for it.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            WeightDtype::F32 => Dtype::F32,
            WeightDtype::Bf16 => Dtype::Bf16,
        }
    }
}

/// Every setting, each optional: as flags, and as keys of the TOML file (underscores for dashes).
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainArgs {
    /// Folders or files of activation shards to train on
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Data")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Shards to evaluate on; without them, the last tokens of the data are held out
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Data")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eval_data: Vec<PathBuf>,
    /// Tokens held out where no --eval-data is given [default: 2 % of the data, at most 16384]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub hold_out: Option<usize>,
    /// Tokens held in memory to shuffle from, half of them read ahead [default: 65536, at most 512 MiB]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub shuffle_window: Option<usize>,

    /// Kind of encoder [default: kron]
    #[arg(long, value_enum, help_heading = "Model")]
    pub encoder: Option<EncoderKind>,
    /// Heads of a kron encoder, h; F = h * m * n latents [default: d_model]
    #[arg(long, value_name = "H", help_heading = "Model")]
    pub heads: Option<usize>,
    /// Base rows of a head, m [default: 4]
    #[arg(long, value_name = "M", help_heading = "Model")]
    pub base: Option<usize>,
    /// Extension rows of a head, n [default: 4]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub extension: Option<usize>,
    /// Latents of a dense encoder, F [default: 16 * d_model]
    #[arg(long, value_name = "F", help_heading = "Model")]
    pub latents: Option<usize>,
    /// Latents a token keeps, K [default: 32]
    #[arg(long, value_name = "K", help_heading = "Model")]
    pub k: Option<usize>,
    /// Element type of the weights in the model file [default: f32]
    #[arg(long, value_enum, help_heading = "Model")]
    pub dtype: Option<WeightDtype>,

    /// Tokens to train on, counting repeats; rounded up to whole batches [default: 10 passes, at most 100 million]
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    pub tokens: Option<u64>,
    /// Tokens of a step [default: 2048]
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    pub batch: Option<usize>,
    /// Peak learning rate of Adam [default: 0.008]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Learning rate at the end of the cosine, as a share of the peak [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub lr_end: Option<f64>,
    /// Share of the steps that warm up [default: 0.1]
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub warmup: Option<f64>,
    /// Seed of initial weights and data order [default: 0]
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
    /// Weight of the AuxK loss that revives dead latents; 0 turns it off [default: 0.03125]
    #[arg(long, value_name = "WEIGHT", help_heading = "Training")]
    pub auxk: Option<f64>,
    /// Dead latents a token may use in the AuxK loss [default: 4 K]
    #[arg(long, value_name = "K", help_heading = "Training")]
    pub auxk_k: Option<usize>,
    /// Tokens after which a silent latent or row counts as dead [default: 10 % of the tokens, at most 10 million]
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    pub dead_after: Option<u64>,
    /// Re-initialise dead encoder rows from badly explained tokens [default: true]
    #[arg(long, value_name = "BOOL", help_heading = "Training")]
    pub revive_rows: Option<bool>,
    /// Clip each parameter's gradient to this norm, judged by the previous step's norm; 0 turns it off [default: 0]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_previous_step: Option<f64>,

    /// Threads; results do not depend on it [default: all cores]
    #[arg(long, help_heading = "Running")]
    pub threads: Option<usize>,
    /// Who computes [default: auto]
    #[arg(long, value_enum, help_heading = "Running")]
    pub backend: Option<BackendKind>,
    /// CUDA device, by its number [default: the rank on this machine, 0 without a launcher]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub device: Option<u32>,
    /// What carries data between the ranks that a launcher has started; results do not depend on it [default: auto]
    #[arg(long, value_enum, help_heading = "Running")]
    pub collective: Option<CollectiveKind>,
    /// How pre-activations are computed; results depend on it, and a resumed run keeps it [default: auto]
    #[arg(long, value_enum, help_heading = "Running")]
    pub precision: Option<PrecisionChoice>,
    /// How Adam's moments are kept; results depend on it, and a resumed run keeps it [default: f32]
    #[arg(long, value_enum, help_heading = "Running")]
    pub moments: Option<MomentsChoice>,
    /// Steps between checkpoints [default: 1000]
    #[arg(long, value_name = "STEPS", help_heading = "Running")]
    pub checkpoint_every: Option<u64>,
    /// Steps between held-out evaluations; 0 for none but the last [default: a tenth of the steps]
    #[arg(long, value_name = "STEPS", help_heading = "Running")]
    pub eval_every: Option<u64>,
    /// Steps between log entries [default: 10]
    #[arg(long, value_name = "STEPS", help_heading = "Running")]
    pub log_every: Option<u64>,
}

macro_rules! merge {
    ($over:ident over $under:ident: $($field:ident),*) => {
        TrainArgs {
            data: if $over.data.is_empty() { $under.data } else { $over.data },
            eval_data: if $over.eval_data.is_empty() { $under.eval_data } else { $over.eval_data },
            $($field: $over.$field.or($under.$field)),*
        }
    };
}

impl TrainArgs {
    /// These settings where given, else those of `under`.
    #[must_use]
    pub fn over(self, mut under: TrainArgs) -> TrainArgs {
        let over = self;
        // What is given here also wins over settings that it excludes.
        if over.encoder.is_some_and(|kind| kind != under.encoder.unwrap_or(EncoderKind::Kron)) {
            (under.heads, under.base, under.extension, under.latents) = (None, None, None, None);
        }
        if !over.eval_data.is_empty() {
            under.hold_out = None;
        }
        if over.hold_out.is_some() {
            under.eval_data.clear();
        }
        merge!(over over under: hold_out, shuffle_window, encoder, heads, base, extension, latents, k, dtype, tokens, batch,
            lr, lr_end, warmup, seed, auxk, auxk_k, dead_after, revive_rows, clip_previous_step, threads, backend,
            device, collective, precision, moments, checkpoint_every, eval_every, log_every)
    }

    /// Reads a TOML file of settings.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`]; [`kronsae::Status::Format`] naming the line, with unknown keys refused.
    pub fn from_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", &name, &e))?;
        toml::from_str(&text).map_err(|e| Error::format(format!("{name}: {e}")))
    }

    /// The settings with every default filled in, for data of the given width and number of training tokens.
    ///
    /// # Errors
    /// [`kronsae::Status::InvalidArgument`] naming the flag, what was found and what was expected.
    pub fn resolve(self, d_model: usize, row_bytes: usize, train_rows: usize) -> Result<Settings> {
        let kind = self.encoder.unwrap_or(EncoderKind::Kron);
        let misplaced = match kind {
            EncoderKind::Kron => [("latents", self.latents), ("", None), ("", None)],
            EncoderKind::Dense => [("heads", self.heads), ("base", self.base), ("extension", self.extension)],
        };
        if let Some((flag, _)) = misplaced.iter().find(|(_, value)| value.is_some()) {
            let other = if kind == EncoderKind::Kron { "--encoder dense" } else { "--encoder kron" };
            return Err(Error::invalid(format!("--{flag} goes with {other} only")));
        }
        let encoder = match kind {
            EncoderKind::Kron => Encoder::Kron {
                heads: self.heads.unwrap_or(d_model),
                base: self.base.unwrap_or(4),
                extension: self.extension.unwrap_or(4),
            },
            EncoderKind::Dense => Encoder::Dense { latents: self.latents.unwrap_or(16 * d_model) },
        }
        .validate()?;
        let batch = positive("batch", self.batch.unwrap_or(2048))?;
        let tokens = positive("tokens", self.tokens.unwrap_or((10 * train_rows as u64).min(100_000_000)))?;
        let steps = tokens.div_ceil(batch as u64);
        // "Never" is often said by a number larger than any that TOML can hold.
        let interval = |value: u64| value.min(i64::MAX as u64);
        let k = self.k.unwrap_or(32);
        if k == 0 || k > encoder.latents() {
            return Err(Error::invalid(format!(
                "--k {k}: expected 1 to {} (the number of latents)",
                encoder.latents()
            )));
        }
        let number = |flag: &str, value: f64, range: std::ops::RangeInclusive<f64>| {
            if range.contains(&value) {
                return Ok(value);
            }
            Err(Error::invalid(format!("--{flag} {value}: expected {} to {}", range.start(), range.end())))
        };
        let most = |flag: &str, value: u64, most: u64| {
            if value <= most {
                return Ok(value);
            }
            Err(Error::invalid(format!("--{flag} {value}: expected at most {most}")))
        };
        let auxk = number("auxk", self.auxk.unwrap_or(1.0 / 32.0), 0.0..=1e3)?;
        let clip = number("clip-previous-step", self.clip_previous_step.unwrap_or(0.0), 0.0..=1e30)?;
        // What the latents and rows of a batch touch is counted in 32 bits.
        let auxk_k = positive("auxk-k", self.auxk_k.unwrap_or(k.saturating_mul(4)))?;
        let entries = 2 * (k + auxk_k.min(encoder.latents()));
        most("batch", batch as u64, (u64::from(u32::MAX) / entries as u64).max(1))?;
        most("tokens", tokens, 1 << 60)?;
        let default_window = 65_536.min((512 << 20) / row_bytes);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let collective = self.collective.unwrap_or(CollectiveKind::Auto);
        let launch = match collective {
            CollectiveKind::None => Launch::alone(),
            _ => Launch::from_environment().map_err(|e| e.within("training on several ranks"))?,
        };
        let device = self.device.unwrap_or(launch.local_rank);
        Ok(Settings {
            encoder,
            d_model,
            k,
            dtype: self.dtype.unwrap_or(WeightDtype::F32),
            steps,
            batch,
            lr: number("lr", self.lr.unwrap_or(DEFAULT_LR), 1e-12..=10.0)?,
            lr_end: number("lr-end", self.lr_end.unwrap_or(0.0), 0.0..=1.0)?,
            warmup: number("warmup", self.warmup.unwrap_or(0.1), 0.0..=1.0)?,
            seed: most("seed", self.seed.unwrap_or(0), i64::MAX as u64)?,
            auxk,
            auxk_k,
            dead_after: interval(positive(
                "dead-after",
                self.dead_after.unwrap_or((tokens / 10).clamp(1, 10_000_000)),
            )?),
            revive_rows: self.revive_rows.unwrap_or(true),
            clip,
            shuffle_window: positive("shuffle-window", self.shuffle_window.unwrap_or(default_window.max(256)))?,
            threads: positive("threads", self.threads.unwrap_or(cores))?,
            backend: self.backend.unwrap_or(BackendKind::Auto),
            precision: choose::precision(
                self.backend.unwrap_or(BackendKind::Auto),
                self.precision.unwrap_or(PrecisionChoice::Auto),
                device,
            )?,
            moments: self.moments.unwrap_or(MomentsChoice::F32).moments(),
            device,
            collective,
            launch,
            checkpoint_every: interval(positive("checkpoint-every", self.checkpoint_every.unwrap_or(1000))?),
            eval_every: interval(self.eval_every.unwrap_or((steps / 10).max(1))),
            log_every: interval(positive("log-every", self.log_every.unwrap_or(10))?),
        })
    }
}

/// Peak learning rate where none is given; chosen by the runs in docs/quality.md.
const DEFAULT_LR: f64 = 8e-3;

fn positive<T: PartialEq + Default + std::fmt::Display>(flag: &str, value: T) -> Result<T> {
    if value == T::default() {
        return Err(Error::invalid(format!("--{flag} {value}: expected at least 1")));
    }
    Ok(value)
}

/// All settings of a run, none left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Shape of the encoder.
    pub encoder: Encoder,
    /// Width of an activation.
    pub d_model: usize,
    /// K.
    pub k: usize,
    /// Element type of the weights in the model file.
    pub dtype: WeightDtype,
    /// Number of steps.
    pub steps: u64,
    /// Tokens of a step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Share of it at the end.
    pub lr_end: f64,
    /// Share of the steps that warm up.
    pub warmup: f64,
    /// Seed.
    pub seed: u64,
    /// Weight of AuxK; 0: off.
    pub auxk: f64,
    /// Dead latents a token may use.
    pub auxk_k: usize,
    /// Tokens after which the silent are dead.
    pub dead_after: u64,
    /// Whether dead rows are re-initialised.
    pub revive_rows: bool,
    /// Norm to clip to; 0: no clipping.
    pub clip: f64,
    /// Tokens held in memory to shuffle from.
    pub shuffle_window: usize,
    /// Threads.
    pub threads: usize,
    /// Who computes.
    pub backend: BackendKind,
    /// CUDA device, by its number.
    pub device: u32,
    /// What carries data between ranks.
    pub collective: CollectiveKind,
    /// Which of the ranks this is.
    pub launch: Launch,
    /// How pre-activations are computed.
    pub precision: Precision,
    /// How Adam's moments are kept.
    pub moments: Moments,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between evaluations; 0: only the last.
    pub eval_every: u64,
    /// Steps between log entries.
    pub log_every: u64,
}

impl Settings {
    /// Everything that changes the resulting tensors, as text: what a resumed run must agree on. Threads, ranks and
    /// intervals are not in it.
    #[must_use]
    pub fn identity(&self) -> String {
        format!(
            "{:?} d{} k{} {:?} steps{} batch{} lr{} end{} warmup{} seed{} auxk{}x{} dead{} revive{} clip{} window{} {:?}{}",
            self.encoder,
            self.d_model,
            self.k,
            self.dtype,
            self.steps,
            self.batch,
            self.lr,
            self.lr_end,
            self.warmup,
            self.seed,
            self.auxk,
            self.auxk_k,
            self.dead_after,
            self.revive_rows,
            self.clip,
            self.shuffle_window,
            self.precision,
            // Said only where it is not f32: runs from before there was a choice can be resumed.
            match self.moments {
                Moments::F32 => "",
                Moments::Bf16 => " moments bf16",
            }
        )
    }

    /// The same settings as arguments, every one given but those of this process alone (its device, its rank): what
    /// `config.toml` of a run holds.
    #[must_use]
    pub fn to_args(&self, data: &[PathBuf], eval_data: &[PathBuf], hold_out: usize) -> TrainArgs {
        let mut args = TrainArgs {
            data: data.to_vec(),
            eval_data: eval_data.to_vec(),
            hold_out: eval_data.is_empty().then_some(hold_out),
            shuffle_window: Some(self.shuffle_window),
            k: Some(self.k),
            dtype: Some(self.dtype),
            tokens: Some(self.steps * self.batch as u64),
            batch: Some(self.batch),
            lr: Some(self.lr),
            lr_end: Some(self.lr_end),
            warmup: Some(self.warmup),
            seed: Some(self.seed),
            auxk: Some(self.auxk),
            auxk_k: Some(self.auxk_k),
            dead_after: Some(self.dead_after),
            revive_rows: Some(self.revive_rows),
            clip_previous_step: Some(self.clip),
            threads: Some(self.threads),
            backend: Some(self.backend),
            precision: Some(match self.precision {
                Precision::F32 => PrecisionChoice::F32,
                Precision::Bf16 => PrecisionChoice::Bf16,
            }),
            moments: Some(MomentsChoice::of(self.moments)),
            checkpoint_every: Some(self.checkpoint_every),
            eval_every: Some(self.eval_every),
            log_every: Some(self.log_every),
            ..TrainArgs::default()
        };
        match self.encoder {
            Encoder::Kron { heads, base, extension } => {
                args.encoder = Some(EncoderKind::Kron);
                (args.heads, args.base, args.extension) = (Some(heads), Some(base), Some(extension));
            }
            Encoder::Dense { latents } => {
                (args.encoder, args.latents) = (Some(EncoderKind::Dense), Some(latents));
            }
        }
        args
    }
}
