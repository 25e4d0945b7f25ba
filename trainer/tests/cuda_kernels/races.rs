//! Barriers taken out of the kernels: the tests must see that they are missing.

use crate::cases::{CASES, Filled, RUNS, runs};
use crate::device::Device;
use crate::emulator::{Buffer, Emulator, Run};
use crate::step::{numbers, step};
use crate::steps::bits;
use half::bf16;
use std::ops::RangeInclusive;

/// The `PLANTABLE_BARRIER`s of the training kernels.
const PLANTED: RangeInclusive<i32> = 101..=113;
const BARRIER: &str = "KRONSAE_TEST_BARRIER";

/// What a number of steps leaves, with a barrier taken out.
fn left_by(filled: &[Filled], barrier: i32, run: Run) -> Vec<Vec<Vec<u32>>> {
    let emulator = Emulator::new();
    emulator.plant(barrier);
    let mut all: Vec<_> =
        filled.iter().map(|filled| bits(&step::<f32>(&emulator, run, &filled.problem(false)))).collect();
    all.push(bits(&step::<bf16>(&emulator, run, &filled[0].problem(false))));
    // Lists of several tiles.
    let last: Vec<u64> = (0..5000).map(|i| 95_000 + i % 7 / 3 * 5000).collect();
    let numbers = Buffer::of(&[numbers(&filled[0].problem(false))]);
    let (list, count) = Device { emulator: &emulator, run }.dead(&Buffer::of(&last), &numbers, false, 5000);
    all.push(vec![list.get().to_vec(), count.get().to_vec()]);
    emulator.plant(0);
    all
}

/// The child of [`planted_races_are_found`], which tells it the barrier; by itself it takes none out.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn all_schedules_give_the_same_without_a_barrier() {
    let barrier = std::env::var(BARRIER).map_or(0, |number| number.parse().unwrap());
    let filled = [CASES[7], CASES[3], CASES[5], CASES[9]].map(|case| case.fill());
    let expected = left_by(&filled, 0, RUNS[0]);
    for &run in runs().iter().filter(|run| run.block > 32) {
        assert!(left_by(&filled, barrier, run) == expected, "without barrier {barrier}, {run:?}");
    }
}

/// A barrier taken out of the kernels changes a result, or stops the emulation, under some schedule. In a process of
/// its own: what is read too early may be taken for an address.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn planted_races_are_found() {
    let right = |barrier: i32| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "races::all_schedules_give_the_same_without_a_barrier"])
            .env(BARRIER, barrier.to_string())
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap()
    };
    let whole = right(0);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stdout));
    for barrier in PLANTED {
        assert!(!right(barrier).status.success(), "without barrier {barrier} every schedule still gives right results");
    }
}
