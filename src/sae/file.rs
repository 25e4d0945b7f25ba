//! The model file, format `kronsae/1`: one safetensors file. Names of tensors and metadata keys stand here and nowhere else.

use super::config::{Config, Encoder, Selection};
use super::weights::Matrix;
use super::{Calibration, DecoderWeights, EncoderWeights, Sae};
use crate::dtype::{Dtype, widen};
use crate::error::{Error, Result, Status};
use crate::memory::Aligned;
use crate::tensor_file::{self, TensorDtype, TensorFile, TensorOut};
use std::collections::BTreeMap;
use std::path::Path;
use tensors::{
    CALIBRATION_MEAN, CALIBRATION_QUANTILES, CALIBRATION_RATE, DECODER_BIAS, DECODER_WEIGHT, ENCODER_BIAS,
    ENCODER_THRESHOLD, ENCODER_WEIGHT,
};

/// The `format` string this version reads and writes.
pub const FORMAT: &str = "kronsae/1";

/// Names of the tensors of a model file.
pub mod tensors {
    /// W, `[rows, d_model]`.
    pub const ENCODER_WEIGHT: &str = "encoder.weight";
    /// b, `[rows]`.
    pub const ENCODER_BIAS: &str = "encoder.bias";
    /// Thresholds latent by latent, `[F]` (dense JumpReLU).
    pub const ENCODER_THRESHOLD: &str = "encoder.threshold";
    /// D, `[F, d_model]`.
    pub const DECODER_WEIGHT: &str = "decoder.weight";
    /// b_dec, `[d_model]`.
    pub const DECODER_BIAS: &str = "decoder.bias";
    /// Firing rates, `[F]`.
    pub const CALIBRATION_RATE: &str = "calibration.rate";
    /// Mean values where active, `[F]`.
    pub const CALIBRATION_MEAN: &str = "calibration.mean";
    /// Quantiles of the value where active, `[F, Q]`.
    pub const CALIBRATION_QUANTILES: &str = "calibration.quantiles";
}

/// What to read of a model file.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Leave the decoder in the file: a host that never decodes or steers saves its memory.
    pub encoder_only: bool,
}

#[expect(clippy::derivable_impls, reason = "spelt out, so that a new option must choose its default here")]
impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { encoder_only: false }
    }
}

pub(super) fn load(file: &TensorFile<'_>, options: LoadOptions) -> Result<Sae> {
    // An allocator knows of no file.
    read(file, options).map_err(|e| if e.status() == Status::OutOfMemory { e.within(file.name()) } else { e })
}

fn read(file: &TensorFile<'_>, options: LoadOptions) -> Result<Sae> {
    // Numbers of the config are parsed and rounded here: a host that rounds otherwise must not get another model.
    let _env = crate::float_env::FloatEnv::enter();
    let name = file.name();
    let bad = |what: String| Error::format(format!("{name}: {what}"));
    match file.metadata("format") {
        Some(FORMAT) => {}
        Some(other) => return Err(bad(format!("format is `{other}`, this version reads `{FORMAT}`"))),
        None => return Err(bad(format!("no `format` in its metadata, expected `{FORMAT}`; is this a model file?"))),
    }
    let text = file.metadata("config").ok_or_else(|| bad("no `config` in its metadata".to_owned()))?;
    let config = Config::from_json(text).map_err(|e| e.within(name))?;
    let (rows, latents, d) = (config.encoder.rows(), config.encoder.latents(), config.d_model);

    // Every shape is checked before anything is allocated, those of tensors that will not be read included.
    dtype_of(file, ENCODER_WEIGHT, &[rows, d])?;
    dtype_of(file, ENCODER_BIAS, &[rows])?;
    dtype_of(file, DECODER_WEIGHT, &[latents, d])?;
    dtype_of(file, DECODER_BIAS, &[d])?;

    let weight = matrix(file, ENCODER_WEIGHT, rows, d)?;
    let bias = vector(file, ENCODER_BIAS, rows, NotFinite::Refuse)?;
    let threshold = if file.tensor(ENCODER_THRESHOLD).is_some() {
        if matches!(config.encoder, Encoder::Kron { .. }) || matches!(config.selection, Selection::TopK(_)) {
            return Err(bad(format!("`{ENCODER_THRESHOLD}` goes with a dense encoder and threshold selection only")));
        }
        let threshold = vector(file, ENCODER_THRESHOLD, latents, NotFinite::Refuse)?;
        if let Some(f) = threshold.iter().position(|t| *t < 0.0) {
            return Err(bad(format!("`{ENCODER_THRESHOLD}` of latent {f} is {}, expected at least 0", threshold[f])));
        }
        Some(threshold)
    } else {
        None
    };
    let bias_of_decoder = vector(file, DECODER_BIAS, d, NotFinite::Refuse)?;
    let (decoder, decoder_bias) = if options.encoder_only {
        (None, Some(bias_of_decoder))
    } else {
        let weight = matrix(file, DECODER_WEIGHT, latents, d)?;
        (Some(DecoderWeights { weight, bias: bias_of_decoder }), None)
    };

    let optional = |tensor: &str| -> Result<Option<Aligned<f32>>> {
        file.tensor(tensor).map(|_| vector(file, tensor, latents, NotFinite::Keep)).transpose()
    };
    let (rate, mean) = (optional(CALIBRATION_RATE)?, optional(CALIBRATION_MEAN)?);
    let (quantiles, levels) = match file.tensor(CALIBRATION_QUANTILES) {
        None => (None, 0),
        Some(info) => {
            let levels = *info.shape.get(1).unwrap_or(&0);
            dtype_of(file, CALIBRATION_QUANTILES, &[latents, levels])?;
            (Some(vector_of(file, CALIBRATION_QUANTILES, latents * levels, NotFinite::Keep)?), levels)
        }
    };
    let calibrated = rate.is_some() || mean.is_some() || quantiles.is_some();
    let calibration = calibrated.then_some(Calibration { rate, mean, quantiles, levels });

    let encoder = EncoderWeights { weight, bias, threshold };
    // Whoever read the file says which it was.
    let identity = super::Identity::new(super::Origin::Parts);
    Ok(Sae { config, encoder, decoder, calibration, decoder_bias, derived: super::Derived::default(), identity })
}

/// The dtype of a tensor, whose shape must be `shape`.
fn dtype_of(file: &TensorFile<'_>, tensor: &str, shape: &[usize]) -> Result<Dtype> {
    let info = file.require(tensor)?;
    if info.shape != shape {
        return Err(Error::format(format!(
            "{}: `{tensor}` has shape {:?}, the config asks for {shape:?}",
            file.name(),
            info.shape
        )));
    }
    Dtype::from_safetensors(info.dtype).ok_or_else(|| {
        Error::format(format!("{}: `{tensor}` is {:?}, expected F32, BF16 or F16", file.name(), info.dtype))
    })
}

fn matrix(file: &TensorFile<'_>, tensor: &str, rows: usize, cols: usize) -> Result<Matrix> {
    let dtype = dtype_of(file, tensor, &[rows, cols])?;
    let row_bytes = cols * dtype.size();
    Matrix::read(dtype, rows, cols, tensor, |first, bytes| file.read(tensor, first * row_bytes, bytes))
        .map_err(|e| if e.message().starts_with('`') { e.within(file.name()) } else { e })
}

#[derive(Clone, Copy, PartialEq)]
enum NotFinite {
    Refuse,
    /// In calibration, NaN stands for "never active".
    Keep,
}

fn vector(file: &TensorFile<'_>, tensor: &str, len: usize, not_finite: NotFinite) -> Result<Aligned<f32>> {
    dtype_of(file, tensor, &[len])?;
    vector_of(file, tensor, len, not_finite)
}

fn vector_of(file: &TensorFile<'_>, tensor: &str, len: usize, not_finite: NotFinite) -> Result<Aligned<f32>> {
    let info = file.require(tensor)?;
    let dtype = Dtype::from_safetensors(info.dtype)
        .ok_or_else(|| Error::format(format!("{}: `{tensor}` is {:?}, expected F32", file.name(), info.dtype)))?;
    let mut bytes = crate::memory::try_vec(len * dtype.size(), 0_u8, tensor)?;
    file.read(tensor, 0, &mut bytes)?;
    let mut out = Aligned::<f32>::zeroed(len, tensor)?;
    widen(dtype, &bytes, &mut out);
    if not_finite == NotFinite::Refuse
        && let Some(at) = out.iter().position(|v| !v.is_finite())
    {
        let message = format!("{}: `{tensor}` has {} at index {at}; refused", file.name(), out[at]);
        return Err(Error::format(message));
    }
    Ok(out)
}

/// What goes into a model file. All slices are row-major without padding.
pub struct ModelWriter<'a> {
    /// Shape, selection, units, origin.
    pub config: &'a Config,
    /// W, `[rows, d_model]`: see [`ModelWriter::rows`].
    pub encoder_weight: TensorOut<'a>,
    /// b, `[rows]`.
    pub encoder_bias: &'a [f32],
    /// Thresholds latent by latent (dense JumpReLU).
    pub encoder_threshold: Option<&'a [f32]>,
    /// D, `[F, d_model]`.
    pub decoder_weight: TensorOut<'a>,
    /// b_dec, `[d_model]`.
    pub decoder_bias: &'a [f32],
    /// Calibration: rate `[F]`, mean `[F]`, quantiles `[F, Q]`.
    pub calibration: Option<(&'a [f32], &'a [f32], &'a [f32])>,
}

impl<'a> ModelWriter<'a> {
    /// A tensor for [`ModelWriter::encoder_weight`] or [`ModelWriter::decoder_weight`] from padded f32 rows, written as
    /// F32 or, rounded to nearest even, as BF16.
    ///
    /// # Panics
    /// If `dtype` is F16 (only read, never written: folded weights fall into its subnormals).
    #[must_use]
    pub fn rows(which: Which, rows: &'a [f32], shape: [usize; 2], stride: usize, dtype: Dtype) -> TensorOut<'a> {
        let name = match which {
            Which::Encoder => ENCODER_WEIGHT,
            Which::Decoder => DECODER_WEIGHT,
        };
        let [count, cols] = shape;
        type WriteRow = dyn Fn(&mut dyn std::io::Write, &[f32]) -> std::io::Result<()>;
        let each = move |sink: &mut dyn std::io::Write, write: &WriteRow| {
            (0..count).try_for_each(|r| write(sink, &rows[r * stride..][..cols]))
        };
        match dtype {
            Dtype::F32 => TensorOut::new(
                name,
                TensorDtype::F32,
                &shape,
                Box::new(move |sink| each(sink, &tensor_file::write_f32)),
            ),
            Dtype::Bf16 => {
                let write = |sink: &mut dyn std::io::Write, row: &[f32]| {
                    let bytes: Vec<u8> = row.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
                    sink.write_all(&bytes)
                };
                TensorOut::new(name, TensorDtype::BF16, &shape, Box::new(move |sink| each(sink, &write)))
            }
            Dtype::F16 => panic!("model files are written as F32 or BF16"),
        }
    }

    /// Writes the file: complete and on disk, or not at all.
    ///
    /// # Errors
    /// [`crate::Status::Io`]; [`crate::Status::InvalidArgument`] if a length disagrees with the config.
    pub fn write(self, path: &Path) -> Result<()> {
        let encoder = self.config.encoder;
        let (rows, latents, d) = (encoder.rows(), encoder.latents(), self.config.d_model);
        let mut lengths =
            vec![(ENCODER_BIAS, self.encoder_bias.len(), rows), (DECODER_BIAS, self.decoder_bias.len(), d)];
        lengths.extend(self.encoder_threshold.map(|t| (ENCODER_THRESHOLD, t.len(), latents)));
        if let Some((rate, mean, quantiles)) = self.calibration {
            lengths.push((CALIBRATION_RATE, rate.len(), latents));
            lengths.push((CALIBRATION_MEAN, mean.len(), latents));
            lengths.push((CALIBRATION_QUANTILES, quantiles.len() % latents, 0));
        }
        if let Some((tensor, found, expected)) = lengths.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(Error::invalid(format!(
                "{}: `{tensor}` has {found} values, expected {expected}",
                path.display()
            )));
        }
        let mut tensors = vec![
            self.encoder_weight,
            TensorOut::f32(ENCODER_BIAS, &[rows], self.encoder_bias),
            self.decoder_weight,
            TensorOut::f32(DECODER_BIAS, &[d], self.decoder_bias),
        ];
        tensors.extend(self.encoder_threshold.map(|t| TensorOut::f32(ENCODER_THRESHOLD, &[latents], t)));
        if let Some((rate, mean, quantiles)) = self.calibration {
            tensors.push(TensorOut::f32(CALIBRATION_RATE, &[latents], rate));
            tensors.push(TensorOut::f32(CALIBRATION_MEAN, &[latents], mean));
            tensors.push(TensorOut::f32(CALIBRATION_QUANTILES, &[latents, quantiles.len() / latents], quantiles));
        }
        let metadata =
            BTreeMap::from([("format".to_owned(), FORMAT.to_owned()), ("config".to_owned(), self.config.to_json())]);
        tensor_file::write(path, &metadata, tensors)
    }
}

/// Which of the two weight matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// W.
    Encoder,
    /// D.
    Decoder,
}
