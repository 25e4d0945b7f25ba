//! Sound frames with the wrong things in them.

use crate::raw::{D, HEADS, LATENTS, ROWS, Raw, RawTensor, elements, load, refused};
use kronsae::sae::LoadOptions;
use kronsae::{Sae, Status};

#[test]
fn wrong_dtypes() {
    for tensor in ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "encoder.threshold"] {
        for (dtype, size) in [("I32", 4), ("U32", 4), ("F64", 8), ("U8", 1), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1)] {
            let mut raw = Raw::dense("F32");
            let wrong = raw.tensor(tensor);
            wrong.data = vec![0; wrong.shape.iter().product::<usize>() * size];
            wrong.dtype = dtype;
            refused(&raw.bytes(), &[tensor, dtype, "expected F32"]);
        }
    }
    let mut raw = Raw::kron("F32");
    raw.tensor("encoder.weight").dtype = "F33";
    refused(&raw.bytes(), &["F33"]);
}

#[test]
fn formats_and_encoders_that_are_unknown() {
    for format in ["kronsae/2", "kronsae/10", "kronsae", "KRONSAE/1", "activations/1", ""] {
        let raw = Raw { format: Some(format), ..Raw::kron("F32") };
        refused(&raw.bytes(), &[format, "kronsae/1"]);
    }
    refused(&Raw { format: None, ..Raw::kron("F32") }.bytes(), &["no `format`", "kronsae/1"]);
    refused(&Raw { config: None, ..Raw::kron("F32") }.bytes(), &["config"]);
    for encoder in ["\"conv\"", "\"Kron\"", "null", "7"] {
        refused(&Raw::kron("F32").with_config("\"kron\"", encoder).bytes(), &[encoder, "\"kron\" and \"dense\""]);
    }
    refused(&Raw::kron("F32").with_config("\"encoder\"", "\"encodes\"").bytes(), &["encoder is nothing"]);
}

#[test]
fn configs_that_are_not_objects() {
    let deep = "[".repeat(100_000);
    for config in ["", "{", "[]", "null", "17", "\"kron\"", "{} {}", deep.as_str()] {
        let raw = Raw { config: Some(config.to_owned()), ..Raw::kron("F32") };
        refused(&raw.bytes(), &["config"]);
    }
}

#[test]
fn missing_tensors() {
    for tensor in ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"] {
        let mut raw = Raw::kron("F32");
        raw.tensors.retain(|t| t.name != tensor);
        refused(&raw.bytes(), &[tensor, "missing", "the file has"]);
        // A decoder that is not wanted must be there all the same: half a file is a damaged file.
        let error = Sae::from_bytes(&raw.bytes(), LoadOptions { encoder_only: true }).unwrap_err();
        assert!(error.message().contains(tensor), "{error}");
    }
    refused(&Raw { tensors: vec![], ..Raw::kron("F32") }.bytes(), &["missing"]);
}

#[test]
fn extents_that_overflow_or_do_not_fit() {
    let heads = format!("\"heads\":{HEADS}");
    for (to, word) in [
        ("\"heads\":0", "heads 0"),
        ("\"heads\":-3", "-3"),
        ("\"heads\":3.5", "3.5"),
        ("\"heads\":\"3\"", "\"3\""),
        ("\"heads\":4", "shape"),
        ("\"heads\":18446744073709551615", "18446744073709551615"),
        ("\"heads\":18446744073709551616", "heads"),
        // h*m*n is 2^64 + 6 = 6 modulo the word; h*m*n = 2^63; h*m*n over the limit alone.
        ("\"heads\":3074457345618258604", "3074457345618258604"),
        ("\"heads\":1537228672809129302", "1537228672809129302"),
        ("\"heads\":1000000000", "1073741824"),
        ("\"head\":3", "heads is nothing"),
    ] {
        refused(&Raw::kron("F32").with_config(&heads, to).bytes(), &["config", word]);
    }
    for to in ["0", "6", "1073741825", "18446744073709551615", "4611686018427387905"] {
        let to = format!("\"d_model\":{to}");
        refused(&Raw::kron("F32").with_config("\"d_model\":5", &to).bytes(), &["config"]);
    }
    refused(&Raw::dense("F32").with_config("\"latents\":18", "\"latents\":0").bytes(), &["latents 0"]);
    refused(&Raw::dense("F32").with_config("\"latents\":18", "\"latents\":19").bytes(), &["[18, 5]", "[19, 5]"]);
}

#[test]
fn selections_out_of_range() {
    for (k, found) in [("0", "k = 0"), ("19", "k = 19"), ("-1", "-1"), ("1.5", "1.5"), ("null", "null")] {
        let to = format!("\"topk\":{k}");
        refused(&Raw::kron("F32").with_config("\"topk\":4", &to).bytes(), &["config", found]);
    }
    load(&Raw::kron("F32").with_config("\"topk\":4", "\"topk\":18").bytes()).unwrap();
    for (from, to, found) in [
        ("\"threshold\":0.25", "\"threshold\":-0.25", "theta = -0.25"),
        ("\"threshold\":0.25", "\"threshold\":1e60", "theta = inf"),
        ("\"threshold\":0.25", "\"threshold\":null", "null"),
        ("\"max_latents\":6", "\"max_latents\":0", "max_latents = 0"),
        ("\"max_latents\":6", "\"max_latents\":19", "max_latents = 19"),
        (",\"max_latents\":6", "", "max_latents is nothing"),
        ("\"selection\"", "\"selector\"", "selection is nothing"),
        ("\"output_scale\":1.5", "\"output_scale\":0", "output_scale = 0"),
        ("\"output_scale\":1.5", "\"output_scale\":-1", "output_scale = -1"),
        ("\"output_scale\":1.5", "\"output_scale\":1e40", "output_scale = inf"),
    ] {
        refused(&Raw::dense("F32").with_config(from, to).bytes(), &["config", found]);
    }
}

#[test]
fn weights_that_are_not_finite() {
    for dtype in ["F32", "BF16", "F16"] {
        for tensor in ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "encoder.threshold"] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut raw = Raw::dense(dtype);
                let to = raw.tensor(tensor);
                // Biases and thresholds may be of any dtype as well.
                let count = to.shape.iter().product();
                let mut values = vec![0.25; count];
                values[count - 2] = bad;
                (to.dtype, to.data) = (dtype, elements(dtype, &values));
                refused(&raw.bytes(), &[tensor, "refused"]);
                let without_decoder = Sae::from_bytes(&raw.bytes(), LoadOptions { encoder_only: true });
                // The decoder's bias is read all the same: screening centres tokens on it.
                assert_eq!(without_decoder.is_ok(), tensor == "decoder.weight", "{dtype} {tensor}");
            }
        }
    }
}

#[test]
fn thresholds_where_none_belong() {
    let threshold = Raw::dense("F32").tensor("encoder.threshold").clone();
    let mut kron = Raw::kron("F32");
    kron.tensors.push(threshold);
    refused(&kron.bytes(), &["encoder.threshold", "dense"]);
    let topk = Raw::dense("F32").with_config("{\"threshold\":0.25,\"max_latents\":6}", "{\"topk\":4}");
    refused(&topk.bytes(), &["encoder.threshold", "threshold selection"]);
    let mut negative = Raw::dense("F32");
    negative.tensor("encoder.threshold").data = elements("F32", &[-0.5; LATENTS]);
    refused(&negative.bytes(), &["encoder.threshold", "-0.5", "at least 0"]);
}

#[test]
fn calibration_of_the_wrong_shape() {
    let with = |name, shape: &[usize], dtype, bytes: usize| {
        let mut raw = Raw::kron("F32");
        raw.tensors.push(RawTensor { name, dtype, shape: shape.to_vec(), data: vec![0; bytes] });
        raw.bytes()
    };
    for name in ["calibration.rate", "calibration.mean"] {
        refused(&with(name, &[LATENTS - 1], "F32", 4 * (LATENTS - 1)), &[name, "shape"]);
        refused(&with(name, &[LATENTS], "I32", 4 * LATENTS), &[name, "I32"]);
        load(&with(name, &[LATENTS], "F32", 4 * LATENTS)).unwrap();
    }
    let name = "calibration.quantiles";
    for shape in [vec![LATENTS], vec![], vec![3, LATENTS], vec![LATENTS, 3, 1]] {
        let bytes = 4 * shape.iter().product::<usize>();
        refused(&with(name, &shape, "F32", bytes), &[name, "shape"]);
    }
    let sae = load(&with(name, &[LATENTS, 3], "F32", 12 * LATENTS)).unwrap();
    assert_eq!(sae.calibration().unwrap().levels, 3);
}

/// F16 is never written but is read: subnormals, the ends of its range, signed zeros.
#[test]
fn f16_weights_are_widened_exactly() {
    let patterns: Vec<u16> =
        [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C01].into_iter().cycle().take(ROWS * D).collect();
    let mut raw = Raw::kron("F16");
    raw.tensor("encoder.weight").data = patterns.iter().flat_map(|b| b.to_le_bytes()).collect();
    let sae = load(&raw.bytes()).unwrap();
    let mut row = [0.0; D];
    for r in 0..ROWS {
        sae.encoder().weight.widen_row(r, &mut row);
        for c in 0..D {
            let expected = half::f16::from_bits(patterns[r * D + c]).to_f32();
            assert_eq!(row[c].to_bits(), expected.to_bits());
        }
    }
}

#[test]
fn encoder_only() {
    let bytes = Raw::kron("BF16").bytes();
    let sae = Sae::from_bytes(&bytes, LoadOptions { encoder_only: true }).unwrap();
    assert!(sae.decoder().is_none());
    let latents = kronsae::Latents::new(1, 4).unwrap();
    let error = sae.decode((&latents).into(), &mut [0.0; D]).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().contains("encoder-only"), "{error}");
    let error = sae.steer(&mut [0; 4 * D], kronsae::Dtype::F32, 1, D, 4 * D, &[]).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
}

#[test]
fn unknown_keys_and_tensors_are_ignored() {
    let mut raw = Raw::kron("F32").with_config("\"encoder\"", "\"later\":{\"x\":[1,2]},\"encoder\"");
    raw.tensors.push(RawTensor { name: "future.tensor", dtype: "I8", shape: vec![3], data: vec![1, 2, 3] });
    let sae = load(&raw.bytes()).unwrap();
    assert!(sae.config().to_json().contains("\"later\":{\"x\":[1,2]}"));
}
