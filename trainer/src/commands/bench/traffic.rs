//! `kronsae bench traffic`.

use super::{extent, print};
use crate::bench::Shape;
use crate::bench::traffic::{Peaks, Step};
use crate::settings::MomentsChoice;
use kronsae::sae::Encoder;
use kronsae::{Error, Result};

/// Count the bytes and operations of a training step on a GPU, and the least time they imply. Measures nothing.
#[derive(clap::Args, Debug)]
pub(super) struct TrafficArgs {
    /// d_model,heads,base,extension, or S1, S2, S3.
    #[arg(long, value_name = "SHAPE", default_value = "2304,8192,2,4", value_parser = super::shape)]
    shape: Shape,
    /// A dense SAE of this many latents instead, of the same width.
    #[arg(long, value_name = "F", value_parser = extent)]
    dense: Option<usize>,
    /// Tokens of a step.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = extent)]
    batch: usize,
    /// K.
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = extent)]
    k: usize,
    /// Dead latents that AuxK uses for each token.
    #[arg(long, value_name = "K", default_value_t = 0)]
    auxk_dead: usize,
    /// In f32 instead of bf16.
    #[arg(long)]
    f32: bool,
    /// How Adam's moments are kept.
    #[arg(long, value_enum, default_value = "f32")]
    moments: MomentsChoice,
}

/// Runs the command.
///
/// # Errors
/// A K that the shape does not have.
pub(super) fn run(args: &TrafficArgs) -> Result<()> {
    let encoder = match args.dense {
        Some(latents) => Encoder::Dense { latents },
        None => args.shape.kron(),
    };
    let used = args.k.max(args.auxk_dead);
    if used > encoder.latents() {
        return Err(Error::invalid(format!("--k or --auxk-dead {used}: there are {} latents", encoder.latents())));
    }
    let element = if args.f32 { 4 } else { 2 };
    let moments = args.moments.moments();
    let step = Step {
        encoder,
        d_model: args.shape.d_model,
        batch: args.batch,
        k: args.k,
        aux: args.auxk_dead,
        element,
        moments,
    };
    print(&step.markdown(Peaks::h200(element)))
}
