//! The numbers of a run as it goes: `metrics.jsonl`, one JSON object a line, and TensorBoard events.

use crate::backend::StepStats;
use crate::checkpoint::Header;
use crate::eval::{Evaluation, null_as_nan};
use crate::settings::Settings;
use crate::tensorboard::EventWriter;
use kronsae::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One log entry of training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done.
    pub step: u64,
    /// Tokens trained on, repeats counted.
    pub tokens: u64,
    /// Seconds of training, evaluation and checkpoints aside.
    pub seconds: f64,
    /// Mean squared error an element, normalised units.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// AuxK's loss before its weight.
    #[serde(deserialize_with = "null_as_nan")]
    pub auxk_loss: f64,
    /// 1 - SSE/SST of this step's batch.
    #[serde(deserialize_with = "null_as_nan")]
    pub explained_variance: f64,
    /// Mean latents a token.
    #[serde(deserialize_with = "null_as_nan")]
    pub l0: f64,
    /// Share of latents that have not fired for the window.
    pub dead_share: f64,
    /// Encoder rows positive on no token of the window.
    pub dead_rows: usize,
    /// Dead rows re-initialised in this step.
    pub revived_rows: usize,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Training tokens a second, since the run began.
    pub tokens_per_second: f64,
}

impl StepRecord {
    pub(crate) fn new(header: &Header, settings: &Settings, stats: &StepStats, rate: f32) -> Self {
        let tokens = header.step * settings.batch as u64;
        StepRecord {
            step: header.step,
            tokens,
            seconds: header.seconds,
            loss: stats.loss,
            auxk_loss: stats.auxk_loss,
            explained_variance: stats.explained_variance,
            l0: stats.l0,
            dead_share: stats.dead_latents as f64 / settings.encoder.latents() as f64,
            dead_rows: stats.dead_rows,
            revived_rows: stats.revived_rows,
            learning_rate: f64::from(rate),
            tokens_per_second: tokens as f64 / header.seconds.max(1e-9),
        }
    }
}

/// One evaluation on held-out tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps done.
    pub step: u64,
    /// What was found.
    pub evaluation: Evaluation,
}

/// Writes log entries as they come.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: EventWriter,
    steps: Vec<StepRecord>,
    evaluations: Vec<EvalRecord>,
}

impl MetricsLog {
    /// Opens the log of a run of `steps_in_all` steps, and a TensorBoard event file in the folder `events`. Entries after step
    /// `done`, of a run that went further than its last checkpoint, are dropped, and so is the evaluation of the finished
    /// model, which is made again.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`].
    pub fn open(path: &Path, events: &Path, done: u64, steps_in_all: u64) -> Result<Self> {
        let name = path.display().to_string();
        let old = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            old => old.map_err(|e| Error::io("read", &name, &e))?,
        };
        let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
        let mut kept = String::new();
        // A line may be torn where the process was killed, or garbled by a crash; it parses as neither and is dropped.
        for line in String::from_utf8_lossy(&old).lines() {
            if let Ok(record) = serde_json::from_str::<StepRecord>(line) {
                if record.step > done {
                    continue;
                }
                steps.push(record);
            } else if let Ok(record) = serde_json::from_str::<EvalRecord>(line) {
                if record.step > done || record.step >= steps_in_all {
                    continue;
                }
                evaluations.push(record);
            } else {
                continue;
            }
            kept.push_str(line);
            kept.push('\n');
        }
        kronsae::tensor_file::replace(path, |sink| sink.write_all(kept.as_bytes()))?;
        let file = File::options().append(true).open(path).map_err(|e| Error::io("open", &name, &e))?;
        let events = EventWriter::create(events)?;
        Ok(MetricsLog { path: path.to_owned(), file, events, steps, evaluations })
    }

    fn line(&mut self, record: &impl Serialize) -> Result<()> {
        let name = self.path.display().to_string();
        let mut line = serde_json::to_vec(record).map_err(|e| Error::invalid(format!("{name}: {e}")))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io("write", &name, &e))
    }

    pub(crate) fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.line(record)?;
        for (tag, value) in [
            ("train/loss", record.loss),
            ("train/auxk_loss", record.auxk_loss),
            ("train/explained_variance", record.explained_variance),
            ("train/l0", record.l0),
            ("train/dead_share", record.dead_share),
            ("train/dead_rows", record.dead_rows as f64),
            ("train/learning_rate", record.learning_rate),
            ("train/tokens_per_second", record.tokens_per_second),
        ] {
            self.events.scalar(tag, record.step, value)?;
        }
        self.steps.push(record.clone());
        Ok(())
    }

    pub(crate) fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.line(record)?;
        let found = &record.evaluation;
        for (tag, value) in [
            ("held_out/explained_variance_pooled", found.explained_variance.pooled),
            ("held_out/explained_variance_per_token", found.explained_variance.per_token_mean),
            ("held_out/l0", found.l0),
            ("held_out/dead_share", found.dead_share),
        ] {
            self.events.scalar(tag, record.step, value)?;
        }
        // An evaluation is rare enough to be seen at once.
        self.events.flush()?;
        self.evaluations.push(record.clone());
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(Vec<StepRecord>, Vec<EvalRecord>)> {
        self.events.flush()?;
        let name = self.path.display().to_string();
        self.file.sync_all().map_err(|e| Error::io("write", &name, &e))?;
        Ok((self.steps, self.evaluations))
    }
}
