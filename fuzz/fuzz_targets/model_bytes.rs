//! Any bytes as a model file: an error, or a model that encodes and decodes.

#![no_main]

use kronsae::sae::LoadOptions;
use kronsae::{Activations, Encoder, EncoderOptions, Latents, Sae};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sae) = Sae::from_bytes(bytes, LoadOptions::default()) else { return };
    // The weights came out of `bytes`, so all that follows is as small as they are, but for what the config alone says.
    let config = sae.config();
    let (d, capacity) = (config.d_model, config.selection.capacity());
    let Ok(mut latents) = Latents::new(2, capacity) else { return };
    let x: Vec<f32> = (0..2 * d).map(|i| (i as f32 * 0.7).sin()).collect();
    let Ok(mut encoder) = Encoder::new(Arc::new(sae), EncoderOptions::default()) else { return };
    encoder.encode(Activations::from_f32(&x, d).unwrap(), &mut latents.as_mut()).unwrap();
    encoder.sae().decode((&latents).into(), &mut vec![0.0; 2 * d]).unwrap();
});
