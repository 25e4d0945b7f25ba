//! What a trained sparse autoencoder is: config, weights, and the one file that holds them.

mod config;
mod file;
mod identity;
mod weights;

pub use config::{Config, Encoder, MAX_LATENTS, Selection};
pub use file::{FORMAT, LoadOptions, ModelWriter, Which, tensors};
pub use identity::ModelId;
pub use weights::{ElementsRef, Matrix, MatrixRef, padded};

use crate::error::{Error, Result, Status};
use crate::memory::Aligned;
pub(crate) use identity::FileStamp;
use identity::{Identity, Origin};
use std::any::Any;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A trained sparse autoencoder, KronSAE or dense: immutable, shared by any number of threads (in an `Arc`).
#[derive(Debug)]
pub struct Sae {
    config: Config,
    encoder: EncoderWeights,
    decoder: Option<DecoderWeights>,
    calibration: Option<Calibration>,
    derived: Derived,
    identity: Identity,
}

/// What users of a model have derived from its weights, to be shared by all of them. Its type is theirs alone, so that
/// this module needs to know none of them.
type Derived = Mutex<Option<Arc<dyn Any + Send + Sync>>>;

/// The encoder's weights: `y = weight x + bias`.
#[derive(Debug)]
pub struct EncoderWeights {
    /// W, `[rows, d_model]`: per head its m base rows, then its n extension rows; one row a latent when dense.
    pub weight: Matrix,
    /// b, `[rows]`.
    pub bias: Aligned<f32>,
    /// Thresholds latent by latent, `[F]` (dense JumpReLU), in place of the one theta.
    pub threshold: Option<Aligned<f32>>,
}

/// The decoder's weights: `x_hat = s * sum of value * row + bias`.
#[derive(Debug)]
pub struct DecoderWeights {
    /// D, `[F, d_model]`, rows of unit norm.
    pub weight: Matrix,
    /// b_dec, `[d_model]`, in raw activation units.
    pub bias: Aligned<f32>,
}

/// How often and how strongly each latent fires on the calibration corpus, as the model file has it.
#[derive(Debug)]
pub struct Calibration {
    /// Share of tokens on which the latent was active, `[F]`.
    pub rate: Option<Aligned<f32>>,
    /// Mean value where active, `[F]`; NaN where it never was.
    pub mean: Option<Aligned<f32>>,
    /// Quantiles of the value where active, `[F, levels]`; NaN where it never was.
    pub quantiles: Option<Aligned<f32>>,
    /// Number of quantile levels, Q.
    pub levels: usize,
}

impl Sae {
    /// Reads and validates the model file at `path`, all of it.
    ///
    /// # Errors
    /// [`Status::Io`] if it cannot be read, [`Status::Format`] if it is not a valid model file (the message names the
    /// file, what was found and what was expected), [`Status::OutOfMemory`].
    ///
    /// # Examples
    /// ```no_run
    /// let sae = kronsae::Sae::open("model.safetensors")?;
    /// println!("{} latents over {} dimensions", sae.config().encoder.latents(), sae.config().d_model);
    /// # Ok::<(), kronsae::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, LoadOptions::default())
    }

    /// As [`Sae::open`], with options: whether to read the decoder, say.
    ///
    /// # Errors
    /// As [`Sae::open`].
    pub fn open_with(path: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let file = crate::tensor_file::TensorFile::open(path.as_ref())?;
        let mut sae = file::load(&file, options)?;
        if let Some(stamp) = file.stamp(path.as_ref())? {
            sae.identity = Identity::new(Origin::File(stamp));
        }
        Ok(sae)
    }

    /// Reads and validates a model file held in memory. The bytes are copied; they may go afterwards.
    ///
    /// # Errors
    /// As [`Sae::open`], without [`Status::Io`].
    pub fn from_bytes(bytes: &[u8], options: LoadOptions) -> Result<Self> {
        let mut sae = file::load(&crate::tensor_file::TensorFile::from_bytes("model bytes", bytes)?, options)?;
        sae.identity = Identity::new(Origin::Bytes(ModelId::of_bytes(bytes)));
        Ok(sae)
    }

    /// A model from weights in memory, as [`Sae::open`] would have read them.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if a shape is not the one the config asks for, a bias or threshold is not finite, a
    /// threshold is negative, or there are thresholds where the encoder is not dense or selects by TopK.
    pub fn from_parts(config: Config, encoder: EncoderWeights, decoder: Option<DecoderWeights>) -> Result<Self> {
        let (rows, latents, d) = (config.encoder.rows(), config.encoder.latents(), config.d_model);
        let found = [encoder.weight.rows(), encoder.weight.cols(), encoder.bias.len()];
        if found != [rows, d, rows] || encoder.threshold.as_ref().is_some_and(|t| t.len() != latents) {
            return Err(Error::invalid(format!(
                "encoder weights are {found:?}, the config asks for {:?}",
                [rows, d, rows]
            )));
        }
        if let Some(thresholds) = &encoder.threshold {
            if matches!(config.encoder, Encoder::Kron { .. }) || matches!(config.selection, Selection::TopK(_)) {
                return Err(Error::invalid("thresholds go with a dense encoder and threshold selection only"));
            }
            if let Some(f) = thresholds.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
                let found = thresholds[f];
                return Err(Error::invalid(format!("the threshold of latent {f} is {found}, expected at least 0")));
            }
        }
        let biases = encoder.bias.iter().chain(decoder.iter().flat_map(|decoder| decoder.bias.iter()));
        if let Some(bias) = biases.copied().find(|bias| !bias.is_finite()) {
            return Err(Error::invalid(format!("a bias is {bias}, expected a finite number")));
        }
        if let Some(decoder) = &decoder {
            let found = [decoder.weight.rows(), decoder.weight.cols(), decoder.bias.len()];
            if found != [latents, d, d] {
                return Err(Error::invalid(format!(
                    "decoder weights are {found:?}, the config asks for {:?}",
                    [latents, d, d]
                )));
            }
        }
        Ok(Sae {
            config,
            encoder,
            decoder,
            calibration: None,
            derived: Derived::default(),
            identity: Identity::new(Origin::Parts),
        })
    }

    /// Shape, selection, units, origin.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Which model this is: the first 8 bytes of its file's SHA-256, or of the SHA-256 of config and weights where it was
    /// made of parts. The first call reads the whole file once more; opening does not, so that it stays fast.
    ///
    /// # Errors
    /// [`Status::Io`] if the file is gone, or is not any more the one that was opened (another inode, length or time of
    /// change); [`Status::OutOfMemory`].
    pub fn model_id(&self) -> Result<ModelId> {
        self.identity.id(&self.config, &self.encoder, self.decoder.as_ref())
    }

    /// The encoder's weights.
    #[must_use]
    pub fn encoder(&self) -> &EncoderWeights {
        &self.encoder
    }

    /// The decoder's weights, if they were loaded.
    #[must_use]
    pub fn decoder(&self) -> Option<&DecoderWeights> {
        self.decoder.as_ref()
    }

    /// The decoder's weights, or an error that says how to have them.
    pub(crate) fn require_decoder(&self) -> Result<&DecoderWeights> {
        self.decoder.as_ref().ok_or_else(|| {
            Error::new(
                Status::Unsupported,
                "this Sae was opened encoder-only; open it with its decoder to decode or steer",
            )
        })
    }

    /// What the file knows of each latent's firing, if it was calibrated.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// What was derived from the encoder's weights, which never change: made by the first caller, while others wait.
    ///
    /// # Errors
    /// Those of `make`; the next caller tries again then.
    ///
    /// # Panics
    /// If something of another type was derived before.
    pub(crate) fn derived<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        // A panic in `make` leaves the slot empty, which is as good as new.
        let mut slot = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let any = match &*slot {
            Some(any) => Arc::clone(any),
            None => {
                let made: Arc<dyn Any + Send + Sync> = Arc::new(make()?);
                Arc::clone(slot.insert(made))
            }
        };
        Ok(any.downcast().unwrap_or_else(|_| panic!("a model has one kind of derived weights")))
    }

    /// The same weights with another selection: a calibrated threshold instead of TopK, say.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if K or `max_latents` is 0 or above F, or theta is negative or not finite.
    pub fn with_selection(mut self, selection: Selection) -> Result<Self> {
        self.config = self.config.with_selection(selection)?;
        Ok(self)
    }
}
