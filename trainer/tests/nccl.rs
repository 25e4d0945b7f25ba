//! `kronsae train` on ranks that a launcher's environment names, over stand-ins for NVIDIA's libraries (those of the runtime's
//! test `cuda_driver`): steps captured with their gathers in a graph, ranks that meet in the run's folder, and what is said
//! where something is missing. `cargo xtask test --only cuda-driver` runs this; `FAKE_CUDA_KERNELS` names the library of
//! emulated kernels then.

mod fixtures;
#[path = "../../tests/cuda_driver/libraries.rs"]
#[expect(dead_code, reason = "shared with the runtime's own tests of its CUDA device")]
mod libraries;

use fixtures::{Rng, activations, write_shards};
use libraries::{Installed, folder};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const D: usize = 12;

fn data(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    std::fs::create_dir(&shards).unwrap();
    let mut values = activations(400, D, &mut Rng(11));
    values[200 * D + 3] = f32::NAN;
    write_shards(&shards, &values, D, 150);
    shards
}

/// One process of a run of 26 steps.
fn train(shards: &Path, out: &Path, more: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(["train", "--tokens", "962", "--batch", "37", "--k", "4", "--checkpoint-every", "5", "--seed", "3"]);
    command.args(["--shuffle-window", "300", "--hold-out", "50", "--eval-every", "10", "--dead-after", "300"]);
    command.args(["--heads", "6", "--base", "2", "--extension", "2", "--backend", "cuda", "--threads", "1"]);
    command.args(more).arg("--data").arg(shards).arg("--out").arg(out);
    command.env("LD_LIBRARY_PATH", folder(Installed::Everything)).env("FAKE_CUDA_DEVICES", "2");
    command.env("XDG_CACHE_HOME", shards.with_file_name("cache")).env("FAKE_NCCL_FOLDER", shards.parent().unwrap());
    command.env("KRONSAE_RANKS_TIMEOUT", "60").envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What torchrun sets.
fn torchrun(rank: usize, ranks: usize) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", ranks.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("TORCHELASTIC_RUN_ID", "none".to_owned()),
        ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
    ]
}

/// Starts all ranks, as a launcher does.
fn start(ranks: usize, shards: &Path, out: &Path, more: &[&str], environment: &[(&str, &str)]) -> Vec<Child> {
    let rank = |rank: usize| train(shards, out, more, environment).envs(torchrun(rank, ranks)).spawn().unwrap();
    (0..ranks).map(rank).collect()
}

fn end(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(children: Vec<Child>) -> Vec<Output> {
    let outputs = end(children);
    for output in &outputs {
        assert!(output.status.success(), "{}: {}", output.status, said(output));
    }
    outputs
}

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn ranks_leave_the_model_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    for (precision, ranks) in [("f32", 2), ("bf16", 3)] {
        let (one, out) = (folder.path().join(format!("{precision}-1")), folder.path().join(precision));
        // More ranks than there are GPUs, which the stand-in does not mind.
        let flags = ["--precision", precision, "--device", "0"];
        succeed(vec![train(&shards, &one, &flags, &[]).spawn().unwrap()]);
        let log = folder.path().join(format!("{precision}.log"));
        let children: Vec<Child> = (0..ranks)
            .map(|rank| {
                let mut command = train(&shards, &out, &flags, &[]);
                if rank == 0 {
                    command.env("FAKE_CUDA_LOG", &log);
                }
                command.envs(torchrun(rank, ranks)).spawn().unwrap()
            })
            .collect();
        let outputs = succeed(children);
        let report = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
        assert!(report.contains(&format!("{ranks} ranks over NCCL")), "{report}");
        for output in &outputs[1..] {
            assert!(output.stdout.is_empty() && output.stderr.is_empty(), "rank 0 alone speaks: {}", said(output));
        }
        assert!(model(&out) == model(&one), "{precision}: {ranks} ranks leave another model");
        // The first step by itself, the second captured, then replayed: 26 steps in all, some of them a token short.
        let log = text(&log);
        let count = |call: &str| log.lines().filter(|line| *line == call).count();
        let short = count("ncclGroupStart") - 2;
        assert!(count("cuGraphLaunch") > 15 && short < 10, "{} replays, {short} others", count("cuGraphLaunch"));
        assert_eq!(count("cuStreamBeginCapture_v2"), 1);
        let left = std::fs::read_dir(&out)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".ranks"));
        assert_eq!(left.count(), 0, "the folder in which ranks met is gone");
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn a_rank_that_is_killed_is_missed_and_the_run_goes_on_to_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let (one, out) = (folder.path().join("one"), folder.path().join("out"));
    succeed(vec![train(&shards, &one, &[], &[]).spawn().unwrap()]);
    // No launcher here that would end the rank that is left: it ends itself.
    let mut children = start(2, &shards, &out, &[], &[("KRONSAE_RANKS_TIMEOUT", "2")]);
    let checkpoints = || std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten().count();
    while checkpoints() == 0 {
        assert!(children[0].try_wait().unwrap().is_none(), "it ended before a rank could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    children[1].kill().unwrap();
    let killed = Instant::now();
    let outputs = end(children);
    let error = said(&outputs[0]);
    assert!(!outputs[0].status.success() && error.contains("error: rank 0 of 2: the other ranks have not"), "{error}");
    assert!(error.contains("one of them may have ended") && killed.elapsed() < Duration::from_secs(30), "{error}");
    // Where they met and what they said to each other lies there still, under the same name: nobody takes it.
    std::fs::create_dir_all(out.join(".ranks-torchrun-none-0")).unwrap();
    std::fs::write(out.join(".ranks-torchrun-none-0/id"), format!("{} old", "0".repeat(256))).unwrap();
    let outputs = succeed(start(2, &shards, &out, &["--resume"], &[]));
    assert!(said(&outputs[0]).contains("resumed after step"), "{}", said(&outputs[0]));
    assert!(model(&out) == model(&one), "another model than that of a run that nothing happened to");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn what_is_missing_is_named_on_every_rank() {
    let run = tempfile::tempdir().unwrap();
    let shards = data(run.path());
    let out = run.path().join("out");
    let fails = |children: Vec<Child>, words: &[&str]| {
        for output in end(children) {
            let text = said(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            for word in words {
                assert!(text.contains(word) && !text.contains("panicked"), "{text}\nhas not `{word}`");
            }
        }
    };
    let without = folder(Installed::WithoutNccl);
    let path = [("LD_LIBRARY_PATH", without.to_str().unwrap())];
    let start_with = |more: &[&str], environment: &[(&str, &str)]| start(2, &shards, &out, more, environment);
    fails(start_with(&[], &path), &["libnccl.so.2 cannot be opened", "of 2"]);
    // A GPU for each, and no more than there are.
    fails(start_with(&["--device", "2"], &[]), &["no CUDA device 2", "shows 2"]);
    fails(start_with(&[], &[("KRONSAE_RANKS_TIMEOUT", "soon")]), &["KRONSAE_RANKS_TIMEOUT is `soon`"]);
    // One rank that nobody joins.
    let one = train(&shards, &out, &[], &[("KRONSAE_RANKS_TIMEOUT", "1")]).envs(torchrun(1, 2)).spawn().unwrap();
    fails(vec![one], &["rank 1 of 2", "waited 1 seconds for rank 0 in", "--out folder"]);
    let half = train(&shards, &out, &[], &[("RANK", "0")]).spawn().unwrap();
    fails(vec![half], &["RANK is set, but WORLD_SIZE and LOCAL_RANK are not"]);
    // Without MPI in the build, or of the launcher.
    let mpi = start_with(&["--collective", "mpi"], &[]);
    fails(mpi, &["--collective mpi"]);
}

/// A launcher's environment does not bind who says so, and one rank may use NCCL as well.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn alone_among_ranks_and_one_rank_over_nccl() {
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let run = |name: &str, more: &[&str], rank: Option<usize>| {
        let out = folder.path().join(name);
        let mut command = train(&shards, &out, more, &[]);
        if let Some(rank) = rank {
            command.envs(torchrun(rank, 2));
        }
        let outputs = succeed(vec![command.spawn().unwrap()]);
        (model(&out), String::from_utf8_lossy(&outputs[0].stdout).into_owned())
    };
    let (expected, _) = run("one", &[], None);
    assert!(run("alone", &["--collective", "none"], Some(1)).0 == expected);
    let (found, report) = run("nccl", &["--collective", "nccl"], None);
    assert!(found == expected && report.contains("1 ranks over NCCL"), "{report}");
}
