//! Calibration: how often and how strongly each latent fires on a corpus, and a threshold to stand in for TopK.
//!
//! A KronSAE is trained with TopK. A threshold theta selects each latent by itself, which is what makes a watch list exact
//! and cheap; it is chosen so that the mean number of active latents on the calibration set is K, and what it costs in
//! explained variance is measured on the same set, beside TopK.
//!
//! Several passes stream over the data; memory is bounded by the model, not by the corpus.
//! - theta: a histogram of latent values with bins 2^-13 (0.012 %) wide relative to the value, first of the 4K strongest
//!   latents of each token. If some token has all of them above the theta found, the histogram is made again of all
//!   latents above a bound that the first pass proved. Theta stands just below a bin, so the mean it is reported with is
//!   exact, and as near to K as a bin's latents allow.
//! - rate, mean, smallest and largest value of each latent, then a histogram of 64 bins a latent, evenly spaced in the
//!   logarithm between those two. A quantile is wrong by at most one bin: the ratio of largest to smallest, to the 64th.

use crate::data::Dataset;
use crate::eval::{EvalOptions, Evaluation, evaluate};
use crate::rewrite::rewrite;
use crate::stream::encode_rows;
use kronsae::sae::{Config, Selection, tensors};
use kronsae::tensor_file::{TensorFile, TensorOut};
use kronsae::{Error, ROW_NOT_FINITE, Result, Sae, Status};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

mod quantiles;
mod theta;

pub use quantiles::{LEVELS, Statistics};
pub use theta::Theta;

/// Which selection the calibrated model uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// The K strongest latents of a token.
    Topk,
    /// Every latent above theta.
    Threshold,
}

/// How to calibrate.
#[derive(Debug, Clone, Default)]
pub struct CalibrateOptions {
    /// K; the model's own where it selects by TopK or was calibrated before.
    pub k: Option<usize>,
    /// The most latents a token keeps under the threshold; 4K (at most F) where not given.
    pub max_latents: Option<usize>,
    /// The selection the model gets; its own kind where not given.
    pub select: Option<Select>,
    /// What the data is, in words; kept in the model file.
    pub corpus: Option<String>,
    /// Threads to use; 0 is taken as 1.
    pub threads: usize,
}

/// What [`calibrate`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Calibrated {
    /// The selection the model gets.
    pub select: Select,
    /// Tokens of the corpus that were encoded (those that are not finite are left out).
    pub tokens: u64,
    /// The threshold and what it costs; `None` where the model has a threshold for each latent.
    pub search: Option<Search>,
    /// Rates, means and quantiles under the selection the model gets.
    #[serde(skip)]
    pub statistics: Statistics,
    /// The largest relative error that a quantile can have.
    pub quantile_error: f64,
    /// What the data is.
    pub corpus: Option<String>,
}

/// A threshold beside the TopK it stands in for.
#[derive(Debug, Clone, Serialize)]
pub struct Search {
    /// K.
    pub k: usize,
    /// The most latents a token keeps under the threshold.
    pub max_latents: usize,
    /// The threshold.
    #[serde(flatten)]
    pub theta: Theta,
    /// The model with TopK selection.
    pub topk: Evaluation,
    /// The model with the threshold.
    pub threshold: Evaluation,
}

impl Search {
    /// Pooled explained variance of TopK less that of the threshold.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.topk.explained_variance.pooled - self.threshold.explained_variance.pooled
    }
}

/// The same model under another selection. The weights are moved, not copied: nobody else may hold them.
fn reselected(sae: Arc<Sae>, selection: Selection) -> Result<Arc<Sae>> {
    let sae = Arc::try_unwrap(sae).map_err(|_| Error::new(Status::Internal, "the model is still in use"))?;
    sae.with_selection(selection).map(Arc::new)
}

/// K: what was asked for, the model's, or that of an earlier calibration.
fn k_of(config: &Config, asked: Option<usize>) -> Result<usize> {
    let before = || config.json.get("calibration")?.get("k")?.as_u64().and_then(|k| usize::try_from(k).ok());
    let k = match (asked, config.selection) {
        (Some(k), _) | (None, Selection::TopK(k)) => k,
        (None, Selection::Threshold { .. }) => before().ok_or_else(|| {
            Error::invalid("the model selects by a threshold and names no K to calibrate for; give one with --k")
        })?,
    };
    config.with_selection(Selection::TopK(k))?;
    Ok(k)
}

/// Calibrates `sae` on all of `data`, streaming it several times.
///
/// `progress` is called with the name of a pass and the tokens it has done.
///
/// # Errors
/// [`Status::InvalidArgument`] if an option does not fit the model, or no token is finite; those of reading the shards.
pub fn calibrate(
    sae: Sae,
    data: &Dataset,
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<Calibrated> {
    let threads = options.threads.max(1);
    let config = sae.config().clone();
    let own = match config.selection {
        Selection::TopK(_) => Select::Topk,
        Selection::Threshold { .. } => Select::Threshold,
    };
    let per_latent = sae.encoder().threshold.is_some();
    if per_latent && (options.select.is_some() || options.k.is_some() || options.max_latents.is_some()) {
        return Err(Error::invalid(
            "the model has a threshold for each latent, which one theta or K would discard; calibrate it without --select, \
             --k and --max-latents",
        ));
    }
    let select = options.select.unwrap_or(own);
    let mut sae = Arc::new(sae);
    let search = if per_latent {
        None
    } else {
        let k = k_of(&config, options.k)?;
        let latents = config.encoder.latents();
        let max_latents = options.max_latents.unwrap_or(k.saturating_mul(4).min(latents));
        // Checked before hours of passes, not after.
        config.with_selection(Selection::Threshold { theta: 0.0, max_latents })?;
        let (found, theta) = theta::find(sae, data, k, threads, progress)?;
        let eval = EvalOptions { threads };
        let mut evaluate_as =
            |sae: &Arc<Sae>, stage: &str| evaluate(sae, data, 0..data.rows(), &eval, &mut |done| progress(stage, done));
        let above = Selection::Threshold { theta: theta.theta, max_latents };
        sae = reselected(found, Selection::TopK(k))?;
        let topk = evaluate_as(&sae, "evaluating TopK")?;
        sae = reselected(sae, above)?;
        let threshold = evaluate_as(&sae, "evaluating the threshold")?;
        if select == Select::Topk {
            sae = reselected(sae, Selection::TopK(k))?;
        }
        Some(Search { k, max_latents, theta, topk, threshold })
    };
    let statistics = quantiles::measure(&sae, data, threads, progress)?;
    let quantile_error = statistics.quantile_error;
    let corpus = options.corpus.clone();
    Ok(Calibrated { select, tokens: statistics.tokens, search, statistics, quantile_error, corpus })
}

impl Calibrated {
    /// Writes the model file `model` with this calibration at `to` (which may be `model` itself): the selection, the
    /// `calibration` key of the config and the calibration tensors are set, everything else is kept bit for bit.
    ///
    /// # Errors
    /// As [`rewrite`]; [`Status::InvalidArgument`] if `model` has another number of latents.
    pub fn write(&self, model: &Path, to: &Path) -> Result<()> {
        let file = TensorFile::open(model)?;
        let text = file.metadata("config").unwrap_or_default();
        let mut config = Config::from_json(text).map_err(|e| e.within(file.name()))?;
        let kept = config.json.get("calibration").and_then(|c| c.as_object().cloned());
        let mut about = kept.unwrap_or_default();
        about.insert("tokens".into(), json!(self.tokens));
        about.insert("levels".into(), json!(LEVELS));
        about.insert("quantile_error".into(), json!(self.quantile_error));
        about.insert("selection".into(), json!(self.select));
        // Nothing of an earlier corpus may be left to describe this one.
        about.shift_remove("corpus");
        about.extend(self.corpus.as_ref().map(|c| ("corpus".to_owned(), json!(c))));
        if let Some(search) = &self.search {
            about.insert("theta".into(), json!(search.theta.theta));
            about.insert("k".into(), json!(search.k));
            about.insert("max_latents".into(), json!(search.max_latents));
            about.insert("mean_active".into(), json!(search.theta.mean_active));
            let variance = |e: &Evaluation| json!(e.explained_variance);
            let both = json!({"topk": variance(&search.topk), "threshold": variance(&search.threshold)});
            about.insert("explained_variance".into(), both);
            let selection = match self.select {
                Select::Topk => Selection::TopK(search.k),
                Select::Threshold => {
                    Selection::Threshold { theta: search.theta.theta, max_latents: search.max_latents }
                }
            };
            config = config.with_selection(selection)?;
        }
        config.json.insert("calibration".into(), about.into());
        let metadata = BTreeMap::from([("config".to_owned(), config.to_json())]);
        let f = config.encoder.latents();
        let s = &self.statistics;
        if s.rate.len() != f {
            let (found, name) = (s.rate.len(), file.name());
            return Err(Error::invalid(format!(
                "{name}: has {f} latents, the calibration {found}; was the file replaced meanwhile?"
            )));
        }
        let added = vec![
            TensorOut::f32(tensors::CALIBRATION_RATE, &[f], &s.rate),
            TensorOut::f32(tensors::CALIBRATION_MEAN, &[f], &s.mean),
            TensorOut::f32(tensors::CALIBRATION_QUANTILES, &[f, LEVELS.len()], &s.quantiles),
        ];
        rewrite(&file, to, metadata, added)
    }
}

/// Calls `each(latents, values)` for every finite token of `data`, and returns their number.
fn for_tokens(
    sae: &Arc<Sae>,
    data: &Dataset,
    threads: usize,
    stage: &str,
    progress: &mut dyn FnMut(&str, usize),
    each: &mut dyn FnMut(&[u32], &[f32]),
) -> Result<u64> {
    let mut tokens = 0;
    encode_rows(sae, data, 0..data.rows(), threads, &mut |chunk| {
        for row in (0..chunk.rows).filter(|r| chunk.latents.flags[*r] & ROW_NOT_FINITE == 0) {
            let (indices, values) = chunk.latents.row(row);
            each(indices, values);
            tokens += 1;
        }
        progress(stage, chunk.start + chunk.rows);
        Ok(())
    })?;
    if tokens == 0 {
        return Err(Error::invalid("no token of the calibration set is finite"));
    }
    Ok(tokens)
}
