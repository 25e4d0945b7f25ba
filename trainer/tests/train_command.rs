//! `kronsae train` as a program: settings from files and flags, folders, pipes that close, and what a resumed run leaves.

mod fixtures;

use fixtures::{Rng, activations, write_shards};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const D: usize = 16;

/// A folder with 600 tokens of activations in `data`.
fn case() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write_shards(&data, &activations(600, D, &mut Rng(21)), D, 250);
    (folder, data)
}

fn kronsae(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(args);
    command
}

const SMALL: &[&str] = &["--heads", "8", "--k", "4", "--tokens", "3000", "--batch", "100", "--threads", "2"];

fn train(data: &Path, out: &Path) -> Command {
    let mut command = kronsae(&["train"]);
    command.args(SMALL).arg("--data").arg(data).arg("--out").arg(out);
    command
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

fn fails(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(why) && !message.contains("panicked"), "`{why}` is not in: {message}");
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Steps of the evaluations in a log.
fn evaluated(out: &Path) -> Vec<u64> {
    let records = lines(&out.join("metrics.jsonl"));
    records.iter().filter(|r| r.get("evaluation").is_some()).map(|r| r["step"].as_u64().unwrap()).collect()
}

#[test]
fn json_on_stdout_is_json_alone() {
    let (folder, data) = case();
    let output = succeeds(train(&data, &folder.path().join("out")).arg("--json"));
    let text = String::from_utf8(output.stdout).unwrap();
    let values: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(values.len() > 3 && values[0]["step"] == 1);
    assert!(values.last().unwrap()["explained_variance"]["pooled"].is_f64());
}

/// Whoever read the output may leave, as `head` does; the run goes on to its end.
#[test]
fn readers_that_leave_do_not_end_a_run() {
    let (folder, data) = case();
    for (name, json) in [("text", false), ("json", true)] {
        let out = folder.path().join(name);
        let mut command = train(&data, &out);
        if json {
            command.arg("--json");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().unwrap();
        assert!(status.success(), "{name}: {status}");
        assert!(out.join("model.safetensors").exists() && out.join("report.html").exists());
    }
}

#[test]
fn a_run_resumes_from_any_folder() {
    let (folder, _) = case();
    let elsewhere = tempfile::tempdir().unwrap();
    succeeds(train(Path::new("data"), Path::new("out")).current_dir(folder.path()));
    let out = folder.path().join("out");
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out).current_dir(elsewhere.path()));
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    succeeds(&mut train(&data, &out));
    let files = ["model.safetensors", "metrics.jsonl", "config.toml"];
    let before = files.map(|name| std::fs::read_to_string(out.join(name)).map_err(|_| std::fs::read(out.join(name))));
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out));
    let after = files.map(|name| std::fs::read_to_string(out.join(name)).map_err(|_| std::fs::read(out.join(name))));
    assert!(before[0].is_ok() == after[0].is_ok());
    assert_eq!(before[1].as_ref().unwrap(), after[1].as_ref().unwrap());
    assert_eq!(before[2].as_ref().unwrap(), after[2].as_ref().unwrap());
}

/// A line of the log that a crash garbled costs that line, not the log.
#[test]
fn a_garbled_line_costs_itself_alone() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    succeeds(&mut train(&data, &out));
    let log = out.join("metrics.jsonl");
    let whole = std::fs::read(&log).unwrap();
    let mut garbled = b"\xff\xfe torn\n".to_vec();
    garbled.extend(&whole);
    std::fs::write(&log, garbled).unwrap();
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out));
    assert!(std::fs::read(&log).unwrap() == whole);
}

#[test]
fn settings_of_a_file_and_flags_that_win() {
    let (folder, data) = case();
    let file = folder.path().join("settings.toml");
    let text = format!(
        "data = [{data:?}]\nheads = 6\nbase = 2\nextension = 3\nk = 3\ntokens = 2000\nbatch = 100\nthreads = 1\ndtype = \"bf16\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let from_file = |out: &Path, flags: &[&str]| {
        let mut command = kronsae(&["train", "--config"]);
        command.arg(&file).arg("--out").arg(out).args(flags);
        command
    };
    let inspect = |out: &Path| -> Value {
        let output = succeeds(kronsae(&["inspect", "--json"]).arg(out.join("model.safetensors")));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let first = folder.path().join("first");
    let report = succeeds(from_file(&first, &["--seed", "5"]).arg("--json"));
    let model = inspect(&first);
    assert_eq!((model["latents"].as_u64(), model["selection"]["topk"].as_u64()), (Some(36), Some(3)));
    assert_eq!((model["training"]["seed"].as_u64(), model["encoder_dtype"].as_str()), (Some(5), Some("BF16")));

    // What a run of BF16 reports is what its file does.
    let text = String::from_utf8(report.stdout).unwrap();
    let said: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let heldout = folder.path().join("heldout");
    std::fs::create_dir(&heldout).unwrap();
    let x = activations(600, D, &mut Rng(21));
    write_shards(&heldout, &x[588 * D..], D, 250);
    let output = succeeds(
        kronsae(&["eval", "--json", "--model"]).arg(first.join("model.safetensors")).arg("--data").arg(&heldout),
    );
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["explained_variance", "fvu", "mse", "l0", "dead_share", "tokens"] {
        assert_eq!(said[key], found[key], "{key}");
    }

    // A run's own config.toml makes the same model again, and flags beside it win over all that they exclude.
    let file = first.join("config.toml");
    let again = |out: &Path, flags: &[&str]| {
        let mut command = kronsae(&["train", "--config"]);
        command.arg(&file).arg("--out").arg(out).args(flags);
        command
    };
    let second = folder.path().join("second");
    succeeds(&mut again(&second, &[]));
    let bytes = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(bytes(&first) == bytes(&second));
    let third = folder.path().join("third");
    succeeds(&mut again(&third, &["--encoder", "dense", "--latents", "40"]));
    assert_eq!(inspect(&third)["encoder"]["kind"], "dense");
    let fourth = folder.path().join("fourth");
    succeeds(again(&fourth, &["--eval-data"]).arg(&heldout));
    assert_eq!(inspect(&fourth)["training"]["dataset_tokens"], 600);
    let file = fourth.join("config.toml");
    let mut back = kronsae(&["train", "--config"]);
    let fifth = folder.path().join("fifth");
    succeeds(back.arg(&file).arg("--out").arg(&fifth).args(["--hold-out", "50"]));
    assert_eq!(inspect(&fifth)["training"]["dataset_tokens"], 550);
}

/// Before its first checkpoint a run has nothing to be true to: new flags are taken, and written down.
#[test]
fn resuming_before_the_first_checkpoint_notes_the_settings() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    succeeds(&mut train(&data, &out));
    std::fs::remove_dir_all(out.join("checkpoints")).unwrap();
    succeeds(kronsae(&["train", "--resume", "--lr", "0.001", "--out"]).arg(&out));
    let text = std::fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(text.contains("lr = 0.001"), "{text}");
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out));
}

#[test]
fn a_run_is_not_made_among_its_shards() {
    let (_folder, data) = case();
    fails(&mut train(&data, &data), "choose another --out");
    assert!(!data.join("config.toml").exists() && !data.join("checkpoints").exists());
    succeeds(&mut train(&data, &data.join("out")));
}

#[test]
fn sizes_no_machine_has_are_refused() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    for (flags, why) in [
        (&["--batch", "100000000000"][..], "--batch 100000000000"),
        (&["--batch", "1152921504606846976"], "--batch 1152921504606846976"),
        (&["--tokens", "18446744073709551615"], "--tokens 18446744073709551615"),
        (&["--seed", "18446744073709551615"], "--seed 18446744073709551615"),
        (&["--batch", "300000000"], "--batch 300000000: expected at most"),
    ] {
        let mut command = kronsae(&["train", "--heads", "8", "--k", "4"]);
        fails(command.arg("--data").arg(&data).arg("--out").arg(&out).args(flags), why);
    }
}

#[test]
fn never_is_a_large_number() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    let never = "18446744073709551615";
    let flags = ["--checkpoint-every", never, "--eval-every", never, "--dead-after", never, "--log-every", never];
    succeeds(train(&data, &out).args(flags));
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out));
}

/// A killed run may leave half a temporary file; going on clears it away.
#[test]
fn resuming_removes_what_a_kill_left() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    succeeds(&mut train(&data, &out));
    let left = [out.join("checkpoints/.step-0000000030.safetensors.77-3.tmp"), out.join(".model.safetensors.77-4.tmp")];
    left.iter().for_each(|path| std::fs::write(path, "half").unwrap());
    let other = out.join(".notes.tmp");
    std::fs::write(&other, "mine").unwrap();
    succeeds(kronsae(&["train", "--resume", "--out"]).arg(&out));
    assert!(left.iter().all(|path| !path.exists()) && other.exists());
}

#[test]
fn a_demo_that_cannot_begin_leaves_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    // An empty folder is as good as none.
    std::fs::create_dir(&out).unwrap();
    let demo = |extra: &[&str]| {
        let mut command = kronsae(&["demo", "--tokens", "2048", "--out"]);
        command.arg(&out).args(extra);
        command
    };
    let output = succeeds(&mut demo(&["--json"]));
    let _: Value = serde_json::from_slice(&output.stdout).unwrap();
    fails(&mut demo(&["--sample", "/nowhere"]), "nowhere");
    assert!(out.join("model.safetensors").exists() && out.join("config.toml").exists());
    succeeds(&mut demo(&[]));
}

#[test]
fn an_evaluation_is_neither_lost_nor_doubled_where_a_run_stops() {
    use kronsae_trainer::backend::StepStats;
    use kronsae_trainer::data::Dataset;
    use kronsae_trainer::metrics::{EvalRecord, StepRecord};
    use kronsae_trainer::run::{Observer, Tokens, run};
    use kronsae_trainer::settings::TrainArgs;
    use std::sync::Arc;

    struct StopAt(u64, u64);
    impl Observer for StopAt {
        fn phase(&mut self, _: &str, _: usize, _: usize) {}
        fn step(&mut self, step: u64, _: &StepStats, _: Option<&StepRecord>) {
            self.1 = step;
        }
        fn evaluated(&mut self, _: &EvalRecord) {}
        fn note(&mut self, _: &str) {}
        fn should_stop(&self) -> bool {
            self.1 == self.0
        }
    }
    let (folder, data) = case();
    let data = Arc::new(Dataset::open(&[data]).unwrap());
    let args = TrainArgs {
        heads: Some(8),
        k: Some(4),
        tokens: Some(3000),
        batch: Some(100),
        eval_every: Some(10),
        threads: Some(2),
        ..TrainArgs::default()
    };
    let settings = args.resolve(D, D * 4, 500).unwrap();
    let train = Tokens { data: Arc::clone(&data), rows: 0..500 };
    let held_out = Tokens { data, rows: 500..600 };
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for stop in [10, 20, u64::MAX, u64::MAX] {
        run(&settings, &train, Some(&held_out), &out, true, &mut StopAt(stop, 0)).unwrap();
    }
    assert_eq!(evaluated(&out), [10, 20, 30]);
}

#[test]
fn an_interrupt_leaves_a_checkpoint_and_says_how_to_go_on() {
    let (folder, data) = case();
    let out = folder.path().join("out");
    let mut command = kronsae(&["train", "--heads", "8", "--k", "4", "--batch", "100", "--tokens", "100000000"]);
    command.args(["--eval-every", "0", "--data"]).arg(&data).arg("--out").arg(&out);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = out.join("metrics.jsonl");
    while std::fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // SAFETY: a signal to the child just started, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("go on with: kronsae train --out"), "{message}");
    let checkpoints: Vec<_> = std::fs::read_dir(out.join("checkpoints")).unwrap().collect();
    assert!(!checkpoints.is_empty() && !out.join("model.safetensors").exists());
}
