//! Exact selection: from one token's pre-activations to its latents, in the total order of the format.
//!
//! Order: the f32 product p*q (dense: y) descending, then the latent index ascending. Only positive values take part.
//! TopK over the F = h*m*n latents of a KronSAE never looks at all of them: with M_k the largest product of head k, the
//! min(K, h) heads that come first by (M descending, head ascending) hold every TopK latent, because each of them
//! contributes at least its maximum, which precedes every latent of any other head. Their products below the smallest
//! of those maxima are out as well.

use crate::error::Result;
use crate::isa_fn;
use crate::memory::try_vec;
use crate::sae::{Encoder, Selection};
use crate::simd::Isa;

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOutcome {
    /// Its latents were selected. `active` is the number that passed the threshold, or the number selected by TopK.
    Selected {
        /// Latents that were active, before any cut to `max_latents`.
        active: usize,
    },
    /// A pre-activation is NaN or +infinity, or a product is not finite: no latents.
    NotFinite,
}

/// Selects latents from pre-activations. Holds its workspace; after construction it allocates nothing.
#[derive(Debug)]
pub struct Selector {
    isa: Isa,
    encoder: Encoder,
    rule: Rule,
    /// Largest product of each head, `[heads]` (kron).
    maxima: Vec<f32>,
    /// Candidates as sort keys: see [`key`].
    keys: Vec<u64>,
}

#[derive(Debug)]
enum Rule {
    TopK(usize),
    /// Active iff the value (product, dense: y) is at least `floor`; at most `max_latents` are kept.
    Threshold {
        floor: f32,
        max_latents: usize,
    },
    /// Dense only: a floor for each latent.
    PerLatent {
        floors: Vec<f32>,
        max_latents: usize,
    },
}

/// A candidate as one integer, so that ascending integer order is the order of the format: the complement of the
/// value's bits (positive floats order like their bits) above the index.
#[inline(always)]
fn key(value: f32, index: usize) -> u64 {
    debug_assert!(value > 0.0);
    (u64::from(!value.to_bits()) << 32) | index as u64
}

#[inline(always)]
fn value_of(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

#[inline(always)]
fn index_of(key: u64) -> usize {
    (key & 0xFFFF_FFFF) as usize
}

/// The smallest f32 whose correctly rounded square root is above `theta`: `sqrt(x) > theta` iff `x >= floor`.
fn square_floor(theta: f32) -> f32 {
    let mut x = theta * theta;
    // theta^2 is within a few ulps of the answer wherever it does not underflow; walk there from either side.
    while x > 0.0 && x.sqrt() > theta {
        x = x.next_down();
    }
    while x.sqrt() <= theta {
        x = x.next_up();
    }
    x
}

impl Selector {
    /// A selector for an encoder of this shape.
    ///
    /// `thresholds` are those of `encoder.threshold`, latent by latent, where the model has them.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub fn new(encoder: Encoder, selection: Selection, thresholds: Option<&[f32]>, isa: Isa) -> Result<Self> {
        let dense = matches!(encoder, Encoder::Dense { .. });
        let rule = match (selection, thresholds) {
            (Selection::TopK(k), _) => Rule::TopK(k),
            (Selection::Threshold { max_latents, .. }, Some(thresholds)) => {
                let mut floors = try_vec(thresholds.len(), 0.0_f32, "thresholds")?;
                for (floor, theta) in floors.iter_mut().zip(thresholds) {
                    *floor = theta.next_up();
                }
                Rule::PerLatent { floors, max_latents }
            }
            (Selection::Threshold { theta, max_latents }, None) => {
                Rule::Threshold { floor: if dense { theta.next_up() } else { square_floor(theta) }, max_latents }
            }
        };
        let (heads, most_keys) = match encoder {
            // The list of heads, then candidates up to the point where they are cut back, and one more row of a head.
            Encoder::Kron { heads, extension, .. } => match rule {
                Rule::TopK(k) => (heads, scan_capacity(k).max(k) + cut_at(k) + extension),
                _ => (heads, heads + cut_at(selection.capacity()) + extension),
            },
            Encoder::Dense { latents } => match rule {
                Rule::TopK(k) => (0, scan_capacity(k)),
                _ => (0, latents),
            },
        };
        let maxima = try_vec(heads, 0.0, "head maxima")?;
        let mut keys = try_vec(most_keys, 0_u64, "candidates")?;
        keys.clear();
        Ok(Selector { isa, encoder, rule, maxima, keys })
    }

    /// Selects from the pre-activations `y` of one token, `[rows]`. The result is read with [`Selector::selected`].
    ///
    /// # Panics
    /// If `y` is not as long as the encoder has rows.
    pub fn select(&mut self, y: &[f32]) -> RowOutcome {
        assert_eq!(y.len(), self.encoder.rows(), "pre-activations of another encoder");
        self.keys.clear();
        match self.encoder {
            Encoder::Dense { .. } => self.select_dense(y),
            Encoder::Kron { heads, base, extension } => self.select_kron(y, heads, base, extension),
        }
    }

    /// The latents selected last, in order: index and value before the square root (the product p*q; dense: y).
    pub fn selected(&self) -> impl ExactSizeIterator<Item = (usize, f32)> + '_ {
        self.keys.iter().map(|&key| (index_of(key), value_of(key)))
    }

    /// Number of latents selected last.
    #[must_use]
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    fn select_dense(&mut self, y: &[f32]) -> RowOutcome {
        if !finite(self.isa, y) {
            return RowOutcome::NotFinite;
        }
        match &self.rule {
            Rule::TopK(k) => {
                let k = *k;
                scan(self.isa, y, k, &mut self.keys);
                self.finish(k, self.keys.len())
            }
            Rule::Threshold { floor, max_latents } => {
                // The scan is strict and y positive, so the floor's predecessor asks for the same.
                let (below, max) = (floor.next_down(), *max_latents);
                above(self.isa, y, below, &mut self.keys);
                self.finish(max, self.keys.len())
            }
            Rule::PerLatent { floors, max_latents } => {
                for (f, (&value, &floor)) in y.iter().zip(floors).enumerate() {
                    if value >= floor {
                        self.keys.push(key(value, f));
                    }
                }
                let max = *max_latents;
                self.finish(max, self.keys.len())
            }
        }
    }

    fn select_kron(&mut self, y: &[f32], heads: usize, m: usize, n: usize) -> RowOutcome {
        if !head_maxima(self.isa, y, m, n, &mut self.maxima) {
            return RowOutcome::NotFinite;
        }
        let (k, floor, counting) = match self.rule {
            Rule::TopK(k) => {
                scan(self.isa, &self.maxima, k.min(heads), &mut self.keys);
                // With K heads taken, K latents (their maxima) are no smaller than the smallest of these.
                let smallest = self.keys.iter().map(|&key| value_of(key)).fold(f32::INFINITY, f32::min);
                (k, if self.keys.len() == k { smallest } else { 0.0 }, false)
            }
            Rule::Threshold { floor, max_latents } => {
                above(self.isa, &self.maxima, floor.next_down(), &mut self.keys);
                (max_latents, floor, true)
            }
            Rule::PerLatent { .. } => unreachable!("per-latent thresholds are refused for kron when a model is read"),
        };
        // The list of heads is replaced by the list of products, which grows behind it.
        let taken = self.keys.len();
        let mut products =
            Products { keys: &mut self.keys, start: taken, most: k, floor, keep: floor, counting, active: 0 };
        for at in 0..taken {
            let head = index_of(products.keys[at]);
            products.push_head(&y[head * (m + n)..][..m + n], head * m * n, m);
        }
        let active = products.active;
        self.keys.drain(..taken);
        self.finish(k, active)
    }

    /// Cuts the candidates, of `active` that were found, to the first `most` in order, and sorts those.
    fn finish(&mut self, most: usize, active: usize) -> RowOutcome {
        if self.keys.len() > most {
            self.keys.select_nth_unstable(most - 1);
            self.keys.truncate(most);
        }
        self.keys.sort_unstable();
        match self.rule {
            Rule::TopK(_) => RowOutcome::Selected { active: self.keys.len() },
            _ => RowOutcome::Selected { active },
        }
    }
}

/// The products of the heads that were taken, behind the list of those heads.
struct Products<'a> {
    keys: &'a mut Vec<u64>,
    /// Where the products start.
    start: usize,
    /// How many are wanted in the end.
    most: usize,
    /// Products below this are not active.
    floor: f32,
    /// Products below this are out, active or not: others precede them.
    keep: f32,
    /// Whether all active products are counted, or only those that are kept looked at.
    counting: bool,
    /// Products that were found active.
    active: usize,
}

impl Products<'_> {
    /// Adds the products of one head that are positive and at least the floor.
    #[inline]
    fn push_head(&mut self, rows: &[f32], first: usize, m: usize) {
        let (base, extension) = rows.split_at(m);
        let n = extension.len();
        let q_max = positive_max(extension);
        for (i, &p) in base.iter().enumerate() {
            // Rounded multiplication is monotone, so no product of this row is above p * q_max.
            if p <= 0.0 || p * q_max < self.floor {
                continue;
            }
            for (j, &q) in extension.iter().enumerate() {
                let product = p * q;
                if q > 0.0 && product > 0.0 && product >= self.floor {
                    self.active += 1;
                    if product >= self.keep {
                        self.keys.push(key(product, first + i * n + j));
                    }
                }
            }
            if self.keys.len() - self.start > cut_at(self.most) {
                self.cut();
            }
        }
    }

    /// Keeps the first `most`; what is strictly below the last of them is out from now on. (Equal values stay in: heads
    /// are not visited in index order.)
    #[cold]
    fn cut(&mut self) {
        let (_, last, _) = self.keys[self.start..].select_nth_unstable(self.most - 1);
        self.keep = value_of(*last);
        if !self.counting {
            self.floor = self.keep;
        }
        self.keys.truncate(self.start + self.most);
    }
}

/// Candidates beyond this many are cut back to `k`, so that wide heads need no room for all their products.
fn cut_at(k: usize) -> usize {
    4 * k + 256
}

/// Room that [`scan`] needs for `k`.
fn scan_capacity(k: usize) -> usize {
    // At least one whole chunk beyond the point where the candidates are cut back to k.
    2 * k + CHUNK + 64
}

const CHUNK: usize = 32;

/// Whether no element is NaN or +infinity.
#[inline(always)]
fn all_below_infinity(y: &[f32]) -> bool {
    let mut bad = [false; CHUNK];
    let (chunks, rest) = y.as_chunks::<CHUNK>();
    for chunk in chunks {
        for j in 0..CHUNK {
            bad[j] |= !(chunk[j] < f32::INFINITY);
        }
    }
    !bad.iter().any(|&b| b) && rest.iter().all(|&v| v < f32::INFINITY)
}

isa_fn! {
    fn finite(y: &[f32]) -> bool {
        all_below_infinity(y)
    }
}

/// One bit for each value above `floor`.
#[inline(always)]
fn hits(chunk: &[f32], floor: f32) -> u32 {
    let mut hits = 0_u32;
    for (j, &value) in chunk.iter().enumerate() {
        hits |= u32::from(value > floor) << j;
    }
    hits
}

isa_fn! {
    /// Collects the keys of the `k` first positive values, unsorted; fewer where fewer are positive.
    fn scan(values: &[f32], k: usize, keys: &mut Vec<u64>) {
        let most = scan_capacity(k) - CHUNK;
        // Indices ascend, so a value equal to the k-th found before comes after it: strictly above the floor is enough.
        let mut floor = 0.0_f32;
        for (c, chunk) in values.chunks(CHUNK).enumerate() {
            let mut hits = match <&[f32; CHUNK]>::try_from(chunk) {
                // Of fixed length, for the vectoriser.
                Ok(chunk) => hits(chunk, floor),
                Err(_) => hits(chunk, floor),
            };
            while hits != 0 {
                let j = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                keys.push(key(chunk[j], c * CHUNK + j));
            }
            if keys.len() > most {
                keys.select_nth_unstable(k - 1);
                keys.truncate(k);
                floor = value_of(keys[k - 1]);
            }
        }
        if keys.len() > k {
            keys.select_nth_unstable(k - 1);
            keys.truncate(k);
        }
    }
}

isa_fn! {
    /// Collects the keys of all values strictly above `floor` (at least 0).
    fn above(values: &[f32], floor: f32, keys: &mut Vec<u64>) {
        for (c, chunk) in values.chunks(CHUNK).enumerate() {
            let mut hits = hits(chunk, floor);
            while hits != 0 {
                let j = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                keys.push(key(chunk[j], c * CHUNK + j));
            }
        }
    }
}

isa_fn! {
    /// Writes each head's largest product; false if a pre-activation is NaN or +infinity or a product is not finite.
    fn head_maxima(y: &[f32], m: usize, n: usize, maxima: &mut [f32]) -> bool {
        if !all_below_infinity(y) {
            return false;
        }
        match (m, n) {
            // Fixed extents let the compiler keep a head in registers.
            (2, 4) => fixed::<2, 6>(y, maxima),
            (4, 4) => fixed::<4, 8>(y, maxima),
            (4, 8) => fixed::<4, 12>(y, maxima),
            (8, 8) => fixed::<8, 16>(y, maxima),
            _ => {
                for (rows, max) in y.chunks_exact(m + n).zip(maxima.iter_mut()) {
                    let (base, extension) = rows.split_at(m);
                    *max = positive_max(base) * positive_max(extension);
                }
            }
        }
        all_below_infinity(maxima)
    }
}

#[inline(always)]
fn positive_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |max, &v| if v > max { v } else { max })
}

#[inline(always)]
fn fixed<const M: usize, const ROWS: usize>(y: &[f32], maxima: &mut [f32]) {
    let (heads, _) = y.as_chunks::<ROWS>();
    for (rows, max) in heads.iter().zip(maxima.iter_mut()) {
        *max = positive_max(&rows[..M]) * positive_max(&rows[M..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn square_floor_is_the_smallest_above() {
        for theta in [0.0, 1e-30, 1e-23, 1e-20, 0.1, 0.3, 1.0, 1.5, 3.3333, 1e10, 1.8e19] {
            let floor = square_floor(theta);
            assert!(floor.sqrt() > theta, "{theta}");
            assert!(floor.next_down().sqrt() <= theta, "{theta}");
        }
    }

    #[test]
    fn keys_order_like_the_format() {
        assert!(key(2.0, 5) < key(1.0, 0));
        assert!(key(1.0, 0) < key(1.0, 1));
        assert_eq!((value_of(key(1.5, 7)), index_of(key(1.5, 7))), (1.5, 7));
    }
}
