//! The structs that kernels take, as `cuda/*.cuh` lay them out. Pointers are addresses.

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) kind: u32,
    pub(crate) heads: u32,
    pub(crate) base: u32,
    pub(crate) extension: u32,
    pub(crate) rows: u32,
    pub(crate) latents: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    pub(crate) rate: f32,
    pub(crate) root: f32,
    pub(crate) clip: f32,
    pub(crate) tokens_before: u64,
    pub(crate) tokens_after: u64,
    pub(crate) seed: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weights {
    pub(crate) value: u64,
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) copy: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ByRow {
    pub(crate) keys: u64,
    pub(crate) positions: u64,
    pub(crate) starts: u64,
    pub(crate) coefficients: u64,
    pub(crate) source: u64,
    pub(crate) pieces: u64,
    pub(crate) piece_coefficients: u64,
    pub(crate) slots: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SortPass {
    pub(crate) keys: u64,
    pub(crate) positions: u64,
    pub(crate) counts: u64,
    pub(crate) count: u64,
    pub(crate) gate: u64,
    pub(crate) histograms: u64,
    pub(crate) totals: u64,
    pub(crate) keys_out: u64,
    pub(crate) positions_out: u64,
    pub(crate) count_out: u64,
    pub(crate) n: u32,
    pub(crate) slots: u32,
    pub(crate) shift: u32,
    pub(crate) tile_stride: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowUpdate {
    pub(crate) main: ByRow,
    pub(crate) aux: ByRow,
    pub(crate) aux_gate: u64,
    pub(crate) weight: Weights,
    pub(crate) bias: Weights,
    pub(crate) numbers: u64,
    pub(crate) factors: u64,
    pub(crate) halt: u64,
    pub(crate) row_squares: u64,
    pub(crate) bias_squares: u64,
    pub(crate) value_squares: u64,
    pub(crate) gradient: u64,
    pub(crate) bias_gradient: u64,
    pub(crate) rows: u32,
    pub(crate) stride: u32,
    pub(crate) project: u32,
    pub(crate) parameter: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BiasUpdate {
    pub(crate) partial: u64,
    pub(crate) weight: Weights,
    pub(crate) numbers: u64,
    pub(crate) factor: u64,
    pub(crate) halt: u64,
    pub(crate) squares: u64,
    pub(crate) gradient: u64,
    pub(crate) chunks: u32,
    pub(crate) stride: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SumLists {
    pub(crate) values: [u64; 8],
    pub(crate) partial: u64,
    pub(crate) totals: u64,
    pub(crate) lengths: [u32; 8],
    pub(crate) lists: u32,
    pub(crate) chunks: u32,
    pub(crate) roots: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Revival {
    pub(crate) dead: u64,
    pub(crate) dead_count: u64,
    pub(crate) order: u64,
    pub(crate) eligible: u64,
    pub(crate) residual: u64,
    pub(crate) value_squares: u64,
    pub(crate) encoder: Weights,
    pub(crate) bias: Weights,
    pub(crate) decoder: Weights,
    pub(crate) positive_at: u64,
    pub(crate) numbers: u64,
    pub(crate) halt: u64,
    pub(crate) revived: u64,
    pub(crate) stride: u32,
    pub(crate) moment_bytes: u32,
}
