//! Which rows can matter to a token, given its cheap pre-activations and how far each may be from the canonical one.
//!
//! TopK needs a value that K canonical products reach, the *cut*. The K latents that the cheap values would select have one
//! in the least of their products, be those of lower bounds, which costs nothing, or canonical ones, at two rows each.
//!
//! A row survives if its upper bound times the largest upper bound of the other side of its head reaches the cut. Rounded
//! multiplication is monotone, so no canonical product with a row that does not survive reaches it.

use crate::encode::RowOutcome;
use crate::encode::candidates::{SMALLEST, reaching};
use crate::encode::maxima::{head_maxima, positive_max};
use crate::encode::select::{Rule, Selector};
use crate::isa_fn;
use crate::sae::Encoder;

/// Rows' distances from what they are taken to be.
pub(super) trait Distance {
    /// At least the distance of any row whose upper bound is positive, where no value is above `most`.
    fn most(&self, most: f32) -> f32;
    /// That of one row of value `y`.
    fn of(&self, row: usize, y: f32) -> f32;
}

isa_fn! {
    /// The largest value, or 0.
    fn largest(y: &[f32]) -> f32 {
        const LANES: usize = 16;
        let (whole, rest) = y.as_chunks::<LANES>();
        let mut most = [0.0_f32; LANES];
        for y in whole {
            for j in 0..LANES {
                most[j] = if y[j] > most[j] { y[j] } else { most[j] };
            }
        }
        positive_max(&most).max(positive_max(rest))
    }
}

impl Selector {
    /// Lists the latents that TopK would select from the values `y`: K of them or none. With a threshold there are none.
    /// Says whether the selector now holds the head maxima of `y`.
    pub(in crate::encode) fn likely(&mut self, y: &[f32], latents: &mut Vec<u32>) -> bool {
        latents.clear();
        let Rule::TopK(k) = self.rule else { return false };
        let outcome = self.select(y);
        if self.count() == k {
            latents.extend(self.selected().map(|(f, _)| f as u32));
        }
        outcome != RowOutcome::NotFinite && matches!(self.encoder, Encoder::Kron { .. })
    }

    /// Lists the rows that `latents` are made of, ascending. `rows` needs room for two a latent.
    pub(in crate::encode) fn rows_of(&self, latents: &[u32], rows: &mut Vec<u32>) {
        rows.clear();
        match self.encoder {
            Encoder::Dense { .. } => rows.extend_from_slice(latents),
            Encoder::Kron { base, extension, .. } => {
                rows.extend(latents.iter().flat_map(|&f| rows_of(f as usize, base, extension)));
            }
        }
        rows.sort_unstable();
        rows.dedup();
    }

    /// A value below which no latent is selected: the threshold, or what all of `latents` reach, whose rows are at least
    /// `low`.
    pub(in crate::encode) fn cut(&self, latents: &[u32], low: impl Fn(usize) -> f32) -> f32 {
        let product = |&f: &u32| match self.encoder {
            Encoder::Dense { .. } => low(f as usize),
            Encoder::Kron { base, extension, .. } => {
                let [p, q] = rows_of(f as usize, base, extension).map(|row| low(row as usize));
                if p > 0.0 && q > 0.0 { p * q } else { 0.0 }
            }
        };
        match &self.rule {
            Rule::Threshold { floor, .. } => *floor,
            // Each latent has its own.
            Rule::PerLatent { .. } => SMALLEST,
            Rule::TopK(_) if latents.is_empty() => SMALLEST,
            Rule::TopK(_) => latents.iter().map(product).fold(f32::INFINITY, f32::min).max(SMALLEST),
        }
    }

    /// Lists the rows that can be part of a latent whose value reaches `cut` (positive), ascending, those of `exact` apart:
    /// of them, ascending, `y` is canonical, of all others at most `distance` away. `y` is finite; `maxima_held` says that
    /// the selector holds its head maxima ([`Selector::likely`]). `rows` needs room for all, `heads` for all heads.
    pub(super) fn survivors(
        &mut self,
        y: &[f32],
        maxima_held: bool,
        distance: &impl Distance,
        exact: &[u32],
        cut: f32,
        heads: &mut Vec<u32>,
        rows: &mut Vec<u32>,
    ) {
        rows.clear();
        let most = largest(self.isa, y);
        let eps = distance.most(most);
        let mut exact = Exact(exact);
        let upper = |row: usize| y[row] + distance.of(row, y[row]);
        match (&self.rule, self.encoder) {
            (Rule::PerLatent { floors, .. }, _) => {
                rows.extend(
                    (0..).zip(floors).filter(|&(row, floor)| upper(row as usize) >= *floor).map(|(row, _)| row),
                );
            }
            (_, Encoder::Dense { .. }) => {
                let floor = cut * (1.0 - 1e-6) - eps * (1.0 + 1e-6);
                if floor > 0.0 {
                    reaching(self.isa, y, floor, rows);
                } else {
                    rows.extend(0..y.len() as u32);
                }
                rows.retain(|&row| !exact.has(row as usize) && upper(row as usize) >= cut);
            }
            (_, Encoder::Kron { base, extension, .. }) => {
                // (p + eps)(q + eps) <= p q + 2 eps most + eps^2: a first look at each head's largest product alone.
                let slack = (2.0 * most + eps) * eps;
                let floor = cut * (1.0 - 1e-6) - slack * (1.0 + 1e-4);
                heads.clear();
                let held = |maxima: &mut [f32]| maxima_held || head_maxima(self.isa, y, base, extension, maxima);
                if floor > LEAST_FLOOR && held(&mut self.maxima) {
                    reaching(self.isa, &self.maxima, floor, heads);
                } else {
                    heads.extend(0..self.maxima.len() as u32);
                }
                for &head in heads.iter() {
                    let first = head as usize * (base + extension);
                    survivors_of_head(first, base, extension, &mut exact, y, upper, cut, rows);
                }
            }
        }
    }

    /// As [`Selector::survivors`], among `rows` alone: of these, `upper` are upper bounds; of those of `exact` they are the
    /// canonical values. No other row matters.
    pub(super) fn survivors_among(&self, upper: &[f32], exact: &[u32], cut: f32, rows: &mut Vec<u32>) {
        match (&self.rule, self.encoder) {
            (Rule::PerLatent { floors, .. }, _) => rows.retain(|&row| upper[row as usize] >= floors[row as usize]),
            (_, Encoder::Dense { .. }) => rows.retain(|&row| upper[row as usize] >= cut),
            (_, Encoder::Kron { base, extension, .. }) => {
                let width = base + extension;
                let mut exact = exact;
                let (mut from, mut to) = (0, 0);
                while from < rows.len() {
                    let head = rows[from] as usize / width;
                    let split = (head * width + base) as u32;
                    let of_head = |rows: &[u32]| rows.partition_point(|&row| (row as usize) < (head + 1) * width);
                    let count = of_head(&rows[from..]);
                    exact = &exact[exact.partition_point(|&row| (row as usize) < head * width)..];
                    let known = &exact[..of_head(exact)];
                    let (mut p, mut q) = (0.0_f32, 0.0_f32);
                    for &row in rows[from..from + count].iter().chain(known) {
                        let side = if row < split { &mut p } else { &mut q };
                        *side = side.max(upper[row as usize]);
                    }
                    for at in from..from + count {
                        let row = rows[at];
                        let other = if row < split { q } else { p };
                        let own = upper[row as usize];
                        if own > 0.0 && own * other >= cut {
                            rows[to] = row;
                            to += 1;
                        }
                    }
                    from += count;
                }
                rows.truncate(to);
            }
        }
    }
}

/// Below this, roundings of products are no longer relative, and no head is left out at first sight.
const LEAST_FLOOR: f32 = 1e-30;

/// Rows that are exact, ascending, asked for in ascending order.
struct Exact<'a>(&'a [u32]);

impl Exact<'_> {
    #[inline(always)]
    fn has(&mut self, row: usize) -> bool {
        while let [first, rest @ ..] = self.0
            && (*first as usize) < row
        {
            self.0 = rest;
        }
        self.0.first().is_some_and(|&first| first as usize == row)
    }
}

/// The survivors of the head whose rows start at `first`.
#[inline(always)]
fn survivors_of_head(
    first: usize,
    base: usize,
    extension: usize,
    exact: &mut Exact<'_>,
    y: &[f32],
    upper: impl Fn(usize) -> f32,
    cut: f32,
    rows: &mut Vec<u32>,
) {
    // Two passes: the largest upper bound of each side, then the rows, from the same cursor.
    let start = exact.0;
    let mut side = |range: std::ops::Range<usize>| {
        range.fold(0.0_f32, |most, row| most.max(if exact.has(row) { y[row] } else { upper(row) }))
    };
    let (p, q) = (side(first..first + base), side(first + base..first + base + extension));
    if p * q < cut {
        return;
    }
    let mut exact = Exact(start);
    for (range, other) in [(first..first + base, q), (first + base..first + base + extension, p)] {
        for row in range {
            if exact.has(row) {
                continue;
            }
            let own = upper(row);
            if own > 0.0 && own * other >= cut {
                rows.push(row as u32);
            }
        }
    }
}

/// The base row and the extension row of latent `f`.
fn rows_of(f: usize, base: usize, extension: usize) -> [u32; 2] {
    let (head, within) = (f / (base * extension), f % (base * extension));
    let first = head * (base + extension);
    [(first + within / extension) as u32, (first + base + within % extension) as u32]
}
