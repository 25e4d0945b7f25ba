//! Which model this is: a part of its file's SHA-256, computed when it is first asked for.

use super::{Config, DecoderWeights, ElementsRef, EncoderWeights, Matrix};
use crate::error::{Error, Result, Status};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Which model file: the first 16 hexadecimal digits of its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub [u8; 8]);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for ModelId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What tells that a file is still the one that was read, without reading it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileStamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileStamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// [`Status::Io`].
    pub(crate) fn of(path: &Path, file: &File) -> Result<Self> {
        let failed = |e| Error::io("examine", &path.display().to_string(), &e);
        // A host may change its working folder before the file is read again.
        let absolute = std::path::absolute(path).map_err(failed)?;
        Ok(Self::new(absolute, &file.metadata().map_err(failed)?))
    }

    fn new(path: PathBuf, of: &Metadata) -> Self {
        let modified = (of.mtime(), of.mtime_nsec());
        FileStamp { path, device: of.dev(), inode: of.ino(), length: of.len(), modified }
    }

    /// The file's hash, if it is still the same file before and after it is read.
    fn hash(&self) -> Result<ModelId> {
        let name = self.path.display().to_string();
        let changed = || {
            Error::new(
                Status::Io,
                format!("{name}: the file was changed or replaced since the model was opened; open the model again"),
            )
        };
        // Asked before opening: opening a FIFO that took the file's place would wait for its writer.
        let found = std::fs::metadata(&self.path).map_err(|e| Error::io("examine", &name, &e))?;
        if Self::new(self.path.clone(), &found) != *self {
            return Err(changed());
        }
        let mut file = File::open(&self.path).map_err(|e| Error::io("open", &name, &e))?;
        let mut hasher = Sha256::new();
        let mut buffer = crate::memory::try_vec(1 << 20, 0_u8, "reading a model file")?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", &name, &e)),
            }
        }
        if Self::of(&self.path, &file)? != *self {
            return Err(changed());
        }
        Ok(ModelId::from_hasher(hasher))
    }
}

impl ModelId {
    fn from_hasher(hasher: Sha256) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&hasher.finalize()[..8]);
        ModelId(id)
    }

    /// Of a model file's bytes.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Self::from_hasher(hasher)
    }

    /// Of a model that was never a file: of its config and every weight.
    fn of_parts(config: &Config, encoder: &EncoderWeights, decoder: Option<&DecoderWeights>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(config.to_json());
        let mut floats = |values: &[f32]| {
            hasher.update((values.len() as u64).to_le_bytes());
            values.iter().for_each(|v| hasher.update(v.to_le_bytes()));
        };
        floats(&encoder.bias);
        floats(encoder.threshold.as_deref().unwrap_or(&[]));
        floats(decoder.map_or(&[], |decoder| &decoder.bias));
        for matrix in [Some(&encoder.weight), decoder.map(|decoder| &decoder.weight)].into_iter().flatten() {
            matrix_into(matrix, &mut hasher);
        }
        Self::from_hasher(hasher)
    }
}

fn matrix_into(matrix: &Matrix, hasher: &mut Sha256) {
    let matrix = matrix.as_ref();
    hasher.update(format!("{} {}", matrix.rows, matrix.cols));
    for row in 0..matrix.rows {
        let range = row * matrix.stride..row * matrix.stride + matrix.cols;
        match matrix.data {
            ElementsRef::F32(data) => data[range].iter().for_each(|v| hasher.update(v.to_le_bytes())),
            ElementsRef::Bf16(data) => data[range].iter().for_each(|v| hasher.update(v.to_le_bytes())),
        }
    }
}

/// Where a model came from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A file, not hashed when it was opened.
    File(FileStamp),
    /// Bytes in memory.
    Bytes(ModelId),
    /// Weights in memory.
    Parts,
}

/// A model's id, computed at most once.
#[derive(Debug)]
pub(super) struct Identity {
    origin: Origin,
    known: OnceLock<ModelId>,
}

impl Identity {
    pub(super) fn new(origin: Origin) -> Self {
        Identity { origin, known: OnceLock::new() }
    }

    pub(super) fn id(
        &self,
        config: &Config,
        encoder: &EncoderWeights,
        decoder: Option<&DecoderWeights>,
    ) -> Result<ModelId> {
        if let Some(known) = self.known.get() {
            return Ok(*known);
        }
        // Two threads may both compute it; they find the same.
        let id = match &self.origin {
            Origin::File(stamp) => stamp.hash()?,
            Origin::Bytes(id) => *id,
            Origin::Parts => ModelId::of_parts(config, encoder, decoder),
        };
        Ok(*self.known.get_or_init(|| id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Aligned;
    use crate::sae::{Encoder, LoadOptions, ModelWriter, Sae, Selection, Which};
    use crate::{Dtype, Status};

    fn write(path: &Path, seed: f32) {
        let config = Config::new(Encoder::Dense { latents: 4 }, 2, Selection::TopK(2), 1.0).unwrap();
        let weight = [seed, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        ModelWriter {
            config: &config,
            encoder_weight: ModelWriter::rows(Which::Encoder, &weight, [4, 2], 2, Dtype::F32),
            encoder_bias: &[0.0; 4],
            encoder_threshold: None,
            decoder_weight: ModelWriter::rows(Which::Decoder, &weight, [4, 2], 2, Dtype::F32),
            decoder_bias: &[0.0; 2],
            calibration: None,
        }
        .write(path)
        .unwrap();
    }

    #[test]
    fn a_file_and_its_bytes_have_one_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write(&path, 1.0);
        let bytes = std::fs::read(&path).unwrap();
        let sum = std::process::Command::new("sha256sum").arg(&path).output().unwrap().stdout;
        let from_file = Sae::open(&path).unwrap().model_id().unwrap();
        assert_eq!(from_file.to_string(), String::from_utf8_lossy(&sum[..16]));
        assert_eq!(Sae::from_bytes(&bytes, LoadOptions::default()).unwrap().model_id(), Ok(from_file));
    }

    #[test]
    fn a_file_that_changed_is_refused_and_a_known_id_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write(&path, 1.0);
        let (asked, late) = (Sae::open(&path).unwrap(), Sae::open(&path).unwrap());
        let id = asked.model_id().unwrap();
        write(&path, 9.0);
        assert_eq!(asked.model_id(), Ok(id));
        let error = late.model_id().unwrap_err();
        assert_eq!(error.status(), Status::Io);
        assert!(error.message().contains("changed"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(late.model_id().unwrap_err().status(), Status::Io);
    }

    #[test]
    fn parts_differ_by_weights_and_selection() {
        let sae = |first: f32, k: usize| {
            let config = Config::new(Encoder::Dense { latents: 2 }, 1, Selection::TopK(k), 1.0).unwrap();
            let weight = Matrix::from_rows(&[first, 2.0], [2, 1], 1, Dtype::F32, "w").unwrap();
            let bias = Aligned::zeroed(2, "b").unwrap();
            Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap()
        };
        assert_eq!(sae(1.0, 1).model_id(), sae(1.0, 1).model_id());
        assert_ne!(sae(1.0, 1).model_id(), sae(1.5, 1).model_id());
        assert_ne!(sae(1.0, 1).model_id(), sae(1.0, 2).model_id());
    }
}
