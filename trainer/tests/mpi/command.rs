//! `kronsae train` on ranks: the files of one process, whole or killed and resumed.

use crate::common::{library, turn};
use crate::launch::{end, mpirun, said};
use kronsae::cuda::EMULATION;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../fixtures/mod.rs"]
mod fixtures;
use fixtures::{Rng, activations, write_shards};

pub(crate) const D: usize = 12;
/// In which everything here ends, with time to spare.
const LIMIT: Duration = Duration::from_secs(100);

pub(crate) fn data(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    std::fs::create_dir(&shards).unwrap();
    let mut values = activations(400, D, &mut Rng(11));
    // Some tokens are not finite: they are skipped, the same ones by all ranks.
    for row in [17, 200] {
        values[row * D + 3] = f32::NAN;
    }
    write_shards(&shards, &values, D, 150);
    shards
}

/// A small run of 26 steps.
const FLAGS: [(&str, &str); 14] = [
    ("--tokens", "962"),
    ("--batch", "37"),
    ("--k", "4"),
    ("--checkpoint-every", "5"),
    ("--seed", "3"),
    ("--shuffle-window", "300"),
    ("--hold-out", "50"),
    ("--eval-every", "10"),
    ("--dead-after", "300"),
    ("--heads", "6"),
    ("--base", "2"),
    ("--extension", "2"),
    ("--backend", "cuda"),
    ("--threads", "1"),
];

/// Its flags, but for those that are given otherwise.
pub(crate) fn flags(command: &mut Command, shards: &Path, out: &Path, more: &[&str]) {
    command.arg("train");
    for (flag, value) in FLAGS.iter().filter(|(flag, _)| !more.contains(flag)) {
        command.args([flag, value]);
    }
    command.args(more).arg("--data").arg(shards).arg("--out").arg(out);
}

pub(crate) fn kronsae() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kronsae"))
}

fn on_ranks(ranks: usize, shards: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = mpirun(ranks, kronsae());
    flags(&mut command, shards, out, more);
    command
}

fn alone(shards: &Path, out: &Path, more: &[&str]) {
    let mut command = Command::new(kronsae());
    flags(&mut command, shards, out, more);
    let output = command.env(EMULATION, library()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

/// What the log says of each step, times aside.
fn losses(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records
        .map(|record| format!("{} {} {} {}", record["step"], record["loss"], record["l0"], record["evaluation"]))
        .collect()
}

#[test]
fn the_files_of_one_process() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    for precision in ["f32", "bf16"] {
        let flags = ["--precision", precision];
        let one = folder.path().join(format!("{precision}-1"));
        alone(&shards, &one, &flags);
        for ranks in [2, 3] {
            let out = folder.path().join(format!("{precision}-{ranks}"));
            let output = end(on_ranks(ranks, &shards, &out, &flags).spawn().unwrap(), LIMIT);
            assert!(output.status.success(), "{}", said(&output));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&format!("{ranks} ranks over MPI")), "{text}");
            assert_eq!(text.matches("held-out tokens").count(), 1, "one rank alone reports: {text}");
            assert_eq!(said(&output).matches("step 26/26  loss").count(), 1, "{}", said(&output));
            assert!(model(&out) == model(&one), "{precision}: {ranks} ranks leave another model file");
            assert_eq!(losses(&out), losses(&one));
            assert!(out.join("report.html").exists());
            // Nothing but what one process leaves.
            let names = |out: &Path| {
                let mut names: Vec<String> = std::fs::read_dir(out)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                    .filter(|name| !name.starts_with("events."))
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names(&out), names(&one));
        }
    }
}

/// The process of a rank of the run in `out`.
fn process_of(rank: &str, out: &Path) -> Option<i32> {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    let has = |file: PathBuf, what: &[u8]| {
        std::fs::read(file).is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|part| part == what))
    };
    let out = out.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let id = entry.file_name().to_string_lossy().parse().ok()?;
        let of = has(entry.path().join("environ"), wanted.as_bytes()) && has(entry.path().join("cmdline"), out);
        of.then_some(id)
    })
}

#[test]
fn a_run_of_which_a_rank_was_killed_goes_on_to_the_same_model() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let whole = folder.path().join("whole");
    alone(&shards, &whole, &[]);
    let out = folder.path().join("killed");
    let newest = || {
        let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).filter(|name| !name.to_string_lossy().contains("tmp")).max()
    };
    for (attempt, victim) in ["1", "0"].into_iter().enumerate() {
        let more: &[&str] = if attempt == 0 { &[] } else { &["--resume"] };
        let before = newest();
        let mut child = on_ranks(2, &shards, &out, more).stdout(Stdio::null()).spawn().unwrap();
        // A little after the next checkpoint: in the middle of a step.
        while newest() == before {
            assert!(child.try_wait().unwrap().is_none(), "it ended before a rank could be killed");
            std::thread::sleep(Duration::from_millis(2));
        }
        let process = process_of(victim, &out).expect("the rank's process");
        // SAFETY: a signal to a process that the child just started and has not ended.
        assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
        let killed = Instant::now();
        let output = end(child, LIMIT);
        let text = said(&output);
        assert!(!output.status.success() && text.contains("signal 9"), "{text}");
        assert!(killed.elapsed() < Duration::from_secs(20), "the other rank went on for {:?}", killed.elapsed());
        assert!(!out.join("model.safetensors").exists());
    }
    // On any number of ranks.
    let output = end(on_ranks(3, &shards, &out, &["--resume"]).spawn().unwrap(), LIMIT);
    assert!(output.status.success() && said(&output).contains("resumed after step"), "{}", said(&output));
    assert!(model(&out) == model(&whole), "another model than that of a run that nothing happened to");
    assert_eq!(losses(&out), losses(&whole));
}

#[test]
fn an_interrupt_stops_all_ranks_after_the_same_step() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("out");
    let child = on_ranks(2, &shards, &out, &["--tokens", "3700000", "--eval-every", "0"]).spawn().unwrap();
    let log = out.join("metrics.jsonl");
    let start = Instant::now();
    while std::fs::metadata(&log).map_or(0, |found| found.len()) == 0 {
        assert!(start.elapsed() < LIMIT, "no step was done");
        std::thread::sleep(Duration::from_millis(5));
    }
    // One rank alone is asked; both stop.
    let process = process_of("1", &out).expect("the rank's process");
    // SAFETY: a signal to a process that the child just started and has not ended.
    assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
    let output = end(child, LIMIT);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert_eq!(text.matches("go on with: kronsae train --out").count(), 1, "{text}");
    assert!(std::fs::read_dir(out.join("checkpoints")).unwrap().count() > 0 && !out.join("model.safetensors").exists());
}
