//! The screened path against the plain one, bit for bit, on every instruction set.

#![no_main]

use kronsae::sae::{Config, Encoder as Shape, EncoderWeights, Matrix, Selection};
use kronsae::{Activations, Aligned, EncodePath, Encoder, EncoderOptions, Isa, Latents, Sae};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// Numbers of a kind that the first byte picks; the bytes repeat where they are too few.
fn numbers(bytes: &[u8], count: usize) -> Vec<f32> {
    let Some((&kind, rest)) = bytes.split_first().filter(|(_, rest)| !rest.is_empty()) else { return vec![0.0; count] };
    match kind {
        // Small whole numbers tie everywhere.
        0..64 => rest.iter().cycle().map(|v| f32::from(v % (kind % 8 + 2)) - 1.0).take(count).collect(),
        64..160 => rest.iter().cycle().map(|v| (f32::from(*v) - 127.5) * 0.01).take(count).collect(),
        // Any bit pattern.
        _ => {
            let words = rest.chunks(4).map(|c| f32::from_bits(c.iter().fold(0, |w, b| w << 8 | u32::from(*b))));
            words.cycle().take(count).collect()
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[heads, base, extension, rule, most, d, split], rest)) = bytes.split_first_chunk::<7>() else { return };
    let shape = if heads & 0x80 == 0 {
        let [base, extension] = [base, extension].map(|v| usize::from(v % 6) + 1);
        Shape::Kron { heads: usize::from(heads % 40) + 1, base, extension }
    } else {
        Shape::Dense { latents: usize::from(heads & 0x7F) + usize::from(base) + 1 }
    };
    let most = usize::from(most) % shape.latents().min(100) + 1;
    let selection = match rule {
        0..160 => Selection::TopK(most),
        _ => Selection::Threshold { theta: f32::from(rule - 160) / 16.0, max_latents: most },
    };
    let (d, tokens) = (usize::from(d) + 1, usize::from(split % 20) + 1);
    let (of_weights, of_tokens) = rest.split_at(rest.len() * usize::from(split) / 256);
    let config = Config::new(shape, d, selection, 1.0).unwrap();
    // Through a Matrix of zeros, for the readers of files refuse what is not finite.
    let mut weight = Matrix::zeroed(shape.rows(), d, "weights").unwrap();
    let stride = weight.stride();
    let weights = numbers(of_weights, shape.rows() * d);
    for (to, from) in weight.f32_mut().chunks_mut(stride).zip(weights.chunks(d)) {
        to[..d].copy_from_slice(from);
    }
    let bias = Aligned::zeroed(shape.rows(), "biases").unwrap();
    let sae = Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap());
    let x = numbers(of_tokens, tokens * d);
    for isa in Isa::available() {
        let [plain, screened] = [EncodePath::Plain, EncodePath::Screened].map(|path| {
            let mut encoder = Encoder::with_isa(Arc::clone(&sae), EncoderOptions { threads: 1, path }, isa).unwrap();
            let mut latents = Latents::new(tokens, selection.capacity()).unwrap();
            let summary = encoder.encode(Activations::from_f32(&x, d).unwrap(), &mut latents.as_mut()).unwrap();
            let values: Vec<u32> = latents.values.iter().map(|v| v.to_bits()).collect();
            (summary, latents.counts, latents.indices, values, latents.active, latents.flags)
        });
        assert_eq!(screened, plain, "{shape:?} {selection:?} on {}", isa.name());
    }
});
