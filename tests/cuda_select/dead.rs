//! `kronsae_select_dead_*` against the selector over the dead latents' products.

use crate::cases::{Case, Shape, UNTOUCHED, any_case};
use crate::common::Rng;
use crate::library::{Launched, Library, argument, cases};
use crate::select::{Elements, lists_bytes};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Isa, Selector};
use proptest::prelude::*;

/// Dead latents, ascending: about one in `one_in`.
fn dead_of(case: &Case, one_in: usize) -> Vec<u32> {
    let mut rng = Rng(case.seed ^ 0xD);
    (0..case.encoder.latents() as u32).filter(|_| rng.below(one_in) == 0).collect()
}

/// As the trainer ranks them: the products, in the order of the list, are the pre-activations of a dense encoder.
fn expected(case: &Case, y: &[f32], dead: &[u32], k: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let tokens = case.tokens();
    let (mut counts, mut indices, mut values) =
        (vec![0; tokens], vec![UNTOUCHED; tokens * k], vec![UNTOUCHED; tokens * k]);
    if dead.is_empty() {
        return (counts, indices, values);
    }
    let shape = Encoder::Dense { latents: dead.len() };
    let kron = matches!(case.encoder, Encoder::Kron { .. });
    let most = Selection::TopK(k.min(dead.len()));
    let mut selector = Selector::new(shape, most, None, Isa::detect().unwrap()).unwrap();
    for (t, row) in y.chunks_exact(case.ldy()).enumerate() {
        let products: Vec<f32> = dead
            .iter()
            .map(|&latent| {
                let (a, b) = case.encoder.rows_of(latent as usize);
                if a == b { row[a].max(0.0) } else { row[a].max(0.0) * row[b].max(0.0) }
            })
            .collect();
        selector.select(&products);
        counts[t] = selector.count() as u32;
        for (at, (place, product)) in selector.selected().enumerate() {
            indices[t * k + at] = dead[place];
            values[t * k + at] = if kron { product.sqrt() } else { product }.to_bits();
        }
    }
    (counts, indices, values)
}

fn check(case: &Case, one_in: usize) {
    let y = case.pre_activations();
    let dead = dead_of(case, one_in);
    let k = match case.selection {
        Selection::TopK(k) | Selection::Threshold { max_latents: k, .. } => k,
    };
    let (tokens, entries) = (case.tokens(), case.tokens() * k);
    let (mut counts, mut indices, mut values) =
        (vec![UNTOUCHED; tokens], vec![UNTOUCHED; entries], vec![UNTOUCHED; entries]);
    let elements = Elements::new(&y, case.bf16);
    let shape = Shape::from(case.encoder);
    let (address, ldy, tokens) = (elements.address(), case.ldy() as u32, tokens as u32);
    let dead_count = dead.len() as u32;
    let (dead_at, dead_count_at) = (dead.as_ptr(), &raw const dead_count);
    let (k32, to) = (k as u32, (counts.as_mut_ptr(), indices.as_mut_ptr(), values.as_mut_ptr()));
    let mut args = [
        argument(&shape),
        argument(&address),
        argument(&ldy),
        argument(&tokens),
        argument(&dead_at),
        argument(&dead_count_at),
        argument(&k32),
        argument(&to.0),
        argument(&to.1),
        argument(&to.2),
        argument(&k32),
    ];
    let how =
        Launched { grid: (case.grid, 1), block: case.block, shared_bytes: lists_bytes(k), schedule: case.schedule };
    let kernel = format!("kronsae_select_dead_{}", elements.suffix());
    // SAFETY: the arrays are as long as the shape, the tokens and k say, and live until the end.
    unsafe { Library::tested().launch(&kernel, how, &mut args) }.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    assert_eq!((counts, indices, values), expected(case, &y, &dead, k), "{case:?}, one in {one_in} dead");
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn dead_latents_equal_the_selector() {
    let config = ProptestConfig { cases: cases(200), failure_persistence: None, ..ProptestConfig::default() };
    let one_in = prop::sample::select(vec![1_usize, 2, 10, 1000]);
    proptest!(config, |(case in any_case(), one_in in one_in)| check(&case, one_in));
}
