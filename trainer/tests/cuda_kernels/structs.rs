//! The structs that kernels take, as `cuda/*.cuh` lay them out. Pointers are addresses.

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub kind: u32,
    pub heads: u32,
    pub base: u32,
    pub extension: u32,
    pub rows: u32,
    pub latents: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub rate: f32,
    pub root: f32,
    pub clip: f32,
    pub tokens_before: u64,
    pub tokens_after: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Weights {
    pub value: u64,
    pub first: u64,
    pub second: u64,
    pub copy: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ByRow {
    pub keys: u64,
    pub positions: u64,
    pub starts: u64,
    pub coefficients: u64,
    pub source: u64,
    pub pieces: u64,
    pub piece_coefficients: u64,
    pub slots: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SortPass {
    pub keys: u64,
    pub positions: u64,
    pub counts: u64,
    pub count: u64,
    pub gate: u64,
    pub histograms: u64,
    pub totals: u64,
    pub keys_out: u64,
    pub positions_out: u64,
    pub count_out: u64,
    pub n: u32,
    pub slots: u32,
    pub shift: u32,
    pub tile_stride: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RowUpdate {
    pub main: ByRow,
    pub aux: ByRow,
    pub aux_gate: u64,
    pub weight: Weights,
    pub bias: Weights,
    pub numbers: u64,
    pub factors: u64,
    pub halt: u64,
    pub row_squares: u64,
    pub bias_squares: u64,
    pub value_squares: u64,
    pub gradient: u64,
    pub bias_gradient: u64,
    pub rows: u32,
    pub stride: u32,
    pub project: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct BiasUpdate {
    pub partial: u64,
    pub weight: Weights,
    pub numbers: u64,
    pub factor: u64,
    pub halt: u64,
    pub squares: u64,
    pub gradient: u64,
    pub chunks: u32,
    pub stride: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SumLists {
    pub values: [u64; 8],
    pub partial: u64,
    pub totals: u64,
    pub lengths: [u32; 8],
    pub lists: u32,
    pub chunks: u32,
    pub roots: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Revival {
    pub dead: u64,
    pub dead_count: u64,
    pub order: u64,
    pub eligible: u64,
    pub residual: u64,
    pub value_squares: u64,
    pub encoder: Weights,
    pub bias: Weights,
    pub decoder: Weights,
    pub positive_at: u64,
    pub numbers: u64,
    pub halt: u64,
    pub revived: u64,
    pub stride: u32,
    pub reserved: u32,
}
