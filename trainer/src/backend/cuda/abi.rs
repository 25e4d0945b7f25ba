//! The structs that kernels take, laid out as `cuda/row.cuh`, `cuda/sort.cuh` and `cuda/update.cuh` have them. Pointers
//! are device addresses; 0 is null.

pub(super) use kronsae::cuda::Address;

/// What changes from step to step; lies in device memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Numbers {
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) epsilon: f32,
    /// Learning rate over the bias correction of the mean.
    pub(super) rate: f32,
    /// Reciprocal root of the bias correction of the square.
    pub(super) root: f32,
    /// Norm to clip to; 0: no clipping.
    pub(super) clip: f32,
    pub(super) tokens_before: u64,
    pub(super) tokens_after: u64,
    /// Of moments' rounding.
    pub(super) seed: u32,
    pub(super) reserved: u32,
}

impl Numbers {
    /// As they lie in the device's memory.
    pub(super) fn to_bytes(self) -> [u8; size_of::<Numbers>()] {
        let mut bytes = [0; size_of::<Numbers>()];
        let floats = [self.beta1, self.beta2, self.epsilon, self.rate, self.root, self.clip];
        for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(floats) {
            *to = from.to_ne_bytes();
        }
        bytes[24..32].copy_from_slice(&self.tokens_before.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.tokens_after.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.seed.to_ne_bytes());
        bytes
    }
}

/// A parameter, its moments, and its copy in the element type (0 where that is f32).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weights {
    pub(super) value: Address,
    pub(super) first: Address,
    pub(super) second: Address,
    pub(super) copy: Address,
}

/// What touched each row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByRow {
    pub(super) keys: Address,
    pub(super) positions: Address,
    pub(super) starts: Address,
    pub(super) coefficients: Address,
    pub(super) source: Address,
    pub(super) pieces: Address,
    pub(super) piece_coefficients: Address,
    pub(super) slots: u32,
    pub(super) reserved: u32,
}

/// One pass of the sort.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SortPass {
    pub(super) keys: Address,
    pub(super) positions: Address,
    pub(super) counts: Address,
    pub(super) count: Address,
    pub(super) gate: Address,
    pub(super) histograms: Address,
    pub(super) totals: Address,
    pub(super) keys_out: Address,
    pub(super) positions_out: Address,
    pub(super) count_out: Address,
    pub(super) n: u32,
    pub(super) slots: u32,
    pub(super) shift: u32,
    pub(super) tile_stride: u32,
}

/// Gradient, Adam and copy of every row of a matrix.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowUpdate {
    pub(super) main: ByRow,
    pub(super) aux: ByRow,
    pub(super) aux_gate: Address,
    pub(super) weight: Weights,
    pub(super) bias: Weights,
    pub(super) numbers: Address,
    pub(super) factors: Address,
    pub(super) halt: Address,
    pub(super) row_squares: Address,
    pub(super) bias_squares: Address,
    pub(super) value_squares: Address,
    pub(super) gradient: Address,
    pub(super) bias_gradient: Address,
    pub(super) rows: u32,
    pub(super) stride: u32,
    pub(super) project: u32,
    /// 0 encoder, 1 decoder.
    pub(super) parameter: u32,
}

/// The second stage of b_dec's gradient, and its update.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BiasUpdate {
    pub(super) partial: Address,
    pub(super) weight: Weights,
    pub(super) numbers: Address,
    pub(super) factor: Address,
    pub(super) halt: Address,
    pub(super) squares: Address,
    pub(super) gradient: Address,
    pub(super) chunks: u32,
    pub(super) stride: u32,
}

/// Lists that are summed together.
pub(super) const SUM_LISTS: usize = 8;

/// Sums of lists in f64.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SumLists {
    pub(super) values: [Address; SUM_LISTS],
    pub(super) partial: Address,
    pub(super) totals: Address,
    pub(super) lengths: [u32; SUM_LISTS],
    pub(super) lists: u32,
    pub(super) chunks: u32,
    pub(super) roots: u32,
    pub(super) reserved: u32,
}

/// Dead encoder rows that begin anew.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Revival {
    pub(super) dead: Address,
    pub(super) dead_count: Address,
    pub(super) order: Address,
    pub(super) eligible: Address,
    pub(super) residual: Address,
    pub(super) value_squares: Address,
    pub(super) encoder: Weights,
    pub(super) bias: Weights,
    pub(super) decoder: Weights,
    pub(super) positive_at: Address,
    pub(super) numbers: Address,
    pub(super) halt: Address,
    pub(super) revived: Address,
    pub(super) stride: u32,
    /// Of an element of encoder's and decoder's moments.
    pub(super) moment_bytes: u32,
}

const _: () = {
    assert!(size_of::<Numbers>() == 48 && size_of::<Weights>() == 32 && size_of::<ByRow>() == 64);
    assert!(size_of::<SortPass>() == 96 && size_of::<RowUpdate>() == 280);
    assert!(size_of::<BiasUpdate>() == 88 && size_of::<SumLists>() == 128);
    assert!(size_of::<Revival>() == 184);
};
