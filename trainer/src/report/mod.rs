//! The report of a run: one self-contained HTML page. It loads nothing and needs no script, and says so to the browser
//! (its content security policy allows inline styles and nothing else), because the token text in it comes from whatever
//! the activations were recorded on.

mod chart;
mod page;

use crate::eval::Evaluation;
use crate::examples::LatentExamples;
use crate::metrics::{EvalRecord, StepRecord};
use kronsae::Result;
use kronsae::tensor_file::replace;
use serde::Serialize;
use std::path::Path;

/// All that a report shows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunReport {
    /// Heading of the page.
    pub title: String,
    /// Configuration of the run, names and values, in the order to show.
    pub config: Vec<(String, String)>,
    /// Training as it went, by step.
    pub curve: Vec<StepRecord>,
    /// Held-out evaluations while training, by step.
    pub evaluations: Vec<EvalRecord>,
    /// The written model on data it was trained on.
    pub train: Option<Evaluation>,
    /// The written model on data it has not seen.
    pub held_out: Option<Evaluation>,
    /// The strongest latents.
    pub examples: Vec<LatentExamples>,
    /// Sentences that the reader should know.
    pub notes: Vec<String>,
}

/// Writes the page at `path`, complete or not at all.
///
/// # Errors
/// [`kronsae::Status::Io`]; an existing file is as it was then.
pub fn write(path: &Path, report: &RunReport) -> Result<()> {
    let html = page::html(report);
    replace(path, |sink| sink.write_all(html.as_bytes()))
}
