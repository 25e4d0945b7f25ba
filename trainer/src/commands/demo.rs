//! `kronsae demo`: the main job on a bundled sample of real activations, in a few minutes.

use super::print;
use super::train::{Plan, plan, prepare, summary, write_report};
use crate::claim::{NAME as CLAIM, claim};
use crate::examples::{ExampleOptions, token_latents, top_activations};
use crate::progress::{Progress, tell};
use crate::run::{Finished, Outcome, Tokens, names, run as train};
use crate::settings::{CollectiveKind, TrainArgs};
use crate::terminal::{self, Style};
use kronsae::{Error, Result, Sae};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Train on a bundled sample of real activations and show what the latents stand for
///
/// Trains a KronSAE on data/sample (the residual stream after layer 15 of SmolLM2-135M-Instruct), evaluates it on tokens
/// it has not seen, writes the model file, reloads that with the runtime, and prints some tokens with their strongest
/// latents and some strong latents with the tokens that excite them most. Takes a minute or two on two cores.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kronsae demo
  kronsae demo --out my-demo --seed 1
  kronsae demo --json")]
pub struct Args {
    /// Folder to write the model, the report and the curves into; what an earlier demo left there is replaced
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    out: PathBuf,
    /// The bundled sample [default: data/sample here or where the program was built]
    #[arg(long, value_name = "DIR")]
    sample: Option<PathBuf>,
    /// Seed of initial weights and data order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Print the result as JSON, with the keys of `kronsae eval --json`, and nothing else on stdout
    #[arg(long)]
    json: bool,
    /// Train on so many tokens only: for trying the demo out
    #[arg(long, value_name = "TOKENS", hide = true)]
    tokens: Option<u64>,
}

/// The demo's shape and length: past some 25 passes over so few tokens, held-out tokens are explained worse again.
fn settings(args: &Args, sample: &Path) -> TrainArgs {
    let shard = |name: &str| sample.join(name);
    TrainArgs {
        data: shards(sample),
        eval_data: vec![shard("heldout.safetensors")],
        heads: Some(512),
        base: Some(4),
        extension: Some(4),
        k: Some(32),
        tokens: Some(args.tokens.unwrap_or(512_000)),
        seed: Some(args.seed),
        threads: args.threads,
        collective: Some(CollectiveKind::None),
        ..TrainArgs::default()
    }
}

fn shards(sample: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(sample).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("train-")))
        .collect();
    found.sort();
    found
}

/// Runs the command.
///
/// # Errors
/// [`kronsae::Status::Io`] if the sample is not there; those of training.
pub fn run(args: &Args) -> Result<()> {
    let sample = match &args.sample {
        Some(path) => path.clone(),
        None => find_sample()?,
    };
    if shards(&sample).is_empty() {
        let message = format!("{}: no train-*.safetensors in this folder; is it the demo's sample?", sample.display());
        return Err(Error::new(kronsae::Status::Io, message));
    }
    let plan = plan(settings(args, &sample))?;
    // Only now: a demo that cannot begin leaves the last one alone.
    refuse_others(&args.out)?;
    let _claim = claim(&args.out)?;
    clear(&args.out)?;
    prepare(&args.out, &plan)?;
    introduce(&plan);
    let mut progress = Progress::new(plan.settings.steps, plan.settings.batch, false);
    let outcome = train(&plan.settings, &plan.train, plan.held_out.as_ref(), &args.out, false, &mut progress)?;
    progress.finish();
    let Outcome::Finished(finished) = outcome else {
        tell("stopped");
        std::process::exit(130);
    };
    write_report(&finished, &plan, &args.out, "KronSAE demo", &progress.notes)?;
    if args.json {
        return print(&format!("{}\n", summary(&finished)));
    }
    let Some(held_out) = &plan.held_out else { return Err(Error::invalid("the sample has no held-out shard")) };
    show(&finished, held_out, plan.settings.threads, &args.out)
}

fn introduce(plan: &Plan) {
    let data = &plan.train.data;
    tell(&format!(
        "Training a KronSAE of {} latents on {} tokens of {} ({} dimensions), a small sample.",
        plan.settings.encoder.latents(),
        data.rows(),
        data.metadata("model").unwrap_or("a language model"),
        data.d_model()
    ));
}

/// Where the sample lies: in the current folder, or where this program was built from.
fn find_sample() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sample");
    let here = PathBuf::from("data/sample");
    [here, built].into_iter().find(|path| path.join("heldout.safetensors").is_file()).ok_or_else(|| {
        Error::new(
            kronsae::Status::Io,
            "data/sample is not here: run the demo from a checkout of the repository, or name the folder with --sample",
        )
    })
}

/// Refuses a folder in which there is anything but what a demo left.
fn refuse_others(out: &Path) -> Result<()> {
    let is_claim = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.file_name() == CLAIM);
    if !out.exists() || std::fs::read_dir(out).is_ok_and(|mut entries| entries.all(is_claim)) {
        return Ok(());
    }
    let config = out.join(names::CONFIG);
    let ours = std::fs::read_to_string(&config).is_ok_and(|text| text.contains("heldout.safetensors"));
    if !ours {
        let name = out.display();
        return Err(Error::invalid(format!("{name} exists and was not made by a demo; choose another --out")));
    }
    Ok(())
}

/// Removes what an earlier demo left, and nothing else.
fn clear(out: &Path) -> Result<()> {
    let name = out.display().to_string();
    let failed = |e: std::io::Error| Error::io("clear", &name, &e);
    std::fs::remove_dir_all(out.join(names::CHECKPOINTS)).or_else(absent_is_fine).map_err(failed)?;
    for entry in std::fs::read_dir(out).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let file = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let known = [names::CONFIG, names::METRICS, names::MODEL, names::REPORT].contains(&file);
        if known || file.starts_with("events.out.tfevents.") {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn absent_is_fine(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// Prints what the written model makes of tokens it has not seen.
fn show(finished: &Finished, held_out: &Tokens, threads: usize, out: &Path) -> Result<()> {
    let style = Style::of_stdout();
    // Reloaded, as a user of the file would.
    let sae = Arc::new(Sae::open(&finished.model)?);
    let options = ExampleOptions { latents: 6, examples: 4, threads, ..ExampleOptions::default() };
    let latents = top_activations(&sae, &held_out.data, held_out.rows.clone(), &options)?;
    let rows: Vec<usize> = (1..=6).map(|i| held_out.rows.start + held_out.rows.len() * i / 7).collect();
    let tokens = token_latents(&sae, &held_out.data, &rows, 5, &options)?;

    let mut text = String::new();
    let _ = writeln!(text, "\n{}\n", style.strong("Held-out tokens and their strongest latents"));
    text += &terminal::tokens(&tokens, style);
    let _ = writeln!(text, "\n{}\n", style.strong("Strong latents and the held-out tokens that excite them most"));
    text += &terminal::latents(&latents, style);

    let ev = |e: &crate::eval::Evaluation| e.explained_variance.pooled;
    let _ = writeln!(text, "\n{}\n", style.strong("Explained variance of the written file"));
    let _ = writeln!(text, "  training tokens   {:.4}", ev(&finished.train));
    if let Some(held_out) = &finished.held_out {
        let _ = writeln!(text, "  held-out tokens   {:.4}", ev(held_out));
    }
    let (rows, passes) = training(finished);
    let _ = writeln!(
        text,
        "\nThe sample is small: {rows} tokens, seen {passes:.0} times. The gap between the two is what it has learnt by heart;\n\
         with more activations it closes. (`kronsae train --help` says how to train on yours.)\n"
    );
    let _ = writeln!(text, "  model   {}", finished.model.display());
    let _ = writeln!(text, "  report  {}", out.join(names::REPORT).display());
    let _ = writeln!(text, "  speed   {:.0} tokens/s on {}", finished.tokens_per_second, finished.backend);
    print(&text)
}

/// Tokens of the training data, and how often each was seen.
fn training(finished: &Finished) -> (u64, f64) {
    let number = |key: &str| {
        finished.sae.config().json.get("training").and_then(|t| t.get(key)).and_then(serde_json::Value::as_u64)
    };
    let rows = number("dataset_tokens").unwrap_or(0);
    (rows, number("tokens").unwrap_or(0) as f64 / rows.max(1) as f64)
}
