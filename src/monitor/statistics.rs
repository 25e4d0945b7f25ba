//! What is known of every latent, in memory that never grows: 24 bytes a latent.
//!
//! One worker writes, anybody reads at any time without stopping it: everything is an atomic number that only the
//! writer changes (a load and a store, no locked instruction). A reader may see the counts of a token before its sums;
//! nothing rests on the difference.
//!
//! With n tokens observed, H the half-life in tokens, a(f, t) = 1 where latent f was active on token t and 0 elsewhere:
//!
//! | what | formula |
//! |---|---|
//! | count | sum over t of a(f, t) |
//! | mean | sum of values where active / count |
//! | rate r(f) | sum over t of 2^(-(n - t)/H) a(f, t) / sum over t of 2^(-(n - t)/H) |
//! | effective tokens n' | (sum of weights)^2 / (sum of squared weights), weights 2^(-(n - t)/H); tends to 2 H / ln 2 |
//! | drift of f | (r - c) / sqrt(p (1 - p) (1/n' + 1/N)), with c the calibrated rate, N the calibration's tokens (n' where the file does not say), p = (n' r + N c) / (n' + N) |
//! | drift of the whole | JS = H(M) - (H(P) + H(Q)) / 2 in bits, with P = r / sum r, Q = c / sum c, M = (P + Q) / 2, H(X) = -sum x log2 x |
//!
//! The drift of a latent takes tokens as independent. Neighbours in a text are not, so that it overstates surprise; it
//! ranks latents well, and is no test. JS is biased upwards while n' is small: even without any drift it starts near 1 for
//! a handful of tokens and falls as about (latents that fire) / (2 n' ln 2) times a small factor.
//!
//! The rate costs one addition for each active latent: token t adds 2^((t - L)/H) to its latents' weights, L a landmark,
//! and a reader divides by 2^((n - L)/H). Once in 512 half-lives the weights are scaled down and the landmark moved on.

use super::snapshot::LatentSnapshot;
use crate::error::{Error, Result};
use crate::sae::Sae;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Half-lives after which weights are scaled down, long before 2^1024 overflows.
const RESCALE: f64 = 512.0;

#[derive(Debug)]
struct Cell {
    count: AtomicU64,
    /// f64 bits: sum of values.
    sum: AtomicU64,
    /// f64 bits: sum of weights.
    weight: AtomicU64,
}

/// The statistics of one site and one model.
#[derive(Debug)]
pub(crate) struct Statistics {
    sae: Arc<Sae>,
    /// The latents observed, where not all are: `cells[i]` is of `only[i]`.
    only: Option<Box<[u32]>>,
    cells: Box<[Cell]>,
    half_life: f64,
    calibration_tokens: Option<f64>,
    tokens: AtomicU64,
    /// Active latents of all tokens, after an even and after an odd number of them.
    active: [AtomicU64; 2],
    /// L, in tokens.
    landmark: AtomicU64,
    /// Odd while weights are scaled.
    scaling: AtomicU64,
}

fn add(to: &AtomicU64, value: u64) {
    // One writer: no locked instruction is needed.
    to.store(to.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

fn add_f64(to: &AtomicU64, value: f64) {
    to.store((f64::from_bits(to.load(Ordering::Relaxed)) + value).to_bits(), Ordering::Relaxed);
}

impl Statistics {
    /// Bytes that statistics of so many latents take.
    pub(crate) fn bytes(latents: usize) -> usize {
        latents.saturating_mul(size_of::<Cell>() + size_of::<u32>())
    }

    /// Statistics of all latents, or of those in `only`.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(crate) fn new(sae: Arc<Sae>, only: Option<Box<[u32]>>, half_life: f64) -> Result<Self> {
        let len = only.as_ref().map_or(sae.config().encoder.latents(), |only| only.len());
        let mut cells = Vec::new();
        let what = "statistics of latents";
        cells.try_reserve_exact(len).map_err(|_| Error::out_of_memory(what, Self::bytes(len)))?;
        cells.extend((0..len).map(|_| Cell {
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            weight: AtomicU64::new(0),
        }));
        let tokens =
            sae.config().json.get("calibration").and_then(|c| c.get("tokens")).and_then(serde_json::Value::as_f64);
        Ok(Statistics {
            calibration_tokens: tokens.filter(|&tokens| tokens >= 1.0),
            sae,
            only,
            cells: cells.into_boxed_slice(),
            half_life,
            tokens: AtomicU64::new(0),
            active: [AtomicU64::new(0), AtomicU64::new(0)],
            landmark: AtomicU64::new(0),
            scaling: AtomicU64::new(0),
        })
    }

    /// Counts a token by its active latents. `cells` are indices of latents, or of entries of `only`. Only the one
    /// writer may call this.
    pub(crate) fn observe(&self, cells: &[u32], values: &[f32]) {
        let tokens = self.tokens.load(Ordering::Relaxed) + 1;
        let mut age = (tokens - self.landmark.load(Ordering::Relaxed)) as f64 / self.half_life;
        if age >= RESCALE {
            self.rescale(tokens, age);
            age = 0.0;
        }
        let weight = age.exp2();
        for (&cell, &value) in cells.iter().zip(values) {
            let cell = &self.cells[cell as usize];
            add(&cell.count, 1);
            add_f64(&cell.sum, f64::from(value));
            add_f64(&cell.weight, weight);
        }
        let active = self.active[(tokens - 1) as usize % 2].load(Ordering::Relaxed);
        // Release: who sees this sees that the token before was published, see `l0`.
        self.active[tokens as usize % 2].store(active + cells.len() as u64, Ordering::Release);
        self.tokens.store(tokens, Ordering::Release);
    }

    fn rescale(&self, tokens: u64, age: f64) {
        add(&self.scaling, 1);
        fence(Ordering::Release);
        let scale = (-age).exp2();
        for cell in &self.cells {
            let weight = f64::from_bits(cell.weight.load(Ordering::Relaxed)) * scale;
            cell.weight.store(weight.to_bits(), Ordering::Relaxed);
        }
        self.landmark.store(tokens, Ordering::Relaxed);
        // Release: who sees it even sees the scaled weights.
        self.scaling.store(self.scaling.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// What `read` makes of weights that all rest on one landmark.
    fn consistent<T>(&self, mut read: impl FnMut(&Reading) -> T) -> T {
        loop {
            let before = self.scaling.load(Ordering::Acquire);
            let reading = self.reading();
            let out = read(&reading);
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.scaling.load(Ordering::Relaxed) == before {
                return out;
            }
            std::thread::yield_now();
        }
    }

    fn reading(&self) -> Reading {
        let tokens = self.tokens.load(Ordering::Acquire);
        let landmark = self.landmark.load(Ordering::Relaxed);
        if tokens == 0 {
            return Reading { scale: 0.0, effective: 0.0 };
        }
        let n = tokens as f64;
        let log2_gamma = -1.0 / self.half_life;
        let one_minus = |exponent: f64| -f64::exp_m1(exponent * log2_gamma * std::f64::consts::LN_2);
        let sum = one_minus(n) / one_minus(1.0);
        let squares = one_minus(2.0 * n) / one_minus(2.0);
        let age = tokens.saturating_sub(landmark) as f64 / self.half_life;
        Reading { scale: (-age).exp2() / sum, effective: sum * sum / squares }
    }

    /// Tokens observed.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Acquire)
    }

    /// Mean number of active latents a token; 0 before the first.
    pub(crate) fn l0(&self) -> f64 {
        loop {
            let tokens = self.tokens();
            if tokens == 0 {
                return 0.0;
            }
            let active = self.active[tokens as usize % 2].load(Ordering::Acquire);
            // The place is written again for the next token but one, after the next was published.
            if self.tokens.load(Ordering::Relaxed) == tokens {
                return active as f64 / tokens as f64;
            }
            std::hint::spin_loop();
        }
    }

    fn latent_of(&self, cell: usize) -> u32 {
        self.only.as_ref().map_or(cell as u32, |only| only[cell])
    }

    fn calibrated(&self, latent: u32) -> Option<f64> {
        let rates = self.sae.calibration()?.rate.as_ref()?;
        Some(f64::from(rates[latent as usize])).filter(|rate| !rate.is_nan())
    }

    fn snapshot_of(&self, cell: usize, reading: &Reading) -> LatentSnapshot {
        let latent = self.latent_of(cell);
        let cell = &self.cells[cell];
        let count = cell.count.load(Ordering::Relaxed);
        let sum = f64::from_bits(cell.sum.load(Ordering::Relaxed));
        let rate = self.rate(cell, reading);
        let calibrated = self.calibrated(latent);
        LatentSnapshot {
            latent,
            count,
            mean: if count == 0 { f32::NAN } else { (sum / count as f64) as f32 },
            rate: rate as f32,
            calibrated_rate: calibrated.map_or(f32::NAN, |c| c as f32),
            drift: calibrated.map_or(f32::NAN, |c| drift(rate, c, reading.effective, self.calibration_tokens) as f32),
        }
    }

    fn rate(&self, cell: &Cell, reading: &Reading) -> f64 {
        // A token counted between the two readings may lift it past 1.
        (f64::from_bits(cell.weight.load(Ordering::Relaxed)) * reading.scale).min(1.0)
    }

    /// One latent's statistics; None where it is not observed.
    pub(crate) fn latent(&self, latent: u32) -> Option<LatentSnapshot> {
        let cell = match &self.only {
            None => latent as usize,
            Some(only) => only.iter().position(|&one| one == latent)?,
        };
        (cell < self.cells.len()).then(|| self.consistent(|reading| self.snapshot_of(cell, reading)))
    }

    /// The `most` latents with the highest drift, those alone that have fired; by rate where nothing is calibrated.
    pub(crate) fn strongest(&self, most: usize) -> Vec<LatentSnapshot> {
        self.consistent(|reading| {
            let mut best: Vec<(f32, LatentSnapshot)> = Vec::with_capacity(most + 1);
            for cell in 0..self.cells.len() {
                if self.cells[cell].count.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let of = self.snapshot_of(cell, reading);
                let score = if of.drift.is_nan() { of.rate } else { of.drift };
                if best.len() == most && best.last().is_some_and(|(least, _)| *least >= score) {
                    continue;
                }
                let at = best.partition_point(|(other, _)| *other >= score);
                best.insert(at, (score, of));
                best.truncate(most);
            }
            best.into_iter().map(|(_, of)| of).collect()
        })
    }

    /// The Jensen-Shannon divergence between recent and calibrated firings, in bits; NaN where not calibrated, or where
    /// either never fired.
    pub(crate) fn drift(&self) -> f64 {
        if self.sae.calibration().is_none_or(|calibration| calibration.rate.is_none()) {
            return f64::NAN;
        }
        let pairs = |reading: &Reading| {
            let reading = *reading;
            (0..self.cells.len()).map(move |cell| {
                (self.rate(&self.cells[cell], &reading), self.calibrated(self.latent_of(cell)).unwrap_or(0.0))
            })
        };
        self.consistent(|reading| {
            let (r, c) = pairs(reading).fold((0.0, 0.0), |(r, c), (rate, calibrated)| (r + rate, c + calibrated));
            if !(r > 0.0 && c > 0.0) {
                return f64::NAN;
            }
            let bits = |x: f64| if x > 0.0 { x * x.log2() } else { 0.0 };
            let sum: f64 = pairs(reading)
                .map(|(rate, calibrated)| {
                    let (p, q) = (rate / r, calibrated / c);
                    0.5 * (bits(p) + bits(q)) - bits(0.5 * (p + q))
                })
                .sum();
            sum.clamp(0.0, 1.0)
        })
    }
}

/// What turns weights into rates at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    scale: f64,
    /// n'.
    effective: f64,
}

fn drift(rate: f64, calibrated: f64, effective: f64, tokens: Option<f64>) -> f64 {
    if effective == 0.0 {
        return 0.0;
    }
    let tokens = tokens.unwrap_or(effective);
    let pooled = (effective * rate + tokens * calibrated) / (effective + tokens);
    let error = (pooled * (1.0 - pooled) * (1.0 / effective + 1.0 / tokens)).sqrt();
    // Never active here and there, or always: nothing has drifted.
    if error > 0.0 { (rate - calibrated) / error } else { 0.0 }
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
