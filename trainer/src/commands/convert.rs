//! `kronsae convert`.

use super::{print, refuse_input_as_output};
use crate::onnx::{ExportOptions, TopKOver, data_path, decoder_path, export};
use crate::terminal::grouped;
use clap::ValueEnum;
use kronsae::sae::LoadOptions;
use kronsae::{Error, Result, Sae};
use std::path::PathBuf;

/// Convert a model file into another format.
///
/// ONNX: the encoder as a graph, `activations` (f32, batch x d_model) in, `indices` (i64) and `values` (f32), both batch x
/// K, out, strongest first; K is the model's. Weights are f32. Weights past 2 GiB, which a graph cannot hold, go into a
/// file beside it, FILE.data.
///
/// A graph's values are some GEMM's f32 sums, not the runtime's exact ones: they differ in their last digits, and latents
/// that close may swap places. Where fewer than K latents are positive, the other entries have value 0 and no meaning. A
/// model that selects by a threshold cannot be expressed and is refused.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  kronsae convert --model model.safetensors --to onnx --out model.onnx")]
pub struct Args {
    /// The model file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The format to write.
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// The file to write. An existing one is replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write the decoder, as a graph of its own: model.onnx has model.decoder.onnx beside it.
    #[arg(long)]
    with_decoder: bool,
    /// Put the weights into a file beside the graph even where they fit into it.
    #[arg(long)]
    external_data: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// ONNX, operator set 17
    Onnx,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the model and of [`export`].
#[expect(clippy::needless_pass_by_value, reason = "a command owns its arguments")]
pub fn run(args: Args) -> Result<()> {
    let Format::Onnx = args.to;
    let decoder = decoder_path(&args.out);
    let mut written = vec![args.out.clone(), data_path(&args.out)];
    if args.with_decoder {
        if decoder == args.out {
            let message = format!("{}: the decoder would take this name; choose another --out", args.out.display());
            return Err(Error::invalid(message));
        }
        written.extend([data_path(&decoder), decoder]);
    }
    for path in &written {
        refuse_input_as_output(path, &args.model, &[])?;
    }
    let sae = Sae::open_with(&args.model, LoadOptions { encoder_only: !args.with_decoder })?;
    let options = ExportOptions {
        with_decoder: args.with_decoder,
        external_data: args.external_data,
        top_k_over: TopKOver::default(),
    };
    let exported = export(&sae, &args.out, options).map_err(|e| e.within(&args.model.display().to_string()))?;
    let mut text = String::new();
    for file in &exported.files {
        let bytes = std::fs::metadata(file).map_err(|e| Error::io("examine", &file.display().to_string(), &e))?.len();
        text += &format!("{}: {} bytes\n", file.display(), grouped(bytes));
    }
    print(&text)
}
