//! The encoder against a naive implementation: random, tied, degenerate and hostile rows; every instruction set, batch
//! size, thread count and dtype; a host that computes with flush-to-zero.

mod common;

use common::{Rng, naive_encode, naive_select, random_sae, weight_rows};
use kronsae::sae::{Encoder as Shape, Selection};
use kronsae::{
    Activations, Dtype, Encoder, EncoderOptions, Isa, Latents, ROW_NOT_FINITE, ROW_TRUNCATED, RowOutcome, Sae, Selector,
};
use proptest::prelude::*;
use std::sync::Arc;

fn encode(encoder: &mut Encoder, x: &[f32], rows: usize) -> Latents {
    let config = encoder.sae().config();
    let mut latents = Latents::new(rows, config.selection.capacity()).unwrap();
    let view = Activations::from_f32(x, config.d_model).unwrap();
    encoder.encode(view, &mut latents.as_mut()).unwrap();
    latents
}

fn bits(latents: &Latents, row: usize) -> Vec<(u32, u32)> {
    let (indices, values) = latents.row(row);
    indices.iter().copied().zip(values.iter().map(|v| v.to_bits())).collect()
}

fn assert_matches_naive(sae: Sae, x: &[f32]) {
    let rows = weight_rows(&sae);
    let d = sae.config().d_model;
    let expected: Vec<_> = x.chunks(d).map(|x| naive_encode(&sae, &rows, x)).collect();
    let sae = Arc::new(sae);
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut encoder =
                Encoder::with_isa(Arc::clone(&sae), EncoderOptions { threads, ..EncoderOptions::default() }, isa)
                    .unwrap();
            for chunk in [1, 5, expected.len()] {
                for (c, part) in x.chunks(chunk * d).enumerate() {
                    let latents = encode(&mut encoder, part, part.len() / d);
                    for row in 0..latents.rows() {
                        let wanted = &expected[c * chunk + row];
                        let wanted_bits: Vec<_> = wanted.iter().flatten().map(|(f, v)| (*f, v.to_bits())).collect();
                        assert_eq!(
                            bits(&latents, row),
                            wanted_bits,
                            "{} {threads} threads, chunks of {chunk}",
                            isa.name()
                        );
                        assert_eq!(latents.flags[row] & ROW_NOT_FINITE != 0, wanted.is_none());
                    }
                }
            }
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        (1_usize..40, 1_usize..6, 1_usize..9).prop_map(|(heads, base, extension)| Shape::Kron {
            heads,
            base,
            extension
        }),
        Just(Shape::Kron { heads: 37, base: 4, extension: 4 }),
        Just(Shape::Kron { heads: 9, base: 8, extension: 8 }),
        Just(Shape::Kron { heads: 2, base: 20, extension: 30 }),
        (1_usize..200).prop_map(|latents| Shape::Dense { latents }),
    ]
}

fn selections(latents: usize) -> impl Strategy<Value = Selection> {
    let most = latents.min(70);
    prop_oneof![
        (1..=most).prop_map(Selection::TopK),
        (0.0_f32..2.0, 1..=most).prop_map(|(theta, max_latents)| Selection::Threshold { theta, max_latents }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoder_equals_naive(
        (shape, selection) in shapes().prop_flat_map(|s| (Just(s), selections(s.latents()))),
        d in 1_usize..70,
        bf16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut rng = Rng(seed);
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let sae = random_sae(shape, d, selection, dtype, &mut rng);
        let mut x = rng.vec(d * 13);
        x[2 * d..3 * d].fill(0.0);
        x[3 * d] = f32::NAN;
        x[4 * d..5 * d].iter_mut().for_each(|v| *v *= 1e-30);
        x[5 * d..6 * d].iter_mut().for_each(|v| *v *= 3e19);
        x[6 * d + d / 2] = f32::INFINITY;
        x[7 * d..8 * d].iter_mut().for_each(|v| *v *= 1e-42);
        assert_matches_naive(sae, &x);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Small integers tie everywhere, also at the cut.
    #[test]
    fn selection_equals_naive_on_ties(
        (shape, selection) in shapes().prop_flat_map(|s| (Just(s), selections(s.latents()))),
        levels in 1_usize..5,
        negative in 0_usize..4,
        seed in any::<u64>(),
    ) {
        let mut rng = Rng(seed);
        let y: Vec<f32> = (0..shape.rows())
            .map(|_| rng.below(levels + negative + 1) as f32 - negative as f32)
            .collect();
        for isa in Isa::available() {
            let mut selector = Selector::new(shape, selection, None, isa).unwrap();
            let expected = naive_select(&y, shape, selection, None).unwrap();
            prop_assert_ne!(selector.select(&y), RowOutcome::NotFinite);
            let kron = matches!(shape, Shape::Kron { .. });
            let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, if kron { v.sqrt() } else { v })).collect();
            prop_assert_eq!(found, expected);
        }
    }

    /// Products that underflow are inactive, products that overflow make the row not finite.
    #[test]
    fn selection_at_the_ends_of_the_range(seed in any::<u64>(), exponent in -50_i32..50) {
        let mut rng = Rng(seed);
        let shape = Shape::Kron { heads: 11, base: 3, extension: 4 };
        let selection = Selection::TopK(9);
        let y: Vec<f32> = (0..shape.rows())
            .map(|_| rng.unit() * 2_f32.powi(exponent) * 2_f32.powi(rng.below(60) as i32 - 30) * if exponent > 0 { 1e4 } else { 1e-4 })
            .collect();
        let mut selector = Selector::new(shape, selection, None, Isa::detect().unwrap()).unwrap();
        let outcome = selector.select(&y);
        match naive_select(&y, shape, selection, None) {
            None => prop_assert_eq!(outcome, RowOutcome::NotFinite),
            Some(expected) => {
                let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, v.sqrt())).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn wide_heads_are_cut_back_and_counted() {
    // 64 x 64 latents a head, all alive: far more candidates than the selector has room for at once.
    let shape = Shape::Kron { heads: 3, base: 64, extension: 64 };
    let mut rng = Rng(5);
    for levels in [2, 1000] {
        let y: Vec<f32> = (0..shape.rows()).map(|_| 1.0 + rng.below(levels) as f32).collect();
        for selection in [Selection::TopK(20), Selection::Threshold { theta: 1.2, max_latents: 20 }] {
            let mut selector = Selector::new(shape, selection, None, Isa::detect().unwrap()).unwrap();
            let outcome = selector.select(&y);
            let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, v.sqrt())).collect();
            assert_eq!(found, naive_select(&y, shape, selection, None).unwrap());
            if let Selection::Threshold { theta, .. } = selection {
                let all = Selection::Threshold { theta, max_latents: usize::MAX };
                let active = naive_select(&y, shape, all, None).unwrap().len();
                assert_eq!(outcome, RowOutcome::Selected { active });
            }
        }
    }
}

#[test]
fn per_latent_thresholds() {
    let shape = Shape::Dense { latents: 50 };
    let mut rng = Rng(9);
    let y = rng.vec(50);
    let thresholds: Vec<f32> = rng.vec(50).iter().map(|t| t.abs()).collect();
    let selection = Selection::Threshold { theta: 0.0, max_latents: 6 };
    let mut selector = Selector::new(shape, selection, Some(&thresholds), Isa::detect().unwrap()).unwrap();
    selector.select(&y);
    let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, v)).collect();
    assert_eq!(found, naive_select(&y, shape, selection, Some(&thresholds)).unwrap());
}

#[test]
fn dtypes_and_strides_of_activations() {
    let mut rng = Rng(3);
    let d = 37;
    let sae = random_sae(Shape::Kron { heads: 12, base: 2, extension: 3 }, d, Selection::TopK(5), Dtype::F32, &mut rng);
    let rows = weight_rows(&sae);
    let mut encoder = Encoder::new(Arc::new(sae), EncoderOptions::default()).unwrap();
    for (dtype, stride) in [(Dtype::F16, 2 * d + 3), (Dtype::Bf16, 2 * d), (Dtype::F32, 4 * d + 8)] {
        let mut bytes = vec![0_u8; stride * 7 + 1];
        let mut exact = Vec::new();
        for r in 0..7 {
            for c in 0..d {
                let at = 1 + r * stride + c * dtype.size();
                let v = rng.unit();
                match dtype {
                    Dtype::F32 => bytes[at..at + 4].copy_from_slice(&v.to_le_bytes()),
                    Dtype::F16 => bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes()),
                    Dtype::Bf16 => bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(v).to_le_bytes()),
                }
                exact.push(match dtype {
                    Dtype::F32 => v,
                    Dtype::F16 => half::f16::from_f32(v).to_f32(),
                    Dtype::Bf16 => half::bf16::from_f32(v).to_f32(),
                });
            }
        }
        let mut latents = Latents::new(7, 5).unwrap();
        let view = Activations::from_bytes(&bytes[1..], dtype, 7, d, stride).unwrap();
        encoder.encode(view, &mut latents.as_mut()).unwrap();
        for r in 0..7 {
            let expected = naive_encode(encoder.sae(), &rows, &exact[r * d..(r + 1) * d]).unwrap();
            let found: Vec<_> = latents.row(r).0.iter().copied().zip(latents.row(r).1.iter().copied()).collect();
            assert_eq!(found, expected, "{dtype}");
        }
    }
}

/// Sets FTZ and DAZ, as a host built with -ffast-math has them.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_host_that_flushes_denormals_changes_nothing() {
    let mut rng = Rng(17);
    let d = 33;
    let sae = Arc::new(random_sae(
        Shape::Kron { heads: 20, base: 3, extension: 3 },
        d,
        Selection::TopK(8),
        Dtype::F32,
        &mut rng,
    ));
    let x: Vec<f32> = rng.vec(d * 9).iter().map(|v| v * 1e-38).collect();
    let mut encoder =
        Encoder::new(Arc::clone(&sae), EncoderOptions { threads: 2, ..EncoderOptions::default() }).unwrap();
    let usual = encode(&mut encoder, &x, 9);
    assert!(usual.counts.iter().any(|&c| c > 0), "the inputs must make denormal products that count");
    let set = |value: u32| {
        // SAFETY: a valid MXCSR value: the reset value, with or without FTZ and DAZ.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value) }
    };
    set(0x1F80 | 0x8040);
    let mut again = Encoder::new(Arc::clone(&sae), EncoderOptions { threads: 2, ..EncoderOptions::default() }).unwrap();
    let flushed = encode(&mut again, &x, 9);
    let mut kept = 0_u32;
    // SAFETY: stmxcsr writes four bytes.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut kept) };
    set(0x1F80);
    assert_eq!(kept & 0x8040, 0x8040, "the host's setting must be restored");
    for row in 0..9 {
        assert_eq!(bits(&usual, row), bits(&flushed, row));
    }
}

#[test]
fn fewer_than_k_and_untouched_entries() {
    let mut rng = Rng(1);
    let sae = random_sae(Shape::Dense { latents: 10 }, 4, Selection::TopK(10), Dtype::F32, &mut rng);
    let mut encoder = Encoder::new(Arc::new(sae), EncoderOptions::default()).unwrap();
    let mut latents = Latents::new(1, 12).unwrap();
    latents.indices.fill(77);
    let x = Activations::from_f32(&[0.3, -0.2, 0.9, 0.1], 4).unwrap();
    encoder.encode(x, &mut latents.as_mut()).unwrap();
    let count = latents.counts[0] as usize;
    assert!(count < 10, "some of ten random rows are negative");
    assert!(latents.indices[count..].iter().all(|&i| i == 77));
}

#[test]
fn threshold_capacity_truncates_and_says_so() {
    let mut rng = Rng(2);
    let selection = Selection::Threshold { theta: 0.0, max_latents: 30 };
    let sae = random_sae(Shape::Dense { latents: 60 }, 8, selection, Dtype::F32, &mut rng);
    let mut encoder = Encoder::new(Arc::new(sae), EncoderOptions::default()).unwrap();
    let x = rng.vec(8);
    let mut latents = Latents::new(1, 3).unwrap();
    let summary = encoder.encode(Activations::from_f32(&x, 8).unwrap(), &mut latents.as_mut()).unwrap();
    assert_eq!((latents.counts[0], summary.truncated_rows, latents.flags[0]), (3, 1, ROW_TRUNCATED));
    assert!(latents.active[0] > 3);
}

#[test]
fn wrong_arguments_are_errors() {
    let mut rng = Rng(2);
    let sae = Arc::new(random_sae(Shape::Dense { latents: 60 }, 8, Selection::TopK(5), Dtype::F32, &mut rng));
    let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
    let x = rng.vec(16);
    let view = Activations::from_f32(&x, 8).unwrap();
    for (rows, capacity) in [(2, 4), (1, 5), (2, 0)] {
        let mut latents = Latents::new(rows, capacity).unwrap();
        let error = encoder.encode(view, &mut latents.as_mut()).unwrap_err();
        assert_eq!(error.status(), kronsae::Status::InvalidArgument, "{error}");
    }
    let narrow = Activations::from_f32(&x, 4).unwrap();
    let mut latents = Latents::new(4, 5).unwrap();
    assert!(encoder.encode(narrow, &mut latents.as_mut()).unwrap_err().message().contains("d_model 4"));
    for threads in [0, 5000] {
        assert!(Encoder::new(Arc::clone(&sae), EncoderOptions { threads, ..EncoderOptions::default() }).is_err());
    }
}
