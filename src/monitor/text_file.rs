//! Small text files that people write: rules, labels.

use crate::error::{Error, Result, Status};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The text of the file at `path`, of at most `most` bytes.
///
/// # Errors
/// [`Status::Io`] if it is no regular file or cannot be read; [`Status::Format`] if it is longer, or not UTF-8 (with
/// the line).
pub(super) fn read(path: &Path, most: usize) -> Result<String> {
    let name = path.display().to_string();
    // Asked before opening: opening a FIFO would wait for its writer.
    let kind = std::fs::metadata(path).map_err(|e| Error::io("open", &name, &e))?;
    if !kind.is_file() {
        return Err(Error::new(Status::Io, format!("{name}: expected a regular file")));
    }
    let file = File::open(path).map_err(|e| Error::io("open", &name, &e))?;
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &name, &e))?;
    if bytes.len() > most {
        return Err(Error::format(format!("{name}: more than {most} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        Error::format(format!("{name}: line {line}: not UTF-8"))
    })
}
