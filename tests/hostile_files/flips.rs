//! Damage: any flipped bits anywhere give an error or a model that is sound, never a crash.

use crate::raw::Raw;
use kronsae::sae::LoadOptions;
use kronsae::{Activations, Encoder, EncoderOptions, Latents, Sae, Status};
use proptest::prelude::*;
use std::sync::Arc;

/// Loads damaged bytes. A model that comes of them has the shape of the unharmed one, and encodes and decodes.
fn survive(bytes: &[u8], unharmed: &Sae) -> bool {
    let sae = match Sae::from_bytes(bytes, LoadOptions::default()) {
        Ok(sae) => sae,
        Err(error) => {
            assert_eq!(error.status(), Status::Format, "{error}");
            assert!(error.message().starts_with("model bytes: "), "{error}");
            return false;
        }
    };
    assert_eq!(sae.config().encoder, unharmed.config().encoder);
    assert_eq!(sae.config().d_model, unharmed.config().d_model);
    let d = sae.config().d_model;
    let mut latents = Latents::new(2, sae.config().selection.capacity()).unwrap();
    let mut encoder = Encoder::new(Arc::new(sae), EncoderOptions::default()).unwrap();
    let x: Vec<f32> = (0..2 * d).map(|i| (i as f32 * 0.7).sin()).collect();
    encoder.encode(Activations::from_f32(&x, d).unwrap(), &mut latents.as_mut()).unwrap();
    encoder.sae().decode((&latents).into(), &mut vec![0.0; 2 * d]).unwrap();
    true
}

/// Every single bit. In the data, only weights can have changed: the config is the same text.
#[test]
fn every_bit_flipped() {
    for raw in [Raw::kron("BF16"), Raw::dense("F32")] {
        let mut bytes = raw.bytes();
        let unharmed = Sae::from_bytes(&bytes, LoadOptions::default()).unwrap();
        let data_start = bytes.len() - raw.data().len();
        let mut loaded = [0; 2];
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                if survive(&bytes, &unharmed) {
                    loaded[usize::from(at >= data_start)] += 1;
                    if at >= data_start {
                        let again = Sae::from_bytes(&bytes, LoadOptions::default()).unwrap();
                        assert_eq!(again.config(), unharmed.config());
                    }
                }
                bytes[at] ^= 1 << bit;
            }
        }
        // Weights have no checksum: most flips there go unnoticed. A header hardly survives one.
        assert!(loaded[1] > 4 * (bytes.len() - data_start), "{loaded:?}");
        assert!(loaded[0] < 2 * data_start, "{loaded:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn several_bytes_replaced(
        dense in any::<bool>(),
        dtype in prop_oneof![Just("F32"), Just("BF16"), Just("F16")],
        in_header in any::<bool>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let raw = if dense { Raw::dense(dtype) } else { Raw::kron(dtype) };
        let mut bytes = raw.bytes();
        let unharmed = Sae::from_bytes(&bytes, LoadOptions::default()).unwrap();
        let end = if in_header { bytes.len() - raw.data().len() } else { bytes.len() };
        for (at, byte) in changes {
            bytes[at.index(end)] = byte;
        }
        survive(&bytes, &unharmed);
    }

    /// Numbers in the header replaced by others, so that the JSON stays whole and only its content lies.
    #[test]
    fn numbers_replaced(dense in any::<bool>(), which in any::<proptest::sample::Index>(), number in numbers()) {
        let raw = if dense { Raw::dense("F32") } else { Raw::kron("F32") };
        let header = serde_json::Value::Object(raw.header()).to_string();
        let starts: Vec<_> = (1..header.len())
            .filter(|&at| header.as_bytes()[at].is_ascii_digit() && !header.as_bytes()[at - 1].is_ascii_alphanumeric())
            .collect();
        let start = starts[which.index(starts.len())];
        let end = start + header[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
        let lying = format!("{}{number}{}", &header[..start], &header[end..]);
        let unharmed = Sae::from_bytes(&raw.bytes(), LoadOptions::default()).unwrap();
        survive(&crate::raw::assemble(lying.as_bytes(), &raw.data()), &unharmed);
    }

    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Sae::from_bytes(&bytes, LoadOptions::default()).is_err());
    }
}

fn numbers() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:e}")),
        (0_u64..400).prop_map(|n| n.to_string()),
        (0_u32..64).prop_map(|shift| (1_u64 << shift).to_string()),
        Just("99999999999999999999999999".to_owned()),
        Just("-0".to_owned()),
    ]
}
