//! A watch list: some latents of every token, at two encoder rows a latent, whatever F is.

use super::{ROW_NOT_FINITE, check_width};
use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::float_env::FloatEnv;
use crate::memory::{Aligned, try_vec};
use crate::sae::{Encoder as Shape, Sae, Selection, padded};
use crate::simd::{self, Isa};
use std::sync::Arc;

/// What the values of a [`Watch`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchRule {
    /// The model selects by threshold: a watched latent is active exactly where a full encode would report it, unless
    /// that cut the row to `max_latents`.
    Exact,
    /// The model selects by TopK, whose K-th value a watch list does not know: a value is what the latent would be
    /// reported with *if* it is among the K first.
    Candidate,
}

/// Computes chosen latents and nothing else. One per thread of the host, like [`Encoder`](crate::Encoder).
///
/// Values are those of a full encode, bit for bit. The cost is that of the watched latents: one encoder row each for a
/// dense model, at most two for a KronSAE, fewer where latents share rows. After construction it allocates nothing.
#[derive(Debug)]
pub struct Watch {
    sae: Arc<Sae>,
    isa: Isa,
    rule: WatchRule,
    /// The encoder rows of each watched latent.
    rows_of: Vec<(u32, u32)>,
    /// What a latent's value must exceed, strictly.
    thresholds: Vec<f32>,
    /// The rows that are computed, each once.
    rows: Vec<u32>,
    /// One token, `[padded(d_model)]`.
    x: Aligned<f32>,
    /// Pre-activations, `[rows of the encoder]`, of which those in `rows` are used.
    y: Aligned<f32>,
}

impl Watch {
    /// Watches `latents` of `sae`, in the order given.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if the list is empty or an index is not below F;
    /// [`crate::Status::OutOfMemory`]; [`crate::Status::Unsupported`] as for [`Isa::detect`].
    pub fn new(sae: Arc<Sae>, latents: &[u32]) -> Result<Self> {
        let isa = Isa::detect()?;
        let shape = sae.config().encoder;
        if latents.is_empty() {
            return Err(Error::invalid("a watch list needs at least one latent"));
        }
        if let Some(latent) = latents.iter().find(|&&latent| latent as usize >= shape.latents()) {
            return Err(Error::invalid(format!("latent {latent} is not below F = {}", shape.latents())));
        }
        let (rule, theta) = match sae.config().selection {
            Selection::Threshold { theta, .. } => (WatchRule::Exact, theta),
            Selection::TopK(_) => (WatchRule::Candidate, 0.0),
        };
        let mut rows_of = try_vec(latents.len(), (0, 0), "a watch list")?;
        let mut thresholds = try_vec(latents.len(), theta, "a watch list")?;
        let mut rows = try_vec(2 * latents.len(), 0_u32, "a watch list")?;
        rows.clear();
        for (at, &latent) in latents.iter().enumerate() {
            let (a, b) = shape.rows_of(latent as usize);
            rows_of[at] = (a as u32, b as u32);
            rows.extend([a as u32, b as u32]);
            if let Some(own) = &sae.encoder().threshold {
                thresholds[at] = own[latent as usize];
            }
        }
        rows.sort_unstable();
        rows.dedup();
        let x = Aligned::zeroed(padded(sae.config().d_model), "a watched token")?;
        let y = Aligned::zeroed(shape.rows(), "watched pre-activations")?;
        Ok(Watch { isa, rule, rows_of, thresholds, rows, x, y, sae })
    }

    /// What the values are.
    #[must_use]
    pub fn rule(&self) -> WatchRule {
        self.rule
    }

    /// Number of latents watched.
    #[must_use]
    pub fn latents(&self) -> usize {
        self.rows_of.len()
    }

    /// Encoder rows that each token costs.
    #[must_use]
    pub fn encoder_rows(&self) -> usize {
        self.rows.len()
    }

    /// Writes the watched latents' values, `[rows, latents]`; 0 where a latent is not active. `flags`, where given, gets
    /// each row's flags: [`ROW_NOT_FINITE`] if a watched pre-activation or product is not finite (its values are 0). A
    /// full encode may also find that of rows that are not watched.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if the width is not the model's or a buffer is too short.
    pub fn encode(&mut self, x: Activations<'_>, values: &mut [f32], mut flags: Option<&mut [u8]>) -> Result<()> {
        check_width(x.d_model(), self.sae.config().d_model)?;
        let (rows, latents) = (x.rows(), self.latents());
        let needed = rows.saturating_mul(latents);
        if values.len() < needed {
            let found = values.len();
            return Err(Error::invalid(format!(
                "watch: values has room for {found} entries, {rows} rows need {needed}"
            )));
        }
        if let Some(found) = flags.as_ref().map(|flags| flags.len()).filter(|&found| found < rows) {
            return Err(Error::invalid(format!("watch: flags has room for {found} entries, expected {rows}")));
        }
        let _env = FloatEnv::enter();
        for (row, values) in values.chunks_exact_mut(latents).take(rows).enumerate() {
            x.widen_row(row, &mut self.x);
            let encoder = self.sae.encoder();
            // SAFETY: `y` has an element for each encoder row and is exclusively borrowed.
            unsafe {
                let y = self.y.as_mut_ptr();
                simd::picked_pre_activations(self.isa, encoder.weight.as_ref(), &encoder.bias, &self.x, &self.rows, y);
            }
            let finite = self.latent_values(values);
            if !finite {
                values.fill(0.0);
            }
            if let Some(flags) = &mut flags {
                flags[row] = if finite { 0 } else { ROW_NOT_FINITE };
            }
        }
        Ok(())
    }

    /// From pre-activations to values; false if one is not finite.
    fn latent_values(&self, values: &mut [f32]) -> bool {
        if !self.rows.iter().all(|&row| self.y[row as usize] < f32::INFINITY) {
            return false;
        }
        let kron = matches!(self.sae.config().encoder, Shape::Kron { .. });
        for ((value, &(a, b)), &threshold) in values.iter_mut().zip(&self.rows_of).zip(&self.thresholds) {
            let (p, q) = (self.y[a as usize].max(0.0), self.y[b as usize].max(0.0));
            let product = if kron { p * q } else { p };
            if !product.is_finite() {
                return false;
            }
            let z = if kron { product.sqrt() } else { product };
            *value = if z > threshold { z } else { 0.0 };
        }
        true
    }
}
