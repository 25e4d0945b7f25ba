//! `kronsae bench input`.

use super::{extent, print, print_json, progress};
use crate::bench::input::{markdown, measure};
use crate::data::Dataset;
use kronsae::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure how fast training batches come from activation shards.
///
/// A GPU step of 8,192 tokens takes some milliseconds; disk, page cache and copying must keep up with it. What the page cache
/// holds already is measured as it comes from there.
///
/// Progress is on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  kronsae bench input --data shards/ --batch 8192")]
pub(super) struct InputArgs {
    /// Folders or files of activation shards.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// Tokens of a batch.
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, value_parser = extent)]
    batch: usize,
    /// Tokens held in memory to shuffle from, half of them read ahead.
    #[arg(long, value_name = "TOKENS", default_value_t = 65_536, value_parser = extent)]
    shuffle_window: usize,
    /// Seconds that each way of making batches is measured for.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of opening and reading the shards.
pub(super) fn run(args: &InputArgs) -> Result<()> {
    let data = Arc::new(Dataset::open(&args.data)?);
    let mut progress = progress();
    progress(&format!("making batches for {} seconds", 3 * args.seconds));
    let report = measure(&data, args.batch, args.shuffle_window, f64::from(args.seconds))?;
    progress("done\n");
    if args.json { print_json(&report) } else { print(&markdown(&report)) }
}
