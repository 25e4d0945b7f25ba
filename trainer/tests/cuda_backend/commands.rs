//! The command with `--backend cuda` over the emulated device: a whole run, killed and resumed, and its files.

use crate::common::{library, turn};
use kronsae::cuda::EMULATION;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[path = "../fixtures/mod.rs"]
mod fixtures;
use fixtures::{Rng, activations, write_shards};

const D: usize = 12;

fn data(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    std::fs::create_dir(&shards).unwrap();
    let mut rng = Rng(11);
    let mut values = activations(700, D, &mut rng);
    // Some tokens are not finite: they are skipped, the same ones each time.
    for row in [17, 400] {
        values[row * D + 3] = f32::NAN;
    }
    write_shards(&shards, &values, D, 300);
    shards
}

fn train(shards: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(["train", "--tokens", "2600", "--batch", "40", "--k", "4", "--checkpoint-every", "7", "--seed", "3"]);
    command.args(["--shuffle-window", "300", "--hold-out", "50", "--eval-every", "20", "--dead-after", "500"]);
    command.args(["--heads", "6", "--base", "2", "--extension", "2"]).args(more);
    command.arg("--data").arg(shards).arg("--out").arg(out).env(EMULATION, library());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

#[test]
fn a_run_killed_and_resumed_has_the_same_model() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    for precision in ["f32", "bf16"] {
        let options = ["--backend", "cuda", "--precision", precision];
        let whole = folder.path().join(format!("{precision}-whole"));
        let output = train(&shards, &whole, &options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("cuda (kernels emulated on the CPU"), "{said}");

        let killed = folder.path().join(format!("{precision}-killed"));
        let newest = || {
            let entries = std::fs::read_dir(killed.join("checkpoints")).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name()).filter(|name| !name.to_string_lossy().contains("tmp")).max()
        };
        let kills = 4;
        for attempt in 0..=kills {
            let mut command = train(&shards, &killed, &options);
            if attempt > 0 {
                command.arg("--resume");
            }
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if attempt == kills {
                assert!(child.wait().unwrap().success());
                break;
            }
            // A little after the next checkpoint: in the middle of a step, or of writing.
            let before = newest();
            while newest() == before {
                assert!(child.try_wait().unwrap().is_none(), "{precision}: it ended before it could be killed");
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(7 * attempt));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(model(&whole) == model(&killed), "{precision}: a run killed {kills} times has another model file");
    }
}

#[test]
fn f32_ends_near_the_cpu() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let end = |backend: &str| {
        let out = folder.path().join(backend);
        let options = ["--backend", backend, "--precision", "f32", "--json"];
        let output = train(&shards, &out, &options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let result: serde_json::Value = serde_json::from_str(text.trim().lines().last().unwrap()).unwrap();
        (result["explained_variance"]["pooled"].as_f64().unwrap(), result["skipped_tokens"].as_u64().unwrap())
    };
    let (cpu, cuda) = (end("cpu"), end("cuda"));
    assert!((cpu.0 - cuda.0).abs() < 1e-3, "{cpu:?} {cuda:?}");
    assert_eq!(cpu.1, cuda.1, "tokens left out");
    assert!(cpu.1 > 0);
}

#[test]
fn auto_takes_the_device_and_bf16() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("auto");
    let output = train(&shards, &out, &["--backend", "auto"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("cuda (kernels emulated on the CPU, bf16)"), "{said}");
}

#[test]
fn a_device_that_cannot_be_used_is_named() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("none");
    let mut command = train(&shards, &out, &["--backend", "cuda"]);
    let output = command.env(EMULATION, "/there/is/no/such.so").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/there/is/no/such.so"), "{said}");
    assert!(!out.exists(), "a run that cannot begin left something");
}

#[test]
fn everything_about_the_gpu_runs_emulated_and_says_so() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let peers = folder.path().join("peers.json");
    std::fs::write(&peers, r#"{"peers": [], "skipped": ["all: torch cannot be imported: no module"]}"#).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(["bench", "gpu", "--out"]).arg(folder.path()).arg("--peers").arg(&peers).env(EMULATION, library());
    let output = command.output().unwrap();
    let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}\n{errors}");
    let report = std::fs::read_to_string(folder.path().join("gpu.md")).unwrap();
    for part in
        ["emulated on the CPU", "no time in it says anything about a GPU", "equal bits", "not judged", "no module"]
    {
        assert!(report.contains(part), "`{part}` is not in: {report}");
    }
    assert!(!report.contains("**NO**"), "{report}");
    let json = std::fs::read_to_string(folder.path().join("gpu.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["emulated"], serde_json::json!(true));
    assert!(json["measures"].as_array().unwrap().len() >= 8, "{json}");
}
