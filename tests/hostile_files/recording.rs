//! The recorder on a disk that fills, and in a process that is killed.

use crate::{in_a_child, limit_now};
use kronsae::monitor::{PushOutcome, Recorder, RecorderOptions, RecorderState, TokenTag};
use kronsae::tensor_file::TensorFile;
use kronsae::{Activations, Dtype, Status};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const D: usize = 1024;

fn options(folder: &Path, tokens: usize) -> RecorderOptions {
    RecorderOptions { dtype: Dtype::F32, most_tokens_per_shard: tokens, ..RecorderOptions::new(folder) }
}

fn push(recorder: &mut Recorder, position: i32) -> PushOutcome {
    let row = vec![position as f32; D];
    let tag = TokenTag { request: 1, position, token: -1, flags: 0 };
    recorder.push(Activations::from_f32(&row, D).unwrap(), &tag, None)
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Tokens of a shard, all of which must be there: each row holds its own position.
fn check(path: &Path) -> usize {
    let file = TensorFile::open(path).unwrap();
    let rows = file.require("activations").unwrap().shape[0];
    let (mut activations, mut positions) = (vec![0; rows * D * 4], vec![0; rows * 4]);
    file.read("activations", 0, &mut activations).unwrap();
    file.read("positions", 0, &mut positions).unwrap();
    for (row, position) in activations.chunks(D * 4).zip(positions.as_chunks::<4>().0) {
        let expected = (i32::from_le_bytes(*position) as f32).to_le_bytes();
        assert!(row.as_chunks::<4>().0.iter().all(|value| *value == expected), "{}", path.display());
    }
    rows
}

/// A shard of 100 tokens is larger than a file may be: nothing is lost but what has no room, nothing is half written, and
/// when there is space again recording goes on.
#[test]
fn a_disk_that_fills_while_recording() {
    in_a_child("recording::a_disk_that_fills_while_recording", || {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(options(folder.path(), 100), D).unwrap();
        (1..=100).for_each(|position| assert_eq!(push(&mut recorder, position), PushOutcome::Taken));
        assert_eq!((recorder.shards(), recorder.state()), (1, RecorderState::Recording));
        // SAFETY: SIG_IGN is a valid disposition; with it a write past the limit fails instead of killing the process.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        limit_now(libc::RLIMIT_FSIZE, 200_000);
        for position in 101..=230 {
            let expected = if position <= 200 { PushOutcome::Taken } else { PushOutcome::Failed };
            assert_eq!(push(&mut recorder, position), expected, "{position}");
        }
        assert_eq!((recorder.state(), recorder.failures(), recorder.held()), (RecorderState::Failing, 30, 100));
        let error = recorder.last_error().unwrap();
        assert!(error.status() == Status::Io && error.message().contains("shard-00000001"), "{error}");
        assert_eq!(names(folder.path()), ["shard-00000000.safetensors"], "something half written was left");

        limit_now(libc::RLIMIT_FSIZE, libc::RLIM_INFINITY);
        let start = Instant::now();
        while recorder.state() != RecorderState::Recording {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(50));
            recorder.tick();
        }
        assert_eq!(push(&mut recorder, 231), PushOutcome::Taken);
        recorder.close().unwrap();
        assert_eq!((recorder.written(), recorder.failures()), (201, 30));
        let files = names(folder.path());
        let rows: Vec<_> = files.iter().map(|name| check(&folder.path().join(name))).collect();
        assert_eq!(rows, [100, 100, 1]);
        for name in &files {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    });
}

/// Killed at any moment, a recorder leaves whole shards under a shard's name, and the next one goes on after them.
#[test]
fn killed_while_it_writes() {
    const KEY: &str = "KRONSAE_TEST_RECORD_INTO";
    if let Some(folder) = std::env::var_os(KEY) {
        let mut recorder = Recorder::new(options(&PathBuf::from(folder), 256), D).unwrap();
        for position in 1.. {
            push(&mut recorder, position);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let shards = || names(folder.path()).into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
    let mut halves = 0;
    for round in 0..12_u64 {
        let before = shards();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "recording::killed_while_it_writes", "--test-threads=1"])
            .env(KEY, folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while shards().len() == before.len() {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is recorded");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let after = shards();
        assert!(after.len() > before.len() && after[..before.len()] == before, "{before:?} {after:?}");
        for name in &after[before.len()..] {
            assert_eq!(check(&folder.path().join(name)), 256);
        }
        halves += usize::from(names(folder.path()).len() > after.len());
    }
    println!("{halves} of 12 kills came in the middle of a shard");
    let recorded = shards();
    let mut recorder = Recorder::new(options(folder.path(), 256), D).unwrap();
    assert_eq!(names(folder.path()), recorded, "what killed recorders left is gone, and nothing else");
    push(&mut recorder, 1);
    recorder.close().unwrap();
    assert_eq!(shards().len(), recorded.len() + 1);
}
