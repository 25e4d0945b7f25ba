//! Exact selection against the naive reference, on every instruction set.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use kronsae::sae::{Encoder, Selection};
use kronsae::{Isa, RowOutcome, Selector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[heads, base, extension, rule, most, levels], rest)) = bytes.split_first_chunk::<6>() else { return };
    let shape = if heads & 0x80 == 0 {
        let [heads, base, extension] = [heads, base, extension].map(|v| usize::from(v % 40) + 1);
        Encoder::Kron { heads, base, extension }
    } else {
        Encoder::Dense { latents: usize::from(heads & 0x7F) + usize::from(base) + 1 }
    };
    let most = usize::from(most) % shape.latents().min(200) + 1;
    let selection = match rule {
        0..128 => Selection::TopK(most),
        _ => Selection::Threshold { theta: f32::from(rule - 128) / 32.0, max_latents: most },
    };
    if rest.is_empty() {
        return;
    }
    // Small whole numbers, which tie everywhere, or any bit pattern; the input repeats where it is too short.
    let y: Vec<f32> = match levels {
        0..192 => rest.iter().cycle().map(|v| f32::from(v % (levels % 16 + 2)) - 1.0).take(shape.rows()).collect(),
        _ => {
            let words = rest.chunks(4).map(|c| f32::from_bits(c.iter().fold(0, |w, b| w << 8 | u32::from(*b))));
            words.cycle().take(shape.rows()).collect()
        }
    };
    let kron = matches!(shape, Encoder::Kron { .. });
    let expected = common::naive_select(&y, shape, selection, None);
    for isa in Isa::available() {
        let mut selector = Selector::new(shape, selection, None, isa).unwrap();
        match (selector.select(&y), &expected) {
            (RowOutcome::NotFinite, None) => {}
            (RowOutcome::Selected { .. }, Some(expected)) => {
                let value = |v: f32| if kron { v.sqrt() } else { v };
                let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, value(v))).collect();
                assert_eq!(&found, expected, "{shape:?} {selection:?} on {}", isa.name());
            }
            (outcome, _) => panic!("{shape:?} {selection:?} on {}: {outcome:?}, expected {expected:?}", isa.name()),
        }
    }
});
