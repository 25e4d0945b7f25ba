//! The linear stage of a step: all pre-activations of a tile of tokens.
//!
//! In f32 they are those of `dot/1`, the runtime's own kernel. In bf16 they are only good enough to choose latents by:
//! the rows of those that were chosen are computed again by `dot/1`, so values and gradients are f32 in both.

use crate::backend::TrainState;
use kronsae::sae::MatrixRef;
use kronsae::threads::{Divided, Pool};
use kronsae::{AMX_BLOCK, Aligned, Amx, AmxWeights, Isa, Result, pre_activations};

/// Tokens of a tile.
pub(super) const TILE: usize = 64;
/// Encoder rows that pass by a tile at a time: what the first-level cache holds beside a few tokens.
const BLOCK_ROWS: usize = 32;

/// How pre-activations are computed.
#[derive(Debug)]
pub(super) enum Linear {
    /// By `dot/1`.
    F32,
    /// By AMX in bf16, for choosing latents.
    Bf16(Amx, AmxWeights),
}

/// A thread's workspace.
#[derive(Debug)]
pub(super) struct TileSpace {
    /// Pre-activations, `[TILE, stride]`.
    pub(super) y: Aligned<f32>,
    /// Elements from one token's pre-activations to the next.
    pub(super) stride: usize,
    /// The tokens in bf16.
    rounded: Aligned<u16>,
}

impl Linear {
    /// In bf16 if that is asked for; the caller has seen that it can be had.
    pub(super) fn new(amx: Option<Amx>, state: &TrainState) -> Result<Self> {
        match amx {
            None => Ok(Linear::F32),
            Some(amx) => Ok(Linear::Bf16(amx, AmxWeights::new(state.encoder_weight.rows, state.encoder_weight.cols)?)),
        }
    }

    /// Whether pre-activations are exact.
    pub(super) fn is_exact(&self) -> bool {
        matches!(self, Linear::F32)
    }

    pub(super) fn space(&self, state: &TrainState) -> Result<TileSpace> {
        let (stride, rounded) = match self {
            Linear::F32 => (state.encoder_weight.rows, 0),
            Linear::Bf16(_, weights) => (weights.out_stride(), TILE * weights.x_stride()),
        };
        Ok(TileSpace {
            y: Aligned::zeroed(TILE * stride, "pre-activations")?,
            stride,
            rounded: Aligned::zeroed(rounded, "rounded tokens")?,
        })
    }

    /// Takes the weights as they are now.
    pub(super) fn prepare(&mut self, pool: &mut Pool, state: &TrainState) -> Result<()> {
        let Linear::Bf16(amx, weights) = self else { return Ok(()) };
        let from = &state.encoder_weight;
        let (packed, bias, block) = weights.blocks_mut();
        bias[..from.rows].copy_from_slice(&state.encoder_bias.value[..from.rows]);
        let blocks = packed.len() / block;
        let packed = Divided::of(packed);
        pool.run(&|worker| {
            for b in worker.share(blocks, 1) {
                let first = b * AMX_BLOCK;
                let count = (from.rows - first).min(AMX_BLOCK);
                // SAFETY: shares are disjoint.
                let out = unsafe { packed.slice(b * block..(b + 1) * block) };
                amx.pack(&from.value[first * from.stride..], from.stride, count, from.cols, out);
            }
        })
    }

    /// The pre-activations of up to [`TILE`] tokens, `x` of `stride` elements a token.
    pub(super) fn tile(
        &self,
        isa: Isa,
        state: &TrainState,
        x: &[f32],
        stride: usize,
        tokens: usize,
        space: &mut TileSpace,
    ) {
        match self {
            Linear::F32 => {
                let (rows, cols) = (state.encoder_weight.rows, state.encoder_weight.cols);
                let weight = MatrixRef::f32(&state.encoder_weight.value, rows, cols, stride);
                for block in (0..rows).step_by(BLOCK_ROWS) {
                    let block = block..(block + BLOCK_ROWS).min(rows);
                    let bias = &state.encoder_bias.value;
                    pre_activations(isa, weight, bias, x, stride, tokens, block, &mut space.y, rows);
                }
            }
            Linear::Bf16(amx, weights) => {
                amx.round_tokens(x, stride, tokens, weights, &mut space.rounded);
                amx.products(weights, &space.rounded, tokens.next_multiple_of(AMX_BLOCK), &mut space.y);
            }
        }
    }
}
