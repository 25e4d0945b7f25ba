//! What is recorded, what is left out, when shards are written, and what happens when they cannot be.

use super::*;
use crate::Status;
use crate::tensor_file::TensorFile;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const D: usize = 3;

fn tag(request: u64, position: i32) -> TokenTag {
    TokenTag { request, position, token: position + 100, flags: 0 }
}

fn options(folder: &Path) -> RecorderOptions {
    RecorderOptions { most_tokens_per_shard: 4, keep_position_0: true, ..RecorderOptions::new(folder) }
}

fn row(values: &[f32; D]) -> Activations<'_> {
    Activations::from_f32(values, D).unwrap()
}

fn push(recorder: &mut Recorder, request: u64, position: i32) -> PushOutcome {
    recorder.push(row(&[1.5, -2.0, position as f32]), &tag(request, position), None)
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn i32s(file: &TensorFile<'_>, tensor: &str) -> Vec<i32> {
    let mut bytes = vec![0; file.require(tensor).unwrap().bytes];
    file.read(tensor, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn open(folder: &Path, shard: usize) -> TensorFile<'static> {
    TensorFile::open(&folder.join(&names(folder)[shard])).unwrap()
}

#[test]
fn sequences_are_numbered_in_each_shard_and_never_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder =
        Recorder::new(RecorderOptions { most_tokens_per_shard: 10, ..options(folder.path()) }, D).unwrap();
    let requests = [(u64::MAX, 5), (3, 0), (u64::MAX, 6), (3, 1), (3, 1), (3, 2)];
    for (request, position) in requests {
        assert_eq!(push(&mut recorder, request, position), PushOutcome::Taken);
    }
    // Another request of the same number, as far as positions can tell the next turn.
    recorder.end(3);
    for (request, position) in [(3, 3), (u64::MAX, 7), (4, 0), (3, 4), (3, 5)] {
        push(&mut recorder, request, position);
    }
    recorder.close().unwrap();
    assert_eq!(names(folder.path()), ["shard-00000000.safetensors", "shard-00000001.safetensors"]);
    let first = open(folder.path(), 0);
    assert_eq!(i32s(&first, "positions"), [5, 0, 6, 1, 1, 2, 3, 7, 0, 4]);
    assert_eq!(i32s(&first, "sequence_ids"), [0, 1, 0, 1, 2, 2, 3, 0, 4, 3]);
    assert_eq!(i32s(&open(folder.path(), 1), "sequence_ids"), [0]);
    assert!(first.tensor("token_ids").is_none() && first.tensor("text").is_none());
}

#[test]
fn rounding_ids_text_metadata_and_modes() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("a/b");
    let mut recorder = Recorder::new(
        RecorderOptions {
            token_ids: true,
            text: true,
            model: Some("m".into()),
            hook: Some("h".into()),
            layer: Some(15),
            keep_position_0: false,
            ..options(&folder)
        },
        D,
    )
    .unwrap();
    let tie = f32::from_bits(0x3F80_8000); // halfway between two BF16 numbers: to even
    assert_eq!(recorder.push(row(&[0.0; D]), &tag(1, 0), None), PushOutcome::LeftOut);
    assert_eq!(recorder.push(row(&[tie, -1.0, 0.1]), &tag(1, 1), Some(b"\xE3\x81")), PushOutcome::Taken);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        assert_eq!(recorder.push(row(&[0.0, bad, 0.0]), &tag(1, 2), None), PushOutcome::NotFinite);
    }
    let half = [half::f16::from_f32(0.5).to_le_bytes(); D].concat();
    let half = Activations::from_bytes(&half, Dtype::F16, 1, D, 0).unwrap();
    assert_eq!(recorder.push(half, &tag(1, 3), None), PushOutcome::Taken);
    assert_eq!(recorder.push(row(&[4.0; D]), &tag(1, 4), Some(&[b'x'; 5000])), PushOutcome::Taken);
    assert_eq!((recorder.held(), recorder.written()), (3, 0));
    recorder.close().unwrap();
    assert_eq!((recorder.held(), recorder.written(), recorder.shards(), recorder.failures()), (0, 3, 1, 0));
    assert_eq!(recorder.state(), RecorderState::Closed);
    assert_eq!(recorder.push(row(&[4.0; D]), &tag(1, 5), None), PushOutcome::Closed);

    let file = open(&folder, 0);
    let mut bytes = [0; 2 * 3 * D];
    file.read("activations", 0, &mut bytes).unwrap();
    let mut values = [0.0; 3 * D];
    crate::dtype::widen(Dtype::Bf16, &bytes, &mut values);
    assert_eq!(values, [1.0, -1.0, 0.100_097_656, 0.5, 0.5, 0.5, 4.0, 4.0, 4.0]);
    assert_eq!(i32s(&file, "positions"), [1, 3, 4]);
    assert_eq!(i32s(&file, "token_ids"), [101, 103, 104]);
    let mut offsets = [0; 32];
    file.read("text_offsets", 0, &mut offsets).unwrap();
    let offsets: Vec<_> = offsets.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    assert_eq!(offsets, [0, 2, 2, 2 + shard::MOST_TEXT as i64], "text longer than a token's is cut");
    let expected = [("d_model", "3"), ("dropped_positions", "0"), ("format", "activations/1"), ("hook", "h")];
    let expected = expected.into_iter().chain([("layer", "15"), ("model", "m")]);
    assert_eq!(file.all_metadata(), expected.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.join("shard-00000000.safetensors")), 0o600);
    assert_eq!((mode(&folder), mode(&outer.path().join("a"))), (0o700, 0o700));
}

#[test]
fn f32_is_exact_and_its_range_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::new(RecorderOptions { dtype: Dtype::F32, ..options(folder.path()) }, D).unwrap();
    let values = [f32::MAX, f32::from_bits(1), 0.1];
    assert_eq!(recorder.push(row(&values), &tag(1, 0), Some(b"not asked for")), PushOutcome::Taken);
    drop(recorder);
    let file = open(folder.path(), 0);
    let mut bytes = [0; 12];
    file.read("activations", 0, &mut bytes).unwrap();
    assert_eq!(bytes, *values.map(f32::to_le_bytes).as_flattened());
    assert_eq!(file.metadata("dropped_positions"), Some(""));
    assert!(file.tensor("text").is_none());
}

#[test]
fn a_folder_is_continued_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut first = Recorder::new(options(path), D).unwrap();
    (0..9).for_each(|position| _ = push(&mut first, 1, position));
    // Two recorders would number alike.
    let error = Recorder::new(options(path), D).unwrap_err();
    assert!(error.message().contains("another recorder"), "{error}");
    // Somebody puts a file where the next shard would go.
    std::fs::write(path.join("shard-00000002.safetensors"), "theirs").unwrap();
    first.close().unwrap();
    assert_eq!(std::fs::read(path.join("shard-00000002.safetensors")).unwrap(), b"theirs");
    assert_eq!(names(path).last().unwrap(), "shard-00000003.safetensors");
    // That file is no shard: no trainer could read the folder.
    let error = Recorder::new(options(path), D).unwrap_err();
    assert!(error.message().contains("shard-00000002"), "{error}");
    std::fs::rename(path.join("shard-00000003.safetensors"), path.join("shard-00000041.safetensors")).unwrap();
    std::fs::remove_file(path.join("shard-00000002.safetensors")).unwrap();
    std::fs::write(path.join(".shard-00000042.safetensors.77-0.tmp"), "of one that was killed").unwrap();
    let before = std::fs::read(path.join("shard-00000041.safetensors")).unwrap();
    let mut second = Recorder::new(options(path), D).unwrap();
    push(&mut second, 1, 0);
    second.close().unwrap();
    assert_eq!(std::fs::read(path.join("shard-00000041.safetensors")).unwrap(), before);
    let expected = ["00000000", "00000001", "00000041", "00000042"].map(|n| format!("shard-{n}.safetensors"));
    assert_eq!(names(path), expected);
}

#[test]
fn shards_that_cannot_stand_together_and_options_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    let of_layer = |layer| RecorderOptions { layer: Some(layer), ..options(folder.path()) };
    let mut recorder = Recorder::new(of_layer(7), D).unwrap();
    push(&mut recorder, 1, 0);
    drop(recorder);
    for (options, d, word) in [
        (of_layer(7), 4, "width 4"),
        (of_layer(8), D, "layer `7`"),
        (RecorderOptions { dtype: Dtype::F16, ..of_layer(7) }, D, "F16"),
        (RecorderOptions { most_tokens_per_shard: 0, ..of_layer(7) }, D, "0 tokens"),
        (RecorderOptions { most_tokens_per_shard: usize::MAX, ..of_layer(7) }, D, "1 to"),
        (of_layer(7), 0, "width 0"),
    ] {
        let error = Recorder::new(options, d).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(word), "{error}");
    }
    let huge = RecorderOptions { most_tokens_per_shard: MOST_TOKENS_PER_SHARD, ..of_layer(7) };
    assert_eq!(Recorder::new(huge, 1 << 40).unwrap_err().status(), Status::OutOfMemory);
    let file = folder.path().join("shard-00000000.safetensors");
    let below = RecorderOptions { folder: file.join("below"), ..of_layer(7) };
    assert_eq!(Recorder::new(below, D).unwrap_err().status(), Status::Io);
    std::fs::write(&file, "damaged").unwrap();
    assert_eq!(Recorder::new(of_layer(7), D).unwrap_err().status(), Status::Format);
    std::fs::write(folder.path().join("shard-00000000.safetensors"), "").unwrap();
    assert!(Recorder::new(of_layer(7), D).unwrap_err().message().contains("shard-00000000"));
}

#[test]
fn age_and_text_close_a_shard_early() {
    let folder = tempfile::tempdir().unwrap();
    let aged = RecorderOptions { most_age: Duration::from_secs(9), ..options(folder.path()) };
    let mut recorder = Recorder::new(aged, D).unwrap();
    let start = Instant::now();
    recorder.tick_at(start + Duration::from_secs(100));
    recorder.push_at(row(&[0.0; D]), &tag(1, 1), None, start + Duration::from_secs(100));
    recorder.tick_at(start + Duration::from_secs(108));
    assert_eq!((recorder.shards(), recorder.held()), (0, 1));
    recorder.tick_at(start + Duration::from_secs(109));
    assert_eq!((recorder.shards(), recorder.held(), recorder.written()), (1, 0, 1));
    drop(recorder);

    let texts = RecorderOptions { text: true, most_tokens_per_shard: 1000, ..options(folder.path()) };
    let mut recorder = Recorder::new(texts, D).unwrap();
    let memory = recorder.bytes();
    for position in 0..40 {
        let outcome = recorder.push(row(&[0.0; D]), &tag(1, position), Some(&[b'y'; 1000]));
        assert_eq!(outcome, PushOutcome::Taken);
    }
    assert!(recorder.shards() >= 2 && recorder.failures() == 0, "{recorder:?}");
    assert_eq!(recorder.bytes(), memory);
    recorder.close().unwrap();
    assert_eq!(recorder.written(), 40);
}

#[test]
fn limits_end_recording() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = RecorderOptions { most_tokens_total: Some(6), ..options(folder.path()) };
    let mut recorder = Recorder::new(tokens, D).unwrap();
    let outcomes: Vec<_> = (0..9).map(|position| push(&mut recorder, 1, position)).collect();
    assert_eq!(outcomes, [[PushOutcome::Taken; 6].as_slice(), &[PushOutcome::Finished; 3]].concat());
    assert_eq!((recorder.state(), recorder.written(), recorder.failures()), (RecorderState::Finished, 6, 0));
    recorder.close().unwrap();

    let size = || -> u64 {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.map(|e| e.unwrap().metadata().unwrap().len()).sum()
    };
    // What is there counts.
    let most = size() + 5000;
    let bytes = RecorderOptions { most_bytes_total: Some(most), ..options(folder.path()) };
    let mut recorder = Recorder::new(bytes, D).unwrap();
    let mut taken = 0;
    while push(&mut recorder, 1, taken) == PushOutcome::Taken {
        taken += 1;
        assert!(taken < 1000);
    }
    assert!(recorder.state() == RecorderState::Finished && taken > 0 && recorder.written() == taken as u64);
    assert!(size() <= most, "{} bytes of {most}", size());
    // Finished, it needs the folder no more.
    Recorder::new(options(folder.path()), D).unwrap();
}

/// The folder goes away and comes back, as a disk does.
#[test]
fn a_disk_that_refuses_for_a_while() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("shards");
    let mut recorder = Recorder::new(options(&folder), D).unwrap();
    let start = Instant::now();
    let mut position = 0;
    let mut push = |recorder: &mut Recorder, seconds: u64| {
        position += 1;
        recorder.push_at(row(&[1.0; D]), &tag(1, position), None, start + Duration::from_secs(seconds))
    };
    for _ in 0..6 {
        assert_eq!(push(&mut recorder, 0), PushOutcome::Taken);
    }
    assert_eq!((recorder.written(), recorder.held()), (4, 2));
    let away = outer.path().join("away");
    std::fs::rename(&folder, &away).unwrap();
    // Two more fit; the shard cannot be written, and stays; what comes then has no room.
    let outcomes = [0; 5].map(|seconds| push(&mut recorder, seconds));
    assert_eq!(outcomes[..2], [PushOutcome::Taken; 2]);
    assert_eq!(outcomes[2..], [PushOutcome::Failed; 3]);
    assert_eq!((recorder.state(), recorder.failures()), (RecorderState::Failing, 3));
    assert_eq!(recorder.last_error().unwrap().status(), Status::Io);
    // Tried again after one second, then two, and so on; not at every token.
    recorder.tick_at(start + Duration::from_millis(1500));
    std::fs::rename(&away, &folder).unwrap();
    assert_eq!(push(&mut recorder, 3), PushOutcome::Failed);
    assert_eq!(push(&mut recorder, 4), PushOutcome::Taken);
    assert_eq!((recorder.state(), recorder.written(), recorder.held()), (RecorderState::Recording, 8, 1));
    assert!(recorder.last_error().is_none());
    // Closing cannot wait: what cannot be written then is lost, counted and said.
    std::fs::rename(&folder, &away).unwrap();
    assert_eq!(recorder.close().unwrap_err().status(), Status::Io);
    assert_eq!((recorder.state(), recorder.written(), recorder.failures()), (RecorderState::Closed, 8, 5));
    recorder.close().unwrap();
    assert_eq!(names(&away).len(), 2);
}
