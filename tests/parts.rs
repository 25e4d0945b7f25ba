//! Models made of parts in memory are held to what a file is held to.

use kronsae::dtype::Dtype;
use kronsae::sae::{Config, Encoder, EncoderWeights, Matrix, Selection};
use kronsae::{Aligned, Sae, Status};

fn parts(encoder: Encoder, selection: Selection, thresholds: Option<&[f32]>, bias: f32) -> kronsae::Result<Sae> {
    let (rows, d) = (encoder.rows(), 4);
    let weight = Matrix::from_rows(&vec![0.5; rows * d], [rows, d], d, Dtype::F32, "w").unwrap();
    let vector = |values: &[f32]| {
        let mut to = Aligned::zeroed(values.len(), "v").unwrap();
        to.copy_from_slice(values);
        to
    };
    let weights = EncoderWeights { weight, bias: vector(&vec![bias; rows]), threshold: thresholds.map(vector) };
    Sae::from_parts(Config::new(encoder, d, selection, 1.0).unwrap(), weights, None)
}

#[test]
fn thresholds_and_numbers_are_checked() {
    let kron = Encoder::Kron { heads: 2, base: 1, extension: 2 };
    let dense = Encoder::Dense { latents: 4 };
    let threshold = Selection::Threshold { theta: 0.0, max_latents: 4 };
    let refused = |encoder, selection, thresholds: Option<&[f32]>, bias| {
        let error = parts(encoder, selection, thresholds, bias).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    };
    refused(kron, threshold, Some(&[0.1; 4]), 0.0);
    refused(dense, Selection::TopK(2), Some(&[0.1; 4]), 0.0);
    refused(dense, threshold, Some(&[0.1, -0.1, 0.1, 0.1]), 0.0);
    refused(dense, threshold, Some(&[0.1, f32::NAN, 0.1, 0.1]), 0.0);
    refused(dense, threshold, None, f32::INFINITY);
    assert!(parts(dense, threshold, Some(&[0.1; 4]), 0.0).is_ok());
    assert!(parts(kron, threshold, None, 0.0).is_ok());
}

#[test]
fn no_rows_of_any_width_are_no_overflow() {
    let sae = parts(Encoder::Dense { latents: 4 }, Selection::TopK(2), None, 0.0).unwrap();
    let error = sae.steer(&mut [], Dtype::F32, 0, usize::MAX, 0, &[]).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
}
