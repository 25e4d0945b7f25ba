//! `kronsae bench`.

use super::{print, print_json};
use crate::bench::measure::Effort;
use crate::bench::{Caches, Options, Peers, Report, Shape, run as run_bench, scaling, table};
use clap::Subcommand;
use kronsae::tensor_file::replace;
use kronsae::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Measure the encoder beside its peers, in one run.
///
/// ONNX Runtime takes part where this command was built with the feature `onnxruntime` and its library is found; torch
/// where a Python that has it is. Who is missing is said, and the rest is measured.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Encode(EncodeArgs),
    Scaling(ScalingArgs),
}

/// Where the peers are.
#[derive(clap::Args, Debug)]
struct PeerArgs {
    /// A Python interpreter that has torch [default: $KRONSAE_BENCH_PYTHON, or python3].
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// ONNX Runtime's libonnxruntime.so [default: $ORT_DYLIB_PATH, or where the system finds it].
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Measure again, up to N times, where other processes kept more than 0.15 cores busy; the calmest measurement counts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: usize,
    /// Only the encoders with this in their names; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// K, latents of a token.
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
}

/// Encode random activations by random models: medians, p99, bandwidth, operations, ratios.
///
/// Weights and activations are random; time does not depend on them much. In every round each encoder has its turn, so
/// that what else the machine does falls on all. Progress is on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kronsae bench encode --quick\n  \
                        kronsae bench encode --shape S2 --batch 1,64 --threads 2 --out results\n  \
                        kronsae bench encode --shape 1024,2048,4,8 --json")]
struct EncodeArgs {
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

/// Plot time against latents at a fixed number of encoder rows, and against rows at a fixed number of latents.
#[derive(clap::Args, Debug)]
struct ScalingArgs {
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

fn extent(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n @ 1..=1_048_576) => Ok(n),
        _ => Err("expected a whole number from 1 to 1,048,576".to_owned()),
    }
}

fn shape(text: &str) -> Result<Shape, String> {
    let known = match text {
        "S1" | "s1" => "576,1024,4,4",
        "S2" | "s2" => "2304,4096,4,4",
        "S3" | "s3" => "4096,4096,4,8",
        other => other,
    };
    let parts: Vec<usize> = known.split(',').map(extent).collect::<Result<_, _>>().unwrap_or_default();
    let [d_model, heads, base, extension] = parts[..] else {
        return Err("expected S1, S2, S3 or four numbers: d_model,heads,base,extension".to_owned());
    };
    let shape = Shape { name: text.to_uppercase(), d_model, heads, base, extension };
    shape.kron().validate().map_err(|e| e.message().to_owned())?;
    Ok(shape)
}

fn or_default<T: Clone>(asked: &[T], default: &[T]) -> Vec<T> {
    if asked.is_empty() { default.to_vec() } else { asked.to_vec() }
}

/// Runs the command.
///
/// # Errors
/// A K above F; those of measuring, and of writing what was asked for.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Encode(args) => encode(&args),
        What::Scaling(args) => scale(&args),
    }
}

/// Looks for the peers, and says on standard error what is being done.
fn start(args: &PeerArgs) -> (Peers, impl FnMut(&str) + use<>) {
    let terminal = std::io::stderr().is_terminal();
    let progress = move |what: &str| {
        if terminal {
            // Over the line before, of which nothing is left standing.
            eprint!("\r\x1b[K{what}");
        } else {
            eprintln!("{what}");
        }
    };
    progress("looking for ONNX Runtime and torch");
    (Peers::find(args.onnxruntime.as_deref(), args.python.as_deref()), progress)
}

fn check_k(k: usize, shapes: &[Shape]) -> Result<()> {
    match shapes.iter().find(|shape| shape.kron().latents() < k) {
        None => Ok(()),
        Some(shape) => Err(Error::invalid(format!("--k {k}: {} has {} latents", shape.name, shape.kron().latents()))),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    replace(&folder.join(name), |sink| sink.write_all(text.as_bytes()))
}

fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", &folder.display().to_string(), &e))
}

fn json(report: &Report) -> Result<String> {
    let text = serde_json::to_string_pretty(report);
    text.map(|text| text + "\n").map_err(|e| Error::invalid(format!("cannot be shown as JSON: {e}")))
}

fn encode(args: &EncodeArgs) -> Result<()> {
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

fn scale(args: &ScalingArgs) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_or_refused() {
        let s3 = shape("s3").unwrap();
        assert_eq!(
            (s3.name.as_str(), s3.d_model, s3.kron().rows(), s3.kron().latents()),
            ("S3", 4096, 49_152, 131_072)
        );
        assert_eq!(shape("64,8,2,3").unwrap().kron().rows(), 40);
        for bad in ["S4", "1,2,3", "1,2,3,4,5", "0,1,1,1", "64,-8,2,3", "8,1048576,1048576,1"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
        assert!(check_k(50, &[shape("64,8,2,3").unwrap()]).unwrap_err().message().contains("48 latents"));
    }
}
