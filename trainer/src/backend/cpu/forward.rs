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

    /// One token: `x` and its pre-activations `y` in, everything in `token` out. Where `y` is not `exact`, the entries
    /// that matter are made so. Returns how many latents and how many encoder-row entries were written. `scale` is that of the loss: 2 / (tokens * d).
    pub(super) fn token(
        &mut self,
        isa: Isa,
        state: &TrainState,
        settings: &StepSettings,
        exact: bool,
        x: &[f32],
        y: &mut [f32],
        scale: f32,
        token: &mut Token<'_>,
        sums: &mut Sums,
    ) -> (usize, usize) {
        let kron = matches!(state.encoder, Encoder::Kron { .. });
        self.terms.clear();
        if self.selector.select(y) == RowOutcome::NotFinite {
            sums.not_finite += 1;
        } else {
            if !exact {
                self.recompute(isa, state, x, y);
            }
            for (f, product) in self.selector.selected() {
                let product = match (exact, state.encoder.rows_of(f)) {
                    (true, _) => product,
                    (false, (a, b)) if a == b => y[a],
                    // A row that was only just positive in bf16 may not be; its latent is then left out.
                    (false, (a, b)) => y[a].max(0.0) * y[b].max(0.0),
                };
                if product > 0.0 {
                    let coefficient = if kron { product.sqrt() } else { product };
                    self.terms.push(Term { row: f as u32, coefficient });
                }
            }
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

    /// Replaces the pre-activations behind the selected latents by those of `dot/1`.
    fn recompute(&mut self, isa: Isa, state: &TrainState, x: &[f32], y: &mut [f32]) {
        self.picks.clear();
        for (f, _) in self.selector.selected() {
            let (a, b) = state.encoder.rows_of(f);
            self.picks.push(a as u32);
            if a != b {
                self.picks.push(b as u32);
            }
        }
        self.picks.sort_unstable();
        self.picks.dedup();
        self.dots.resize(self.picks.len(), 0.0);
        let weight = &state.encoder_weight;
        gathered_dots(isa, &weight.value, weight.stride, &self.picks, x, &mut self.dots);
        for (&row, &dot) in self.picks.iter().zip(&self.dots) {
            y[row as usize] = dot + state.encoder_bias.value[row as usize];
        }
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
