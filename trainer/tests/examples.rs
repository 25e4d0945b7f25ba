//! Top activations on data whose answers are known: a dense model with one row a dimension.

mod fixtures;

use fixtures::{write_shard, write_shard_bytes};
use kronsae::sae::{Config, Encoder, ModelWriter, Selection, Which};
use kronsae::{Dtype, Sae};
use kronsae_trainer::data::Dataset;
use kronsae_trainer::examples::{ExampleOptions, token_latents, top_activations};
use std::path::Path;
use std::sync::Arc;

/// Latent f is dimension f.
fn identity(folder: &Path, d: usize, k: usize) -> Arc<Sae> {
    let eye: Vec<f32> = (0..d * d).map(|at| if at / d == at % d { 1.0 } else { 0.0 }).collect();
    let encoder = Encoder::Dense { latents: d };
    let config = Config::new(encoder, d, Selection::TopK(k), 1.0).unwrap();
    let path = folder.join("model.safetensors");
    let zeros = vec![0.0; d];
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &eye, [d, d], d, Dtype::F32),
        encoder_bias: &zeros,
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &eye, [d, d], d, Dtype::F32),
        decoder_bias: &zeros,
        calibration: None,
    }
    .write(&path)
    .unwrap();
    Arc::new(Sae::open(path).unwrap())
}

#[test]
fn finds_the_tokens_that_excite_a_latent() {
    let folder = tempfile::tempdir().unwrap();
    let sae = identity(folder.path(), 4, 2);
    let rows = 64;
    let mut x = vec![0.0_f32; rows * 4];
    for row in 0..rows {
        x[row * 4] = 1.0 + row as f32; // strong, but on every token
    }
    x[20 * 4 + 2] = 5.0;
    x[21 * 4 + 2] = 4.0; // a neighbour: the same text
    x[40 * 4 + 2] = 9.0;
    x[50 * 4 + 3] = 1.0;
    let words: Vec<String> = (0..rows).map(|at| format!(" w{at}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let shard = folder.path().join("shard.safetensors");
    write_shard(&shard, &x, 4, Some(&words));
    let data = Dataset::open(&[shard]).unwrap();
    let options = ExampleOptions { examples: 3, before: 2, after: 3, ..ExampleOptions::default() };

    let found = top_activations(&sae, &data, 0..rows, &options).unwrap();
    assert_eq!(found.iter().map(|l| l.latent).collect::<Vec<_>>(), [2, 3], "latent 0 fires everywhere, latent 1 never");
    let strongest = &found[0];
    assert_eq!((strongest.max_value, strongest.firing_rate), (9.0, 3.0 / 64.0));
    let rows_found: Vec<_> = strongest.examples.iter().map(|e| (e.row, e.value)).collect();
    assert_eq!(rows_found, [(40, 9.0), (20, 5.0)]);
    let example = &strongest.examples[0];
    assert_eq!((&*example.before, &*example.token, &*example.after), (" w38 w39", " w40", " w41 w42 w43"));

    let tokens = token_latents(&sae, &data, &[63, 40], 5, &options).unwrap();
    assert_eq!(tokens[0].latents, [(0, 64.0)]);
    assert_eq!((&*tokens[0].before, &*tokens[0].token, &*tokens[0].after), (" w61 w62", " w63", ""));
    assert_eq!(tokens[1].latents, [(0, 41.0), (2, 9.0)]);
    assert!(token_latents(&sae, &data, &[64], 5, &options).unwrap_err().message().contains("64 tokens"));
}

#[test]
fn context_stays_in_its_sequence_and_shards_without_text_still_work() {
    let folder = tempfile::tempdir().unwrap();
    let sae = identity(folder.path(), 2, 1);
    let shards = folder.path().join("data");
    std::fs::create_dir(&shards).unwrap();
    write_shard(&shards.join("a.safetensors"), &[0.0, 0.0, 0.0, 1.0], 2, Some(&["one", " two"]));
    write_shard(&shards.join("b.safetensors"), &[0.0; 4], 2, Some(&["three", "\u{fffd}four"]));
    let data = Dataset::open(&[&shards]).unwrap();
    let options = ExampleOptions { max_rate: 1.0, ..ExampleOptions::default() };
    let found = top_activations(&sae, &data, 0..4, &options).unwrap();
    let example = &found[0].examples[0];
    assert_eq!((&*example.before, &*example.token, &*example.after), ("one", " two", ""));

    // A character in three tokens is marked whole, whichever of them is meant.
    let split = folder.path().join("split.safetensors");
    let pieces: [&[u8]; 4] = [b"a", &[0xE2], &[0x8F], &[0x8E, b'b']];
    write_shard_bytes(&split, &[0.0; 8], 2, Some(&pieces));
    let data = Dataset::open(&[split]).unwrap();
    for at in 1..4 {
        let token = &token_latents(&sae, &data, &[at], 1, &options).unwrap()[0];
        assert_eq!((&*token.before, &*token.token, &*token.after), ("a", "⏎b", ""), "{at}");
    }

    let bare = folder.path().join("bare.safetensors");
    write_shard(&bare, &[0.0, 0.0, 0.0, 1.0], 2, None);
    let data = Dataset::open(&[bare]).unwrap();
    let found = top_activations(&sae, &data, 0..2, &options).unwrap();
    assert_eq!(found[0].examples[0].token, "[row 1]");
}
