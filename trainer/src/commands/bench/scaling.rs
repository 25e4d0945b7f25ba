//! `kronsae bench scaling`.

use super::{PeerArgs, check_k, create, extent, json, print, start, write};
use crate::bench::measure::Effort;
use crate::bench::{scaling, table};
use kronsae::Result;
use std::path::PathBuf;

/// Plot time against latents at a fixed number of encoder rows, and against rows at a fixed number of latents.
#[derive(clap::Args, Debug)]
pub(super) struct ScalingArgs {
    /// Where scaling-latents.svg and scaling-rows.svg are written, with their figures as JSON.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Width of the activations.
    #[arg(long, value_name = "D", default_value_t = 768, value_parser = extent)]
    d_model: usize,
    /// Tokens of a call.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = extent)]
    batch: usize,
    /// Threads.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = extent)]
    threads: usize,
    /// Fewer calls.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    peers: PeerArgs,
}

/// Runs the command.
///
/// # Errors
/// As `kronsae bench encode`.
pub(super) fn run(args: &ScalingArgs) -> Result<()> {
    create(&args.out)?;
    let settings = scaling::Settings {
        batch: args.batch,
        threads: args.threads,
        k: args.peers.k as usize,
        effort: if args.quick { Effort::QUICK } else { Effort::FULL },
        retries: args.peers.retries,
        only: args.peers.only.clone(),
    };
    let sweeps = scaling::sweeps(args.d_model);
    let (peers, mut progress) = start(&args.peers);
    for sweep in &sweeps {
        check_k(settings.k, sweep.shapes())?;
        let (report, svg) = scaling::measure(sweep, &settings, &peers, &mut progress)?;
        write(&args.out, &format!("{}.svg", sweep.file), &svg)?;
        write(&args.out, &format!("{}.json", sweep.file), &json(&report)?)?;
        progress("done\n");
        print(&format!("{}\n", table::markdown(&report)))?;
    }
    Ok(())
}
