//! Activation shards, format `activations/1`: any number of safetensors files that stand for one long list of tokens.

use kronsae::dtype::widen;
use kronsae::tensor_file::{TensorDtype, TensorFile};
use kronsae::{Aligned, Dtype, Error, Result};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The `format` string of a shard.
pub const FORMAT: &str = "activations/1";

const ACTIVATIONS: &str = "activations";
const TEXT: &str = "text";
const TEXT_OFFSETS: &str = "text_offsets";
const SEQUENCE_IDS: &str = "sequence_ids";

/// One file of a data set.
struct Shard {
    file: TensorFile<'static>,
    /// Row of the data set at which this shard starts.
    start: usize,
    rows: usize,
    dtype: Dtype,
    has_text: bool,
}

/// All shards under the paths given, as one list of rows in file-name order. Nothing is held in memory but headers; any
/// number of threads may read at once.
pub struct Dataset {
    shards: Vec<Shard>,
    d_model: usize,
    rows: usize,
}

/// The text of consecutive tokens.
pub struct TokenText {
    bytes: Vec<u8>,
    /// Start of each token in `bytes`, and the end of the last.
    offsets: Vec<usize>,
}

impl TokenText {
    /// Token `at`, as text; bytes that are not UTF-8 (a token may hold part of a character) become replacement marks.
    ///
    /// # Panics
    /// If there is no such token.
    #[must_use]
    pub fn token(&self, at: usize) -> String {
        String::from_utf8_lossy(&self.bytes[self.offsets[at]..self.offsets[at + 1]]).into_owned()
    }

    /// Tokens `range` as one piece of text: a character spread over several tokens is whole again.
    ///
    /// # Panics
    /// If the range is outside.
    #[must_use]
    pub fn span(&self, range: std::ops::Range<usize>) -> String {
        String::from_utf8_lossy(&self.bytes[self.offsets[range.start]..self.offsets[range.end]]).into_owned()
    }
}

impl Dataset {
    /// Opens shard files and all shards of folders (files ending in `.safetensors`, sorted by name).
    ///
    /// # Errors
    /// [`kronsae::Status::Io`] or [`kronsae::Status::Format`], naming the file: nothing found, not a shard, empty, or of
    /// another `d_model` than the first.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let path = path.as_ref();
            if path.is_dir() {
                let found = list(path)?;
                if found.is_empty() {
                    return Err(Error::format(format!("{}: no .safetensors file in this folder", path.display())));
                }
                files.extend(found);
            } else {
                files.push(path.to_owned());
            }
        }
        let mut data = Dataset { shards: Vec::new(), d_model: 0, rows: 0 };
        for path in &files {
            data.push(path)?;
        }
        if data.shards.is_empty() {
            return Err(Error::invalid("no activation shards were given"));
        }
        Ok(data)
    }

    fn push(&mut self, path: &Path) -> Result<()> {
        let file = TensorFile::open(path)?;
        let bad = |what: String| Error::format(format!("{}: {what}", path.display()));
        match file.metadata("format") {
            Some(FORMAT) => {}
            found => {
                let found = found.map_or("missing".to_owned(), |f| format!("`{f}`"));
                return Err(bad(format!("format is {found}, expected `{FORMAT}`; is this an activation shard?")));
            }
        }
        let info = file.require(ACTIVATIONS)?;
        let &[rows, d_model] = info.shape else {
            return Err(bad(format!("`{ACTIVATIONS}` has shape {:?}, expected [tokens, d_model]", info.shape)));
        };
        let dtype = match info.dtype {
            TensorDtype::F32 => Dtype::F32,
            TensorDtype::F16 => Dtype::F16,
            TensorDtype::BF16 => Dtype::Bf16,
            other => return Err(bad(format!("`{ACTIVATIONS}` is {other:?}, expected F32, F16 or BF16"))),
        };
        if rows == 0 || d_model == 0 {
            return Err(bad(format!("`{ACTIVATIONS}` has shape [{rows}, {d_model}]: no tokens")));
        }
        if self.d_model != 0 && d_model != self.d_model {
            let first = self.shards[0].file.name();
            return Err(bad(format!("d_model is {d_model}, but {} in {first}", self.d_model)));
        }
        let has_text = match (file.tensor(TEXT), file.tensor(TEXT_OFFSETS)) {
            (Some(text), Some(offsets)) => {
                if text.dtype != TensorDtype::U8 || offsets.dtype != TensorDtype::I64 || offsets.shape != [rows + 1] {
                    let found = (text.dtype, offsets.dtype, offsets.shape);
                    return Err(bad(format!("text tensors are {found:?}, expected U8 and I64 [{}]", rows + 1)));
                }
                true
            }
            _ => false,
        };
        self.d_model = d_model;
        self.shards.push(Shard { start: self.rows, rows, dtype, has_text, file });
        self.rows = self.rows.checked_add(rows).ok_or_else(|| bad("the number of tokens overflows".to_owned()))?;
        Ok(())
    }

    /// Width of an activation.
    #[must_use]
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// Number of tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The narrowest dtype that holds every shard's values exactly.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        let first = self.shards[0].dtype;
        if self.shards.iter().all(|s| s.dtype == first) { first } else { Dtype::F32 }
    }

    /// A metadata string (`model`, `hook`, `layer`, ...), if the first shard has it.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.shards[0].file.metadata(key)
    }

    /// Whether every shard carries the text of its tokens.
    #[must_use]
    pub fn has_text(&self) -> bool {
        self.shards.iter().all(|s| s.has_text)
    }

    /// What identifies the data to a checkpoint: each shard's file name, rows, dtype, and a hash of some of its bytes.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut out = String::new();
        for shard in &self.shards {
            let name = Path::new(shard.file.name()).file_name().unwrap_or_default().to_string_lossy();
            // The first row, the last, and 62 between: enough to notice another recording under the same name.
            let mut bytes = Aligned::<u8>::zeroed(self.d_model * shard.dtype.size(), "a row of a shard")?;
            let mut hash = 0xCBF2_9CE4_8422_2325_u64; // FNV-1a
            for sample in 0..64 {
                let row = (shard.rows - 1) * sample / 63;
                shard.file.read(ACTIVATIONS, row * bytes.len(), &mut bytes)?;
                for &byte in bytes.iter() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
                }
            }
            let _ = write!(out, "{name}:{}x{}:{}:{hash:016x};", shard.rows, self.d_model, shard.dtype);
        }
        Ok(out)
    }

    /// Reads `count` rows from row `start` on, each as bytes of [`Dataset::dtype`], into `out`.
    ///
    /// # Errors
    /// [`kronsae::Status::Format`] if a shard has become shorter, [`kronsae::Status::Io`].
    ///
    /// # Panics
    /// If the rows are outside the data set or `out` is not exactly as long as they are.
    pub fn read_bytes(&self, start: usize, count: usize, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.d_model * self.dtype().size();
        assert!(start + count <= self.rows && out.len() == count * row_bytes, "rows outside the data set");
        self.for_parts(start, count, |shard, from, rows, at| {
            let out = &mut out[at * row_bytes..(at + rows) * row_bytes];
            if shard.dtype == self.dtype() {
                return shard.file.read(ACTIVATIONS, from * row_bytes, out);
            }
            // Shards of different dtypes: all are handed on as F32.
            let mut narrow = Aligned::<u8>::zeroed(rows * self.d_model * shard.dtype.size(), "rows of a shard")?;
            shard.file.read(ACTIVATIONS, from * self.d_model * shard.dtype.size(), &mut narrow)?;
            let mut wide = Aligned::zeroed(rows * self.d_model, "rows of a shard")?;
            widen(shard.dtype, &narrow, &mut wide);
            for (o, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(wide.iter()) {
                *o = v.to_le_bytes();
            }
            Ok(())
        })
    }

    /// Reads `count` rows from row `start` on as f32, `[count, d_model]`.
    ///
    /// # Errors
    /// As [`Dataset::read_bytes`], and [`kronsae::Status::OutOfMemory`].
    ///
    /// # Panics
    /// As [`Dataset::read_bytes`].
    pub fn read(&self, start: usize, count: usize, out: &mut [f32]) -> Result<()> {
        let dtype = self.dtype();
        let mut bytes = Aligned::<u8>::zeroed(count * self.d_model * dtype.size(), "rows of the data set")?;
        self.read_bytes(start, count, &mut bytes)?;
        widen(dtype, &bytes, out);
        Ok(())
    }

    /// The text of `count` tokens from `start` on; `None` if a shard among them has none.
    ///
    /// # Errors
    /// [`kronsae::Status::Format`] if offsets are not ascending or outside the text.
    ///
    /// # Panics
    /// If the rows are outside the data set.
    pub fn text(&self, start: usize, count: usize) -> Result<Option<TokenText>> {
        assert!(start + count <= self.rows, "rows outside the data set");
        let mut text = TokenText { bytes: Vec::new(), offsets: vec![0] };
        let mut all = true;
        self.for_parts(start, count, |shard, from, rows, _| {
            all &= shard.has_text;
            if !all {
                return Ok(());
            }
            let mut bytes = vec![0_u8; (rows + 1) * 8];
            shard.file.read(TEXT_OFFSETS, from * 8, &mut bytes)?;
            let offsets: Vec<_> = bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            let held = shard.file.require(TEXT)?.bytes;
            let sound =
                offsets.is_sorted() && offsets[0] >= 0 && usize::try_from(offsets[rows]).is_ok_and(|end| end <= held);
            if !sound {
                return Err(Error::format(format!(
                    "{}: `{TEXT_OFFSETS}` are not ascending or leave `{TEXT}`",
                    shard.file.name()
                )));
            }
            let (first, last) = (offsets[0] as usize, offsets[rows] as usize);
            let base = text.bytes.len();
            text.bytes.resize(base + last - first, 0);
            shard.file.read(TEXT, first, &mut text.bytes[base..])?;
            text.offsets.extend(offsets[1..].iter().map(|&o| base + o as usize - first));
            Ok(())
        })?;
        Ok(all.then_some(text))
    }

    /// Which sequence (text) each of `count` tokens from `start` on belongs to, as (shard, id): ids start anew in every
    /// shard. Where a shard has no ids, all its tokens count as one sequence.
    ///
    /// # Errors
    /// [`kronsae::Status::Format`] if the ids are not I32, one a token, or the shard has become shorter.
    ///
    /// # Panics
    /// If the rows are outside the data set.
    pub fn sequences(&self, start: usize, count: usize) -> Result<Vec<(usize, i32)>> {
        assert!(start + count <= self.rows, "rows outside the data set");
        let mut out = Vec::with_capacity(count);
        self.for_parts(start, count, |shard, from, rows, _| {
            let mut bytes = vec![0_u8; rows * 4];
            if let Some(info) = shard.file.tensor(SEQUENCE_IDS) {
                if info.dtype != TensorDtype::I32 || info.shape != [shard.rows] {
                    let (name, found) = (shard.file.name(), (info.dtype, info.shape));
                    return Err(Error::format(format!(
                        "{name}: `{SEQUENCE_IDS}` is {found:?}, expected I32 [{}]",
                        shard.rows
                    )));
                }
                shard.file.read(SEQUENCE_IDS, from * 4, &mut bytes)?;
            }
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| (shard.start, i32::from_le_bytes(*b))));
            Ok(())
        })?;
        Ok(out)
    }

    /// Calls `each(shard, first row in the shard, rows, rows before)` for the parts of a range.
    fn for_parts(
        &self,
        start: usize,
        count: usize,
        mut each: impl FnMut(&Shard, usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        let mut at = self.shards.partition_point(|s| s.start + s.rows <= start);
        while done < count {
            let shard = &self.shards[at];
            let from = start + done - shard.start;
            let rows = (shard.rows - from).min(count - done);
            each(shard, from, rows, done)?;
            done += rows;
            at += 1;
        }
        Ok(())
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let name = folder.display().to_string();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", &name, &e))? {
        let path = entry.map_err(|e| Error::io("list", &name, &e))?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
