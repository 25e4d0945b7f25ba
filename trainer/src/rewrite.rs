//! Rewrites a safetensors file with other metadata and added or replaced tensors, all other bytes copied.

use kronsae::tensor_file::{self, TensorFile, TensorOut};
use kronsae::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Writes at `to` the file `file` with the strings of `metadata` added to its own (or in their place) and the tensors of
/// `added` after its own (or in their place). Every other tensor is copied byte for byte, whatever it is; memory does not
/// depend on its size. `to` may be the path of `file` itself: it is replaced only when the new file is complete. Where `to` is
/// a symbolic link to a file, the link stays and the file is replaced.
///
/// # Errors
/// [`kronsae::Status::Io`] or [`kronsae::Status::Format`] if `file` cannot be read to its end or `to` cannot be written;
/// `to` is as it was then.
pub fn rewrite(
    file: &TensorFile<'_>,
    to: &Path,
    metadata: BTreeMap<String, String>,
    added: Vec<TensorOut<'_>>,
) -> Result<()> {
    let linked = to.is_symlink().then(|| std::fs::canonicalize(to).ok()).flatten();
    let to = linked.as_deref().unwrap_or(to);
    let mut all = file.all_metadata();
    all.extend(metadata);
    let failed = Failure::default();
    let mut tensors = Vec::new();
    for name in file.tensor_names() {
        if added.iter().any(|tensor| tensor.name() == name) {
            continue;
        }
        let info = file.require(&name)?;
        let (dtype, shape, bytes) = (info.dtype, info.shape, info.bytes);
        let (from, failed) = (name.clone(), &failed);
        let copy = move |sink: &mut dyn io::Write| {
            let mut buffer = vec![0_u8; PIECE.min(bytes)];
            for start in (0..bytes).step_by(PIECE) {
                let part = &mut buffer[..PIECE.min(bytes - start)];
                failed.keep(file.read(&from, start, part))?;
                sink.write_all(part)?;
            }
            Ok(())
        };
        tensors.push(TensorOut::new(&name, dtype, shape, Box::new(copy)));
    }
    tensors.extend(added);
    failed.explain(tensor_file::write(to, &all, tensors))
}

/// Carries an [`Error`] through a writer that knows only [`io::Error`], so that a shard that cannot be *read* is not
/// reported as a file that cannot be written.
#[derive(Default)]
pub(crate) struct Failure(RefCell<Option<Error>>);

impl Failure {
    /// The value, or an [`io::Error`] that stands for the error kept here.
    pub(crate) fn keep<T>(&self, result: Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let text = error.message().to_owned();
            *self.0.borrow_mut() = Some(error);
            io::Error::other(text)
        })
    }

    /// The result of the write, with the error that was kept in place of the one that stands for it.
    pub(crate) fn explain<T>(&self, written: Result<T>) -> Result<T> {
        match (written, self.0.take()) {
            (Err(_), Some(error)) => Err(error),
            (written, _) => written,
        }
    }
}
