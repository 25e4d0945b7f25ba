//! What training changes, whoever computes it: parameters, their moments, and when each latent and row was last alive.

use crate::random::Stream;
use kronsae::sae::{Encoder, padded};
use kronsae::{Aligned, Result};

/// A parameter with Adam's two moments, `[rows, cols]`, each row padded with zeros to a multiple of 16 elements.
#[derive(Debug)]
pub struct Parameter {
    /// The parameter itself.
    pub value: Aligned<f32>,
    /// Decayed mean of gradients.
    pub first: Aligned<f32>,
    /// Decayed mean of squared gradients.
    pub second: Aligned<f32>,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row that count.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Parameter {
    fn zeroed(rows: usize, cols: usize, what: &str) -> Result<Self> {
        let stride = padded(cols);
        let zeroed = || Aligned::zeroed(rows * stride, what);
        Ok(Parameter { value: zeroed()?, first: zeroed()?, second: zeroed()?, rows, cols, stride })
    }

    /// One row of the value, without padding.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.value[row * self.stride..][..self.cols]
    }
}

/// Parameters, moments and bookkeeping of a training run, all in normalised units.
#[derive(Debug)]
pub struct TrainState {
    /// Shape of the encoder.
    pub encoder: Encoder,
    /// W, `[rows, d_model]`.
    pub encoder_weight: Parameter,
    /// b, `[1, rows]`.
    pub encoder_bias: Parameter,
    /// D, `[F, d_model]`, rows of unit norm.
    pub decoder_weight: Parameter,
    /// b_dec, `[1, d_model]`.
    pub decoder_bias: Parameter,
    /// For each latent, the number of tokens trained on when it last fired.
    pub fired_at: Vec<u64>,
    /// For each encoder row, the number of tokens trained on when it was last positive (or re-initialised).
    pub positive_at: Vec<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Norm of each parameter's last gradient, in the order of [`TrainState::parameters`]; for clipping.
    pub gradient_norms: [f64; 4],
}

impl TrainState {
    /// The state before the first step: W ~ N(0, 1/d), so that pre-activations have unit variance; the decoder row of a
    /// latent is the normalised sum of the two encoder rows it is made of (dense: its one); biases are 0.
    ///
    /// # Errors
    /// [`kronsae::Status::OutOfMemory`].
    pub fn new(encoder: Encoder, d: usize, seed: u64) -> Result<Self> {
        let mut state = Self::empty(encoder, d)?;
        let deviation = (d as f64).sqrt().recip();
        let weight = &mut state.encoder_weight;
        for row in 0..weight.rows {
            let mut stream = Stream::new(seed, &[10, row as u64]);
            let to = &mut weight.value[row * weight.stride..][..d];
            for pair in to.chunks_mut(2) {
                let (a, b) = stream.normals();
                for (t, normal) in pair.iter_mut().zip([a, b]) {
                    *t = (normal * deviation) as f32;
                }
            }
        }
        for latent in 0..encoder.latents() {
            state.reset_decoder_row(latent);
        }
        Ok(state)
    }

    /// A state of zeros, to be filled from a checkpoint.
    ///
    /// # Errors
    /// [`kronsae::Status::OutOfMemory`].
    pub fn empty(encoder: Encoder, d: usize) -> Result<Self> {
        Ok(TrainState {
            encoder,
            encoder_weight: Parameter::zeroed(encoder.rows(), d, "the encoder")?,
            encoder_bias: Parameter::zeroed(1, encoder.rows(), "the encoder's bias")?,
            decoder_weight: Parameter::zeroed(encoder.latents(), d, "the decoder")?,
            decoder_bias: Parameter::zeroed(1, d, "the decoder's bias")?,
            fired_at: vec![0; encoder.latents()],
            positive_at: vec![0; encoder.rows()],
            tokens: 0,
            gradient_norms: [0.0; 4],
        })
    }

    /// Sets latent `latent`'s decoder row to the normalised sum of its encoder rows, its moments to 0.
    pub fn reset_decoder_row(&mut self, latent: usize) {
        let (a, b) = self.encoder.rows_of(latent);
        let (weight, decoder) = (&self.encoder_weight, &mut self.decoder_weight);
        let range = latent * decoder.stride..latent * decoder.stride + decoder.cols;
        let sum: Vec<f32> = weight.row(a).iter().zip(weight.row(b)).map(|(a, b)| a + b).collect();
        let norm = sum.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(1e-30);
        for (to, from) in decoder.value[range.clone()].iter_mut().zip(sum) {
            *to = (f64::from(from) / norm) as f32;
        }
        decoder.first[range.clone()].fill(0.0);
        decoder.second[range].fill(0.0);
    }

    /// The four parameters with their names, in a fixed order.
    #[must_use]
    pub fn parameters(&self) -> [(&'static str, &Parameter); 4] {
        [
            ("encoder.weight", &self.encoder_weight),
            ("encoder.bias", &self.encoder_bias),
            ("decoder.weight", &self.decoder_weight),
            ("decoder.bias", &self.decoder_bias),
        ]
    }

    /// As [`TrainState::parameters`], to be filled.
    pub fn parameters_mut(&mut self) -> [(&'static str, &mut Parameter); 4] {
        [
            ("encoder.weight", &mut self.encoder_weight),
            ("encoder.bias", &mut self.encoder_bias),
            ("decoder.weight", &mut self.decoder_weight),
            ("decoder.bias", &mut self.decoder_bias),
        ]
    }

    /// Width of an activation.
    #[must_use]
    pub fn d_model(&self) -> usize {
        self.decoder_bias.cols
    }
}
