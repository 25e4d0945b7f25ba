//! The training loop: batches in, checkpoints and one model file out. It knows no device and prints nothing; what
//! happens is told to an [`Observer`].

use crate::backend::choose::Place;
use crate::backend::{Backend, Batch, StepStats, TrainState};
use crate::checkpoint::{self, Header};
use crate::data::{Batches, Dataset, Filled, Normalisation};
use crate::eval::{EvalOptions, Evaluation, evaluate};
use crate::fold::Folded;
use crate::metrics::{EvalRecord, MetricsLog, StepRecord};
use crate::schedule::Schedule;
use crate::settings::Settings;
use kronsae::sae::{Config, Sae, Selection, padded};
use kronsae::{Aligned, Dtype, Error, Result, Status};
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Tokens at most of which mean and scale are measured.
const NORMALISATION_TOKENS: usize = 1 << 20;
/// Training tokens at most on which the finished model is evaluated beside the held-out ones.
const TRAIN_EVALUATION_TOKENS: usize = 32_768;

/// File names inside a run's folder.
pub mod names {
    /// The trained model.
    pub const MODEL: &str = "model.safetensors";
    /// The folder of checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// All settings of the run.
    pub const CONFIG: &str = "config.toml";
    /// One JSON object for each log entry and evaluation.
    pub const METRICS: &str = "metrics.jsonl";
    /// The page about the run.
    pub const REPORT: &str = "report.html";
}

/// Tokens of a data set.
#[derive(Clone)]
pub struct Tokens {
    /// The data set.
    pub data: Arc<Dataset>,
    /// Which of its tokens.
    pub rows: Range<usize>,
}

/// Is told what happens, and may ask the run to stop.
pub trait Observer {
    /// A phase other than training has begun or gone on: `done` of `total` tokens.
    fn phase(&mut self, what: &str, done: usize, total: usize);
    /// A step was done.
    fn step(&mut self, step: u64, stats: &StepStats, record: Option<&StepRecord>);
    /// An evaluation on held-out tokens was done.
    fn evaluated(&mut self, record: &EvalRecord);
    /// Something the user should know; the run goes on.
    fn note(&mut self, note: &str);
    /// Whether to stop after this step, with a checkpoint.
    fn should_stop(&self) -> bool;
}

/// What a finished run leaves.
pub struct Finished {
    /// The model as the file has it.
    pub sae: Arc<Sae>,
    /// Where it is.
    pub model: PathBuf,
    /// Its evaluation on (a sample of) the training tokens.
    pub train: Evaluation,
    /// Its evaluation on held-out tokens.
    pub held_out: Option<Evaluation>,
    /// Training tokens a second, evaluation and checkpoints aside.
    pub tokens_per_second: f64,
    /// All log entries.
    pub steps: Vec<StepRecord>,
    /// All evaluations.
    pub evaluations: Vec<EvalRecord>,
    /// Training tokens left out because they were not finite.
    pub skipped: u64,
    /// Who computed.
    pub backend: String,
}

/// How a run ended.
pub enum Outcome {
    /// The model is written.
    Finished(Box<Finished>),
    /// Stopped when asked to, with a checkpoint after this many steps.
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// All steps are done, and another rank writes the model.
    Followed,
}

/// Trains on `train`, evaluates on `held_out`, writes everything into `out`. With `resume`, goes on from the newest
/// checkpoint there, if there is one.
///
/// Where the settings say that this is one of several ranks, all call this, with the same data and folder; rank 0 alone
/// evaluates and writes. A rank that fails takes the others with it, as far as its collective can.
///
/// # Errors
/// Those of reading data and writing files; [`Status::InvalidArgument`] if a checkpoint belongs to other settings or
/// other data, or ranks disagree about what they run; [`Status::Internal`] if training diverged or a rank is lost.
pub fn run(
    settings: &Settings,
    train: &Tokens,
    held_out: Option<&Tokens>,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let place = Place::find(settings, out, &mut |text| observer.note(text))?;
    run_at(&place, settings, train, held_out, out, resume, observer).map_err(|error| place.give_up(error))
}

fn run_at(
    place: &Place,
    settings: &Settings,
    train: &Tokens,
    held_out: Option<&Tokens>,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let checkpoints = out.join(names::CHECKPOINTS);
    let first = place.is_first();
    if first {
        if resume {
            [out, &checkpoints].into_iter().for_each(kronsae::tensor_file::remove_temporaries);
        }
        let name = checkpoints.display().to_string();
        std::fs::create_dir_all(&checkpoints).map_err(|e| Error::io("create", &name, &e))?;
    }
    // What an earlier attempt of rank 0 was writing is whole or gone from here on.
    place.barrier()?;
    let fingerprint = format!("{}rows{:?}", train.data.fingerprint()?, train.rows);
    let (mut header, state, normalisation) = start(settings, train, &checkpoints, &fingerprint, resume, observer)?;
    place.agree(&beginning(&header, settings, &fingerprint, &normalisation))?;
    let normalisation = Arc::new(normalisation);
    let mut backend = place.backend(settings, state, &normalisation)?;
    let mut metrics = match first {
        true => Some(MetricsLog::open(&out.join(names::METRICS), out, header.step, settings.steps)?),
        false => None,
    };
    // Other ranks go on to the next step, and wait there for what rank 0 evaluates and writes.
    let held_out = held_out.filter(|_| first);
    let schedule = Schedule {
        peak: settings.lr,
        last: settings.lr * settings.lr_end,
        warmup: settings.warmup,
        steps: settings.steps,
    };
    let config = model_config(settings, train, &normalisation)?;
    let mut batches = Batches::new(
        Arc::clone(&train.data),
        train.rows.clone(),
        settings.batch,
        settings.shuffle_window,
        settings.seed,
        Arc::clone(&normalisation),
    )?;
    let stride = padded(settings.d_model);
    let mut room = BatchRoom::new(&*backend, &train.data, settings.batch, stride)?;
    let mut saved = header.step;
    // The batch of the next step, staged while a device computes this one.
    let mut staged = None;

    while header.step < settings.steps {
        let started = Instant::now();
        let filled = match staged.take() {
            None => room.stage(&mut *backend, &mut batches, header.step)?,
            Some(staged) => staged?,
        };
        let rate = schedule.rate(header.step);
        backend.begin(header.step, rate)?;
        // What goes wrong with the next batch is said after this step.
        staged = (header.step + 1 < settings.steps).then(|| room.stage(&mut *backend, &mut batches, header.step + 1));
        let stats = backend.finish()?;
        header.seconds += started.elapsed().as_secs_f64();
        header.skipped += filled.skipped as u64;
        header.step += 1;
        let last = header.step == settings.steps;
        let logged = header.step.is_multiple_of(settings.log_every) || last || header.step == 1;
        let record = logged.then(|| StepRecord::new(&header, settings, &stats, rate));
        if let (Some(metrics), Some(record)) = (&mut metrics, &record) {
            metrics.step(record)?;
        }
        observer.step(header.step, &stats, record.as_ref());
        // Before the checkpoint of this step: a run that is resumed from it must have its evaluation.
        if settings.eval_every > 0
            && header.step.is_multiple_of(settings.eval_every)
            && !last
            && let (Some(metrics), Some(tokens)) = (&mut metrics, held_out)
        {
            let sae = Folded::new(backend.state()?, &normalisation, settings.dtype.dtype())?
                .sae(backend.state()?, config.clone())?;
            let evaluation = evaluated(&Arc::new(sae), tokens, settings.threads, "evaluating", observer)?;
            let record = EvalRecord { step: header.step, evaluation };
            metrics.evaluation(&record)?;
            observer.evaluated(&record);
        }
        let stop = backend.agree_to_stop(observer.should_stop()) && !last;
        if first && (header.step.is_multiple_of(settings.checkpoint_every) || last || stop) {
            match checkpoint::save(&checkpoints, &header, backend.state()?, &normalisation) {
                Ok(()) => saved = header.step,
                // The run is worth more than this checkpoint; the ones before it are whole.
                Err(e) => observer.note(&format!("no checkpoint at step {}: {e}; training goes on", header.step)),
            }
        }
        if stop {
            if first && saved != header.step {
                return Err(Error::new(
                    Status::Io,
                    format!("stopped at step {}, but its checkpoint could not be written", header.step),
                ));
            }
            return Ok(Outcome::Stopped { step: header.step });
        }
    }
    drop((batches, room));
    let Some(mut metrics) = metrics else { return Ok(Outcome::Followed) };

    let model = out.join(names::MODEL);
    Folded::new(backend.state()?, &normalisation, settings.dtype.dtype())?.write(backend.state()?, &config, &model)?;
    let name = backend.name();
    drop(backend);
    // What is reported is what the file holds, not what memory held.
    let sae = Arc::new(Sae::open(&model)?);
    let rows = train.rows.start..train.rows.end.min(train.rows.start + TRAIN_EVALUATION_TOKENS);
    let sample = Tokens { data: Arc::clone(&train.data), rows };
    let train = evaluated(&sae, &sample, settings.threads, "evaluating on training tokens", observer)?;
    let held_out = match held_out {
        None => None,
        Some(tokens) => {
            let evaluation = evaluated(&sae, tokens, settings.threads, "evaluating on held-out tokens", observer)?;
            let record = EvalRecord { step: header.step, evaluation };
            metrics.evaluation(&record)?;
            observer.evaluated(&record);
            Some(record.evaluation)
        }
    };
    let (steps, evaluations) = metrics.finish()?;
    Ok(Outcome::Finished(Box::new(Finished {
        sae,
        model,
        train,
        held_out,
        tokens_per_second: (header.step * settings.batch as u64) as f64 / header.seconds.max(1e-9),
        steps,
        evaluations,
        skipped: header.skipped,
        backend: name,
    })))
}

/// Where batches are made for a backend: as the shards have them where it takes them so.
enum BatchRoom {
    Normalised { x: Aligned<f32>, stride: usize },
    Raw { bytes: Vec<u8>, dtype: Dtype },
}

impl BatchRoom {
    fn new(backend: &dyn Backend, data: &Dataset, batch: usize, stride: usize) -> Result<Self> {
        if !backend.takes_raw() {
            return Ok(BatchRoom::Normalised { x: Aligned::zeroed(batch * stride, "a batch")?, stride });
        }
        let (dtype, len) = (data.dtype(), batch * data.d_model() * data.dtype().size());
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Error::out_of_memory("a batch", len))?;
        bytes.resize(len, 0);
        Ok(BatchRoom::Raw { bytes, dtype })
    }

    /// Makes batch `step` and hands it over.
    fn stage(&mut self, backend: &mut dyn Backend, batches: &mut Batches, step: u64) -> Result<Filled> {
        match self {
            BatchRoom::Normalised { x, stride } => {
                let filled = batches.fill(step, x, *stride)?;
                backend.stage(Batch::Normalised { x, rows: filled.rows, stride: *stride })?;
                Ok(filled)
            }
            BatchRoom::Raw { bytes, dtype } => {
                let filled = batches.gather(step, bytes)?;
                backend.stage(Batch::Raw { bytes, rows: filled.rows, dtype: *dtype })?;
                Ok(filled)
            }
        }
    }
}

/// The state to start from: the newest checkpoint's, or a new one.
fn start(
    settings: &Settings,
    train: &Tokens,
    checkpoints: &Path,
    fingerprint: &str,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<(Header, TrainState, Normalisation)> {
    if resume {
        check_newest(checkpoints, &settings.identity(), fingerprint)?;
        let mut damaged = |e: &Error| observer.note(&format!("passed over a damaged checkpoint: {e}"));
        if let Some(loaded) = checkpoint::load_newest(checkpoints, settings.encoder, settings.d_model, &mut damaged)? {
            observer.note(&format!("resumed after step {}", loaded.0.step));
            return Ok(loaded);
        }
        observer.note("no checkpoint yet; starting from the beginning");
    }
    let total = train.rows.len();
    let mut progress = |done: usize| observer.phase("measuring mean and scale", done, total);
    let normalisation = Normalisation::measure(&train.data, train.rows.clone(), NORMALISATION_TOKENS, &mut progress)?;
    let state = TrainState::new(settings.encoder, settings.d_model, settings.seed)?;
    let header =
        Header { step: 0, skipped: 0, seconds: 0.0, settings: settings.identity(), data: fingerprint.to_owned() };
    Ok((header, state, normalisation))
}

/// All that ranks must have in common when they begin; the shards' names stand for themselves.
fn beginning(header: &Header, settings: &Settings, data: &str, normalisation: &Normalisation) -> String {
    let mut mean = 0_u64;
    for value in &normalisation.mean {
        mean = mean.wrapping_mul(0x0000_0100_0000_01B3) ^ u64::from(value.to_bits());
    }
    format!(
        "after step {}; {}; data {data}; mean {mean:016x} scale {:08x}; {} {}",
        header.step,
        settings.identity(),
        normalisation.scale.to_bits(),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION")
    )
}

/// Refuses checkpoints of other settings or other data, before their tensors are read.
fn check_newest(checkpoints: &Path, settings: &str, data: &str) -> Result<()> {
    for path in checkpoint::list(checkpoints)?.iter().rev() {
        let Ok(header) = kronsae::tensor_file::TensorFile::open(path).and_then(|file| checkpoint::header(&file)) else {
            continue;
        };
        for (what, found, expected) in [("settings", header.settings.as_str(), settings), ("data", &header.data, data)]
        {
            if found != expected {
                let name = path.display();
                return Err(Error::invalid(format!(
                    "{name} was made with other {what}; cannot resume\n  then: {found}\n  now:  {expected}"
                )));
            }
        }
        return Ok(());
    }
    Ok(())
}

/// The config of the model file: shape and selection, where the activations came from, and what made it.
fn model_config(settings: &Settings, train: &Tokens, normalisation: &Normalisation) -> Result<Config> {
    let mut config = Config::new(settings.encoder, settings.d_model, Selection::TopK(settings.k), normalisation.scale)?;
    let mut source = serde_json::Map::new();
    for key in ["model", "hook", "layer"] {
        if let Some(value) = train.data.metadata(key) {
            // A layer is a number wherever it can be.
            let value = value.parse::<u64>().map_or_else(|_| json!(value), |number| json!(number));
            source.insert(key.to_owned(), value);
        }
    }
    config.json.insert("source".to_owned(), source.into());
    let training = json!({
        "tool": concat!("kronsae ", env!("CARGO_PKG_VERSION")),
        "tokens": settings.steps * settings.batch as u64,
        "steps": settings.steps,
        "batch": settings.batch,
        "learning_rate": settings.lr,
        "k": settings.k,
        "auxk": settings.auxk,
        "seed": settings.seed,
        "dataset_tokens": train.rows.len(),
    });
    config.json.insert("training".to_owned(), training);
    Ok(config)
}

fn evaluated(
    sae: &Arc<Sae>,
    tokens: &Tokens,
    threads: usize,
    what: &str,
    observer: &mut dyn Observer,
) -> Result<Evaluation> {
    let total = tokens.rows.len();
    let mut progress = |done: usize| observer.phase(what, done, total);
    evaluate(sae, &tokens.data, tokens.rows.clone(), &EvalOptions { threads }, &mut progress)
}
