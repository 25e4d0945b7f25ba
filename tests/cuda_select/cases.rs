//! Cases of selection: shapes, rules, rows of many kinds, and what the reference makes of them.

use crate::common::Rng;
use half::bf16;
use kronsae::sae::{Encoder, Selection};
use kronsae::{Isa, ROW_NOT_FINITE, ROW_TRUNCATED, RowOutcome, Selector};
use proptest::prelude::*;

/// The kernels' `Shape`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    kind: u32,
    heads: u32,
    base: u32,
    extension: u32,
    rows: u32,
    latents: u32,
}

impl From<Encoder> for Shape {
    fn from(encoder: Encoder) -> Shape {
        let (rows, latents) = (encoder.rows() as u32, encoder.latents() as u32);
        match encoder {
            Encoder::Kron { heads, base, extension } => {
                Shape { kind: 0, heads: heads as u32, base: base as u32, extension: extension as u32, rows, latents }
            }
            Encoder::Dense { .. } => Shape { kind: 1, heads: 0, base: 0, extension: 0, rows, latents },
        }
    }
}

/// What the numbers of a token are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// Both signs, a wide range.
    Usual,
    /// Small integers: most products are equal to others.
    Ties,
    /// The same positive number everywhere.
    Equal,
    /// Nothing is positive, or almost nothing.
    Silent,
    /// Products are denormal, or underflow.
    Denormal,
    /// Products come near overflow, some pass it.
    Huge,
    /// Usual, but for one NaN, infinity, or -infinity somewhere.
    Special,
}

const KINDS: [Kind; 7] =
    [Kind::Usual, Kind::Ties, Kind::Equal, Kind::Silent, Kind::Denormal, Kind::Huge, Kind::Special];

impl Kind {
    fn fill(self, y: &mut [f32], rng: &mut Rng) {
        for v in y.iter_mut() {
            let u = rng.unit();
            *v = match self {
                Kind::Usual | Kind::Special => u * (rng.unit() * 3.0).exp2(),
                Kind::Ties => (u * 3.5).round(),
                Kind::Equal => 1.5,
                Kind::Silent => {
                    if rng.below(64) == 0 {
                        u
                    } else {
                        -u.abs()
                    }
                }
                Kind::Denormal => u * [1e-19, 1e-22, 3e-23][rng.below(3)],
                Kind::Huge => u * 1.9e19,
            };
        }
        if self == Kind::Special {
            let at = rng.below(y.len());
            y[at] = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][rng.below(5)];
        }
    }
}

/// One launch of the selection, and where it runs.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) encoder: Encoder,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) seed: u64,
    pub(crate) selection: Selection,
    /// Dense thresholds of each latent's own.
    pub(crate) thresholds: bool,
    /// Entries a row beyond, or below, what the rule asks for.
    pub(crate) capacity: usize,
    pub(crate) bf16: bool,
    pub(crate) block: u32,
    pub(crate) grid: u32,
    /// Of the shared memory that would help, how much there is: 0 to 4 quarters.
    pub(crate) quarters: u64,
    pub(crate) schedule: i32,
}

fn encoders() -> impl Strategy<Value = Encoder> {
    let sides = prop::sample::select(vec![
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 4),
        (4, 4),
        (4, 8),
        (8, 8),
        (3, 5),
        (5, 3),
        (6, 16),
        (2, 17),
        (32, 64),
        (33, 70),
        (40, 1),
        (1, 90),
        (130, 140),
    ]);
    let kron = (sides, 0_usize..2000).prop_map(|((base, extension), size)| {
        // Some 2,000 rows at most, any number of heads.
        let heads = 1 + size / (base + extension);
        Encoder::Kron { heads, base, extension }
    });
    let dense = (1_usize..3000).prop_map(|latents| Encoder::Dense { latents });
    prop_oneof![4 => kron, 1 => dense]
}

pub(crate) fn any_case() -> impl Strategy<Value = Case> {
    let rule = (
        prop::sample::select(vec![1_usize, 2, 7, 32, 50, 64, 257, 300, 512]),
        prop::option::of(prop::sample::select(vec![0.0_f32, 1e-30, 1e-22, 0.25, 0.5, 1.0, 1.5, 2.0, 1e19, 3e38])),
        any::<bool>(),
        0_usize..4,
    );
    let place =
        (any::<bool>(), prop::sample::select(vec![32_u32, 64, 96, 256, 512, 1024]), 1_u32..4, 0_u64..5, 0_i32..10);
    let kinds = prop::collection::vec(prop::sample::select(KINDS.to_vec()), 1..5);
    (encoders(), kinds, any::<u64>(), rule, place).prop_map(
        |(encoder, kinds, seed, (k, theta, thresholds, spare), (bf16, block, grid, quarters, schedule))| {
            let k = k.min(encoder.latents());
            let selection = match theta {
                None => Selection::TopK(k),
                Some(theta) => Selection::Threshold { theta, max_latents: k },
            };
            let dense = matches!(encoder, Encoder::Dense { .. });
            // With a threshold, fewer entries than the rule allows are a legal capacity.
            let capacity = if theta.is_some() && spare == 3 { k.div_ceil(2) } else { k + spare };
            let thresholds = thresholds && dense && theta.is_some();
            Case { encoder, kinds, seed, selection, thresholds, capacity, bf16, block, grid, quarters, schedule }
        },
    )
}

/// Entries past a row's count keep this.
pub(crate) const UNTOUCHED: u32 = 0xABCD_EF01;

/// What a launch writes.
#[derive(Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) counts: Vec<u32>,
    pub(crate) indices: Vec<u32>,
    /// Bits of the values.
    pub(crate) values: Vec<u32>,
    pub(crate) active: Vec<u32>,
    pub(crate) flags: Vec<u8>,
    pub(crate) positive: Vec<u32>,
    pub(crate) skipped: u32,
}

impl Case {
    pub(crate) fn tokens(&self) -> usize {
        self.kinds.len()
    }

    /// Elements from one token to the next: a multiple of 8.
    pub(crate) fn ldy(&self) -> usize {
        self.encoder.rows().div_ceil(8) * 8 + self.seed as usize % 3 * 8
    }

    /// The pre-activations, `[tokens, ldy]`, each of which bf16 holds exactly where the case is of bf16. Padding is NaN:
    /// nobody may look at it.
    pub(crate) fn pre_activations(&self) -> Vec<f32> {
        let mut rng = Rng(self.seed);
        let mut y = vec![f32::NAN; self.tokens() * self.ldy()];
        for (row, kind) in y.chunks_exact_mut(self.ldy()).zip(&self.kinds) {
            let row = &mut row[..self.encoder.rows()];
            kind.fill(row, &mut rng);
            if self.bf16 {
                row.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
            }
        }
        y
    }

    pub(crate) fn thresholds(&self) -> Option<Vec<f32>> {
        let mut rng = Rng(!self.seed);
        self.thresholds.then(|| (0..self.encoder.latents()).map(|_| rng.unit().max(0.0)).collect())
    }

    pub(crate) fn empty(&self) -> Output {
        let (tokens, entries) = (self.tokens(), self.tokens() * self.capacity);
        Output {
            counts: vec![UNTOUCHED; tokens],
            indices: vec![UNTOUCHED; entries],
            values: vec![UNTOUCHED; entries],
            active: vec![UNTOUCHED; tokens],
            flags: vec![0xEE; tokens],
            positive: vec![0; self.encoder.rows().div_ceil(32)],
            skipped: 7, // added to
        }
    }

    /// What the reference makes of it.
    pub(crate) fn expected(&self, y: &[f32]) -> Output {
        let isa = Isa::detect().unwrap();
        let thresholds = self.thresholds();
        let mut selector = Selector::new(self.encoder, self.selection, thresholds.as_deref(), isa).unwrap();
        let kron = matches!(self.encoder, Encoder::Kron { .. });
        let mut out = self.empty();
        for (t, row) in y.chunks_exact(self.ldy()).enumerate() {
            let row = &row[..self.encoder.rows()];
            for (r, _) in row.iter().enumerate().filter(|&(_, &v)| v > 0.0) {
                out.positive[r / 32] |= 1 << (r % 32);
            }
            let outcome = selector.select(row);
            (out.counts[t], out.active[t], out.flags[t]) = (0, 0, ROW_NOT_FINITE);
            let RowOutcome::Selected { active } = outcome else {
                out.skipped += 1;
                continue;
            };
            let written = selector.count().min(self.capacity);
            for (at, (latent, value)) in selector.selected().take(written).enumerate() {
                out.indices[t * self.capacity + at] = latent as u32;
                out.values[t * self.capacity + at] = if kron { value.sqrt() } else { value }.to_bits();
            }
            out.counts[t] = written as u32;
            out.active[t] = active as u32;
            out.flags[t] = if active > written { ROW_TRUNCATED } else { 0 };
        }
        out
    }
}
