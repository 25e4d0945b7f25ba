//! `kronsae calibrate`.

use super::{corpus, print, print_json, progress_bar, refuse_input_as_output, threads_or_all};
use crate::calibrate::{CalibrateOptions, Calibrated, Select, calibrate};
use crate::data::Dataset;
use crate::terminal::{grouped, percent};
use kronsae::{Result, Sae};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Learn how each latent fires, and the threshold that stands in for TopK, and write both into the model file.
///
/// Under TopK, whether a latent is reported depends on all the others. Under a threshold theta it depends on itself alone,
/// so a list of watched latents is exact at the cost of what it watches. Theta is chosen so that the mean number of active
/// latents on this data is K, and what it costs in explained variance is measured on the same data and printed side by
/// side with TopK.
///
/// Also measured, under the selection the model ends up with: each latent's firing rate, its mean value where active, and
/// the quantiles .5, .9, .99 and .999 of it. A histogram of 64 bins a latent makes the quantiles; the largest error they
/// can have is printed.
///
/// The weights and every other key and tensor of the file are kept bit for bit. The file is replaced when the new one is
/// complete. The data is encoded five or six times; use a sample if it is large.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  kronsae calibrate --model model.safetensors --data activations --select threshold")]
pub struct Args {
    /// The model file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Activation shards, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The file to write [default: the model file itself].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The selection that the model uses from now on [default: as before].
    #[arg(long, value_enum)]
    select: Option<Select>,
    /// K, the mean number of active latents that theta aims at [default: the model's K].
    #[arg(long, value_name = "N")]
    k: Option<usize>,
    /// The most latents that a token keeps under the threshold [default: 4 K].
    #[arg(long, value_name = "N")]
    max_latents: Option<usize>,
    /// What the data is, in words, kept in the model file [default: what the shards say of themselves].
    #[arg(long, value_name = "TEXT")]
    corpus: Option<String>,
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
/// Those of opening the model and the data, of [`calibrate`], and of writing the file, which is as it was then.
pub fn run(args: Args) -> Result<()> {
    if let Some(out) = &args.out
        && out.canonicalize().ok() != args.model.canonicalize().ok()
    {
        refuse_input_as_output(out, &args.model, &args.data)?;
    }
    let sae = Sae::open(&args.model)?;
    let data = Dataset::open(&args.data)?;
    let bar = progress_bar(data.rows());
    let options = CalibrateOptions {
        k: args.k,
        max_latents: args.max_latents,
        select: args.select,
        corpus: args.corpus.or_else(|| corpus(&data)),
        threads: threads_or_all(args.threads),
    };
    let found = calibrate(sae, &data, &options, &mut |stage, done| {
        if bar.message() != stage {
            bar.set_message(stage.to_owned());
            bar.reset();
        }
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let found = found?;
    let out = args.out.as_ref().unwrap_or(&args.model);
    found.write(&args.model, out)?;
    if args.json {
        return print_json(&found);
    }
    print(&format!("{}{}: written\n", table(&found), out.display()))
}

fn table(found: &Calibrated) -> String {
    let mut out = String::new();
    if let Some(s) = &found.search {
        let _ = writeln!(out, "{:<32} {:>12} {:>12}", "", "TopK", "threshold");
        let mut row = |name: &str, of: &dyn Fn(&crate::eval::Evaluation) -> String| {
            let _ = writeln!(out, "{name:<32} {:>12} {:>12}", of(&s.topk), of(&s.threshold));
        };
        row("explained variance, pooled", &|e| format!("{:.4}", e.explained_variance.pooled));
        row("explained variance, per token", &|e| format!("{:.4}", e.explained_variance.per_token_mean));
        row("L0, latents a token", &|e| format!("{:.2}", e.l0));
        row("dead here", &|e| percent(e.dead_share));
        row("tokens cut to max_latents", &|e| grouped(e.truncated_tokens));
        let _ = writeln!(
            out,
            "\ntheta = {}: {:.4} latents active on average, K = {}; costs {:.4} of explained variance, pooled",
            s.theta.theta,
            s.theta.mean_active,
            s.k,
            s.cost()
        );
    }
    let selection = match found.select {
        Select::Topk => "TopK",
        Select::Threshold => "the threshold",
    };
    let silent = found.statistics.rate.iter().filter(|rate| **rate == 0.0).count();
    let _ = writeln!(
        out,
        "rates, means and quantiles under {selection}, over {} tokens; {} of {} latents never fired; quantiles within {}",
        grouped(found.tokens),
        grouped(silent as u64),
        grouped(found.statistics.rate.len() as u64),
        percent(found.quantile_error)
    );
    out
}
