//! The folder that shards are written into: locked against a second recorder, continued and never overwritten.

use crate::error::{Error, Result};
use crate::tensor_file::{self, TensorFile};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "shard-";
const SUFFIX: &str = ".safetensors";
/// Larger numbers are none of ours; counting on from them could overflow.
const MOST_NUMBER: u64 = 1 << 53;

/// A folder that this process records into.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The folder itself, locked as long as this lives.
    locked: File,
    next: u64,
    bytes: u64,
}

impl Folder {
    /// Makes the folder (mode 0700) where it does not exist, and takes it.
    ///
    /// # Errors
    /// [`crate::Status::Io`], also where another recorder has it; [`crate::Status::Format`] or
    /// [`crate::Status::InvalidArgument`] if it has shards that are damaged, of another width, or of another model,
    /// hook or layer than `metadata` says: no trainer could use them together.
    pub(super) fn take(path: &Path, d_model: usize, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let name = path.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Error::io("create", &name, &e))?;
        let locked = File::open(path).map_err(|e| Error::io("open", &name, &e))?;
        match locked.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = "another recorder writes into this folder; each needs one of its own";
                return Err(Error::invalid(format!("{name}: {what}")));
            }
            // A file system that knows no locks; shards are not overwritten there either.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // Of recorders that were killed. Nobody else writes here: the folder is locked.
        tensor_file::remove_temporaries(path);
        let mut folder = Folder { path: path.to_owned(), locked, next: 0, bytes: 0 };
        for entry in std::fs::read_dir(path).map_err(|e| Error::io("list", &name, &e))? {
            let entry = entry.map_err(|e| Error::io("list", &name, &e))?;
            let file = entry.file_name();
            let file = file.to_string_lossy();
            if !file.ends_with(SUFFIX) || file.starts_with('.') {
                continue;
            }
            fits(&entry.path(), d_model, metadata)?;
            folder.bytes += entry.metadata().map_err(|e| Error::io("examine", &name, &e))?.len();
            let number = file.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
            if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()).filter(|n| *n < MOST_NUMBER) {
                folder.next = folder.next.max(number + 1);
            }
        }
        Ok(folder)
    }

    /// Where the next shard goes.
    pub(super) fn next_path(&mut self) -> PathBuf {
        loop {
            let path = self.path.join(format!("{PREFIX}{:08}{SUFFIX}", self.next));
            // Somebody else may have put a file there meanwhile.
            if path.symlink_metadata().is_err() {
                return path;
            }
            self.next += 1;
        }
    }

    /// Says that a shard was written at [`Folder::next_path`].
    pub(super) fn written(&mut self, path: &Path) {
        self.next += 1;
        self.bytes += path.metadata().map_or(0, |m| m.len());
    }

    /// Bytes of all its shards, those found included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets another recorder have it. A copy of this process made by fork holds the lock, too, unless it is given up.
    pub(super) fn release(&self) {
        let _ = self.locked.unlock();
    }
}

/// Checks that a shard found in the folder can stand beside ours.
fn fits(path: &Path, d_model: usize, metadata: &BTreeMap<String, String>) -> Result<()> {
    let file = TensorFile::open(path)?;
    let other = |what: String| Error::invalid(format!("{}: {what}; record into another folder", path.display()));
    if file.metadata("format") != metadata.get("format").map(String::as_str) {
        return Err(other("not an activation shard".to_owned()));
    }
    let shape = file.require("activations")?.shape;
    if shape.len() != 2 || shape[1] != d_model {
        return Err(other(format!("activations are {shape:?}, those to be recorded have width {d_model}")));
    }
    for key in ["model", "hook", "layer"] {
        if let (Some(found), Some(ours)) = (file.metadata(key), metadata.get(key))
            && found != ours
        {
            return Err(other(format!("recorded with {key} `{found}`, now it is `{ours}`")));
        }
    }
    Ok(())
}
