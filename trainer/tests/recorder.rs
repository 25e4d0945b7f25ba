//! What the runtime's recorder writes is what the trainer reads.

use kronsae::monitor::{PushOutcome, Recorder, RecorderOptions, TokenTag};
use kronsae::{Activations, Dtype};
use kronsae_trainer::data::Dataset;

const D: usize = 24;

/// Tokens of several requests, interleaved; `(request, position)`.
fn tokens() -> Vec<(u64, i32)> {
    let mut tokens = Vec::new();
    for position in 0..40 {
        tokens.extend([(7_u64 << 40, position), (3, position)]);
        if position % 3 == 0 {
            tokens.push((11, position / 3));
        }
    }
    tokens
}

fn row(request: u64, position: i32) -> [f32; D] {
    std::array::from_fn(|i| ((request % 97) as f32 + position as f32 * 0.37 + i as f32).sin() * 3.0)
}

#[test]
fn recorded_shards_are_a_data_set() {
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let folder = tempfile::tempdir().unwrap();
        let options = RecorderOptions {
            dtype,
            most_tokens_per_shard: 25,
            token_ids: true,
            text: true,
            layer: Some(15),
            ..RecorderOptions::new(folder.path())
        };
        let mut recorder = Recorder::new(options, D).unwrap();
        let mut kept = Vec::new();
        for (request, position) in tokens() {
            let tag = TokenTag { request, position, token: position, flags: 0 };
            let text = format!("{request}:{position} ");
            let x = row(request, position);
            match recorder.push(Activations::from_f32(&x, D).unwrap(), &tag, Some(text.as_bytes())) {
                PushOutcome::Taken => kept.push((request, position, text)),
                PushOutcome::LeftOut => assert_eq!(position, 0),
                other => panic!("{other:?}"),
            }
        }
        recorder.close().unwrap();
        assert_eq!((recorder.written(), recorder.failures()), (kept.len() as u64, 0));
        assert!(recorder.shards() >= 4);

        let data = Dataset::open(&[folder.path()]).unwrap();
        assert_eq!((data.rows(), data.d_model(), data.dtype()), (kept.len(), D, dtype));
        let mut all = vec![0.0; data.rows() * D];
        data.read(0, data.rows(), &mut all).unwrap();
        let text = data.text(0, data.rows()).unwrap().expect("text was recorded");
        let sequences = data.sequences(0, data.rows()).unwrap();
        for (at, (request, position, token)) in kept.iter().enumerate() {
            let exact = row(*request, *position);
            let expected = match dtype {
                Dtype::F32 => exact,
                _ => exact.map(|v| half::bf16::from_f32(v).to_f32()),
            };
            assert_eq!(all[at * D..(at + 1) * D], expected);
            assert_eq!(text.token(at), *token);
            // One sequence for tokens of one request in one shard, and for nobody else's.
            for other in 0..at {
                let same = kept[other].0 == *request && sequences[other].0 == sequences[at].0;
                assert_eq!(sequences[other] == sequences[at], same, "tokens {other} and {at}");
            }
        }
        // Read again through a second recording into the same folder: the data set only grows.
        let mut again =
            Recorder::new(RecorderOptions { layer: Some(15), dtype, ..RecorderOptions::new(folder.path()) }, D)
                .unwrap();
        let tag = TokenTag { request: 1, position: 1, token: -1, flags: 0 };
        again.push(Activations::from_f32(&row(1, 1), D).unwrap(), &tag, None);
        again.close().unwrap();
        assert_eq!(Dataset::open(&[folder.path()]).unwrap().rows(), kept.len() + 1);
    }
}
