//! `--backend` where there is no GPU that may be used: one clear error, or one line and the CPU. Where there is one, it is
//! hidden from the commands.

mod fixtures;

use fixtures::{Rng, activations, write_shards};
use std::path::Path;
use std::process::{Command, Output};

const D: usize = 12;

fn train(folder: &Path, backend: &[&str]) -> Output {
    let shards = folder.join("shards");
    if !shards.exists() {
        std::fs::create_dir(&shards).unwrap();
        write_shards(&shards, &activations(600, D, &mut Rng(5)), D, 600);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(["train", "--heads", "8", "--k", "4", "--tokens", "2000", "--batch", "100", "--threads", "1"]);
    command.args(backend).arg("--data").arg(shards).arg("--out").arg(folder.join("out"));
    command.env("CUDA_VISIBLE_DEVICES", "").env_remove("KRONSAE_CUDA_EMULATION");
    command.output().unwrap()
}

#[test]
fn cuda_without_a_device_is_one_error_that_names_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let output = train(folder.path(), &["--backend", "cuda"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.starts_with("error: --backend cuda: "), "{said}");
    let named = ["libcuda", "finds no device", "feature `cuda`", "libcublasLt", "libnvrtc", "driver"];
    assert!(named.iter().any(|what| said.contains(what)), "{said}");
    assert!(said.trim_end().lines().count() <= 2, "{said}");
    assert!(!folder.path().join("out").exists(), "a run that cannot begin left something");
}

#[test]
fn auto_says_why_in_one_line_and_takes_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let output = train(folder.path(), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let about: Vec<_> = said.lines().filter(|line| line.contains("training on the CPU: ")).collect();
    assert_eq!(about.len(), 1, "{said}");
    let result = String::from_utf8(output.stdout).unwrap();
    assert!(result.contains(" on cpu ("), "{result}");
}

#[test]
fn the_cpu_is_taken_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let output = train(folder.path(), &["--backend", "cpu"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !said.contains("CUDA") && !said.contains("GPU"), "{said}");
}
