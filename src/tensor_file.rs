//! Safetensors files, read and written with nothing taken on trust.
//!
//! Reading parses the header with the `safetensors` crate, checks it against the file's true length, and then *reads*
//! the tensors that are asked for; nothing is memory-mapped, because a file that shrinks under a map kills its host.
//! Writing goes to a temporary file in the same folder which replaces the target only when it is complete and on disk.

use crate::error::{Error, Result, Status};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use safetensors::Dtype as TensorDtype;

/// A header longer than this is refused. The same limit as the `safetensors` crate's own.
const MAX_HEADER_BYTES: u64 = 100_000_000;

enum Source<'a> {
    File(File),
    Bytes(&'a [u8]),
}

/// An open safetensors file (or one held in memory) whose header has been validated.
pub struct TensorFile<'a> {
    name: String,
    source: Source<'a>,
    data_start: u64,
    header: safetensors::tensor::Metadata,
}

/// What the header says of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Element type.
    pub dtype: TensorDtype,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub bytes: usize,
}

impl<'a> TensorFile<'a> {
    /// Opens and validates `path`.
    ///
    /// # Errors
    /// [`Status::Io`] if it cannot be read, [`Status::Format`] if it is not a whole, consistent safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile<'static>> {
        let name = path.display().to_string();
        // Asked before opening: opening a FIFO would wait for its writer.
        let kind = std::fs::metadata(path).map_err(|e| Error::io("open", &name, &e))?;
        if !kind.is_file() {
            return Err(Error::new(Status::Io, format!("{name}: expected a regular file")));
        }
        let file = File::open(path).map_err(|e| Error::io("open", &name, &e))?;
        let len = file.metadata().map_err(|e| Error::io("examine", &name, &e))?.len();
        TensorFile::validate(name, Source::File(file), len)
    }

    /// Validates a file held in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// [`Status::Format`] if it is not a whole, consistent safetensors file.
    pub fn from_bytes(name: &str, bytes: &'a [u8]) -> Result<TensorFile<'a>> {
        TensorFile::validate(name.to_owned(), Source::Bytes(bytes), bytes.len() as u64)
    }

    fn validate(name: String, source: Source<'a>, len: u64) -> Result<TensorFile<'a>> {
        let bad = |what: String| Error::format(format!("{name}: {what}"));
        if len < 8 {
            return Err(bad(format!(
                "{len} bytes are too few for a safetensors file, which starts with an 8-byte header length"
            )));
        }
        let mut prefix = [0_u8; 8];
        read_at(&name, &source, 0, &mut prefix, "the header length")?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "header length {header_len} is over the limit of {MAX_HEADER_BYTES} bytes; not a safetensors file?"
            )));
        }
        if header_len > len - 8 {
            return Err(bad(format!(
                "header length {header_len} goes past the end of the file ({len} bytes); truncated?"
            )));
        }
        let header_size = usize::try_from(header_len).map_err(|_| bad("header does not fit memory".to_owned()))?;
        let mut header_bytes =
            crate::memory::try_vec(header_size, 0_u8, "a file header").map_err(|e| e.within(&name))?;
        read_at(&name, &source, 8, &mut header_bytes, "the header")?;
        // Checks that names, shapes, dtypes and offsets agree and that the tensors cover the data without gap or overlap.
        let header: safetensors::tensor::Metadata =
            serde_json::from_slice(&header_bytes).map_err(|e| bad(format!("not a valid safetensors header: {e}")))?;
        let (held, said) = (len - 8 - header_len, header.data_len() as u64);
        if held != said {
            return Err(bad(format!(
                "the header describes {said} bytes of tensors, the file holds {held}; truncated or damaged"
            )));
        }
        Ok(TensorFile { name, source, data_start: 8 + header_len, header })
    }

    /// The name used in errors: the path it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells later whether the file at `path`, by which this one was opened, is still the same; None in memory.
    ///
    /// # Errors
    /// [`Status::Io`].
    pub(crate) fn stamp(&self, path: &Path) -> Result<Option<crate::sae::FileStamp>> {
        match &self.source {
            Source::File(file) => crate::sae::FileStamp::of(path, file).map(Some),
            Source::Bytes(_) => Ok(None),
        }
    }

    /// The metadata string under `key`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// All metadata strings, sorted by key.
    #[must_use]
    pub fn all_metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Names of all tensors, in file order.
    #[must_use]
    pub fn tensor_names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// What the header says of tensor `tensor`, if it is there.
    #[must_use]
    pub fn tensor(&self, tensor: &str) -> Option<TensorInfo<'_>> {
        let info = self.header.info(tensor)?;
        Some(TensorInfo { dtype: info.dtype, shape: &info.shape, bytes: info.data_offsets.1 - info.data_offsets.0 })
    }

    /// As [`TensorFile::tensor`], but a missing tensor is an error that lists what there is.
    ///
    /// # Errors
    /// [`Status::Format`].
    pub fn require(&self, tensor: &str) -> Result<TensorInfo<'_>> {
        self.tensor(tensor).ok_or_else(|| {
            Error::format(format!(
                "{}: tensor `{tensor}` is missing; the file has {}",
                self.name,
                self.tensor_names().join(", ")
            ))
        })
    }

    /// Reads `out.len()` bytes of `tensor`, from byte `offset` of it on. Any number of threads may read at once.
    ///
    /// # Errors
    /// [`Status::Format`] if the tensor is missing, the range lies outside it, or the file has become shorter since it
    /// was opened; [`Status::Io`] if the system refuses.
    pub fn read(&self, tensor: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        let info = self.require(tensor)?;
        if offset.checked_add(out.len()).is_none_or(|end| end > info.bytes) {
            return Err(Error::format(format!(
                "{}: bytes {offset}..+{} of `{tensor}` were asked for, it has {}",
                self.name,
                out.len(),
                info.bytes
            )));
        }
        let start = self.header.info(tensor).map_or(0, |i| i.data_offsets.0);
        read_at(&self.name, &self.source, self.data_start + (start + offset) as u64, out, tensor)
    }
}

fn read_at(name: &str, source: &Source<'_>, at: u64, out: &mut [u8], what: &str) -> Result<()> {
    match source {
        Source::Bytes(bytes) => {
            let start = usize::try_from(at).unwrap_or(usize::MAX);
            let part = start.checked_add(out.len()).and_then(|end| bytes.get(start..end));
            out.copy_from_slice(part.ok_or_else(|| Error::format(format!("{name}: ends inside {what}")))?);
            Ok(())
        }
        Source::File(file) => {
            use std::os::unix::fs::FileExt;
            file.read_exact_at(out, at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::format(format!("{name}: ends inside {what}: it became shorter while it was read"))
                }
                _ => Error::io("read", name, &e),
            })
        }
    }
}

/// Writes a tensor's bytes, all of them, to the given sink.
pub type TensorSource<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// One tensor to be written.
pub struct TensorOut<'a> {
    name: String,
    dtype: TensorDtype,
    shape: Vec<usize>,
    source: TensorSource<'a>,
}

impl<'a> TensorOut<'a> {
    /// A tensor whose little-endian bytes `source` writes, in row-major order.
    pub fn new(name: &str, dtype: TensorDtype, shape: &[usize], source: TensorSource<'a>) -> Self {
        TensorOut { name: name.to_owned(), dtype, shape: shape.to_vec(), source }
    }

    /// A tensor whose bytes are at hand.
    #[must_use]
    pub fn bytes(name: &str, dtype: TensorDtype, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self::new(name, dtype, shape, Box::new(move |sink| sink.write_all(bytes)))
    }

    /// An F32 tensor.
    #[must_use]
    pub fn f32(name: &str, shape: &[usize], values: &'a [f32]) -> Self {
        Self::new(name, TensorDtype::F32, shape, Box::new(move |sink| write_f32(sink, values)))
    }

    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// None if it overflows, or if elements smaller than a byte do not fill the last one.
    fn byte_len(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// Writes f32 values as little-endian bytes.
///
/// # Errors
/// Those of `sink`.
pub fn write_f32(sink: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut buffer = [0_u8; 4096];
    for part in values.chunks(buffer.len() / 4) {
        for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(part) {
            *bytes = value.to_le_bytes();
        }
        sink.write_all(&buffer[..part.len() * 4])?;
    }
    Ok(())
}

/// Writes a safetensors file at `path` in one piece: complete and on disk, or not at all.
///
/// The bytes are a function of the arguments alone: metadata is sorted, tensors stand in the order given. The first
/// tensor starts at a multiple of 64 bytes.
///
/// # Errors
/// [`Status::Io`], and the target, if it existed, is as it was; [`Status::InvalidArgument`] if a shape overflows or a
/// tensor's source writes another number of bytes than its shape says.
pub fn write(path: &Path, metadata: &BTreeMap<String, String>, tensors: Vec<TensorOut<'_>>) -> Result<()> {
    write_as(path, Readers::Default, metadata, tensors)
}

/// As [`write`](fn@write), and nobody but the owner may read or write the file (mode 0600), at no time and whatever a
/// file that it replaces allowed.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_private(path: &Path, metadata: &BTreeMap<String, String>, tensors: Vec<TensorOut<'_>>) -> Result<()> {
    write_as(path, Readers::Owner, metadata, tensors)
}

/// Who may read a new file.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    /// Those who could read the file it replaces; where there was none, whom the umask allows.
    Default,
    /// Its owner alone.
    Owner,
}

fn write_as(
    path: &Path,
    readers: Readers,
    metadata: &BTreeMap<String, String>,
    tensors: Vec<TensorOut<'_>>,
) -> Result<()> {
    let name = path.display().to_string();
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut end = 0_usize;
    let mut lengths = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let overflow = || {
            let what = "overflows or is no whole number of bytes";
            Error::invalid(format!("{name}: the size of `{}` {:?} {what}", tensor.name, tensor.shape))
        };
        let len = tensor.byte_len().ok_or_else(overflow)?;
        let start = end;
        end = end.checked_add(len).ok_or_else(overflow)?;
        lengths.push(len);
        let entry = serde_json::json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::invalid(format!("{name}: {e}")))?;
    let padded = (header.len() + 8).next_multiple_of(64) - 8;
    header.resize(padded, b' ');

    replace_as(path, readers, |sink| {
        sink.write_all(&(padded as u64).to_le_bytes())?;
        sink.write_all(&header)?;
        for (tensor, len) in tensors.into_iter().zip(lengths) {
            let mut counted = Counted { sink, written: 0 };
            (tensor.source)(&mut counted)?;
            if counted.written != len {
                let message = format!("tensor `{}` wrote {} bytes, its shape says {len}", tensor.name, counted.written);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        Ok(())
    })
}

struct Counted<'a> {
    sink: &'a mut dyn Write,
    written: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.sink.write(bytes)?;
        self.written += n;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Replaces the file at `path` by what `fill` writes, atomically: through a temporary file beside it, synced to disk
/// before it takes the name, with the permissions of the file it replaces. After a failure the temporary file is gone and the target is as it was.
///
/// # Errors
/// [`Status::Io`], or [`Status::InvalidArgument`] where `fill` itself returned `InvalidInput`.
pub fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    replace_as(path, Readers::Default, fill)
}

fn replace_as(path: &Path, readers: Readers, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let name = path.display().to_string();
    let file_name = path.file_name().ok_or_else(|| Error::invalid(format!("{name}: not a file name")))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of this process and this call: writers of one target must not meet in one temporary file.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(file_name);
    temporary.push(format!(".{}-{}.tmp", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed)));
    let temporary = Temporary(folder.join(temporary));

    let written = (|| {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        if readers == Readers::Owner {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let file = options.open(&temporary.0)?;
        if readers == Readers::Default
            && let Ok(old) = std::fs::metadata(path)
        {
            // Who may read it is not ours to change. A file system that knows no permissions refuses; so be it.
            let _ = file.set_permissions(old.permissions());
        }
        let mut sink = BufWriter::with_capacity(1 << 20, file);
        fill(&mut sink)?;
        sink.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary.0, path)?;
        // The rename itself must reach the disk. Some file systems refuse to sync a folder; the data is safe there all the same.
        let _ = File::open(folder).and_then(|f| f.sync_all());
        Ok(())
    })();
    written.map_err(|e: io::Error| match e.kind() {
        io::ErrorKind::InvalidInput => Error::invalid(format!("{name}: {e}")),
        _ => Error::io("write", &name, &e),
    })
}

/// Removes the temporary files that writers left in `folder` when they were killed, as far as that can be done. Nobody may
/// be writing there meanwhile.
pub fn remove_temporaries(folder: &Path) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // `.NAME.PROCESS-CALL.tmp`, as `replace` names them.
    let ours = |name: &str| {
        let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
        let numbers = inner.and_then(|inner| inner.rsplit_once('.')).and_then(|(_, numbers)| numbers.split_once('-'));
        numbers.is_some_and(|(process, call)| is_number(process) && is_number(call))
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(ours) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A temporary file that goes with this value, also where a panic unwinds past it. Renamed, there is nothing to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
