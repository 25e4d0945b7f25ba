//! The same step in f64, naively: dense sums over tokens from the lists of latents that the step used.

use crate::emulator::Element;
use crate::step::{Lists, Outcome, Problem};
use kronsae::sae::{Encoder, padded};

/// Gradients without padding, in the order of the parameters, and the losses.
pub(crate) struct Gradients {
    pub(crate) parameters: [Vec<f64>; 4],
    pub(crate) squares: f64,
    pub(crate) aux_loss: f64,
    /// By x_hat, `[tokens, d]`, and of AuxK by e_hat.
    pub(crate) residual: Vec<f64>,
    pub(crate) aux_residual: Vec<f64>,
}

struct Walk<'a, T: Element> {
    encoder: Encoder,
    d: usize,
    stride: usize,
    epsilon: f64,
    outcome: &'a Outcome<T>,
    decoder: Vec<f64>,
    x: Vec<f64>,
}

/// `outcome` is of a capture: its parameters are as they were. The residuals that weights' gradients are made of are
/// the outcome's own, rounded to T as they are; that they are right is another comparison.
pub(crate) fn gradients<T: Element>(problem: &Problem<'_>, outcome: &Outcome<T>) -> Gradients {
    let (state, tokens) = (problem.state, problem.tokens);
    let (d, stride) = (state.d_model(), padded(state.d_model()));
    let encoder = state.encoder;
    let walk = Walk {
        encoder,
        d,
        stride,
        epsilon: f64::from(problem.settings.mand_epsilon),
        outcome,
        decoder: state.decoder_weight.value.iter().map(|&v| f64::from(T::round(v).widen())).collect(),
        x: problem.x.iter().map(|&v| f64::from(T::round(v).widen())).collect(),
    };
    let sizes = [encoder.rows() * d, encoder.rows(), encoder.latents() * d, d];
    let mut out = Gradients {
        parameters: sizes.map(|len| vec![0.0; len]),
        squares: 0.0,
        aux_loss: 0.0,
        residual: vec![0.0; tokens * d],
        aux_residual: vec![0.0; tokens * d],
    };
    let scale = 2.0 / (tokens as f64 * d as f64);
    let mut main = vec![0.0; tokens * d];
    for token in 0..tokens {
        for c in 0..d {
            let bias = f64::from(state.decoder_bias.value[c]);
            main[token * d + c] = bias + walk.decoded(&outcome.lists, token, c) - walk.x[token * stride + c];
            out.squares += main[token * d + c].powi(2);
            out.residual[token * d + c] = main[token * d + c] * scale;
            out.parameters[3][c] += f64::from(outcome.residual.get()[token * stride + c].widen());
        }
    }
    for token in 0..tokens {
        let residual = out.residual[token * d..][..d].to_vec();
        walk.lists(&outcome.lists, token, &residual, outcome.residual.get(), &mut out.parameters);
    }
    if let (Some(aux), Some(settings)) = (&outcome.aux, problem.settings.auxk)
        && !outcome.dead_latents.is_empty()
    {
        let mut error = 0.0;
        for token in 0..tokens {
            for c in 0..d {
                // What AuxK explains is the residual as it was stored.
                let left = f64::from(outcome.residual.get()[token * stride + c].widen()) / scale;
                let difference = left + walk.decoded(&aux.lists, token, c);
                error += difference * difference;
                out.aux_residual[token * d + c] = difference * f64::from(settings.coefficient) * 2.0 / out.squares;
            }
            let residual = out.aux_residual[token * d..][..d].to_vec();
            walk.lists(&aux.lists, token, &residual, aux.residual.get(), &mut out.parameters);
        }
        out.aux_loss = error / out.squares;
    }
    out
}

impl<T: Element> Walk<'_, T> {
    fn pairs<'a>(&self, lists: &'a Lists, token: usize) -> impl Iterator<Item = (usize, f64)> + 'a {
        let range = token * lists.slots..token * lists.slots + lists.counts.get()[token] as usize;
        range.map(|at| (lists.indices.get()[at] as usize, f64::from(lists.values.get()[at])))
    }

    fn decoded(&self, lists: &Lists, token: usize, c: usize) -> f64 {
        self.pairs(lists, token).map(|(latent, value)| value * self.decoder[latent * self.stride + c]).sum()
    }

    /// Adds what one token's latents add to the gradients of the decoder and the encoder.
    fn lists(&self, lists: &Lists, token: usize, residual: &[f64], stored: &[T], to: &mut [Vec<f64>; 4]) {
        let (d, stride) = (self.d, self.stride);
        for (latent, value) in self.pairs(lists, token) {
            let mut gradient = 0.0;
            for c in 0..d {
                gradient += residual[c] * self.decoder[latent * stride + c];
                to[2][latent * d + c] += value * f64::from(stored[token * stride + c].widen());
            }
            let (a, b) = self.encoder.rows_of(latent);
            let y = |row: usize| f64::from(self.outcome.y.get()[token * self.outcome.ldy + row].widen());
            let parts = if a == b {
                [(a, gradient), (a, 0.0)]
            } else {
                let half = gradient * 0.5 / (y(a) * y(b) + self.epsilon).sqrt();
                [(a, half * y(b)), (b, half * y(a))]
            };
            for (row, gradient) in parts {
                to[1][row] += gradient;
                for c in 0..d {
                    to[0][row * d + c] += gradient * self.x[token * stride + c];
                }
            }
        }
    }
}
