//! Exact selection: from one token's pre-activations to its latents, in the total order of the format.
//!
//! Order: the f32 product p*q (dense: y) descending, then the latent index ascending. Only positive values take part.
//! TopK over the F = h*m*n latents of a KronSAE never looks at all of them: with M_k the largest product of head k, the
//! min(K, h) heads that come first by (M descending, head ascending) hold every TopK latent, because each of them
//! contributes at least its maximum, which precedes every latent of any other head. Any floor that at least K head maxima
//! reach serves as well: K latents reach it, so no latent below it is in, and only heads that reach it are looked into.
//! Such a floor, near the K-th maximum, is found by counting, which needs no branch; then only candidates that reach it
//! are formed and sorted. (Dense: the same, with the maxima of any disjoint parts of the latents.)

use super::candidates::{
    MOST_RANKED, SMALLEST, above, index_of, key, near_cut, rank_sort, scan, scan_capacity, value_of,
};
use super::maxima::{column_maxima, columns, finite, head_maxima, positive_max};
use crate::error::{Error, Result};
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
    pub(super) isa: Isa,
    pub(super) encoder: Encoder,
    pub(super) rule: Rule,
    /// Largest product of each head, `[heads]`; dense: largest pre-activation of each of some disjoint parts.
    pub(super) maxima: Vec<f32>,
    /// Candidates as sort keys: see [`key`].
    keys: Vec<u64>,
    /// Where only some rows take part: their heads, and all rows of those.
    some: (Vec<u32>, Vec<f32>),
    /// Where the last row was cut: a first guess for the next one's. It decides how fast, never what.
    guess: f32,
}

#[derive(Debug)]
pub(super) enum Rule {
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
        let (maxima, most_keys) = match encoder {
            // The list of heads, then candidates up to the point where they are cut back, and one more push.
            Encoder::Kron { heads, extension, .. } => match rule {
                Rule::TopK(k) if k <= heads => (heads, scan_capacity(k) + cut_at(k) + extension.max(MOST_FIXED)),
                _ => (heads, heads + cut_at(selection.capacity()) + extension.max(MOST_FIXED)),
            },
            Encoder::Dense { latents } => match rule {
                Rule::TopK(k) => (columns(latents), scan_capacity(k)),
                _ => (0, latents),
            },
        };
        let maxima = try_vec(maxima, 0.0, "maxima")?;
        let mut keys = try_vec(most_keys, 0_u64, "candidates")?;
        keys.clear();
        let some = (room(encoder.rows(), "some rows")?, room(encoder.rows(), "some rows")?);
        Ok(Selector { isa, encoder, rule, maxima, keys, some, guess: 1.0 })
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

    /// As [`Selector::select`], where only `rows` take part, ascending; of `y`, which is finite, no other is looked at.
    pub(super) fn select_among(&mut self, y: &[f32], rows: &[u32]) -> RowOutcome {
        assert_eq!(y.len(), self.encoder.rows(), "pre-activations of another encoder");
        self.keys.clear();
        let Encoder::Kron { heads: all, base, extension } = self.encoder else {
            return self.select_among_dense(y, rows);
        };
        let width = base + extension;
        let (heads, values) = &mut self.some;
        heads.clear();
        values.clear();
        for &row in rows {
            let (head, within) = (row as usize / width, row as usize % width);
            if heads.last() != Some(&(head as u32)) {
                heads.push(head as u32);
                values.resize(heads.len() * width, 0.0);
            }
            let first = (heads.len() - 1) * width;
            values[first + within] = y[row as usize];
        }
        // Heads by their places in the list, which order like themselves.
        for (place, rows) in values.chunks_exact(width).enumerate() {
            let max = positive_max(&rows[..base]) * positive_max(&rows[base..]);
            if max.is_nan() || max == f32::INFINITY {
                return RowOutcome::NotFinite;
            }
            if max > 0.0 {
                self.keys.push(key(max, place));
                if let Rule::TopK(k) = self.rule
                    && k <= all
                {
                    first_keys(&mut self.keys, k);
                }
            }
        }
        let (most, floor, counting) = match self.rule {
            Rule::TopK(k) => {
                let mut floor = 0.0;
                if k <= all && self.keys.len() >= k {
                    self.keys.select_nth_unstable(k - 1);
                    self.keys.truncate(k);
                    floor = value_of(self.keys[k - 1]);
                }
                (k, floor, false)
            }
            Rule::Threshold { floor, max_latents } => (max_latents, floor, true),
            Rule::PerLatent { .. } => unreachable!("per-latent thresholds are refused for kron when a model is read"),
        };
        let taken = self.keys.len();
        let mut products =
            Products { keys: &mut self.keys, start: taken, most, floor, keep: floor, counting, active: 0 };
        push_heads(self.isa, &mut products, values, Some(heads), base, extension);
        let active = products.active;
        self.keys.drain(..taken);
        self.finish(most, active)
    }

    fn select_among_dense(&mut self, y: &[f32], rows: &[u32]) -> RowOutcome {
        let most = match &self.rule {
            Rule::TopK(k) => *k,
            Rule::Threshold { max_latents, .. } | Rule::PerLatent { max_latents, .. } => *max_latents,
        };
        for &row in rows {
            let value = y[row as usize];
            let floor = match &self.rule {
                Rule::TopK(_) => SMALLEST,
                Rule::Threshold { floor, .. } => *floor,
                Rule::PerLatent { floors, .. } => floors[row as usize],
            };
            if value >= floor {
                self.keys.push(key(value, row as usize));
                if let Rule::TopK(k) = self.rule {
                    first_keys(&mut self.keys, k);
                }
            }
        }
        self.finish(most, self.keys.len())
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
                column_maxima(self.isa, y, &mut self.maxima);
                // At least k parts reach this, so at least k latents do.
                let floor = near_cut(self.isa, &self.maxima, k, self.guess);
                self.guess = floor.filter(|&f| f > SMALLEST).unwrap_or(self.guess);
                let reached = floor.filter(|_| self.maxima.len() >= k).unwrap_or(SMALLEST);
                scan(self.isa, y, k, reached, &mut self.keys);
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
                let floor = if k > heads {
                    above(self.isa, &self.maxima, 0.0, &mut self.keys);
                    0.0
                } else {
                    self.first_heads(k)
                };
                (k, floor, false)
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
        push_heads(self.isa, &mut products, y, None, m, n);
        let active = products.active;
        self.keys.drain(..taken);
        self.finish(k, active)
    }

    /// Collects the keys of at least the `k` heads whose maxima come first, not many more, unsorted; of all with a
    /// positive one where there are no more. Returns a floor that at least `k` of them reach, or 0.
    fn first_heads(&mut self, k: usize) -> f32 {
        if let Some(floor) = near_cut(self.isa, &self.maxima, k, self.guess) {
            above(self.isa, &self.maxima, floor.next_down(), &mut self.keys);
            if self.keys.len() < k {
                return 0.0;
            }
            self.guess = floor;
            return floor;
        }
        // Many maxima tie about the cut.
        scan(self.isa, &self.maxima, k, SMALLEST, &mut self.keys);
        if self.keys.len() < k {
            return 0.0;
        }
        self.keys.iter().map(|&key| value_of(key)).fold(f32::INFINITY, f32::min)
    }

    /// Cuts the candidates, of `active` that were found, to the first `most` in order, and sorts those.
    fn finish(&mut self, most: usize, active: usize) -> RowOutcome {
        if self.keys.len() > most {
            self.keys.select_nth_unstable(most - 1);
            self.keys.truncate(most);
        }
        if self.keys.len() <= MOST_RANKED {
            rank_sort(self.isa, &mut self.keys);
        } else {
            self.keys.sort_unstable();
        }
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

    /// As [`Products::push_head`] for heads of M x N = P at most [`MOST_FIXED`] products, formed all at once.
    #[inline(always)]
    fn push_fixed<const M: usize, const N: usize, const P: usize>(&mut self, rows: &[f32], first: usize) {
        const { assert!(M * N == P && P <= MOST_FIXED) }
        let mut products = [0.0_f32; P];
        for i in 0..M {
            for j in 0..N {
                products[i * N + j] = positive(rows[i]) * positive(rows[M + j]);
            }
        }
        // Only positive products take part, whatever the floor.
        let floor = self.floor.max(SMALLEST);
        let mut hits = 0_u64;
        for (f, &product) in products.iter().enumerate() {
            hits |= u64::from(product >= floor) << f;
        }
        while hits != 0 {
            self.active += 1;
            let f = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            if products[f] >= self.keep {
                self.keys.push(key(products[f], first + f));
            }
        }
        if self.keys.len() - self.start > cut_at(self.most) {
            self.cut();
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

/// The most products of a head that are formed all at once.
const MOST_FIXED: usize = 64;

/// Candidates beyond this many are cut back to `k`, so that wide heads need no room for all their products.
fn cut_at(k: usize) -> usize {
    4 * k + 256
}

isa_fn! {
    /// Replaces the list of heads, the keys there are, by their products: those are pushed behind it. The list holds places
    /// in `y`; `heads` says which heads those are, if not the same.
    fn push_heads(products: &mut Products<'_>, y: &[f32], heads: Option<&[u32]>, m: usize, n: usize) {
        for at in 0..products.start {
            let place = index_of(products.keys[at]);
            let head = heads.map_or(place, |heads| heads[place] as usize);
            let (rows, first) = (&y[place * (m + n)..][..m + n], head * m * n);
            match (m, n) {
                (2, 2) => products.push_fixed::<2, 2, 4>(rows, first),
                (2, 4) => products.push_fixed::<2, 4, 8>(rows, first),
                (4, 4) => products.push_fixed::<4, 4, 16>(rows, first),
                (4, 8) => products.push_fixed::<4, 8, 32>(rows, first),
                (8, 8) => products.push_fixed::<8, 8, 64>(rows, first),
                _ => products.push_head(rows, first, m),
            }
        }
    }
}

/// Cuts a growing list back to the `k` that come first, now and then.
fn first_keys(keys: &mut Vec<u64>, k: usize) {
    if keys.len() == scan_capacity(k) {
        keys.select_nth_unstable(k - 1);
        keys.truncate(k);
    }
}

/// An empty list with room for `most`, of which the system gives only what is used.
///
/// # Errors
/// [`crate::Status::OutOfMemory`] naming `what`.
pub(super) fn room<T>(most: usize, what: &str) -> Result<Vec<T>> {
    let mut list = Vec::new();
    let bytes = most.saturating_mul(size_of::<T>());
    list.try_reserve_exact(most).map_err(|_| Error::out_of_memory(what, bytes))?;
    Ok(list)
}

#[inline(always)]
fn positive(value: f32) -> f32 {
    if value > 0.0 { value } else { 0.0 }
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
}
