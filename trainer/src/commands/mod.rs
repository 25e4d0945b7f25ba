//! The commands of `kronsae`, one module each: its arguments, whose comments are its `--help`, and its `run`.

pub mod bench;
pub mod calibrate;
pub mod convert;
pub mod demo;
pub mod encode;
pub mod eval;
pub mod inspect;
pub mod train;

use crate::data::Dataset;
use crate::terminal::grouped;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use kronsae::{Error, Result};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Threads to use where none are asked for: as many as the system lets this process use.
fn threads_or_all(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(1024))
}

/// A progress bar over tokens on standard error; hidden where that is no terminal.
fn progress_bar(tokens: usize) -> ProgressBar {
    let bar = ProgressBar::new(tokens as u64);
    let template = "{msg:>24} {wide_bar} {human_pos}/{human_len} tokens  {rate}/s  {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A progress bar that cannot be drawn is no reason to fail.
            let _ = write!(out, "{}", grouped(state.per_sec() as u64));
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}

/// Writes to standard output. A reader that has gone away (`kronsae eval | head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", "standard output", &e)),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON, indented, and a line feed.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::invalid(format!("cannot be shown as JSON: {e}")))?;
    print(&(text + "\n"))
}

/// What the shards say of where they come from, in one line.
fn corpus(data: &Dataset) -> Option<String> {
    let keys = ["source_text", "model", "hook", "layer"];
    let said: Vec<String> = keys.iter().filter_map(|k| data.metadata(k).map(|v| format!("{k}: {v}"))).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// Refuses to write `out` over one of the files that are read, or into a folder of shards, whose next reader would take
/// it for one.
fn refuse_input_as_output(out: &Path, model: &Path, data: &[PathBuf]) -> Result<()> {
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where the folder does not exist, writing will say so.
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    let target = folder.join(out.file_name().unwrap_or_default());
    let target = target.canonicalize().unwrap_or(target);
    let same =
        |path: &Path, as_folder: bool| path.canonicalize().is_ok_and(|p| p == target || (as_folder && p == folder));
    if same(model, false) || data.iter().any(|path| same(path, true)) {
        let message =
            format!("{}: is the model or one of the shards, or lies among them; choose another --out", out.display());
        return Err(Error::invalid(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_over_input_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (model, shards) = (folder.path().join("model.safetensors"), folder.path().join("data"));
        std::fs::create_dir(&shards).unwrap();
        std::fs::write(&model, "").unwrap();
        std::os::unix::fs::symlink(&model, folder.path().join("link")).unwrap();
        let refused = |out: &Path| refuse_input_as_output(out, &model, std::slice::from_ref(&shards)).is_err();
        assert!(refused(&model) && refused(&folder.path().join("link")) && refused(&shards.join("new.safetensors")));
        assert!(!refused(&folder.path().join("latents.safetensors")));
    }
}
