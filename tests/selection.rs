//! The selector's fast paths against the naive reference: head counts that leave a remainder, specials at every place,
//! rows of very different scale one after the other, many equal values.

mod common;

use common::{Rng, naive_select};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Isa, RowOutcome, Selector};

/// Heads with kernels of their own, and some without; dense sizes that leave parts of a block.
fn shapes() -> Vec<Encoder> {
    let mut shapes = Vec::new();
    for (base, extension) in [(1, 1), (2, 2), (2, 4), (3, 5), (4, 4), (4, 8), (8, 8), (8, 16), (12, 4)] {
        shapes.extend([1, 5, 16, 37, 131].map(|heads| Encoder::Kron { heads, base, extension }));
    }
    shapes.extend([1, 15, 255, 256, 257, 1000, 4099].map(|latents| Encoder::Dense { latents }));
    shapes
}

fn check(selector: &mut Selector, y: &[f32], shape: Encoder, selection: Selection, what: &str) {
    let outcome = selector.select(y);
    let Some(expected) = naive_select(y, shape, selection, None) else {
        assert_eq!(outcome, RowOutcome::NotFinite, "{what}");
        return;
    };
    assert_ne!(outcome, RowOutcome::NotFinite, "{what}");
    let kron = matches!(shape, Encoder::Kron { .. });
    let found: Vec<_> = selector.selected().map(|(f, v)| (f as u32, if kron { v.sqrt() } else { v })).collect();
    assert_eq!(found, expected, "{what}");
}

fn selections(shape: Encoder) -> Vec<Selection> {
    let most = shape.latents();
    let mut selections: Vec<_> = [1, 7, 50, 300].iter().filter(|&&k| k <= most).map(|&k| Selection::TopK(k)).collect();
    selections.push(Selection::Threshold { theta: 0.5, max_latents: most.min(40) });
    selections
}

/// One selector sees rows of many scales and kinds in turn: where it cut the row before must not matter.
#[test]
fn rows_of_any_scale_in_any_order() {
    let mut rng = Rng(31);
    for shape in shapes() {
        for selection in selections(shape) {
            for isa in Isa::available() {
                let mut selector = Selector::new(shape, selection, None, isa).unwrap();
                for round in 0..24 {
                    let scale = 2.0_f32.powi([0, 0, 1, -30, 40, -70, 5, -1][round % 8]);
                    let shift = [0.0, -0.9, 0.5, -1.0][round % 4];
                    let y: Vec<f32> = match round % 6 {
                        0 => (0..shape.rows()).map(|_| rng.below(3) as f32 * scale).collect(),
                        1 => vec![scale; shape.rows()],
                        _ => rng.vec(shape.rows()).iter().map(|v| (v + shift) * scale).collect(),
                    };
                    let what = format!("{shape:?} {selection:?} {} round {round}", isa.name());
                    check(&mut selector, &y, shape, selection, &what);
                }
            }
        }
    }
}

/// NaN and +infinity are found wherever they are; -infinity is an ordinary negative number.
#[test]
fn specials_at_every_place() {
    let mut rng = Rng(32);
    for shape in shapes() {
        let selection = Selection::TopK(1);
        let y = rng.vec(shape.rows());
        for isa in Isa::available() {
            let mut selector = Selector::new(shape, selection, None, isa).unwrap();
            for at in (0..y.len()).step_by(1 + y.len() / 200) {
                for special in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut y = y.clone();
                    y[at] = special;
                    let what = format!("{shape:?} {} {special} at {at}", isa.name());
                    check(&mut selector, &y, shape, selection, &what);
                }
            }
        }
    }
}
