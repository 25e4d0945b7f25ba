//! What several ranks found, taken together.

use crate::cases::{CASES, runs};
use crate::device::Device;
use crate::emulator::{Buffer, Emulator, arguments};
use crate::step::{Problem, numbers};
use kronsae::sae::Encoder;
use kronsae_trainer::backend::TrainState;

/// A row is alive if it was positive on a token of any rank; all ranks' bits are cleared, also where nothing may change.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn rows_are_alive_on_any_rank() {
    let emulator = Emulator::new();
    let state = TrainState::new(Encoder::Dense { latents: 4 }, 8, 1).unwrap();
    let settings = CASES[0].settings();
    let problem = Problem {
        state: &state,
        settings,
        x: &[],
        tokens: 0,
        step: 0,
        learning_rate: 0.0,
        capture: false,
        halt: false,
    };
    let mut numbers = numbers(&problem);
    numbers.tokens_after = 77;
    let numbers = Buffer::of(&[numbers]);
    for (rows, parts) in [(1_usize, 2_usize), (32, 3), (33, 1), (70, 40), (2000, 5)] {
        let words = rows.div_ceil(32);
        // Bit r of part p is set for some pairs, and no part has all.
        let is_set = |part: usize, row: usize| (row * 7 + part * 3).is_multiple_of(2 * parts + 1);
        let mask: Vec<u32> = (0..parts * words)
            .map(|at| {
                let row = |bit: usize| at % words * 32 + bit;
                (0..32).filter(|&bit| row(bit) < rows && is_set(at / words, row(bit))).map(|bit| 1 << bit).sum()
            })
            .collect();
        for (&run, halt) in runs().iter().flat_map(|run| [(run, 0_u32), (run, 1)]) {
            let device = Device { emulator: &emulator, run };
            let positive = Buffer::of(&mask);
            let (alive, fired) = (Buffer::of(&vec![5_u64; rows]), Buffer::of(&[5_u64; 4]));
            let (starts, halted) = (Buffer::of(&[0_u32, 1, 1, 3, 3]), Buffer::of(&[halt]));
            device.launch(
                "kronsae_note_alive",
                arguments![
                    starts.address(),
                    4_u32,
                    fired.address(),
                    positive.address(),
                    parts as u32,
                    rows as u32,
                    alive.address(),
                    numbers.address(),
                    halted.address(),
                ],
            );
            let expected = |alive: bool| if alive && halt == 0 { 77 } else { 5 };
            let of_row = |row: usize| expected((0..parts).any(|part| is_set(part, row)));
            assert!(alive.get().iter().enumerate().all(|(row, &at)| at == of_row(row)), "{rows} of {parts}, {run:?}");
            assert_eq!(fired.get(), [true, false, true, false].map(expected));
            assert!(positive.get().iter().all(|&word| word == 0), "{rows} of {parts}, {run:?}");
        }
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn counts_are_added_over_ranks() {
    let emulator = Emulator::new();
    for (parts, n) in [(1, 2), (2, 2), (5, 1), (300, 2), (3, 700)] {
        let counts: Vec<u32> = (0..parts * n).map(|at| (at * at % 1013) as u32).collect();
        let expected: Vec<u32> = (0..n).map(|i| (0..parts).map(|part| counts[part * n + i]).sum()).collect();
        let counts = Buffer::of(&counts);
        for &run in runs() {
            let totals = Buffer::<u32>::garbage(n);
            Device { emulator: &emulator, run }
                .launch("kronsae_sum_counts", arguments![counts.address(), parts as u32, n as u32, totals.address()]);
            assert_eq!(totals.get(), expected, "{parts} of {n}, {run:?}");
        }
    }
}
