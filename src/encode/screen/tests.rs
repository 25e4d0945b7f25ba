//! The bounds against `dot/1` and f64 on every row, and what happens when they are made too small.

use super::bound::{EstimatesMut, Products, Rows, Token, estimate, estimate_one};
use super::copy::Int8Copy;
use super::tokens::Tokens;
use crate::encode::{EncodePath, Encoder, EncoderOptions, Latents};
use crate::sae::{Config, Encoder as Shape, EncoderWeights, Matrix, Sae, Selection, padded};
use crate::simd::int8::{BLOCK_ROWS, GROUP, Int8Kernel, Line};
use crate::threads::{Divided, Pool};
use crate::{Activations, Dtype, Isa};
use proptest::prelude::*;
use std::sync::Arc;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// How hostile numbers are made.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Uniform,
    /// A few values thousands of times the others.
    Outliers,
    OneSign,
    Denormal,
    /// Exponents all over the range in which nothing overflows.
    Wild,
    Equal,
    /// Whole groups of zeros.
    Gaps,
}

const KINDS: [Kind; 7] =
    [Kind::Uniform, Kind::Outliers, Kind::OneSign, Kind::Denormal, Kind::Wild, Kind::Equal, Kind::Gaps];

fn fill(kind: Kind, to: &mut [f32], rng: &mut Rng) {
    let constant = rng.unit();
    let gap = rng.next();
    for (i, v) in to.iter_mut().enumerate() {
        *v = match kind {
            Kind::Uniform => rng.unit(),
            Kind::Outliers => rng.unit() * if rng.below(40) == 0 { 5000.0 } else { 1.0 },
            Kind::OneSign => rng.unit().abs(),
            Kind::Denormal => rng.unit() * 1e-40,
            Kind::Wild => rng.unit() * 2.0_f32.powi(rng.below(150) as i32 - 125),
            Kind::Equal => constant,
            Kind::Gaps => rng.unit() * (gap >> (i / GROUP % 64) & 1) as f32,
        };
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(&KINDS[..])
}

/// Bounds of all rows for one token, `[rows]` each.
struct Bounds {
    kind: Products,
    low: Vec<f32>,
    high: Vec<f32>,
}

fn estimate_line(isa: Isa, line: &Line, of: &Rows, kind: Products, token: &Token, y: &mut Line) {
    let y = Divided::of(y);
    // SAFETY: `y` is exclusively borrowed.
    let mut to = unsafe { EstimatesMut::new(&y, 0, BLOCK_ROWS, BLOCK_ROWS) };
    estimate(isa, std::slice::from_ref(line), of, kind, std::slice::from_ref(token), &mut to);
}

/// The bounds that each kind of products gives, by one kernel; none if they do not hold for the token.
fn bounds(copy: &Int8Copy, kernel: Int8Kernel, isa: Isa, rows: usize, x: &[f32]) -> Vec<Bounds> {
    let tiles = kernel.takes_tiles();
    let mut tokens = Tokens::new(1, copy.groups(), tiles).unwrap();
    let shared = tokens.shared();
    // SAFETY: there is one thread.
    let (in16, of) = unsafe {
        shared.prepare(isa, copy.bound(), copy.centre(), None, 0, x, tiles);
        if !shared.of(0).covered {
            return Vec::new();
        }
        (shared.read(1), shared.of(0))
    };
    let mut all = Vec::new();
    for kind in [Products::Coarse, Products::Fine, Products::Tiled].into_iter().take(2 + usize::from(tiles)) {
        let (mut low, mut high) = (vec![0.0; rows], vec![0.0; rows]);
        let (mut most, mut all_eps) = (0.0, vec![0.0; rows]);
        for b in 0..rows.div_ceil(BLOCK_ROWS) {
            let first = b * BLOCK_ROWS;
            let mut y = [0.0; BLOCK_ROWS];
            let mut lines = [[0.0; BLOCK_ROWS]; 2];
            match kind {
                Products::Coarse => {
                    kernel.coarse(copy.planes(first), in16, &mut lines[..1]);
                    estimate_line(isa, &lines[0], copy.of(b), kind, of, &mut y);
                }
                Products::Fine => {
                    let picks: Vec<u32> = (first as u32..).take(BLOCK_ROWS).collect();
                    kernel.picked(copy.planes(0), in16, 0, &picks, &mut lines[0]);
                    for r in 0..BLOCK_ROWS {
                        y[r] = estimate_one(lines[0][r], copy.of(b), r, of);
                    }
                }
                Products::Tiled => {
                    kernel.tiled(true, copy.planes(first / 32 * 32), in16, &mut lines);
                    estimate_line(isa, &lines[b % 2], copy.of(b), kind, of, &mut y);
                }
            }
            for (r, row) in (first..rows.min(first + BLOCK_ROWS)).enumerate() {
                let eps = kind.eps(copy.of(b), r, of, y[r]);
                (low[row], high[row]) = (y[r] - eps, y[r] + eps);
                most = y[r].max(most);
                all_eps[row] = eps;
            }
        }
        // What is said of all rows at once holds for each.
        let most_eps = kind.most_eps(copy.largest(), of, most);
        for (&eps, &high) in all_eps.iter().zip(&high) {
            assert!(high <= 0.0 || eps <= most_eps, "{kind:?}: {eps} up to {high}, {most_eps}");
        }
        all.push(Bounds { kind, low, high });
    }
    all
}

/// Asserts the bounds of every row; returns the largest share of a coarse bound's width that an error took up.
fn check_bounds(weight: &Matrix, bias: &[f32], centre: Option<&[f32]>, x: &[f32]) -> f64 {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut padded_x = vec![0.0; padded(cols)];
    padded_x[..cols].copy_from_slice(x);
    crate::simd::Amx::request();
    let best = Isa::detect().unwrap();
    let mut canonical = vec![0.0; rows];
    crate::pre_activations(best, weight.as_ref(), bias, &padded_x, padded(cols), 1, 0..rows, &mut canonical, rows);
    let mut exact = vec![0.0; rows];
    let mut row = vec![0.0; cols];
    for r in 0..rows {
        weight.widen_row(r, &mut row);
        let product: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        exact[r] = product + f64::from(bias[r]);
    }
    let mut pool = Pool::new(2, "test").unwrap();
    let copy = Int8Copy::new(weight.as_ref(), bias, centre, best, &mut pool).unwrap().unwrap();
    let mut most = 0.0_f64;
    for isa in Isa::available() {
        for kernel in Int8Kernel::all(isa) {
            for Bounds { kind, low, high } in bounds(&copy, kernel, isa, rows, &padded_x) {
                for r in 0..rows {
                    let y = canonical[r];
                    assert!(
                        low[r] <= y && y <= high[r],
                        "{kernel:?} {kind:?} row {r}: {} <= {y} <= {}",
                        low[r],
                        high[r]
                    );
                    let (l, h, exact) = (f64::from(low[r]), f64::from(high[r]), exact[r]);
                    assert!(l <= exact && exact <= h, "{kernel:?} {kind:?} row {r}: {l} <= {exact} <= {h}, f64");
                    if h > l && kind == Products::Coarse {
                        most = most.max((exact - (l + h) / 2.0).abs() / ((h - l) / 2.0));
                    }
                }
            }
        }
    }
    most
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_is_within_its_bounds(
        rows in 1_usize..40,
        cols in prop_oneof![1_usize..200, Just(576), Just(1000)],
        of_weights in kinds(),
        of_token in kinds(),
        of_centre in kinds(),
        near in any::<bool>(),
        bf16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng(seed);
        let mut weights = vec![0.0; rows * cols];
        weights.chunks_mut(cols).for_each(|row| fill(of_weights, row, &mut rng));
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let weight = Matrix::from_rows(&weights, [rows, cols], cols, dtype, "weights").unwrap();
        let bias: Vec<f32> = (0..rows).map(|_| rng.unit() * 10.0_f32.powi(rng.below(8) as i32 - 6)).collect();
        let mut x = vec![0.0; cols];
        fill(of_token, &mut x, &mut rng);
        let mut centre = vec![0.0; cols];
        // Near the token, as a mean is, or anywhere.
        fill(of_centre, &mut centre, &mut rng);
        if near {
            centre.iter_mut().zip(&x).for_each(|(c, x)| *c = x * (1.0 + 0.1 * *c));
        }
        check_bounds(&weight, &bias, None, &x);
        check_bounds(&weight, &bias, Some(&centre), &x);
    }
}

/// A matrix whose rounding errors all point one way along a token: the bound is nearly reached. `step` is what weights are
/// rounded to, the largest of them `most` steps, all others about up to so many multiples of `of` steps.
///
/// One weight in so many is the largest, which sets the scale; the others lie a little under half a step from an integer,
/// so that all errors have the same size, and x has their signs.
fn aligned_errors(
    cols: usize,
    rows: usize,
    [step, most, of, multiples]: [f32; 4],
    rng: &mut Rng,
) -> (Vec<f32>, Vec<f32>) {
    let signs: Vec<f32> = (0..cols).map(|_| if rng.below(2) == 0 { 1.0 } else { -1.0 }).collect();
    let mut weights = vec![0.0; cols * rows];
    for row in weights.chunks_mut(cols) {
        for (c, w) in row.iter_mut().enumerate() {
            let random = (rng.below(2 * multiples as usize) as f32 - multiples) * of;
            let integer = if c % GROUP == 0 { most } else { random + 0.49 * signs[c] };
            *w = integer * step;
        }
    }
    let x = (0..cols).map(|c| if c % GROUP == 0 { 0.0 } else { signs[c] }).collect();
    (weights, x)
}

#[test]
fn errors_that_all_point_one_way_nearly_reach_the_bound() {
    let (rows, cols) = (24, 640);
    let (weights, x) = aligned_errors(cols, rows, [1.0 / 128.0, 127.0, 1.0, 100.0], &mut Rng(4));
    let weight = Matrix::from_rows(&weights, [rows, cols], cols, Dtype::F32, "weights").unwrap();
    let share = check_bounds(&weight, &vec![0.25; rows], None, &x);
    assert!(share > 0.9, "errors take up {share} of the bound: it is looser than its derivation says");
}

fn sae(shape: Shape, weights: &[f32], cols: usize, selection: Selection) -> Arc<Sae> {
    let rows = shape.rows();
    let weight = Matrix::from_rows(weights, [rows, cols], cols, Dtype::F32, "weights").unwrap();
    let bias = crate::Aligned::zeroed(rows, "biases").unwrap();
    let config = Config::new(shape, cols, selection, 1.0).unwrap();
    Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap())
}

fn encode(encoder: &mut Encoder, x: &[f32]) -> (Vec<u32>, Vec<u32>) {
    let config = encoder.sae().config();
    let mut latents = Latents::new(x.len() / config.d_model, config.selection.capacity()).unwrap();
    let view = Activations::from_f32(x, config.d_model).unwrap();
    encoder.encode(view, &mut latents.as_mut()).unwrap();
    (latents.indices.clone(), latents.values.iter().map(|v| v.to_bits()).collect())
}

/// One latent wins by less than the errors of the cheap values, and by those it would not.
fn wins_by_less_than_the_error(shape: Shape, cols: usize, steps: [f32; 4]) -> (Arc<Sae>, Vec<f32>) {
    let step = steps[0];
    let (one, x, y) = (8..)
        .find_map(|seed| {
            let (one, x) = aligned_errors(cols, 1, steps, &mut Rng(seed));
            let y = one.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
            // Large enough for the rival to be positive.
            (y > 2.0 * step * cols as f32).then_some((one, x, y))
        })
        .unwrap();
    // Exactly representable rows: a single weight, all others 0. They are cheap to have exactly.
    let (winner, rival) = match shape {
        Shape::Dense { .. } => (3, 7),
        // Base row of head 1, base row of head 2.
        Shape::Kron { base, extension, .. } => (base + extension, 2 * (base + extension)),
    };
    let mut weights = vec![0.0; shape.rows() * cols];
    // The winner's value is what its integers give plus errors that all add up.
    weights[winner * cols..(winner + 1) * cols].copy_from_slice(&one);
    let error: f32 = x.iter().map(|x| x.abs() * 0.49 * step).sum();
    let rival_value = y - 0.3 * error;
    // Element 1 of x is 1 or -1.
    weights[rival * cols + 1] = rival_value * x[1];
    if let Shape::Kron { base, extension, heads } = shape {
        for head in 0..heads {
            // Every head's extension row 0 is 1 exactly.
            weights[(head * (base + extension) + base) * cols + 2] = x[2];
        }
    }
    (sae(shape, &weights, cols, Selection::TopK(1)), x)
}

#[test]
fn halved_bounds_change_results() {
    let cols = 640;
    crate::simd::Amx::request();
    // Bounds of the high plane alone, with one token; those of both planes, of picked rows; of tiles, with as many tokens as
    // those are made of.
    let (coarse, fine) = ([1.0 / 128.0, 127.0, 1.0, 100.0], [1.0 / 32768.0, 32512.0, 256.0, 2.0]);
    for (steps, tokens, factors) in [(coarse, 1, [0.5, 1.0]), (fine, 1, [1e4, 0.5]), (fine, 16, [0.5, 0.5])] {
        for shape in [Shape::Dense { latents: 40 }, Shape::Kron { heads: 6, base: 2, extension: 2 }] {
            for isa in Isa::available() {
                let (sae, x) = wins_by_less_than_the_error(shape, cols, steps);
                let x = x.repeat(tokens);
                let options = |path| EncoderOptions { threads: 1, path };
                let mut plain = Encoder::with_isa(Arc::clone(&sae), options(EncodePath::Plain), isa).unwrap();
                let mut screened = Encoder::with_isa(sae, options(EncodePath::Screened), isa).unwrap();
                let expected = encode(&mut plain, &x);
                assert_eq!(encode(&mut screened, &x), expected, "{shape:?}");
                let Encoder { screener, sae, pool, .. } = &mut screened;
                screener.as_mut().unwrap().scale_bounds(sae, isa, pool, factors);
                let found = encode(&mut screened, &x);
                assert_ne!(found, expected, "{shape:?}, {tokens} tokens, {factors:?}: went unnoticed");
            }
        }
    }
}
