//! What goes wrong on ranks: it is said, and nobody waits for ever.

use crate::command::{D, data, flags, kronsae};
use crate::common::{device, turn};
use crate::launch::{child, end, mpirun, ranks, said};
use kronsae::Error;
use kronsae::sae::{Encoder, padded};
use kronsae_trainer::checkpoint;
use kronsae_trainer::collective::{Collective, Gathered, Launch, Mpi};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_rank_that_gives_up_ends_the_others() {
    let _turn = turn();
    for test in ["faults::child_gives_up", "faults::child_panics"] {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let output = ranks(2, test, folder.path());
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        if test.ends_with("gives_up") {
            assert!(text.contains("error: rank 1 of 2: the disk is full; ending the other ranks"), "{text}");
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{test}: {:?}", start.elapsed());
        assert!(!folder.path().join("went on").exists());
    }
}

/// Rank 0 waits for what rank 1 does not send any more.
fn waits(folder: &Path, mpi: &Mpi) {
    let device = device();
    let memory = device.allocate(2, "a part").unwrap();
    // SAFETY: memory of this function's, on a device that is done when a call returns.
    unsafe { mpi.all_gather(&*device, &[Gathered { all: &memory, bytes_each: 1 }]) }.unwrap();
    std::fs::write(folder.join("went on"), "").unwrap();
}

#[test]
#[ignore = "runs on ranks, which another test starts"]
fn child_gives_up() {
    let Some(folder) = child() else { return };
    let mpi = Mpi::begin(&Launch::from_environment().unwrap()).unwrap();
    if mpi.rank() == 0 {
        waits(&folder, &mpi);
    } else {
        let _ = mpi.give_up(Error::invalid("the disk is full"));
    }
}

#[test]
#[ignore = "runs on ranks, which another test starts"]
fn child_panics() {
    let Some(folder) = child() else { return };
    let mpi = Mpi::begin(&Launch::from_environment().unwrap()).unwrap();
    if mpi.rank() == 0 {
        waits(&folder, &mpi);
    } else {
        panic!("planted");
    }
}

#[test]
fn a_run_that_diverges_ends_all_ranks_with_one_error() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("out");
    let run = |more: &[&str]| {
        let mut command = mpirun(2, kronsae());
        flags(&mut command, &shards, &out, more);
        end(command.spawn().unwrap(), LIMIT)
    };
    assert!(run(&[]).status.success());
    let checkpoints = out.join("checkpoints");
    std::fs::remove_file(checkpoints.join("step-0000000026.safetensors")).unwrap();
    let encoder = Encoder::Kron { heads: 6, base: 2, extension: 2 };
    let loaded = checkpoint::load_newest(&checkpoints, encoder, D, &mut |e| panic!("{e}")).unwrap();
    let (header, mut state, normalisation) = loaded.unwrap();
    // So large that no pre-activation is finite.
    for row in state.encoder_weight.value.chunks_mut(padded(D)) {
        row[..D].fill(3e38);
    }
    checkpoint::save(&checkpoints, &header, &state, &normalisation).unwrap();
    let output = run(&["--resume"]);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    for rank in 0..2 {
        let error = format!("error: rank {rank} of 2: training diverged at step 25: the pre-activations of ");
        assert!(text.contains(&error), "{text}");
    }
    assert!(!text.contains("ending the other ranks"), "{text}");
}

#[test]
fn ranks_that_do_not_belong_together() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("out");
    // Two programs in one world: another learning rate each.
    let mut command = mpirun(1, kronsae());
    flags(&mut command, &shards, &out, &[]);
    command.args([":", "-n", "1"]).arg(kronsae());
    flags(&mut command, &shards, &out, &["--lr", "0.001"]);
    let output = end(command.spawn().unwrap(), LIMIT);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("not all ranks are about to do the same run"), "{text}");
    assert!(text.contains("rank 0: after step 0;") && text.contains("here:   after step 0;"), "{text}");
    assert!(text.contains("lr0.001"), "{text}");
}

#[test]
fn ranks_without_devices_or_of_another_launcher() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shards = data(folder.path());
    let out = folder.path().join("out");
    let fails = |ranks: usize, environment: &[(&str, &str)], more: &[&str], words: &[&str]| {
        let mut command = mpirun(ranks, kronsae());
        flags(&mut command, &shards, &out, more);
        let output = end(command.envs(environment.iter().copied()).spawn().unwrap(), LIMIT);
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        for word in words {
            assert!(text.contains(word), "{text}\nhas not `{word}`");
        }
        assert!(!out.join("model.safetensors").exists());
    };
    let cpu = ["--backend", "cpu"];
    fails(2, &[], &cpu, &["Open MPI started 2 ranks", "only GPUs train together", "--collective none"]);
    let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")];
    fails(1, &torchrun, &[], &["started by torchrun", "needs mpirun or srun"]);
    fails(1, &[("RANK", "7"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")], &[], &["RANK is 7", "WORLD_SIZE"]);
}
