//! Lists of the dead.

use crate::cases::{CASES, runs};
use crate::device::Device;
use crate::emulator::{Buffer, Emulator};
use crate::step::{Problem, numbers};
use kronsae::sae::Encoder;
use kronsae_trainer::backend::TrainState;

/// Lists of the dead over several tiles, and what is at their edges.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn the_dead_are_listed_in_order() {
    let emulator = Emulator::new();
    let encoder = Encoder::Dense { latents: 4 };
    let state = TrainState::new(encoder, 8, 1).unwrap();
    for (n, every) in [(1, 1), (1024, 1024), (1025, 3), (5000, 7), (3000, 1)] {
        let last: Vec<u64> =
            (0..n).map(|i| if (i + 1) % every == 0 { 3_000_000_000_000 } else { 3_000_000_000_001 }).collect();
        let buffer = Buffer::of(&last);
        let problem = Problem {
            state: &state,
            settings: CASES[0].settings(),
            x: &[],
            tokens: 0,
            step: 0,
            learning_rate: 0.0,
            capture: false,
            halt: false,
        };
        let mut numbers = numbers(&problem);
        (numbers.tokens_before, numbers.tokens_after) = (3_000_000_000_500, 3_000_000_000_501);
        let numbers = Buffer::of(&[numbers]);
        let expected: Vec<u32> = (0..n as u32).filter(|i| (i + 1) % every as u32 == 0).collect();
        for &run in runs() {
            let device = Device { emulator: &emulator, run };
            for (after, window, expected) in
                [(false, 500, &*expected), (true, 501, &*expected), (false, 501, &[]), (true, 502, &[])]
            {
                let (list, count) = device.dead(&buffer, &numbers, after, window);
                assert_eq!(&list.get()[..count.get()[0] as usize], expected, "{n} every {every}, {run:?}");
            }
        }
    }
}
