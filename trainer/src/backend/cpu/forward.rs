//! Forward pass of one token, and the backward pass as far as the token alone decides it: its residual, the gradient of
//! its latents' values, and of the pre-activations behind them.

use super::kernels;
use crate::backend::{StepSettings, TrainState};
use kronsae::sae::Encoder;
use kronsae::{Isa, RowOutcome, Selector, Term, gathered_dots, gathered_sum};

/// What a worker needs for one token at a time.
pub(super) struct Scratch {
    pub(super) selector: Selector,
    picks: Vec<u32>,
    dots: Vec<f32>,
    terms: Vec<Term>,
}

/// What a token leaves behind.
pub(super) struct Token<'a> {
    /// Gradient of the loss by x_hat, `[stride]`.
    pub(super) gradient: &'a mut [f32],
    /// Latents and values, room for K.
    pub(super) latents: &'a mut [Term],
    /// Encoder rows and gradients of their pre-activations, room for 2 K.
    pub(super) rows: &'a mut [Term],
}

/// Sums over tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) error: f64,
    pub(super) norm: f64,
    pub(super) latents: u64,
    pub(super) not_finite: u64,
}

impl Scratch {
    pub(super) fn new(selector: Selector) -> Self {
        Scratch { selector, picks: Vec::new(), dots: Vec::new(), terms: Vec::new() }
    }

    /// One token: `x` and its pre-activations `y` in, everything in `token` out. Returns how many latents and how many
    /// encoder-row entries were written. `scale` is that of the loss: 2 / (tokens * d).
    pub(super) fn token(
        &mut self,
        isa: Isa,
        state: &TrainState,
        settings: &StepSettings,
        x: &[f32],
        y: &[f32],
        scale: f32,
        token: &mut Token<'_>,
        sums: &mut Sums,
    ) -> (usize, usize) {
        let kron = matches!(state.encoder, Encoder::Kron { .. });
        self.terms.clear();
        if self.selector.select(y) == RowOutcome::NotFinite {
            sums.not_finite += 1;
        } else {
            let value = |product: f32| if kron { product.sqrt() } else { product };
            let selected = self.selector.selected();
            self.terms.extend(selected.map(|(f, product)| Term { row: f as u32, coefficient: value(product) }));
        }
        let decoder = &state.decoder_weight;
        token.gradient.copy_from_slice(&state.decoder_bias.value[..token.gradient.len()]);
        gathered_sum(isa, &decoder.value, decoder.stride, &self.terms, token.gradient);
        let (error, norm) = kernels::residual(isa, token.gradient, x, scale);
        sums.error += f64::from(error);
        sums.norm += f64::from(norm);
        sums.latents += self.terms.len() as u64;

        self.value_gradients(isa, state, token.gradient);
        token.latents[..self.terms.len()].copy_from_slice(&self.terms);
        let rows = encoder_gradients(state.encoder, settings.mand_epsilon, &self.terms, &self.dots, y, token.rows);
        (self.terms.len(), rows)
    }

    /// Fills `dots` with the products of the gradient and each latent's decoder row.
    fn value_gradients(&mut self, isa: Isa, state: &TrainState, gradient: &[f32]) {
        self.picks.clear();
        self.picks.extend(self.terms.iter().map(|t| t.row));
        self.dots.resize(self.terms.len(), 0.0);
        let decoder = &state.decoder_weight;
        gathered_dots(isa, &decoder.value, decoder.stride, &self.picks, gradient, &mut self.dots);
    }
}

/// From the gradients of latents' values to those of pre-activations: `dz/dp = q / (2 sqrt(p q + eps))`, likewise q; for
/// a dense encoder `dz/dy = 1`. Returns the number of entries written to `out`.
pub(super) fn encoder_gradients(
    encoder: Encoder,
    epsilon: f32,
    latents: &[Term],
    value_gradients: &[f32],
    y: &[f32],
    out: &mut [Term],
) -> usize {
    let mut written = 0;
    let mut put = |row: usize, coefficient: f32| {
        out[written] = Term { row: row as u32, coefficient };
        written += 1;
    };
    for (latent, &gradient) in latents.iter().zip(value_gradients) {
        let (a, b) = encoder.rows_of(latent.row as usize);
        if a == b {
            put(a, gradient);
        } else {
            let (p, q) = (y[a], y[b]);
            let half = gradient * 0.5 / p.mul_add(q, epsilon).sqrt();
            put(a, half * q);
            put(b, half * p);
        }
    }
    written
}
