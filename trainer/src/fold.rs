//! From normalised training units to a model that takes raw activations (KRONSAE.md section 1, "Normalisation").

use crate::backend::{Parameter, TrainState};
use crate::data::Normalisation;
use kronsae::sae::{Config, DecoderWeights, EncoderWeights, Matrix, ModelWriter, Sae, Which};
use kronsae::{Aligned, Dtype, Error, Result, Status};
use std::path::Path;

/// A trained state with its normalisation folded in: `W' = W/c` rounded to the file's dtype, `b' = b - W' mu` in f64,
/// `b_dec' = c b_dec + mu`; the output scale is c. Latent values stay in normalised units.
#[derive(Debug)]
pub struct Folded {
    encoder_weight: Aligned<f32>,
    encoder_bias: Vec<f32>,
    decoder_bias: Vec<f32>,
    dtype: Dtype,
}

impl Folded {
    /// Folds `normalisation` into the encoder and the biases. The decoder's rows stay as they are.
    ///
    /// # Errors
    /// [`kronsae::Status::OutOfMemory`]; [`kronsae::Status::Internal`] if a value is not finite: no file would hold it.
    pub fn new(state: &TrainState, normalisation: &Normalisation, dtype: Dtype) -> Result<Self> {
        let weight = &state.encoder_weight;
        let mut encoder_weight = Aligned::zeroed(weight.value.len(), "the folded encoder")?;
        let mut encoder_bias = Vec::with_capacity(weight.rows);
        for row in 0..weight.rows {
            let to = &mut encoder_weight[row * weight.stride..][..weight.cols];
            let mut shift = 0.0_f64;
            for ((t, &w), &mean) in to.iter_mut().zip(weight.row(row)).zip(&normalisation.mean) {
                let scaled = w / normalisation.scale;
                *t = if dtype == Dtype::Bf16 { half::bf16::from_f32(scaled).to_f32() } else { scaled };
                shift += f64::from(*t) * f64::from(mean);
            }
            encoder_bias.push((f64::from(state.encoder_bias.value[row]) - shift) as f32);
        }
        let scale = f64::from(normalisation.scale);
        let bias = state.decoder_bias.row(0).iter().zip(&normalisation.mean);
        let decoder_bias: Vec<f32> = bias.map(|(&b, &mean)| (scale * f64::from(b) + f64::from(mean)) as f32).collect();
        let all: [(&str, &[f32]); 4] = [
            ("encoder.weight", &encoder_weight),
            ("encoder.bias", &encoder_bias),
            ("decoder.weight", &state.decoder_weight.value),
            ("decoder.bias", &decoder_bias),
        ];
        if let Some((name, _)) = all.iter().find(|(_, values)| values.iter().any(|v| !v.is_finite())) {
            return Err(Error::new(
                Status::Internal,
                format!("training diverged: `{name}` has a value that is not finite; try a lower learning rate"),
            ));
        }
        Ok(Folded { encoder_weight, encoder_bias, decoder_bias, dtype })
    }

    /// The model in memory, equal to what [`Folded::write`] writes and [`Sae::open`] reads.
    ///
    /// # Errors
    /// [`kronsae::Status::OutOfMemory`]; [`kronsae::Status::Format`] if a decoder's value is too large for BF16.
    pub fn sae(&self, state: &TrainState, config: Config) -> Result<Sae> {
        let matrix = |from: &[f32], like: &Parameter, what| {
            Matrix::from_rows(from, [like.rows, like.cols], like.stride, self.dtype, what)
        };
        let vector = |from: &[f32]| -> Result<Aligned<f32>> {
            let mut to = Aligned::zeroed(from.len(), "a bias")?;
            to.copy_from_slice(from);
            Ok(to)
        };
        let encoder = EncoderWeights {
            weight: matrix(&self.encoder_weight, &state.encoder_weight, "encoder.weight")?,
            bias: vector(&self.encoder_bias)?,
            threshold: None,
        };
        let decoder = DecoderWeights {
            weight: matrix(&state.decoder_weight.value, &state.decoder_weight, "decoder.weight")?,
            bias: vector(&self.decoder_bias)?,
        };
        Sae::from_parts(config, encoder, Some(decoder))
    }

    /// Writes the model file: complete, or not at all.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`].
    pub fn write(&self, state: &TrainState, config: &Config, path: &Path) -> Result<()> {
        let (encoder, decoder) = (&state.encoder_weight, &state.decoder_weight);
        let (encoder_shape, decoder_shape) = ([encoder.rows, encoder.cols], [decoder.rows, decoder.cols]);
        ModelWriter {
            config,
            encoder_weight: ModelWriter::rows(
                Which::Encoder,
                &self.encoder_weight,
                encoder_shape,
                encoder.stride,
                self.dtype,
            ),
            encoder_bias: &self.encoder_bias,
            encoder_threshold: None,
            decoder_weight: ModelWriter::rows(
                Which::Decoder,
                &decoder.value,
                decoder_shape,
                decoder.stride,
                self.dtype,
            ),
            decoder_bias: &self.decoder_bias,
            calibration: None,
        }
        .write(path)
    }
}
