//! A run that is killed and resumed ends with the tensors of one that was not, on any number of threads.

mod fixtures;

use fixtures::{Rng, activations, write_shards};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const D: usize = 24;

fn data(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    std::fs::create_dir(&shards).unwrap();
    let mut rng = Rng(11);
    let mut values = activations(3000, D, &mut rng);
    // Some tokens are not finite: they are skipped, the same ones each time.
    for row in [17, 1200, 2999] {
        values[row * D + 3] = f32::NAN;
    }
    write_shards(&shards, &values, D, 1100);
    shards
}

fn train(shards: &Path, out: &Path, threads: &str, encoder: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args([
        "train",
        "--tokens",
        "40000",
        "--batch",
        "100",
        "--k",
        "4",
        "--checkpoint-every",
        "7",
        "--seed",
        "3",
    ]);
    command.args(["--shuffle-window", "700", "--hold-out", "100", "--eval-every", "50", "--dead-after", "3000"]);
    command.args(["--threads", threads]).args(encoder);
    command.arg("--data").arg(shards).arg("--out").arg(out).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

const KRON: &[&str] = &["--heads", "12", "--base", "2", "--extension", "3"];
const DENSE: &[&str] = &["--encoder", "dense", "--latents", "70", "--clip-previous-step", "0.01"];

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

fn steps_logged(out: &Path) -> usize {
    std::fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn killed_at_any_moment_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    for (name, encoder) in [("kron", KRON), ("dense", DENSE)] {
        let whole = folder.path().join(format!("{name}-whole"));
        let started = Instant::now();
        assert!(train(&shards, &whole, "1", encoder).status().unwrap().success());
        let duration = started.elapsed();

        let killed = folder.path().join(format!("{name}-killed"));
        let mut kills = 0;
        for attempt in 0..40 {
            let threads = ["1", "2", "3"][attempt % 3];
            let mut command = train(&shards, &killed, threads, encoder);
            if attempt > 0 {
                command.arg("--resume");
            }
            let mut child = command.spawn().unwrap();
            // Later and later, so that every part of a run is hit: the start, a checkpoint, the last write.
            std::thread::sleep(duration.mul_f64(0.1 + 0.07 * attempt as f64) + Duration::from_millis(3));
            if child.try_wait().unwrap().is_some_and(|status| status.success()) {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        assert!(kills >= 2, "the run was too quick to be killed: {kills} kills");
        assert!(model(&whole) == model(&killed), "{name}: a run killed {kills} times has another model file");
        assert_eq!(steps_logged(&whole), steps_logged(&killed), "{name}: entries of the log doubled or lost");

        // The newest checkpoints are there, nothing half-written is, and the model is the only one of its kind.
        let names = |folder: &Path| -> Vec<String> {
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let top = names(&whole);
        assert_eq!(top.iter().filter(|n| n.ends_with(".safetensors")).count(), 1, "{top:?}");
        for expected in ["model.safetensors", "report.html", "config.toml", "metrics.jsonl", "checkpoints"] {
            assert!(top.iter().any(|n| n == expected), "{expected} is not in {top:?}");
        }
        assert!(top.iter().any(|n| n.starts_with("events.out.tfevents.")), "{top:?}");
        assert!(!top.iter().any(|n| n.ends_with(".tmp")), "{top:?}");
        assert_eq!(names(&whole.join("checkpoints")).len(), 2);
    }
}

#[test]
fn threads_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    for (name, encoder) in [("kron", KRON), ("dense", DENSE)] {
        // In f32 everywhere; what `auto` means here is in the other test.
        let models: Vec<_> = ["1", "2", "5"]
            .iter()
            .map(|threads| {
                let out = folder.path().join(format!("{name}-{threads}"));
                let mut command = train(&shards, &out, threads, encoder);
                assert!(command.args(["--precision", "f32"]).status().unwrap().success());
                model(&out)
            })
            .collect();
        assert!(models[1] == models[0] && models[2] == models[0], "{name}");
    }
}

/// In f32, training is lane-wise sums and `dot/1` throughout: the instruction set does not matter either.
#[test]
fn instruction_sets_do_not_matter_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let models: Vec<_> = kronsae::Isa::available()
        .map(|isa| {
            let out = folder.path().join(isa.name());
            let mut command = train(&shards, &out, "2", KRON);
            command.args(["--precision", "f32"]).env("KRONSAE_ISA", isa.name());
            assert!(command.status().unwrap().success());
            model(&out)
        })
        .collect();
    assert!(models.iter().all(|model| *model == models[0]));
}

#[test]
fn resume_refuses_other_settings_and_other_data() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("run");
    assert!(train(&shards, &out, "2", KRON).status().unwrap().success());
    let refused = |command: &mut Command, why: &str| {
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(why), "{message}");
    };
    refused(&mut train(&shards, &out, "2", KRON), "already holds a run");
    refused(train(&shards, &out, "2", KRON).arg("--resume").args(["--lr", "0.5"]), "other settings");
    let path = shards.join("shard-0.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1; // in the last row of the shard, which is one of those the fingerprint reads
    std::fs::write(&path, bytes).unwrap();
    refused(train(&shards, &out, "2", KRON).arg("--resume"), "other data");
}

#[test]
fn two_runs_into_one_folder_are_one_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("run");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
        command.args(["train", "--tokens", "100000000", "--k", "4", "--heads", "12"]).args(more);
        command.arg("--data").arg(&shards).arg("--out").arg(&out).stdout(Stdio::null());
        command
    };
    let mut first = run(&[]).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !out.join("metrics.jsonl").exists() {
        assert!(begun.elapsed().as_secs() < 60 && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    for more in [&["--resume"][..], &[]] {
        let output = run(more).stderr(Stdio::piped()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(&format!("process {}", first.id())), "{message}");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    // Whatever it left, it no longer has the folder.
    std::fs::remove_dir_all(out.join("checkpoints")).unwrap();
    assert!(train(&shards, &out, "1", KRON).status().unwrap().success());
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("run");
    assert!(train(&shards, &out, "2", KRON).status().unwrap().success());
    let before = model(&out);
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    let mut checkpoints: Vec<_> =
        std::fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    checkpoints.sort();
    let newest = checkpoints.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    std::fs::write(newest, &bytes[..bytes.len() / 2]).unwrap();
    let output = train(&shards, &out, "2", KRON).arg("--resume").stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && message.contains("damaged checkpoint"), "{message}");
    assert!(model(&out) == before);
}
