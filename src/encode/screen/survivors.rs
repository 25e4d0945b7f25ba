//! Which rows can matter to a token, from bounds of its pre-activations.
//!
//! TopK needs a value that K canonical products reach. The K first latents by lower bounds have one in the least of their
//! lower bounds; computing their canonical products, at two rows each, gives a much better one, most often the K-th
//! product itself, because bounds are far wider than errors are. So rows are found in two steps: [`Selector::likely`],
//! then, given those, [`Selector::survivors`].
//!
//! A row survives if its upper bound times the largest upper bound of the other side of its head reaches that value.
//! Rounded multiplication is monotone, so no canonical product with a row that does not survive reaches it.

use crate::encode::candidates::{SMALLEST, reaching};
use crate::encode::maxima::{head_maxima, positive_max};
use crate::encode::select::{Rule, Selector};
use crate::sae::Encoder;

impl Selector {
    /// Lists the latents that TopK would select from the lower bounds `low`, K of them or none, and the rows they are
    /// made of. Both lists need room for K and 2K, or as many as there are rows. With a threshold there are none.
    pub(in crate::encode) fn likely(&mut self, low: &[f32], latents: &mut Vec<u32>, rows: &mut Vec<u32>) {
        latents.clear();
        rows.clear();
        let Rule::TopK(k) = self.rule else { return };
        self.select(low);
        if self.count() < k {
            return;
        }
        latents.extend(self.selected().map(|(f, _)| f as u32));
        match self.encoder {
            Encoder::Dense { .. } => rows.extend_from_slice(latents),
            Encoder::Kron { base, extension, .. } => {
                // All base rows first, then all extension rows, each list without repetitions.
                let rows_of = |f: u32| rows_of(f as usize, base, extension);
                rows.extend(latents.iter().map(|&f| rows_of(f)[0]));
                rows.sort_unstable();
                rows.dedup();
                let bases = rows.len();
                for &f in latents.iter() {
                    let row = rows_of(f)[1];
                    if !rows[bases..].contains(&row) {
                        rows.push(row);
                    }
                }
                rows[bases..].sort_unstable();
            }
        }
    }

    /// A value below which no latent is selected: the threshold, or what all of `latents` reach, whose rows of `y` are
    /// canonical.
    pub(in crate::encode) fn cut(&self, y: &[f32], latents: &[u32]) -> f32 {
        match (&self.rule, self.encoder) {
            (Rule::Threshold { floor, .. }, _) => *floor,
            // Each latent has its own.
            (Rule::PerLatent { .. }, _) => SMALLEST,
            (Rule::TopK(_), _) if latents.is_empty() => SMALLEST,
            (Rule::TopK(_), Encoder::Dense { .. }) => {
                latents.iter().map(|&f| y[f as usize]).fold(f32::INFINITY, f32::min).max(SMALLEST)
            }
            (Rule::TopK(_), Encoder::Kron { base, extension, .. }) => {
                let product = |&f: &u32| {
                    let [p, q] = rows_of(f as usize, base, extension).map(|row| y[row as usize]);
                    p * q
                };
                latents.iter().map(product).fold(f32::INFINITY, f32::min).max(SMALLEST)
            }
        }
    }

    /// Lists the rows that can be part of a latent whose value reaches `cut` (positive), from upper bounds, all finite.
    /// `rows` needs room for all.
    pub(in crate::encode) fn survivors(&mut self, high: &[f32], cut: f32, rows: &mut Vec<u32>) {
        rows.clear();
        match (&self.rule, self.encoder) {
            (Rule::PerLatent { floors, .. }, _) => {
                rows.extend(
                    (0..).zip(high.iter().zip(floors)).filter(|(_, (h, floor))| h >= floor).map(|(row, _)| row),
                );
            }
            (_, Encoder::Dense { .. }) => reaching(self.isa, high, cut, rows),
            (_, Encoder::Kron { base, extension, .. }) => {
                if !head_maxima(self.isa, high, base, extension, &mut self.maxima) {
                    // Upper bounds of covered tokens are finite; were they not, nothing could be ruled out.
                    rows.extend(0..high.len() as u32);
                    return;
                }
                let width = base + extension;
                for (head, (of, &max)) in high.chunks_exact(width).zip(&self.maxima).enumerate() {
                    if max < cut {
                        continue;
                    }
                    let (p, q) = of.split_at(base);
                    let (p_max, q_max) = (positive_max(p), positive_max(q));
                    let first = (head * width) as u32;
                    rows.extend((first..).zip(p).filter(|(_, p)| **p * q_max >= cut).map(|(row, _)| row));
                    rows.extend((first + base as u32..).zip(q).filter(|(_, q)| **q * p_max >= cut).map(|(row, _)| row));
                }
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
