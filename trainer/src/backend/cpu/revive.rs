//! Dead rows: encoder rows positive on no token of the window. AuxK's gradient through them is exactly zero, so they are
//! re-initialised: each takes the direction of the residual of a token that is explained badly, as something no living
//! latent says. Its bias and moments start anew, and so do the decoder rows of the latents it takes part in.

use crate::backend::TrainState;

/// Encoder rows that have not been positive for `window` tokens.
pub(super) fn dead_rows(state: &TrainState, window: u64) -> Vec<u32> {
    not_since(&state.positive_at, state.tokens, window)
}

/// Latents that have not fired for `window` tokens.
pub(super) fn dead_latents(state: &TrainState, window: u64) -> Vec<u32> {
    not_since(&state.fired_at, state.tokens, window)
}

fn not_since(last: &[u64], now: u64, window: u64) -> Vec<u32> {
    (0_u32..).zip(last).filter(|&(_, &at)| now - at >= window).map(|(i, _)| i).collect()
}

/// Re-initialises `rows`, at most one for each token, from the tokens with the largest residuals; `residual` holds
/// `tokens` rows of `stride` elements, each a positive multiple of x_hat - x. Returns how many were.
pub(super) fn revive(state: &mut TrainState, rows: &[u32], residual: &[f32], tokens: usize, stride: usize) -> usize {
    let squared = |v: &[f32]| v.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let mut order: Vec<(usize, f64)> =
        (0..tokens).map(|t| (t, squared(&residual[t * stride..(t + 1) * stride]))).filter(|t| t.1 > 0.0).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let d = state.d_model();
    // A typical row's norm: that of a living encoder; initial rows have norm 1.
    let weight = &state.encoder_weight;
    let norm = (squared(&weight.value) / weight.rows as f64).sqrt();
    let mut revived = 0;
    for (&row, &(token, square)) in rows.iter().zip(&order) {
        let row = row as usize;
        let weight = &mut state.encoder_weight;
        let range = row * weight.stride..row * weight.stride + d;
        let factor = -norm / square.sqrt();
        for (to, &r) in weight.value[range.clone()].iter_mut().zip(&residual[token * stride..]) {
            *to = (f64::from(r) * factor) as f32;
        }
        weight.first[range.clone()].fill(0.0);
        weight.second[range].fill(0.0);
        let bias = &mut state.encoder_bias;
        (bias.value[row], bias.first[row], bias.second[row]) = (0.0, 0.0, 0.0);
        state.positive_at[row] = state.tokens;
        for latent in latents_of_row(state, row) {
            state.reset_decoder_row(latent);
        }
        revived += 1;
    }
    revived
}

/// The latents that encoder row `row` takes part in.
fn latents_of_row(state: &TrainState, row: usize) -> Vec<usize> {
    match state.encoder {
        kronsae::sae::Encoder::Dense { .. } => vec![row],
        kronsae::sae::Encoder::Kron { base: m, extension: n, .. } => {
            let (head, within) = (row / (m + n), row % (m + n));
            let first = head * m * n;
            if within < m {
                (0..n).map(|j| first + within * n + j).collect()
            } else {
                (0..m).map(|i| first + i * n + within - m).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kronsae::sae::Encoder;

    #[test]
    fn latents_of_each_row_are_those_that_name_it() {
        let state = TrainState::new(Encoder::Kron { heads: 3, base: 2, extension: 3 }, 4, 0).unwrap();
        for row in 0..state.encoder.rows() {
            let expected: Vec<_> = (0..state.encoder.latents())
                .filter(|&f| {
                    let (a, b) = state.encoder.rows_of(f);
                    a == row || b == row
                })
                .collect();
            assert_eq!(latents_of_row(&state, row), expected);
        }
    }
}
