//! `kronsae bench encode`.

use super::{PeerArgs, check_k, create, extent, json, or_default, print, print_json, shape, start, write};
use crate::bench::measure::Effort;
use crate::bench::{Caches, Options, Shape, run as run_bench, table};
use kronsae::Result;
use std::path::PathBuf;

/// Encode random activations by random models: medians, p99, bandwidth, operations, ratios.
///
/// Weights and activations are random; time does not depend on them much. In every round each encoder has its turn, so
/// that what else the machine does falls on all. Progress is on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kronsae bench encode --quick\n  \
                        kronsae bench encode --shape S2 --batch 1,64 --threads 2 --out results\n  \
                        kronsae bench encode --shape 1024,2048,4,8 --json")]
pub(super) struct EncodeArgs {
    /// Shapes: S1 (d 576, h 1024, m 4, n 4), S2 (2304, 4096, 4, 4), S3 (4096, 4096, 4, 8), or D,H,M,N [default: S1, S2, S3].
    #[arg(long = "shape", value_name = "SHAPE", value_parser = shape)]
    shapes: Vec<Shape>,
    /// Tokens of a call [default: 1,8,64,1024].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = extent)]
    batch: Vec<usize>,
    /// Threads [default: 1,2].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = extent)]
    threads: Vec<usize>,
    /// What is in the caches when a call begins [default: both].
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    caches: Vec<Caches>,
    /// Shorter: S1 and S2, batches 1 and 64, 2 threads, fewer calls, unless asked otherwise.
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Also write the table to DIR/encode.md and DIR/encode.json.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    peers: PeerArgs,
}

/// Runs the command.
///
/// # Errors
/// A K above F; those of measuring, and of writing what was asked for.
pub(super) fn run(args: &EncodeArgs) -> Result<()> {
    let named = |names: &[&str]| names.iter().filter_map(|name| shape(name).ok()).collect::<Vec<_>>();
    let quick = args.quick;
    let options = Options {
        shapes: or_default(&args.shapes, &named(if quick { &["S1", "S2"] } else { &["S1", "S2", "S3"] })),
        batches: or_default(&args.batch, if quick { &[1, 64] } else { &[1, 8, 64, 1024] }),
        threads: or_default(&args.threads, if quick { &[2] } else { &[1, 2] }),
        caches: or_default(&args.caches, &[Caches::Hot, Caches::Flushed]),
        k: args.peers.k as usize,
        effort: if quick { Effort::QUICK } else { Effort::FULL },
        retries: args.peers.retries,
        only: args.peers.only.clone(),
        without: &[],
    };
    check_k(options.k, &options.shapes)?;
    if let Some(out) = &args.out {
        create(out)?;
    }
    let (peers, mut progress) = start(&args.peers);
    let report = run_bench(&options, &peers, &mut progress)?;
    progress("done\n");
    let text = table::markdown(&report);
    if let Some(out) = &args.out {
        write(out, "encode.md", &text)?;
        write(out, "encode.json", &json(&report)?)?;
    }
    if args.json { print_json(&report) } else { print(&text) }
}
