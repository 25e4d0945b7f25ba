//! `kronsae bench`.

mod encode;
mod fast;
#[cfg(feature = "cuda")]
mod gpu;
mod input;
mod open;
mod scaling;
mod traffic;

use super::{print, print_json, progress_bar, threads_or_all};
use crate::bench::{Peers, Report, Shape};
use clap::Subcommand;
use kronsae::tensor_file::replace;
use kronsae::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Measure the encoder: beside its peers, as it grows, by likely bounds, and from a file on.
///
/// In `encode` and `scaling` ONNX Runtime takes part where this command was built with the feature `onnxruntime` and its library is found; torch
/// where a Python that has it is. Who is missing is said, and the rest is measured.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Encode(encode::EncodeArgs),
    Scaling(scaling::ScalingArgs),
    Fast(fast::FastArgs),
    Open(open::OpenArgs),
    Input(input::InputArgs),
    Traffic(traffic::TrafficArgs),
    #[cfg(feature = "cuda")]
    Gpu(gpu::GpuArgs),
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
/// Arguments that do not fit each other; those of measuring, and of writing what was asked for.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Encode(args) => encode::run(&args),
        What::Scaling(args) => scaling::run(&args),
        What::Fast(args) => fast::run(&args),
        What::Open(args) => open::run(&args),
        What::Input(args) => input::run(&args),
        What::Traffic(args) => traffic::run(&args),
        #[cfg(feature = "cuda")]
        What::Gpu(args) => gpu::run(&args),
    }
}

/// Says on standard error what is being done.
fn progress() -> impl FnMut(&str) + use<> {
    let terminal = std::io::stderr().is_terminal();
    move |what: &str| {
        if terminal {
            // Over the line before, of which nothing is left standing.
            eprint!("\r\x1b[K{what}");
        } else {
            eprintln!("{what}");
        }
    }
}

/// Looks for the peers; with what says what is being done.
fn start(args: &PeerArgs) -> (Peers, impl FnMut(&str) + use<>) {
    let mut progress = progress();
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
