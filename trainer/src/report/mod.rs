//! The report of a run: one self-contained HTML page. It loads nothing and needs no script, and says so to the browser
//! (its content security policy allows inline styles and nothing else), because the token text in it comes from whatever
//! the activations were recorded on.

mod chart;
mod page;

use crate::eval::{Evaluation, null_as_nan};
use crate::examples::LatentExamples;
use kronsae::Result;
use kronsae::tensor_file::replace;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// All that a report shows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunReport {
    /// Heading of the page.
    pub title: String,
    /// Configuration of the run, names and values, in the order to show.
    pub config: Vec<(String, String)>,
    /// Training as it went, by step.
    pub curve: Vec<CurvePoint>,
    /// Held-out evaluations while training, by step.
    pub evaluations: Vec<EvalPoint>,
    /// The written model on data it was trained on.
    pub train: Option<Evaluation>,
    /// The written model on data it has not seen.
    pub held_out: Option<Evaluation>,
    /// The strongest latents.
    pub examples: Vec<LatentExamples>,
    /// Sentences that the reader should know.
    pub notes: Vec<String>,
}

/// Training at one step: of that batch, or the mean of the batches since the point before.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training.
    #[serde(deserialize_with = "null_as_nan")]
    pub seconds: f64,
    /// The training loss.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// Explained variance, pooled.
    #[serde(deserialize_with = "null_as_nan")]
    pub explained_variance: f64,
    /// Latents a token.
    #[serde(deserialize_with = "null_as_nan")]
    pub l0: f64,
    /// Share of latents that are dead.
    #[serde(deserialize_with = "null_as_nan")]
    pub dead_share: f64,
    /// The learning rate.
    #[serde(deserialize_with = "null_as_nan")]
    pub learning_rate: f64,
    /// Tokens a second.
    #[serde(deserialize_with = "null_as_nan")]
    pub tokens_per_second: f64,
}

/// A held-out evaluation while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// Steps done.
    pub step: u64,
    /// What was found.
    pub evaluation: Evaluation,
}

/// Writes the page at `path`, complete or not at all.
///
/// # Errors
/// [`kronsae::Status::Io`]; an existing file is as it was then.
pub fn write(path: &Path, report: &RunReport) -> Result<()> {
    let html = page::html(report);
    replace(path, |sink| sink.write_all(html.as_bytes()))
}
