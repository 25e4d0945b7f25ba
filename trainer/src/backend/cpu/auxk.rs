//! AuxK: dead latents learn to explain what the living left over (KRONSAE.md section 5).
//!
//! Only the encoder rows that dead latents are made of are computed again, gathered into a small matrix; the dead are then
//! ranked as the latents of a dense encoder whose pre-activations are their products. Nothing of size B x F exists.

use super::forward::encoder_gradients;
use super::kernels;
use super::pairs::Touched;
use crate::backend::{AuxK, StepInput, StepSettings, TrainState};
use kronsae::sae::{Encoder, MatrixRef, Selection};
use kronsae::threads::{Divided, Pool};
use kronsae::{Aligned, Isa, Result, Selector, Term, gathered_dots, gathered_sum, pre_activations};
use std::sync::atomic::{AtomicUsize, Ordering};

const TILE: usize = 48;

/// What AuxK adds to a step's gradients.
pub(super) struct AuxGradients {
    /// Gradient of the AuxK loss by e_hat, `[tokens, stride]`.
    pub(super) residual: Aligned<f32>,
    /// Dead latents used, with their values.
    pub(super) latents: Touched,
    /// Encoder rows, with the gradients of their pre-activations.
    pub(super) rows: Touched,
    /// The loss before its coefficient.
    pub(super) loss: f64,
}

/// The dead latents and the encoder rows they are made of.
struct Dead {
    /// Latent, and its two rows as positions in `rows`.
    latents: Vec<(u32, u32, u32)>,
    rows: Vec<u32>,
    weight: Aligned<f32>,
    bias: Vec<f32>,
}

impl Dead {
    fn gather(state: &TrainState, latents: &[u32]) -> Result<Self> {
        let stride = state.encoder_weight.stride;
        let mut rows: Vec<u32> = latents
            .iter()
            .flat_map(|&f| {
                let (a, b) = state.encoder.rows_of(f as usize);
                [a as u32, b as u32]
            })
            .collect();
        rows.sort_unstable();
        rows.dedup();
        // Every row is in the list: it was put there just now.
        let position = |row: usize| rows.partition_point(|&r| (r as usize) < row) as u32;
        let latents = latents
            .iter()
            .map(|&f| {
                let (a, b) = state.encoder.rows_of(f as usize);
                (f, position(a), position(b))
            })
            .collect();
        let mut weight = Aligned::zeroed(rows.len() * stride, "rows of dead latents")?;
        let mut bias = Vec::with_capacity(rows.len());
        for (to, &row) in weight.chunks_exact_mut(stride).zip(&rows) {
            to.copy_from_slice(&state.encoder_weight.value[row as usize * stride..][..stride]);
            bias.push(state.encoder_bias.value[row as usize]);
        }
        Ok(Dead { latents, rows, weight, bias })
    }
}

/// Computes AuxK's part of the gradients. `residual` is the main loss's gradient by x_hat, `(x_hat - x) * scale`, and
/// `squares` the sum of |x - x_hat|^2 over the batch.
pub(super) fn gradients(
    pool: &mut Pool,
    isa: Isa,
    state: &TrainState,
    settings: &StepSettings,
    auxk: AuxK,
    dead: &[u32],
    input: &StepInput<'_>,
    residual: &[f32],
    scale: f32,
    squares: f64,
) -> Result<AuxGradients> {
    let stride = input.stride;
    let k = auxk.k.min(dead.len());
    let slots = match state.encoder {
        Encoder::Kron { .. } => 2 * k,
        Encoder::Dense { .. } => k,
    };
    let dead = Dead::gather(state, dead)?;
    let mut out = AuxGradients {
        residual: Aligned::zeroed(input.rows * stride, "the AuxK residual")?,
        latents: Touched::new(input.rows, k),
        rows: Touched::new(input.rows, slots),
        loss: 0.0,
    };
    let shape = Encoder::Dense { latents: dead.latents.len() };
    let mut selectors = Vec::new();
    for _ in 0..pool.threads() {
        selectors.push(Selector::new(shape, Selection::TopK(k), None, isa)?);
    }
    let tiles = input.rows.div_ceil(TILE);
    let mut losses = vec![0.0_f64; tiles];
    // d(loss)/d(e_hat) = coefficient * 2 (e_hat - e) / sum of e^2
    let gradient_scale = (f64::from(auxk.coefficient) * 2.0 / squares.max(1e-30)) as f32;
    let next = AtomicUsize::new(0);
    {
        let selectors = Divided::of(&mut selectors);
        let to_residual = Divided::of(&mut out.residual);
        let losses = Divided::of(&mut losses);
        let latents = Divided::of(&mut out.latents.entries);
        let latent_counts = Divided::of(&mut out.latents.counts);
        let rows = Divided::of(&mut out.rows.entries);
        let row_counts = Divided::of(&mut out.rows.counts);
        let dead = &dead;
        pool.run(&|worker| {
            // SAFETY: each thread takes the selector of its own index.
            let selector = unsafe { &mut selectors.slice(worker.index..worker.index + 1)[0] };
            let count = dead.rows.len();
            let mut y = vec![0.0_f32; TILE * count];
            let mut products = vec![0.0_f32; dead.latents.len()];
            let mut full = vec![0.0_f32; state.encoder.rows()];
            let (mut terms, mut picks, mut dots) = (Vec::new(), Vec::new(), Vec::new());
            loop {
                let tile = next.fetch_add(1, Ordering::Relaxed);
                if tile >= tiles {
                    return;
                }
                let tokens = tile * TILE..((tile + 1) * TILE).min(input.rows);
                let x = &input.x[tokens.start * stride..tokens.end * stride];
                let weight = MatrixRef::f32(&dead.weight, count, state.encoder_weight.cols, stride);
                pre_activations(isa, weight, &dead.bias, x, stride, tokens.len(), 0..count, &mut y, count);
                let mut loss = 0.0;
                for (t, token) in tokens.enumerate() {
                    let y = &y[t * count..][..count];
                    for (product, &(_, a, b)) in products.iter_mut().zip(&dead.latents) {
                        let (p, q) = (y[a as usize].max(0.0), y[b as usize].max(0.0));
                        *product = if a == b { p } else { p * q };
                    }
                    selector.select(&products);
                    terms.clear();
                    terms.extend(selector.selected().map(|(at, product)| {
                        let (latent, a, b) = dead.latents[at];
                        Term { row: latent, coefficient: if a == b { product } else { product.sqrt() } }
                    }));
                    // SAFETY: every token belongs to one tile, every tile to one thread.
                    let (to, latents, rows) = unsafe {
                        (
                            to_residual.slice(token * stride..(token + 1) * stride),
                            latents.slice(token * k..(token + 1) * k),
                            rows.slice(token * slots..(token + 1) * slots),
                        )
                    };
                    // e_hat - e, where -e = (x_hat - x) is the main residual without its scale
                    for (t, r) in to.iter_mut().zip(&residual[token * stride..]) {
                        *t = r / scale;
                    }
                    let decoder = &state.decoder_weight;
                    gathered_sum(isa, &decoder.value, decoder.stride, &terms, to);
                    loss += f64::from(kernels::square(isa, to));
                    to.iter_mut().for_each(|v| *v *= gradient_scale);

                    picks.clear();
                    picks.extend(terms.iter().map(|t| t.row));
                    dots.resize(terms.len(), 0.0);
                    gathered_dots(isa, &decoder.value, decoder.stride, &picks, to, &mut dots);
                    latents[..terms.len()].copy_from_slice(&terms);
                    // The gradients look their pre-activations up by encoder row; put the few there are in their places.
                    for term in &terms {
                        let (a, b) = state.encoder.rows_of(term.row as usize);
                        for row in [a, b] {
                            full[row] = y[dead.rows.partition_point(|&r| (r as usize) < row)];
                        }
                    }
                    let written = encoder_gradients(state.encoder, settings.mand_epsilon, &terms, &dots, &full, rows);
                    // SAFETY: as above.
                    unsafe {
                        latent_counts.slice(token..token + 1)[0] = terms.len() as u32;
                        row_counts.slice(token..token + 1)[0] = written as u32;
                    }
                }
                // SAFETY: as above.
                unsafe { losses.slice(tile..tile + 1)[0] = loss };
            }
        })?;
    }
    out.loss = losses.iter().sum::<f64>() / squares.max(1e-30);
    Ok(out)
}
