//! Batches: every token of an epoch exactly once, whatever the batch, the window and the shards; and what an error leaves.

mod fixtures;

use fixtures::{Rng, write_shard};
use kronsae::{Aligned, Status};
use kronsae_trainer::data::{Batches, Dataset, Normalisation};
use std::path::Path;
use std::sync::Arc;

const D: usize = 3;
const STRIDE: usize = 16;

/// Shards of the given numbers of tokens, element c of token t being t + c / 4.
fn shards(folder: &Path, rows: &[usize]) -> Arc<Dataset> {
    let mut at = 0;
    for (shard, &rows) in rows.iter().enumerate() {
        let values: Vec<f32> = (0..rows * D).map(|i| (at + i / D) as f32 + (i % D) as f32 / 4.0).collect();
        write_shard(&folder.join(format!("{shard}.safetensors")), &values, D, None);
        at += rows;
    }
    Arc::new(Dataset::open(&[folder]).unwrap())
}

fn identity() -> Arc<Normalisation> {
    Arc::new(Normalisation { mean: vec![0.0; D], scale: 1.0 })
}

/// The tokens of batch `t`.
fn batch(batches: &mut Batches, t: u64, batch: usize) -> Vec<usize> {
    let mut x = Aligned::zeroed(batch * STRIDE, "a batch").unwrap();
    let filled = batches.fill(t, &mut x, STRIDE).unwrap();
    assert_eq!((filled.rows, filled.skipped), (batch, 0));
    let rows = x.chunks_exact(STRIDE);
    rows.map(|row| {
        assert_eq!([row[1] - row[0], row[2] - row[0]], [0.25, 0.5]);
        assert!(row[D..].iter().all(|v| *v == 0.0));
        row[0] as usize
    })
    .collect()
}

#[test]
fn every_epoch_is_the_data_set() {
    let mut rng = Rng(5);
    for round in 0..40 {
        let folder = tempfile::tempdir().unwrap();
        let mut random = |most: u64| 1 + (rng.next() % most) as usize;
        let sizes: Vec<usize> = (0..random(4)).map(|_| random(200)).collect();
        let data = shards(folder.path(), &sizes);
        let all = data.rows();
        let first = random(all as u64) - 1;
        let rows = first..first + random((all - first) as u64);
        let (size, window) = (random(300), random(600));
        let open = || Batches::new(Arc::clone(&data), rows.clone(), size, window, round, identity()).unwrap();

        let epochs = 3;
        let count = (epochs * rows.len()).div_ceil(size) as u64;
        let mut batches = open();
        let stream: Vec<Vec<usize>> = (0..count).map(|t| batch(&mut batches, t, size)).collect();
        let tokens: Vec<usize> = stream.concat();
        for epoch in tokens.chunks_exact(rows.len()) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(rows.clone()), "{sizes:?} {rows:?} batch {size} window {window}");
        }
        // A batch is a function of its number: in any order, and from a reader that begins there.
        let mut jumping = open();
        for _ in 0..5 {
            let t = random(count) as u64 - 1;
            assert_eq!(batch(&mut jumping, t, size), stream[t as usize]);
            assert_eq!(batch(&mut open(), t, size), stream[t as usize]);
        }
    }
}

#[test]
fn other_seeds_and_epochs_have_other_orders() {
    let folder = tempfile::tempdir().unwrap();
    let data = shards(folder.path(), &[500]);
    let order = |seed: u64, t: u64| {
        let mut batches = Batches::new(Arc::clone(&data), 0..500, 500, 4096, seed, identity()).unwrap();
        batch(&mut batches, t, 500)
    };
    assert_eq!(order(1, 0), order(1, 0));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), order(1, 1));
    assert!(order(1, 0).iter().enumerate().filter(|(at, token)| at == *token).count() < 10);
}

/// The reader's error is the caller's, each time anew: nobody waits for an answer that will not come.
#[test]
fn an_error_of_the_reader_is_returned_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = shards(folder.path(), &[500]);
    let path = folder.path().join("0.safetensors");
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut batches = Batches::new(data, 0..500, 100, 128, 1, identity()).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(600).unwrap();
        let mut x = Aligned::zeroed(100 * STRIDE, "a batch").unwrap();
        for _ in 0..3 {
            assert_eq!(batches.fill(0, &mut x, STRIDE).unwrap_err().status(), Status::Format);
        }
        done.send(()).unwrap();
    });
    finished.recv_timeout(std::time::Duration::from_secs(20)).expect("fill waits for ever after an error");
}

/// Batches as the shards have them are those that are normalised on the host, tokens that are not finite left out of both;
/// in batches that one thread copies and in those of several.
#[test]
fn raw_batches_are_the_normalised_ones() {
    let mut rng = Rng(8);
    for (d, tokens, size) in [(3, 900, 130), (700, 9000, 4000)] {
        let folder = tempfile::tempdir().unwrap();
        let mut values: Vec<f32> = (0..tokens * d).map(|_| rng.unit()).collect();
        for (at, bad) in [0, 17, 18, 500, tokens - 1].into_iter().zip([f32::NAN, f32::INFINITY].into_iter().cycle()) {
            values[at * d + at % d] = bad;
        }
        for (shard, part) in values.chunks(tokens / 3 * d).enumerate() {
            write_shard(&folder.path().join(format!("{shard}.safetensors")), part, d, None);
        }
        let data = Arc::new(Dataset::open(&[folder.path()]).unwrap());
        let normalisation = Arc::new(Normalisation { mean: vec![0.0; d], scale: 1.0 });
        let open = || {
            let (data, normalisation) = (Arc::clone(&data), Arc::clone(&normalisation));
            Batches::new(data, 0..tokens, size, 2 * tokens, 1, normalisation).unwrap()
        };
        let (mut host, mut raw) = (open(), open());
        let stride = d.next_multiple_of(16);
        let mut x = Aligned::zeroed(size * stride, "a batch").unwrap();
        let mut bytes = vec![0_u8; size * d * 4];
        let mut skipped = 0;
        for t in 0..tokens.div_ceil(size) as u64 {
            let expected = host.fill(t, &mut x, stride).unwrap();
            assert_eq!(raw.gather(t, &mut bytes).unwrap(), expected);
            skipped += expected.skipped;
            for row in 0..expected.rows {
                let found = bytes[row * d * 4..][..d * 4].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                assert!(found.eq(x[row * stride..][..d].iter().copied()), "batch {t}, row {row}");
            }
        }
        assert!(skipped >= 5, "{skipped}");
    }
}
