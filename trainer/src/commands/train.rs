//! `kronsae train`: activation shards in, a folder with one model file out.

use super::print;
use crate::checkpoint;
use crate::claim::claim;
use crate::data::Dataset;
use crate::examples::{ExampleOptions, top_activations};
use crate::progress::{Progress, tell};
use crate::report::{self, RunReport};
use crate::run::{Finished, Outcome, Tokens, names, run};
use crate::settings::{Settings, TrainArgs};
use kronsae::{Error, Result, tensor_file};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Train a sparse autoencoder on recorded activations
///
/// Reads activation shards (safetensors, format activations/1), trains, and leaves in --out: model.safetensors (the
/// model), report.html (a page about the run), config.toml (every setting), metrics.jsonl and TensorBoard event files
/// (curves), and checkpoints/. A run that was interrupted, even by kill -9, goes on with --resume and ends with the same
/// tensors as if it had not been.
///
/// Several GPUs train together where a launcher starts a process for each: every rank is given the same command, divides the
/// batch with the others and ends each step with their bits; rank 0 writes. The run is the one that a single GPU would make of
/// the same flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kronsae train --data shards/ --out run1
  kronsae train --data shards/ --out run2 --encoder dense --latents 8192 --k 32 --tokens 10000000
  kronsae train --config run1/config.toml --seed 1 --out run3
  kronsae train --out run1 --resume

Several GPUs, one process each (torchrun, Open MPI or Slurm):
  torchrun --no-python --nproc-per-node 2 kronsae train --data shards/ --out run4
  mpirun -n 2 kronsae train --data shards/ --out run4
  srun --ntasks 2 --kill-on-bad-exit=1 kronsae train --data shards/ --out run4
After a fault, start all of them again with --resume.")]
pub struct Args {
    /// Folder of the run; made if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// TOML file of settings; flags given beside it win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out, with the settings of its config.toml
    #[arg(long)]
    resume: bool,
    /// Print log entries and the result as JSON lines on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: TrainArgs,
}

/// Tokens at most in which the report looks for examples.
const REPORT_TOKENS: usize = 65_536;

/// A run's data, opened and divided.
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) train: Tokens,
    pub(crate) held_out: Option<Tokens>,
    config: TrainArgs,
}

/// Opens the data and fills in every default.
///
/// # Errors
/// Those of opening shards and of settings out of range.
pub(crate) fn plan(args: TrainArgs) -> Result<Plan> {
    if args.data.is_empty() {
        return Err(Error::invalid("--data is missing: name a folder of activation shards"));
    }
    let data = Arc::new(Dataset::open(&args.data)?);
    let eval_data = if args.eval_data.is_empty() { None } else { Some(Arc::new(Dataset::open(&args.eval_data)?)) };
    if let Some(eval) = eval_data.as_ref().filter(|eval| eval.d_model() != data.d_model()) {
        let (found, expected) = (eval.d_model(), data.d_model());
        return Err(Error::invalid(format!("--eval-data has d_model {found}, --data has {expected}")));
    }
    let hold_out = match (&eval_data, args.hold_out) {
        (Some(_), Some(_)) => return Err(Error::invalid("--hold-out and --eval-data exclude each other")),
        (Some(_), None) => 0,
        (None, given) => given.unwrap_or((data.rows() / 50).min(16_384)),
    };
    if hold_out >= data.rows() {
        return Err(Error::invalid(format!("--hold-out {hold_out}: the data has {} tokens in all", data.rows())));
    }
    let rows = 0..data.rows() - hold_out;
    let (paths, eval_paths) = (absolute(&args.data)?, absolute(&args.eval_data)?);
    let settings = args.resolve(data.d_model(), data.d_model() * data.dtype().size(), rows.len())?;
    let config = settings.to_args(&paths, &eval_paths, hold_out);
    let held_out = match eval_data {
        Some(eval) => Some(Tokens { rows: 0..eval.rows(), data: eval }),
        None => (hold_out > 0).then(|| Tokens { data: Arc::clone(&data), rows: rows.end..data.rows() }),
    };
    Ok(Plan { settings, train: Tokens { data, rows }, held_out, config })
}

/// Paths that mean the same from any folder, so that a run can be resumed from anywhere.
fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let each = |path: &PathBuf| path.canonicalize().map_err(|e| Error::io("find", &path.display().to_string(), &e));
    paths.iter().map(each).collect()
}

/// Runs the command.
///
/// # Errors
/// Those of [`run`], and a folder that already holds another run.
pub fn run_command(args: Args) -> Result<()> {
    let config_path = args.out.join(names::CONFIG);
    let mut given = args.settings;
    if let Some(path) = &args.config {
        given = given.over(TrainArgs::from_file(path)?);
    }
    if args.resume {
        if config_path.exists() {
            given = given.over(TrainArgs::from_file(&config_path)?);
        }
    } else if holds_a_run(&args.out)? {
        return Err(Error::invalid(format!(
            "{} already holds a run; go on with --resume, or choose another --out",
            args.out.display()
        )));
    }
    let plan = plan(given)?;
    refuse_among_shards(&args.out, &plan.config)?;
    // A resumed run keeps the settings it began with: what is given anew must agree, or is refused before anything changes.
    // Before its first checkpoint it has not begun.
    let begun = !checkpoint::list(&args.out.join(names::CHECKPOINTS))?.is_empty();
    let first = plan.settings.launch.rank == 0;
    // Until this command ends, however it does.
    let _claim = if first { Some(claim(&args.out)?) } else { None };
    if first && !(begun && config_path.exists()) {
        prepare(&args.out, &plan)?;
    }
    let mut progress = Progress::new(plan.settings.steps, plan.settings.batch, args.json);
    if !first {
        progress = progress.quiet();
    }
    let outcome = run(&plan.settings, &plan.train, plan.held_out.as_ref(), &args.out, args.resume, &mut progress)?;
    progress.finish();
    match outcome {
        Outcome::Finished(finished) => {
            let title = args.out.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
            write_report(&finished, &plan, &args.out, &title, &progress.notes)?;
            let text = if args.json { format!("{}\n", summary(&finished)) } else { describe(&finished, &args.out) };
            print(&text)
        }
        Outcome::Stopped { step } => {
            if first {
                tell(&format!(
                    "stopped after step {step}; go on with: kronsae train --out {} --resume",
                    args.out.display()
                ));
            }
            std::process::exit(130);
        }
        Outcome::Followed => Ok(()),
    }
}

/// Whether there is anything in the folder that starting anew would lose.
fn holds_a_run(out: &Path) -> Result<bool> {
    Ok(out.join(names::MODEL).exists() || !checkpoint::list(&out.join(names::CHECKPOINTS))?.is_empty())
}

/// Refuses to run in a folder of shards: their next reader would take the model for one.
fn refuse_among_shards(out: &Path, config: &TrainArgs) -> Result<()> {
    let Ok(folder) = out.canonicalize() else { return Ok(()) };
    if config.data.iter().chain(&config.eval_data).any(|path| path.canonicalize().is_ok_and(|p| p == folder)) {
        return Err(Error::invalid(format!("{}: holds the shards; choose another --out", out.display())));
    }
    Ok(())
}

/// Makes the folder and writes every setting into it.
pub(crate) fn prepare(out: &Path, plan: &Plan) -> Result<()> {
    let name = out.display().to_string();
    let text = toml::to_string(&plan.config).map_err(|e| Error::invalid(format!("{name}: {e}")))?;
    let text = format!("# All settings of this run. `kronsae train --config` takes this file.\n{text}");
    tensor_file::replace(&out.join(names::CONFIG), |sink| sink.write_all(text.as_bytes()))
}

/// Writes the page about a run: its curves, and examples of its strongest latents where the data has text.
pub(crate) fn write_report(finished: &Finished, plan: &Plan, out: &Path, title: &str, notes: &[String]) -> Result<()> {
    let shown = plan.held_out.as_ref().unwrap_or(&plan.train);
    let rows = shown.rows.start..shown.rows.end.min(shown.rows.start + REPORT_TOKENS);
    let options = ExampleOptions { latents: 24, threads: plan.settings.threads, ..ExampleOptions::default() };
    let examples =
        if shown.data.has_text() { top_activations(&finished.sae, &shown.data, rows, &options)? } else { Vec::new() };
    let table = toml::Table::try_from(&plan.config).unwrap_or_default();
    let mut notes = notes.to_vec();
    if finished.skipped > 0 {
        notes.push(format!("{} training tokens were not finite and left out", finished.skipped));
    }
    report::write(
        &out.join(names::REPORT),
        &RunReport {
            title: title.to_owned(),
            config: std::iter::once(("computed on".to_owned(), finished.backend.clone()))
                .chain(table.into_iter().map(|(key, value)| (key, value.to_string())))
                .collect(),
            curve: finished.steps.clone(),
            evaluations: finished.evaluations.clone(),
            train: Some(finished.train.clone()),
            held_out: finished.held_out.clone(),
            examples,
            notes,
        },
    )
}

/// The result for machines: the keys of `kronsae eval --json`, of the held-out tokens where there are any, and the run's.
pub(crate) fn summary(finished: &Finished) -> serde_json::Value {
    let mut out = serde_json::to_value(finished.held_out.as_ref().unwrap_or(&finished.train)).unwrap_or_default();
    if let Some(object) = out.as_object_mut() {
        object.insert("train".to_owned(), json!(finished.train));
        object.insert("held_out".to_owned(), json!(finished.held_out.is_some()));
        object.insert("model".to_owned(), json!(finished.model));
        object.insert("tokens_per_second".to_owned(), json!(finished.tokens_per_second));
        object.insert("skipped_tokens".to_owned(), json!(finished.skipped));
        object.insert("backend".to_owned(), json!(finished.backend));
    }
    out
}

fn describe(finished: &Finished, out: &Path) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |what: &str, e: &crate::eval::Evaluation| {
        let ev = &e.explained_variance;
        let _ = writeln!(
            text,
            "{what:<16} EV {:.4} pooled, {:.4} per token   L0 {:.1}   dead {:.1} % of {}   ({} tokens)",
            ev.pooled,
            ev.per_token_mean,
            e.l0,
            100.0 * e.dead_share,
            e.latents,
            e.tokens
        );
    };
    line("training tokens", &finished.train);
    if let Some(held_out) = &finished.held_out {
        line("held-out tokens", held_out);
    }
    if finished.skipped > 0 {
        let _ = writeln!(text, "{} training tokens were not finite and left out", finished.skipped);
    }
    let _ = writeln!(text, "{:.0} tokens/s on {}", finished.tokens_per_second, finished.backend);
    let _ = writeln!(text, "model: {}", finished.model.display());
    let report = out.join(names::REPORT);
    if report.exists() {
        let _ = writeln!(text, "report: {}", report.display());
    }
    text
}
