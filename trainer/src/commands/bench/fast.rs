//! `kronsae bench fast`.

use super::{extent, or_default, print, print_json, progress_bar, threads_or_all};
use crate::bench::fast::{compare, markdown};
use crate::data::Dataset;
use kronsae::sae::LoadOptions;
use kronsae::{Error, Result, Sae};
use std::path::PathBuf;
use std::sync::Arc;

/// Measure how often the fast path, which is not exact, misses a latent on real activations.
///
/// The fast path screens with bounds that errors are likely to be within, four standard deviations, where the exact path
/// has proven ones. Both encode the same tokens, in turns; what the fast one does not report is counted. The values that
/// it does report are exact.
///
/// Progress is on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kronsae bench fast model.safetensors activations/held-out\n  \
                        kronsae bench fast model.safetensors shard.safetensors --batch 1 --tokens 10000 --json")]
pub(super) struct FastArgs {
    /// The model file.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Activation shards, or folders of them.
    #[arg(value_name = "DATA", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// Tokens of a call; several are measured one after the other [default: 1,64].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = extent)]
    batch: Vec<usize>,
    /// Only the first N tokens [default: all].
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Threads to use [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the model and the data, and of [`compare`].
pub(super) fn run(args: &FastArgs) -> Result<()> {
    let sae = Arc::new(Sae::open_with(&args.model, LoadOptions { encoder_only: true })?);
    let data = Dataset::open(&args.data)?;
    let tokens = args.tokens.unwrap_or(data.rows());
    if tokens == 0 || tokens > data.rows() {
        return Err(Error::invalid(format!("--tokens {tokens}: expected 1 to {}, as many as there are", data.rows())));
    }
    let batches = or_default(&args.batch, &[1, 64]);
    let bar = progress_bar(tokens.saturating_mul(batches.len())).with_message("encoding by both paths");
    let report = compare(&sae, &data, tokens, &batches, threads_or_all(args.threads), &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json { print_json(&report) } else { print(&markdown(&report)) }
}
