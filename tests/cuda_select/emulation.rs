//! The emulation itself: it computes what CUDA does, and each of a set of faulty kernels is found out.

use crate::library::{Launched, Library, SCHEDULES, argument};

fn one_block(block: u32, schedule: i32) -> Launched {
    Launched { grid: (1, 1), block, shared_bytes: 64, schedule }
}

fn reversed(kernel: &str, schedule: i32) -> bool {
    let block = 128;
    let input: Vec<u32> = (0..2 * block).collect();
    let mut output = vec![0_u32; input.len()];
    let how = Launched { grid: (2, 1), ..one_block(block, schedule) };
    let (from, to) = (input.as_ptr(), output.as_mut_ptr());
    // SAFETY: both arrays hold a number for each thread.
    unsafe { Library::tested().launch(kernel, how, &mut [argument(&from), argument(&to)]) }.unwrap();
    output.iter().enumerate().all(|(at, &v)| v as usize == at / 128 * 128 + 127 - at % 128)
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn a_missing_barrier_shows_in_every_schedule() {
    for schedule in SCHEDULES {
        assert!(reversed("fault_none", schedule), "schedule {schedule}");
        assert!(!reversed("fault_missing_barrier", schedule), "schedule {schedule}");
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn faults_that_hang_a_gpu_are_sentences() {
    for schedule in SCHEDULES {
        let mut out = vec![0_u32; 1024];
        let to = out.as_mut_ptr();
        let fails = |kernel: &str, needle: &str| {
            let how = one_block(64, schedule);
            // SAFETY: `to` has room for a word of each thread; kernels without arguments read none.
            let found = unsafe { Library::tested().launch(kernel, how, &mut [argument(&to)]) }.unwrap_err();
            assert!(found.contains(needle) && found.contains(kernel), "schedule {schedule}: {found}");
        };
        fails("fault_divergent_barrier", "different barriers");
        fails("fault_early_return", "returned");
        fails("fault_missing_lanes", "deadlock");
        fails("fault_foreign_lane", "which is not in the mask");
        fails("no_such_kernel", "kernels.def");
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn asynchronous_copies_arrive_when_they_are_waited_for() {
    let input: Vec<[u32; 4]> = (0..64).map(|i| [i, i + 1, i + 2, i + 3]).collect();
    for (wait, arrives) in [(0_u32, None), (1, Some(true)), (2, Some(false))] {
        let mut output = vec![[0_u32; 4]; 64];
        // CUDA's copies want addresses that 16 divides; the emulation does not ask.
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        let mut args = [argument(&from), argument(&to), argument(&wait)];
        let how = one_block(64, 0);
        // SAFETY: both arrays hold 16 bytes for each thread.
        match (unsafe { Library::tested().launch("fault_unwaited_copy", how, &mut args) }, arrives) {
            (Err(found), None) => assert!(found.contains("did not wait"), "{found}"),
            (Ok(()), Some(arrives)) => assert_eq!(output == input, arrives, "wait = {wait}"),
            (other, _) => panic!("wait = {wait}: {other:?}"),
        }
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn collectives_are_what_they_say() {
    for schedule in SCHEDULES {
        for block in [32_u32, 96, 1024] {
            let input: Vec<u32> = (0..block).map(|i| i * 7919 % 101).collect();
            let n = input.len();
            let (mut scans, mut totals, mut places) = (vec![0_u32; n], vec![0_u32; n], vec![0_u32; n]);
            let (mut sums, mut floors) = (vec![0.0_f32; n], vec![0_u64; n]);
            let k = 20_u32;
            let from = input.as_ptr();
            let to = (scans.as_mut_ptr(), totals.as_mut_ptr(), places.as_mut_ptr(), sums.as_mut_ptr());
            let floors_to = floors.as_mut_ptr();
            let mut args = [
                argument(&from),
                argument(&to.0),
                argument(&to.1),
                argument(&to.2),
                argument(&to.3),
                argument(&floors_to),
                argument(&k),
            ];
            let how = one_block(block, schedule);
            // SAFETY: every array holds an entry for each thread.
            unsafe { Library::tested().launch("fault_none_collectives", how, &mut args) }.unwrap();

            let mut before = 0;
            for (at, &v) in input.iter().enumerate() {
                assert_eq!(scans[at], before, "{block} threads, schedule {schedule}");
                before += v;
            }
            assert!(totals.iter().all(|&total| total == before));
            assert!(sums.iter().all(|&sum| sum == before as f32));
            let kept: Vec<u32> = input.iter().copied().filter(|v| v % 3 == 0).collect();
            assert_eq!(places[..kept.len()], kept);
            let mut keys: Vec<u64> = (0_u32..)
                .zip(&input)
                .filter(|&(_, &v)| v > 0)
                .map(|(at, &v)| u64::from((v as f32).to_bits()) << 33 | u64::from(u32::MAX - at))
                .collect();
            keys.sort_unstable();
            assert!(floors.iter().all(|&floor| floor == floors[0]));
            assert_eq!(keys.iter().filter(|&&key| key >= floors[0]).count(), k as usize);
            assert!(keys[keys.len() - k as usize] >= floors[0]);
        }
    }
}
