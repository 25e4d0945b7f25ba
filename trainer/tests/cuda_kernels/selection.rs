//! Pre-activations and latents, by the CPU: what the training kernels start from.

use crate::emulator::{Buffer, Element};
use crate::step::Resident;
use kronsae::sae::{Encoder, MatrixRef, Selection, padded};
use kronsae::{Isa, RowOutcome, Selector, pre_activations};

/// The latents of each token.
pub(crate) struct Lists {
    pub(crate) slots: usize,
    pub(crate) counts: Buffer<u32>,
    pub(crate) indices: Buffer<u32>,
    pub(crate) values: Buffer<f32>,
}

/// Pre-activations by `dot/1` of what the device holds, rounded to T.
pub(crate) fn products<T: Element>(
    x: &Buffer<T>,
    w: &Resident<T>,
    b: &Resident<T>,
    rows: usize,
    d: usize,
    tokens: usize,
) -> (Buffer<T>, usize) {
    let (stride, ldy) = (padded(d), rows.next_multiple_of(8));
    let widen = |buffer: &Buffer<T>| buffer.get().iter().map(|v| v.widen()).collect::<Vec<_>>();
    let (x, w) = (widen(x), widen(&w.copy));
    let mut y = vec![0.0; tokens * ldy];
    let weight = MatrixRef::f32(&w, rows, d, stride);
    let isa = Isa::detect().unwrap();
    pre_activations(isa, weight, &b.value.get()[..rows], &x, stride, tokens, 0..rows, &mut y, ldy);
    (Buffer::of(&y.iter().map(|&v| T::round(v)).collect::<Vec<_>>()), ldy)
}

fn row_of<T: Element>(y: &Buffer<T>, ldy: usize, token: usize, rows: usize) -> Vec<f32> {
    y.get()[token * ldy..][..rows].iter().map(|v| v.widen()).collect()
}

/// The runtime's selection; unused places hold garbage. And which rows are positive on some token.
pub(crate) fn select<T: Element>(
    encoder: Encoder,
    y: &Buffer<T>,
    ldy: usize,
    tokens: usize,
    k: usize,
) -> (Lists, Buffer<u32>) {
    let mut selector = Selector::new(encoder, Selection::TopK(k), None, Isa::detect().unwrap()).unwrap();
    let (mut counts, mut indices, mut values) =
        (vec![0; tokens], vec![u32::MAX; tokens * k], vec![f32::NAN; tokens * k]);
    let mut positive = vec![0_u32; encoder.rows().div_ceil(32)];
    for token in 0..tokens {
        let y = row_of(y, ldy, token, encoder.rows());
        for (row, _) in y.iter().enumerate().filter(|(_, v)| **v > 0.0) {
            positive[row / 32] |= 1 << (row % 32);
        }
        assert_ne!(selector.select(&y), RowOutcome::NotFinite);
        for (at, (latent, product)) in selector.selected().enumerate() {
            indices[token * k + at] = latent as u32;
            values[token * k + at] = if matches!(encoder, Encoder::Kron { .. }) { product.sqrt() } else { product };
        }
        counts[token] = selector.count() as u32;
    }
    (lists(k, &counts, &indices, &values), Buffer::of(&positive))
}

/// The strongest dead latents, by sorting all of them.
pub(crate) fn select_dead<T: Element>(
    encoder: Encoder,
    y: &Buffer<T>,
    ldy: usize,
    tokens: usize,
    dead: &[u32],
    k: usize,
) -> Lists {
    let (mut counts, mut indices, mut values) =
        (vec![0; tokens], vec![u32::MAX; tokens * k], vec![f32::NAN; tokens * k]);
    for token in 0..tokens {
        let y = row_of(y, ldy, token, encoder.rows());
        let mut all: Vec<(u32, f32)> = dead
            .iter()
            .map(|&latent| match encoder.rows_of(latent as usize) {
                (a, b) if a == b => (latent, y[a].max(0.0)),
                (a, b) => (latent, y[a].max(0.0) * y[b].max(0.0)),
            })
            .filter(|&(_, product)| product > 0.0)
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        counts[token] = all.len() as u32;
        for (at, (latent, product)) in all.into_iter().enumerate() {
            indices[token * k + at] = latent;
            values[token * k + at] = if matches!(encoder, Encoder::Kron { .. }) { product.sqrt() } else { product };
        }
    }
    lists(k, &counts, &indices, &values)
}

fn lists(slots: usize, counts: &[u32], indices: &[u32], values: &[f32]) -> Lists {
    Lists { slots, counts: Buffer::of(counts), indices: Buffer::of(indices), values: Buffer::of(values) }
}
