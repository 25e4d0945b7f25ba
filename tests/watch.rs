//! Watch lists against full encodes.

mod common;

use common::{Rng, random_sae};
use kronsae::sae::{Encoder as Shape, Selection};
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Latents, ROW_NOT_FINITE, Sae, Watch, WatchRule};
use std::sync::Arc;

const D: usize = 29;

/// Values of all latents of each row by a full encode, 0 where not active; None for a row that is not finite.
fn full(sae: &Arc<Sae>, x: &[f32]) -> Vec<Option<Vec<f32>>> {
    let mut encoder = Encoder::new(Arc::clone(sae), EncoderOptions::default()).unwrap();
    let rows = x.len() / D;
    let mut latents = Latents::new(rows, sae.config().selection.capacity()).unwrap();
    encoder.encode(Activations::from_f32(x, D).unwrap(), &mut latents.as_mut()).unwrap();
    (0..rows)
        .map(|row| {
            let mut all = vec![0.0; sae.config().encoder.latents()];
            for (&f, &value) in latents.row(row).0.iter().zip(latents.row(row).1) {
                all[f as usize] = value;
            }
            (latents.flags[row] & ROW_NOT_FINITE == 0).then_some(all)
        })
        .collect()
}

#[test]
fn values_are_those_of_a_full_encode() {
    let mut rng = Rng(21);
    for shape in [Shape::Kron { heads: 11, base: 3, extension: 4 }, Shape::Dense { latents: 90 }] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let latents = shape.latents();
            for selection in [Selection::TopK(latents), Selection::Threshold { theta: 1.1, max_latents: latents }] {
                let sae = Arc::new(random_sae(shape, D, selection, dtype, &mut rng));
                let mut x = rng.vec(D * 8);
                x[3 * D] = f32::NAN;
                x[4 * D..5 * D].fill(0.0);
                let expected = full(&sae, &x);
                // Out of order, with a repetition.
                let list: Vec<u32> = [5, 0, latents - 1, 17, 5, 33].iter().map(|&f| f as u32).collect();
                let mut watch = Watch::new(Arc::clone(&sae), &list).unwrap();
                let exact = matches!(selection, Selection::Threshold { .. });
                assert_eq!(watch.rule(), if exact { WatchRule::Exact } else { WatchRule::Candidate });
                assert!(watch.encoder_rows() <= 10);
                let (mut values, mut flags) = (vec![9.0; 8 * list.len()], vec![9; 8]);
                watch.encode(Activations::from_f32(&x, D).unwrap(), &mut values, Some(&mut flags)).unwrap();
                for row in 0..8 {
                    let found = &values[row * list.len()..][..list.len()];
                    match &expected[row] {
                        None => assert_eq!((flags[row], found), (ROW_NOT_FINITE, &[0.0; 6][..])),
                        Some(all) => {
                            let wanted: Vec<f32> = list.iter().map(|&f| all[f as usize]).collect();
                            assert_eq!((flags[row], found), (0, &wanted[..]));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let mut rng = Rng(4);
    let sae = Arc::new(random_sae(Shape::Dense { latents: 9 }, D, Selection::TopK(3), Dtype::F32, &mut rng));
    assert!(Watch::new(Arc::clone(&sae), &[]).is_err());
    let error = Watch::new(Arc::clone(&sae), &[1, 9]).unwrap_err();
    assert!(error.message().contains("latent 9") && error.message().contains("F = 9"), "{error}");
    let mut watch = Watch::new(sae, &[1, 2]).unwrap();
    let x = rng.vec(2 * D);
    let view = Activations::from_f32(&x, D).unwrap();
    assert!(watch.encode(view, &mut [0.0; 3], None).is_err());
    assert!(watch.encode(view, &mut [0.0; 4], Some(&mut [0; 1])).is_err());
    assert!(watch.encode(Activations::from_f32(&x, 2 * D).unwrap(), &mut [0.0; 4], None).is_err());
}
