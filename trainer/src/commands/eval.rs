//! `kronsae eval`.

use super::{print, print_json, progress_bar, threads_or_all};
use crate::data::Dataset;
use crate::eval::{EvalOptions, Evaluation, evaluate};
use crate::terminal::{density, grouped, percent};
use kronsae::{Result, Sae};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure how well a model reconstructs activations, and how it uses its latents.
///
/// Explained variance is printed under both of its definitions. "pooled" is 1 - SSE/SST over all tokens, with SST taken
/// about the mean of the tokens evaluated: tokens of large norm weigh more. "per token" is the mean of each token's own
/// ratio: all tokens weigh the same. Comparing one with the other says nothing; compare like with like.
///
/// Evaluate on activations that the model was not trained on. "Dead" latents are those that fire on no token of this
/// data: a small data set makes more of them.
///
/// The data streams through in two passes and is never held in memory. The result does not depend on --threads.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  kronsae eval --model runs/first/model.safetensors --data activations/held-out\n  \
                        kronsae eval --model model.safetensors --data shard.safetensors --json | jq .explained_variance.pooled")]
pub struct Args {
    /// The model file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Activation shards, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// Threads to use [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print JSON, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the model and the data, and of [`evaluate`].
#[expect(clippy::needless_pass_by_value, reason = "a command owns its arguments")]
pub fn run(args: Args) -> Result<()> {
    let sae = Arc::new(Sae::open(&args.model)?);
    let data = Dataset::open(&args.data)?;
    let bar = progress_bar(data.rows()).with_message("evaluating");
    let options = EvalOptions { threads: threads_or_all(args.threads) };
    let evaluation = evaluate(&sae, &data, 0..data.rows(), &options, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let evaluation = evaluation?;
    if args.json { print_json(&evaluation) } else { print(&table(&evaluation)) }
}

/// The evaluation as text.
fn table(e: &Evaluation) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<32} {value:>14}");
    };
    row("explained variance, pooled", format!("{:.4}", e.explained_variance.pooled));
    row("explained variance, per token", format!("{:.4}", e.explained_variance.per_token_mean));
    row("FVU (1 - pooled)", format!("{:.4}", e.fvu));
    row("MSE, raw units", format!("{:.6}", e.mse));
    row("L0, latents a token", format!("{:.2}", e.l0));
    row("latents", grouped(e.latents));
    row("dead here", format!("{} ({})", grouped(e.dead_latents), percent(e.dead_share)));
    row("tokens", grouped(e.tokens));
    if e.non_finite_tokens > 0 {
        row("tokens left out (not finite)", grouped(e.non_finite_tokens));
    }
    if e.truncated_tokens > 0 {
        row("tokens cut to max_latents", grouped(e.truncated_tokens));
    }
    if let Some(heads) = &e.head_usage {
        let most = heads.iter().copied().fold(0.0, f64::max);
        let unused = heads.iter().filter(|share| **share == 0.0).count();
        row("heads, unused here", format!("{} of {}", grouped(unused as u64), grouped(heads.len() as u64)));
        row("busiest head, share of firings", percent(most));
    }
    let _ = writeln!(out, "\nlatents by the share of tokens they fire on:\n{}", density(&e.firing_density).trim_end());
    out
}
