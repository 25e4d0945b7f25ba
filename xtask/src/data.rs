//! What is bundled in `data/`: its limits, and the golden vectors.

use crate::process;
use kronsae::tensor_file::TensorFile;
use std::collections::HashSet;
use std::path::Path;

/// All of `data/`, in bytes.
const MOST_DATA: u64 = 30_000_000;
/// All of `data/golden/`, in bytes.
const MOST_GOLDEN: u64 = 300_000;

/// That `data/` stays small, and that the held-out part of the sample shares no sequence with the training part.
///
/// # Errors
/// A sentence that names the file and the limit.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    for (folder, most) in [("data", MOST_DATA), ("data/golden", MOST_GOLDEN)] {
        let found = size(&root.join(folder))?;
        if found > most {
            return Err(format!("{folder}/ has {found} bytes, at most {most} are to be bundled"));
        }
    }
    let sample = root.join("data/sample");
    let held_out = sequences(&sample.join("heldout.safetensors"))?;
    let mut train = 0;
    for entry in std::fs::read_dir(&sample).map_err(|e| format!("{}: {e}", sample.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", sample.display()))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("train-")) {
            train += 1;
            if let Some(id) = sequences(&path)?.intersection(&held_out).next() {
                return Err(format!("{}: sequence {id} is held out as well", path.display()));
            }
        }
    }
    if train == 0 || held_out.is_empty() {
        return Err(format!("{}: no training files or no held-out tokens", sample.display()));
    }
    Ok(())
}

/// Writes the golden vectors anew. Their maker is a test, because the naive reference belongs to the tests.
///
/// # Errors
/// What the test printed.
pub(crate) fn write_golden(root: &Path) -> Result<(), String> {
    let mut command = process::cargo(root, &["test", "--package", "kronsae", "--test", "golden", "--", "golden_files"]);
    command.env("KRONSAE_GOLDEN", "write");
    let ran = process::run(command)?;
    if ran.success { Ok(()) } else { Err(ran.output) }
}

fn size(folder: &Path) -> Result<u64, String> {
    let bad = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut total = 0;
    for entry in std::fs::read_dir(folder).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let metadata = entry.metadata().map_err(bad)?;
        total += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}

fn sequences(path: &Path) -> Result<HashSet<i32>, String> {
    let read = || {
        let file = TensorFile::open(path)?;
        let mut bytes = vec![0; file.require("sequence_ids")?.bytes];
        file.read("sequence_ids", 0, &mut bytes)?;
        Ok::<_, kronsae::Error>(bytes)
    };
    let bytes = read().map_err(|e| e.to_string())?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}
