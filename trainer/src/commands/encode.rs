//! `kronsae encode`.

use super::{print, progress_bar, refuse_input_as_output, threads_or_all};
use crate::data::Dataset;
use crate::encode_file::encode_file;
use crate::terminal::grouped;
use kronsae::sae::LoadOptions;
use kronsae::{Result, Sae};
use std::path::PathBuf;
use std::sync::Arc;

/// Encode recorded activations into sparse latents, offline, into one file.
///
/// The file is safetensors, format `latents/1`. Row r belongs to token r of the data, shards in the order of their names:
/// `indices`, U32 of N x K, and `values`, F32 of N x K, strongest first; `counts`, U32 of N: how many of a row are used,
/// the rest being 0. K is the model's selection capacity: its K, or `max_latents` under a threshold. Tokens that are not finite have
/// count 0.
///
/// The file takes 8 * K + 4 bytes a token, and half as much again beside it while it is being written; it appears under
/// its name when it is complete. The bits do not depend on --threads.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  kronsae encode --model model.safetensors --data activations --out latents.safetensors\n  \
                        python3 -c 'from safetensors.numpy import load_file; print(load_file(\"latents.safetensors\")[\"counts\"])'"
)]
pub struct Args {
    /// The model file. Its decoder is not read.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Activation shards, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The file to write. An existing one is replaced, but never a file that is read here.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Threads to use [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the model and the data, and of [`encode_file`].
#[expect(clippy::needless_pass_by_value, reason = "a command owns its arguments")]
pub fn run(args: Args) -> Result<()> {
    refuse_input_as_output(&args.out, &args.model, &args.data)?;
    let sae = Arc::new(Sae::open_with(&args.model, LoadOptions { encoder_only: true })?);
    let data = Dataset::open(&args.data)?;
    let bar = progress_bar(data.rows()).with_message("encoding");
    let model = args.model.file_name().unwrap_or_default().to_string_lossy();
    let threads = threads_or_all(args.threads);
    let done = encode_file(&sae, &model, &data, &args.out, threads, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let done = done?;
    let mut text = format!(
        "{}: {} tokens, {:.2} latents a token of at most {}",
        args.out.display(),
        grouped(done.tokens),
        done.latents as f64 / done.tokens as f64,
        done.capacity
    );
    if done.non_finite_tokens > 0 {
        text += &format!("; not finite, so without latents: {}", grouped(done.non_finite_tokens));
    }
    if done.truncated_tokens > 0 {
        text += &format!("; had more, of which the strongest were kept: {}", grouped(done.truncated_tokens));
    }
    print(&(text + "\n"))
}
