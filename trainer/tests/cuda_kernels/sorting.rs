//! The sort against the standard library's stable sort.

use crate::cases::runs;
use crate::emulator::{Buffer, Emulator};
use crate::step::Device;
use kronsae_trainer::random::Stream;

const NONE: u32 = u32::MAX;

/// Keys `[n]` of which every `holes`-th is invalid (0: none).
fn keys(n: usize, rows: usize, holes: usize, seed: u64) -> Vec<u32> {
    let mut stream = Stream::new(seed, &[n as u64, rows as u64]);
    let mut key = || (stream.bits() % rows as u64) as u32;
    (0..n).map(|i| if holes > 0 && i.is_multiple_of(holes) { NONE } else { key() }).collect()
}

fn expected(keys: &[u32], valid: impl Fn(usize) -> bool, rows: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut pairs: Vec<(u32, u32)> =
        (0..keys.len()).filter(|&i| keys[i] != NONE && valid(i)).map(|i| (keys[i], i as u32)).collect();
    pairs.sort_by_key(|pair| pair.0);
    let starts = (0..=rows).map(|row| pairs.partition_point(|pair| (pair.0 as usize) < row) as u32).collect();
    let (keys, positions) = pairs.into_iter().unzip();
    (keys, positions, starts)
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn sorted_as_by_a_stable_sort() {
    let emulator = Emulator::new();
    let sizes = [
        (1, 1, 0),
        (1, 300, 0),
        (31, 5, 2),
        (2048, 256, 0),
        (2049, 257, 3),
        (7000, 70_000, 5),
        (9001, 3, 0),
        (5000, 1 << 20, 7),
        (4096, 65_536, 1),
    ];
    for (i, (n, rows, holes)) in sizes.into_iter().enumerate() {
        let keys = keys(n, rows, holes, i as u64);
        let (sorted, positions, starts) = expected(&keys, |_| true, rows);
        let buffer = Buffer::of(&keys);
        for &run in runs() {
            let out = Device { emulator: &emulator, run }.sort(buffer.address(), 0, 1, n, rows, 0);
            let count = out.count.get()[0] as usize;
            assert_eq!(count, sorted.len(), "{n} pairs of {rows} rows, {run:?}");
            assert_eq!(out.keys.get()[..count], sorted, "{n} pairs of {rows} rows, {run:?}");
            assert_eq!(out.positions.get()[..count], positions, "{n} pairs of {rows} rows, {run:?}");
            assert_eq!(out.starts.get(), starts, "{n} pairs of {rows} rows, {run:?}");
        }
        assert_eq!(buffer.get(), keys, "the input is left as it was");
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn only_counted_pairs_take_part() {
    let emulator = Emulator::new();
    let (tokens, slots, rows) = (150, 17, 400);
    // Behind the counts lies garbage, as a selection leaves it: also what looks like a row.
    let keys = keys(tokens * slots, rows, 0, 3);
    let counts: Vec<u32> = (0..tokens as u32).map(|t| t * 7 % 18).collect();
    let valid = |i: usize| i % slots < counts[i / slots] as usize;
    let (sorted, positions, starts) = expected(&keys, valid, rows);
    assert!(sorted.len() < keys.len() && counts.contains(&0) && counts.contains(&(slots as u32)));
    let (keys, counts) = (Buffer::of(&keys), Buffer::of(&counts));
    for &run in runs() {
        let device = Device { emulator: &emulator, run };
        for gate in [0_u32, 5] {
            let gate_buffer = Buffer::of(&[gate]);
            let n = tokens * slots;
            let out = device.sort(keys.address(), counts.address(), slots, n, rows, gate_buffer.address());
            let count = out.count.get()[0] as usize;
            if gate == 0 {
                assert_eq!(count, 0, "{run:?}");
                assert!(out.starts.get().iter().all(|&start| start == 0), "{run:?}");
            } else {
                assert_eq!(
                    (&out.keys.get()[..count], &out.positions.get()[..count]),
                    (&*sorted, &*positions),
                    "{run:?}"
                );
                assert_eq!(out.starts.get(), starts, "{run:?}");
            }
        }
    }
}
