//! Steps of two and three ranks: the bits of one.

use crate::common::{backend, batch, bits, device, input, settings, turn};
use crate::launch::{child, ranks, said};
use kronsae::cuda::Device;
use kronsae::sae::{Encoder, padded};
use kronsae_trainer::backend::cuda::{CudaBackend, CudaOptions};
use kronsae_trainer::backend::{Backend, Moments, Precision, StepSettings, StepStats, TrainState};
use kronsae_trainer::collective::{Collective, Gathered, Launch, Mpi, agree};
use std::path::Path;
use std::sync::Arc;

const D: usize = 12;
/// A prime: no number of ranks divides it.
const ROWS: usize = 23;
const STEPS: u64 = 50;
const CHUNK: Option<usize> = Some(5);

#[derive(Debug, Clone, Copy)]
struct Case {
    encoder: Encoder,
    settings: StepSettings,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for encoder in [Encoder::Kron { heads: 6, base: 2, extension: 3 }, Encoder::Dense { latents: 40 }] {
        for auxk in [None, Some(6)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let clip = auxk.is_some().then_some(0.05);
                let moments = if clip.is_some() && precision == Precision::Bf16 { Moments::Bf16 } else { Moments::F32 };
                let settings = StepSettings { dead_after: 200, precision, moments, clip, ..settings(3, auxk) };
                cases.push(Case { encoder, settings });
            }
        }
    }
    cases
}

/// In most steps all tokens; in some, tokens were left out: some ranks have nothing to do then, or all.
fn tokens(step: u64) -> usize {
    [ROWS, ROWS, ROWS - 1, ROWS, 2, ROWS, 1, ROWS, 0, ROWS - 4][(step % 10) as usize]
}

fn begin(case: &Case) -> TrainState {
    let mut state = TrainState::new(case.encoder, D, 1).unwrap();
    // A dead row, which is re-initialised on the way.
    state.encoder_bias.value[1] = -1000.0;
    state
}

fn train(cuda: &mut CudaBackend) -> (Vec<StepStats>, Vec<Vec<u32>>) {
    let stats = (0..STEPS).map(|step| {
        let x = batch(ROWS, D, step);
        cuda.step(input(&x, tokens(step), D, step)).unwrap()
    });
    (stats.collect(), bits(cuda.state().unwrap()))
}

/// All of it as text: equal texts are equal bits.
fn text((stats, bits): &(Vec<StepStats>, Vec<Vec<u32>>)) -> String {
    let mut text = String::new();
    for s in stats {
        let sums = [s.loss, s.auxk_loss, s.explained_variance, s.l0].map(f64::to_bits);
        text += &format!("{sums:x?} {} {} {}\n", s.dead_latents, s.dead_rows, s.revived_rows);
    }
    text + &format!("{bits:x?}\n")
}

fn file(folder: &Path, what: &str, rank: u32) -> std::path::PathBuf {
    folder.join(format!("{what}-{rank}"))
}

#[test]
fn equal_bits_on_one_two_and_three_ranks() {
    let _turn = turn();
    let expected: Vec<String> = cases()
        .iter()
        .map(|case| {
            let run = train(&mut backend(begin(case), case.settings, ROWS, CHUNK));
            assert!(run.0.iter().map(|s| s.revived_rows).sum::<usize>() > 0, "{case:?}: nothing was revived");
            let dead = run.0.iter().any(|s| s.auxk_loss > 0.0);
            assert_eq!(dead, case.settings.auxk.is_some(), "{case:?}: AuxK had nothing to do");
            text(&run)
        })
        .collect();
    for count in [2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let output = ranks(count, "steps::child_trains", folder.path());
        assert!(output.status.success(), "{}", said(&output));
        for (number, (case, expected)) in cases().iter().zip(&expected).enumerate() {
            for rank in 0..count as u32 {
                let found = std::fs::read_to_string(file(folder.path(), &number.to_string(), rank)).unwrap();
                let first = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
                assert!(found == *expected, "{case:?}: rank {rank} of {count} parts from one rank in line {first:?}");
            }
        }
    }
}

#[test]
#[ignore = "runs on ranks, which another test starts"]
fn child_trains() {
    let Some(folder) = child() else { return };
    let launch = Launch::from_environment().unwrap();
    // So small that every gather takes many turns.
    let mpi: Arc<dyn Collective> = Arc::new(Mpi::begin(&launch).unwrap().with_piece(100));
    for (number, case) in cases().iter().enumerate() {
        let mut cuda = among(&mpi, begin(case), case.settings);
        let name = cuda.name();
        assert!(name.contains(&format!("{} ranks over MPI", launch.ranks)), "{name}");
        std::fs::write(file(&folder, &number.to_string(), launch.rank), text(&train(&mut cuda))).unwrap();
    }
}

fn among(mpi: &Arc<dyn Collective>, state: TrainState, settings: StepSettings) -> CudaBackend {
    let options = CudaOptions { chunk: CHUNK, without_graph: false };
    CudaBackend::among(Arc::clone(mpi), device(), state, settings, ROWS, options).unwrap()
}

#[test]
fn what_ranks_tell_each_other() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let output = ranks(3, "steps::child_talks", folder.path());
    assert!(output.status.success(), "{}", said(&output));
    for rank in 0..3 {
        assert_eq!(std::fs::read_to_string(file(folder.path(), "talk", rank)).unwrap(), "well");
    }
}

#[test]
#[ignore = "runs on ranks, which another test starts"]
fn child_talks() {
    let Some(folder) = child() else { return };
    let launch = Launch::from_environment().unwrap();
    let rank = launch.rank as usize;
    let mpi: Arc<dyn Collective> = Arc::new(Mpi::begin(&launch).unwrap().with_piece(64));
    assert_eq!((mpi.rank(), mpi.ranks()), (launch.rank, 3));
    let device = device();
    gathers_and_sends(&*mpi, &*device, rank);

    // What one differs in, all are told; then all go on.
    agree(&*mpi, &*device, "the same everywhere").unwrap();
    agree(&*mpi, &*device, "").unwrap();
    let error = agree(&*mpi, &*device, if rank == 1 { "seed 4" } else { "seed 3" }).unwrap_err();
    assert!(error.message().contains("not 1."), "{error}");
    assert_eq!(error.message().contains("rank 0: seed 3\n  here:   seed 4"), rank == 1, "{error}");
    let longer = "x".repeat(1 + rank);
    assert!(agree(&*mpi, &*device, &longer).unwrap_err().message().contains("not 1, 2."));

    // One wishes to stop: all do, after the same step.
    let settings = settings(3, None);
    let encoder = Encoder::Dense { latents: 40 };
    let mut cuda = among(&mpi, TrainState::new(encoder, D, 1).unwrap(), settings);
    let stopped = (0..10).find(|&step| {
        cuda.step(input(&batch(ROWS, D, step), ROWS, D, step)).unwrap();
        cuda.agree_to_stop(rank == 2 && step >= 4)
    });
    assert_eq!(stopped, Some(5));

    // A token that is not finite is of one rank, and ends the step of all, with nothing changed.
    for bad in [0, 10, ROWS - 1] {
        let before = bits(cuda.state().unwrap());
        let mut x = batch(ROWS, D, 6);
        x[bad * padded(D) + 2] = f32::NAN;
        let error = cuda.step(input(&x, ROWS, D, 6)).unwrap_err();
        assert!(error.message().contains("diverged at step 6") && error.message().contains("1 of 23"), "{error}");
        assert!(bits(cuda.state().unwrap()) == before, "token {bad}");
    }
    mpi.barrier(&*device).unwrap();
    std::fs::write(file(&folder, "talk", launch.rank), "well").unwrap();
}

/// Parts of many lengths, none a multiple of what is gathered at a time.
fn gathers_and_sends(mpi: &dyn Collective, device: &dyn Device, rank: usize) {
    let value = |rank: usize, at: usize| (rank * 101 + at * 7) as u8;
    for each in [0, 1, 63, 64, 65, 200] {
        // Longer than the parts are: what is behind them stays.
        let (a, b) = (device.allocate(3 * each + 5, "a").unwrap(), device.allocate(3 * each, "b").unwrap());
        let own: Vec<u8> = (0..each).map(|at| value(rank, at)).collect();
        for memory in [&a, &b] {
            device.fill(memory, 9).unwrap();
            device.upload(memory, rank * each, &own).unwrap();
        }
        let parts = [Gathered { all: &a, bytes_each: each }, Gathered { all: &b, bytes_each: each }];
        // SAFETY: memory of this function's, on a device that is done when a call returns (so below).
        unsafe { mpi.all_gather(device, &parts) }.unwrap();
        mpi.wait(device).unwrap();
        for memory in [&a, &b] {
            let mut found = vec![0; memory.bytes()];
            device.download(memory, 0, &mut found).unwrap();
            assert!(found[3 * each..].iter().all(|&byte| byte == 9));
            let expected = (0..3).flat_map(|rank| (0..each).map(move |at| value(rank, at)));
            assert!(found[..3 * each].iter().copied().eq(expected), "{each} bytes each");
        }
        let last = device.allocate(each, "c").unwrap();
        device.upload(&last, 0, &own).unwrap();
        // SAFETY: as above.
        unsafe { mpi.broadcast(device, &last, each, 2) }.unwrap();
        let mut found = vec![0; each];
        device.download(&last, 0, &mut found).unwrap();
        assert!(found.into_iter().eq((0..each).map(|at| value(2, at))), "{each} bytes sent");
    }
    let short = device.allocate(5, "d").unwrap();
    // SAFETY: refused before anything is done (so below).
    let gathered = unsafe { mpi.all_gather(device, &[Gathered { all: &short, bytes_each: 2 }]) };
    // SAFETY: as above.
    let sent = unsafe { [mpi.broadcast(device, &short, 6, 0), mpi.broadcast(device, &short, 5, 3)] };
    assert!(gathered.is_err() && sent.iter().all(Result::is_err));
}
