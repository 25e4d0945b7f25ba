//! `kronsae bench gpu`.

use super::{create, print, progress, write};
use crate::backend::choose;
use crate::bench::gpu::{Options, run as measure};
use crate::bench::traffic::Step;
use crate::bench::{Shape, gpu};
use kronsae::{Error, Result, Status};
use std::path::PathBuf;

/// Check the GPU backend and measure it, against the least time its traffic allows and against peers.
///
/// `cargo xtask gpu`, and tools/gpu.sh where there is no cargo, run this with all that belongs to it.
#[derive(clap::Args, Debug)]
pub(super) struct GpuArgs {
    /// Where gpu.json and gpu.md are written.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only say which device there is; fails where there is none.
    #[arg(long)]
    probe: bool,
    /// Only the checks.
    #[arg(long)]
    checks: bool,
    /// A tiny shape: for sanitizers. Always so where kernels are emulated.
    #[arg(long)]
    tiny: bool,
    /// No step times over F, which take minutes.
    #[arg(long)]
    no_sweep: bool,
    /// d_model,heads,base,extension.
    #[arg(long, value_name = "SHAPE", default_value = "2304,8192,2,4", value_parser = super::shape)]
    shape: Shape,
    /// Tokens of a step.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = super::extent)]
    batch: usize,
    /// What tools/gpu_peers.py wrote.
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// [`Status::Unsupported`] naming what is missing; [`Status::Internal`] if a check does not hold; those of measuring.
pub(super) fn run(args: &GpuArgs) -> Result<()> {
    let device = choose::open(0)?;
    let emulated = choose::is_emulated();
    if args.probe {
        return print(&format!("{}\n", device.name()));
    }
    let mut options = if args.tiny || emulated { Options::tiny() } else { Options::full() };
    if !(args.tiny || emulated) {
        options.step =
            Step { encoder: args.shape.kron(), d_model: args.shape.d_model, batch: args.batch, ..options.step };
        options.sweep &= !args.no_sweep;
    }
    options.checks_only = args.checks;
    if let Some(path) = &args.peers {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", &name, &e))?;
        options.peers = Some(serde_json::from_str(&text).map_err(|e| Error::format(format!("{name}: {e}")))?);
    }
    let report: gpu::Report = measure(&device, emulated, &options, &mut progress())?;
    let text = report.markdown();
    if let Some(out) = &args.out {
        create(out)?;
        let json = serde_json::to_string_pretty(&report)
            .map_err(|e| Error::invalid(format!("cannot be shown as JSON: {e}")))?;
        write(out, "gpu.json", &(json + "\n"))?;
        write(out, "gpu.md", &text)?;
    }
    print(&format!("\n{text}"))?;
    if report.passed() {
        return Ok(());
    }
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect();
    Err(Error::new(Status::Internal, format!("checks that do not hold: {}", failed.join("; "))))
}
