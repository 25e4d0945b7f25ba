//! From sparse lists to updated rows: each row's gradient is summed in registers and cache, handed to Adam (or to a
//! test), and forgotten. No gradient of the size of a parameter exists.

use super::auxk::AuxGradients;
use super::kernels::{self, Adam};
use super::pairs::ByRow;
use crate::backend::{Parameter, TrainState};
use kronsae::threads::{Divided, Pool};
use kronsae::{Isa, Result, gathered_sum};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows a thread takes at a time.
const CHUNK: usize = 32;

/// What becomes of gradients.
pub(super) enum Sink<'a> {
    /// Update the parameters; each parameter's gradient is multiplied by its factor first (1: no clipping).
    /// `rounding`: seeds of encoder and decoder weights' moments, which are rounded to bf16.
    Adam { numbers: Adam, factors: [f32; 4], rounding: Option<[u32; 2]> },
    /// Write them here, `[rows, stride]` as the parameters are: encoder weight, encoder bias, decoder weight, decoder bias.
    Capture([Divided<'a, f32>; 4]),
}

/// A batch's gradients in sparse form.
pub(super) struct Gradients<'a> {
    /// Normalised activations, `[tokens, stride]`.
    pub(super) x: &'a [f32],
    /// Gradient of the loss by x_hat, `[tokens, stride]`.
    pub(super) residual: &'a [f32],
    pub(super) stride: usize,
    /// Latents: tokens and values.
    pub(super) latents: &'a ByRow,
    /// Encoder rows: tokens and gradients of pre-activations.
    pub(super) rows: &'a ByRow,
    /// Gradient of b_dec, `[stride]`.
    pub(super) decoder_bias: &'a [f32],
    /// AuxK's part of the decoder's gradient.
    pub(super) aux: Option<(&'a AuxGradients, &'a ByRow)>,
}

/// One parameter, its rows divided among threads.
struct Rows<'a> {
    value: Divided<'a, f32>,
    first: Divided<'a, f32>,
    second: Divided<'a, f32>,
    stride: usize,
}

impl<'a> Rows<'a> {
    fn of(parameter: &'a mut Parameter) -> Self {
        Rows {
            stride: parameter.stride,
            value: Divided::of(&mut parameter.value),
            first: Divided::of(&mut parameter.first),
            second: Divided::of(&mut parameter.second),
        }
    }

    /// # Safety
    /// Nobody else may access these elements meanwhile.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise, as with Divided")]
    unsafe fn slices(&self, range: std::ops::Range<usize>) -> [&mut [f32]; 3] {
        // SAFETY: the caller's promise.
        unsafe { [self.value.slice(range.clone()), self.first.slice(range.clone()), self.second.slice(range)] }
    }
}

/// Applies a batch's gradients. Returns the norm of each parameter's gradient where `norms` asks for it.
pub(super) fn apply(
    pool: &mut Pool,
    isa: Isa,
    state: &mut TrainState,
    gradients: &Gradients<'_>,
    sink: &Sink<'_>,
    norms: bool,
) -> Result<[f64; 4]> {
    let (latents, rows, width) = (state.decoder_weight.rows, state.encoder_weight.rows, gradients.stride);
    let latent_chunks = latents.div_ceil(CHUNK);
    let chunks = latent_chunks + rows.div_ceil(CHUNK);
    let mut squares = vec![[0.0_f64; 2]; if norms { chunks } else { 0 }];
    {
        let decoder = Rows::of(&mut state.decoder_weight);
        let encoder = Rows::of(&mut state.encoder_weight);
        let bias = Rows::of(&mut state.encoder_bias);
        let to_squares = Divided::of(&mut squares);
        let next = AtomicUsize::new(0);
        pool.run(&|_| {
            let mut gradient = vec![0.0_f32; width];
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return;
                }
                let mut sum = [0.0_f64; 2];
                if chunk < latent_chunks {
                    for latent in chunk * CHUNK..((chunk + 1) * CHUNK).min(latents) {
                        gradient.fill(0.0);
                        gathered_sum(isa, gradients.residual, width, gradients.latents.of(latent), &mut gradient);
                        if let Some((aux, by_row)) = gradients.aux {
                            gathered_sum(isa, &aux.residual, width, by_row.of(latent), &mut gradient);
                        }
                        if norms {
                            sum[0] += f64::from(kernels::square(isa, &gradient));
                        }
                        let range = latent * decoder.stride..(latent + 1) * decoder.stride;
                        match sink {
                            Sink::Adam { numbers, factors, rounding } => {
                                scale(&mut gradient, factors[2]);
                                let first = range.start;
                                // SAFETY: each row belongs to one chunk, each chunk to one thread.
                                let [w, m, v] = unsafe { decoder.slices(range) };
                                kernels::decoder_row(isa, *numbers, w, m, v, &gradient);
                                if let Some([_, seed]) = rounding {
                                    kernels::round_moments(isa, seed.wrapping_add(first as u32), m, v);
                                }
                            }
                            // SAFETY: as above.
                            Sink::Capture(to) => unsafe { to[2].slice(range) }.copy_from_slice(&gradient),
                        }
                    }
                } else {
                    let first = (chunk - latent_chunks) * CHUNK;
                    let range = first..(first + CHUNK).min(rows);
                    let mut biases = [0.0_f32; CHUNK];
                    for row in range.clone() {
                        let terms = gradients.rows.of(row);
                        gradient.fill(0.0);
                        gathered_sum(isa, gradients.x, width, terms, &mut gradient);
                        biases[row - first] = terms.iter().map(|t| t.coefficient).sum();
                        if norms {
                            sum[0] += f64::from(kernels::square(isa, &gradient));
                            sum[1] += f64::from(biases[row - first]).powi(2);
                        }
                        let range = row * encoder.stride..(row + 1) * encoder.stride;
                        match sink {
                            Sink::Adam { numbers, factors, rounding } => {
                                scale(&mut gradient, factors[0]);
                                let first = range.start;
                                // SAFETY: as above.
                                let [w, m, v] = unsafe { encoder.slices(range) };
                                kernels::adam_row(isa, *numbers, w, m, v, &gradient);
                                if let Some([seed, _]) = rounding {
                                    kernels::round_moments(isa, seed.wrapping_add(first as u32), m, v);
                                }
                            }
                            // SAFETY: as above.
                            Sink::Capture(to) => unsafe { to[0].slice(range) }.copy_from_slice(&gradient),
                        }
                    }
                    let biases = &mut biases[..range.len()];
                    match sink {
                        Sink::Adam { numbers, factors, .. } => {
                            scale(biases, factors[1]);
                            // SAFETY: as above.
                            let [w, m, v] = unsafe { bias.slices(range) };
                            kernels::adam_row(isa, *numbers, w, m, v, biases);
                        }
                        // SAFETY: as above.
                        Sink::Capture(to) => unsafe { to[1].slice(range) }.copy_from_slice(biases),
                    }
                }
                if norms {
                    // SAFETY: each chunk's slot is written by the thread that has the chunk.
                    unsafe { to_squares.slice(chunk..chunk + 1)[0] = sum };
                }
            }
        })?;
    }
    let decoder_bias = gradients.decoder_bias;
    let bias_square = f64::from(kernels::square(isa, decoder_bias));
    match sink {
        Sink::Adam { numbers, factors, .. } => {
            let mut gradient = decoder_bias.to_vec();
            scale(&mut gradient, factors[3]);
            let to = &mut state.decoder_bias;
            kernels::adam_row(isa, *numbers, &mut to.value, &mut to.first, &mut to.second, &gradient);
        }
        // SAFETY: no thread is running.
        Sink::Capture(to) => unsafe { to[3].slice(0..width) }.copy_from_slice(decoder_bias),
    }
    let sum = |range: std::ops::Range<usize>, which: usize| -> f64 {
        squares.get(range).map_or(0.0, |s| s.iter().map(|s| s[which]).sum())
    };
    let norms = [sum(latent_chunks..chunks, 0), sum(latent_chunks..chunks, 1), sum(0..latent_chunks, 0), bias_square];
    Ok(norms.map(f64::sqrt))
}

fn scale(gradient: &mut [f32], factor: f32) {
    if factor != 1.0 {
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
}
