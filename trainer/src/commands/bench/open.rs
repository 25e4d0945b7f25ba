//! `kronsae bench open`.

use super::{check_k, extent, print, print_json, progress, shape, threads_or_all};
use crate::bench::Shape;
use crate::bench::open::{OpenReport, Opening, markdown, measure, median, warm, write_random};
use clap::ValueEnum;
use kronsae::{Dtype, Error, Result, Status};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Measure the time from nothing to the first latents, and the memory that stays.
///
/// A model file is opened from the page cache, encoder-only and whole, each in processes of its own: opening, making the
/// encoder with its int8 copy, the first encode, and the process's resident memory after each.
///
/// Progress is on standard error.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kronsae bench open model.safetensors\n  \
                        kronsae bench open --shape S2 --dtype bf16 --json")]
pub(super) struct OpenArgs {
    /// The model file.
    #[arg(value_name = "MODEL", required_unless_present = "shape")]
    model: Option<PathBuf>,
    /// Instead of a model file, one of random weights in the folder for temporary files: S1, S2, S3 or D,H,M,N.
    #[arg(long, value_name = "SHAPE", value_parser = shape, conflicts_with = "model")]
    shape: Option<Shape>,
    /// Element type of the random weights.
    #[arg(long, value_enum, default_value_t = Element::F32, requires = "shape")]
    dtype: Element,
    /// K of the random model, latents of a token.
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = extent, requires = "shape")]
    k: usize,
    /// Processes that each kind of opening is measured in.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = extent)]
    runs: usize,
    /// Threads of the encoder [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Measure once, in this very process, and print that as JSON.
    #[arg(long, value_enum, hide = true, requires = "model")]
    once: Option<Once>,
}

/// Element types that models are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Element {
    F32,
    Bf16,
}

/// What a process of its own opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Once {
    EncoderOnly,
    Whole,
}

impl Once {
    fn argument(self) -> &'static str {
        match self {
            Once::EncoderOnly => "encoder-only",
            Once::Whole => "whole",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Those of opening the model, of making its encoder, and of writing one of random weights.
pub(super) fn run(args: &OpenArgs) -> Result<()> {
    let threads = threads_or_all(args.threads);
    if let (Some(model), Some(once)) = (&args.model, args.once) {
        return print_json(&measure(model, once == Once::EncoderOnly, threads)?);
    }
    let mut progress = progress();
    let folder = tempfile::tempdir().map_err(|e| Error::io("create", "a temporary folder", &e))?;
    let (name, path) = match (&args.shape, &args.model) {
        (Some(shape), _) => {
            check_k(args.k, std::slice::from_ref(shape))?;
            progress(&format!("writing a model of {}", shape.name));
            let (dtype, path) = (args.dtype, folder.path().join("model.safetensors"));
            write_random(&path, shape, args.k, if dtype == Element::F32 { Dtype::F32 } else { Dtype::Bf16 })?;
            (format!("{}, random weights", shape.name), path)
        }
        (None, Some(model)) => (model.display().to_string(), model.clone()),
        (None, None) => return Err(Error::invalid("expected a model file or --shape")),
    };
    warm(&path)?;
    let mut openings = Vec::new();
    for once in [Once::EncoderOnly, Once::Whole] {
        let mut runs = Vec::new();
        for run in 0..args.runs {
            progress(&format!("{}: {} of {}", once.argument(), run + 1, args.runs));
            runs.push(in_a_process(&path, once, threads)?);
        }
        openings.push(median(&runs));
    }
    progress("done\n");
    let report = OpenReport { model: name, processes: args.runs, openings };
    if args.json { print_json(&report) } else { print(&markdown(&report)) }
}

/// What this command measures in a process of its own.
fn in_a_process(path: &Path, once: Once, threads: usize) -> Result<Opening> {
    let failed = |what: String| Error::new(Status::Io, format!("a process to measure in: {what}"));
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let output = Command::new(program)
        .args(["bench", "open", "--once", once.argument(), "--threads", &threads.to_string(), "--"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("error: ");
        return Err(if said.is_empty() {
            failed(format!("ended with {}", output.status))
        } else {
            failed(said.to_owned())
        });
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("answered what is no measurement: {e}")))
}
