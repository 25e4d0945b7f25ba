//! `kronsae_select_*`, and `kronsae_head_maxima_*` with `kronsae_select_maxima_*`, against the selector of the CPU.

use crate::cases::{Case, Kind, Output, Shape, any_case};
use crate::library::{Launched, Library, SCHEDULES, argument, cases};
use half::bf16;
use kronsae::sae::{Encoder, Selection};
use proptest::prelude::*;

/// Pre-activations as the kernels read them, aligned to 16 bytes.
pub(crate) enum Elements {
    F32(Vec<[f32; 4]>),
    Bf16(Vec<[bf16; 8]>),
}

impl Elements {
    pub(crate) fn new(y: &[f32], narrow: bool) -> Elements {
        match narrow {
            false => Elements::F32(y.as_chunks::<4>().0.to_vec()),
            true => Elements::Bf16(y.as_chunks::<8>().0.iter().map(|c| c.map(bf16::from_f32)).collect()),
        }
    }

    pub(crate) fn address(&self) -> u64 {
        match self {
            Elements::F32(y) => y.as_ptr() as u64,
            Elements::Bf16(y) => y.as_ptr() as u64,
        }
    }

    pub(crate) fn suffix(&self) -> &'static str {
        match self {
            Elements::F32(_) => "f32",
            Elements::Bf16(_) => "bf16",
        }
    }
}

/// The least dynamic shared memory that the launch comment of select.cuh asks for, beside the ring of tiles.
pub(crate) fn lists_bytes(k: usize) -> u64 {
    let kept = k.next_power_of_two() as u64;
    8 * kept + 8 * (2 * kept).max(1024)
}

/// The ring of tiles.
const RING: u64 = 3 * 16384;

impl Case {
    /// Runs the kernel, or the two kernels for few tokens.
    pub(crate) fn run(&self, library: &Library, y: &[f32], few: bool) -> Result<Output, String> {
        let y = Elements::new(y, self.bf16);
        let mut out = self.empty();
        let shape = Shape::from(self.encoder);
        let (k, mode, theta) = match self.selection {
            Selection::TopK(k) => (k as u32, 0_u32, 0.0_f32),
            Selection::Threshold { theta, max_latents } => (max_latents as u32, 1, theta),
        };
        let thresholds = self.thresholds();
        let thetas = thresholds.as_ref().map_or(std::ptr::null(), Vec::as_ptr);
        let (tokens, ldy, capacity) = (self.tokens() as u32, self.ldy() as u32, self.capacity as u32);
        let rows = self.encoder.rows() as u64;
        let heads = match self.encoder {
            Encoder::Kron { heads, .. } => heads as u64,
            Encoder::Dense { .. } => 0,
        };
        let helps =
            (4 * heads).next_multiple_of(16) + if few { 0 } else { (4 * rows.div_ceil(32)).next_multiple_of(16) };
        let shared_bytes =
            lists_bytes(k.min(capacity) as usize) + if few { 0 } else { RING } + helps * self.quarters / 4;
        let how = Launched { grid: (self.grid, 1), block: self.block, shared_bytes, schedule: self.schedule };
        let address = y.address();
        let (counts, indices, values) = (out.counts.as_mut_ptr(), out.indices.as_mut_ptr(), out.values.as_mut_ptr());
        let (active, flags) = (out.active.as_mut_ptr(), out.flags.as_mut_ptr());
        let (positive, skipped) = (out.positive.as_mut_ptr(), &raw mut out.skipped);
        let mut maxima = vec![-1.0_f32; self.tokens() * heads as usize];
        let maxima = maxima.as_mut_ptr();
        let mut args = vec![
            argument(&shape),
            argument(&address),
            argument(&ldy),
            argument(&tokens),
            argument(&k),
            argument(&mode),
            argument(&theta),
            argument(&thetas),
            argument(&counts),
            argument(&indices),
            argument(&values),
            argument(&capacity),
            argument(&active),
            argument(&flags),
        ];
        // SAFETY: the arrays are as long as the shape, the tokens and the capacity say, and live until the end.
        unsafe {
            if few {
                let mut first = [&args[..4], &[argument(&maxima), argument(&positive)]].concat();
                let how = Launched { grid: (self.grid, 1 + self.grid % 2), shared_bytes: 0, ..how };
                library.launch(&format!("kronsae_head_maxima_{}", y.suffix()), how, &mut first)?;
                args.extend([argument(&skipped), argument(&maxima)]);
                let how = Launched { grid: (self.grid, 1), shared_bytes, ..how };
                library.launch(&format!("kronsae_select_maxima_{}", y.suffix()), how, &mut args)?;
            } else {
                args.extend([argument(&positive), argument(&skipped)]);
                library.launch(&format!("kronsae_select_{}", y.suffix()), how, &mut args)?;
            }
        }
        Ok(out)
    }

    fn check(&self) {
        let y = self.pre_activations();
        let expected = self.expected(&y);
        let found = self.run(Library::tested(), &y, false).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        assert_eq!(found, expected, "{self:?}");
        if matches!(self.encoder, Encoder::Kron { .. }) {
            let found = self.run(Library::tested(), &y, true).unwrap_or_else(|error| panic!("{self:?}: {error}"));
            assert_eq!(found, expected, "by head maxima: {self:?}");
        }
    }
}

fn case(encoder: Encoder, kinds: &[Kind], selection: Selection, capacity: usize) -> Case {
    Case {
        encoder,
        kinds: kinds.to_vec(),
        seed: 5,
        selection,
        thresholds: false,
        capacity,
        bf16: true,
        block: 256,
        grid: 2,
        quarters: 4,
        schedule: 0,
    }
}

#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn any_selection_equals_the_selector() {
    let config = ProptestConfig { cases: cases(400), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(case in any_case())| case.check());
}

/// Rows that fill several tiles, so that the ring goes round and runs on into the next token.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn long_rows() {
    use Kind::{Special, Ties, Usual};
    for (schedule, bf16, block) in [(0, true, 512), (1, false, 256), (2, true, 1024), (5, false, 512)] {
        for (heads, base, extension) in [(8192, 2, 4), (3001, 4, 4), (501, 32, 64)] {
            let encoder = Encoder::Kron { heads, base, extension };
            let mut case = case(encoder, &[Usual, Ties, Special, Usual], Selection::TopK(50), 50);
            (case.schedule, case.bf16, case.block) = (schedule, bf16, block);
            case.check();
        }
        let encoder = Encoder::Dense { latents: 65_536 };
        let mut case = case(encoder, &[Usual, Usual, Special], Selection::TopK(64), 64);
        (case.schedule, case.bf16, case.block) = (schedule, bf16, block);
        case.check();
    }
}

/// The largest dictionaries: head maxima and masks do not fit into shared memory.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn a_million_latents() {
    let shapes = [
        Encoder::Kron { heads: 1 << 20, base: 1, extension: 1 },
        Encoder::Kron { heads: 1, base: 1, extension: 1 << 20 },
        Encoder::Dense { latents: 1 << 20 },
    ];
    for encoder in shapes {
        let mut case = case(encoder, &[Kind::Usual], Selection::TopK(512), 512);
        case.block = 512;
        // What does not fit is not asked for.
        case.quarters = 0;
        case.check();
    }
}

/// Cases that between them pass every barrier that can be taken out.
fn cases_for_planted(schedule: i32) -> Vec<Case> {
    let kinds = [Kind::Usual, Kind::Ties, Kind::Usual, Kind::Equal];
    let narrow = Encoder::Kron { heads: 2000, base: 2, extension: 4 };
    let wide = Encoder::Kron { heads: 9, base: 130, extension: 150 };
    let tries = [(narrow, 50), (narrow, 400), (wide, 50)];
    let tries = tries.map(|(encoder, k)| case(encoder, &kinds, Selection::TopK(k), k));
    tries.map(|case| Case { schedule, grid: 1, ..case }).to_vec()
}

/// Every planted fault, a barrier taken out of the kernels, changes a result or stops the emulation under some schedule.
/// Each is tried in a process of its own: what a kernel reads after a race may be anywhere.
#[test]
#[ignore = "needs the emulated kernels: cargo xtask test --only cuda-emulation"]
fn planted_races_are_found() {
    const PLANTED: &str = "KRONSAE_CUDA_PLANTED";
    const SCHEDULE: &str = "KRONSAE_CUDA_SCHEDULE";
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<i32>().unwrap());
    if let (Some(planted), Some(schedule)) = (number(PLANTED), number(SCHEDULE)) {
        Library::tested().plant(planted);
        for case in cases_for_planted(schedule) {
            let y = case.pre_activations();
            assert_eq!(case.run(Library::tested(), &y, false).as_ref(), Ok(&case.expected(&y)));
        }
        return;
    }
    let right = |planted: i32, schedule: i32| {
        let mut one = std::process::Command::new(std::env::current_exe().unwrap());
        one.args(["--ignored", "--exact", "select::planted_races_are_found"]);
        one.env(PLANTED, planted.to_string()).env(SCHEDULE, schedule.to_string());
        one.output().unwrap().status.success()
    };
    for planted in 1..=4 {
        let found: Vec<_> = SCHEDULES.into_iter().filter(|&schedule| !right(planted, schedule)).collect();
        println!("without barrier {planted}, wrong under schedules {found:?}");
        assert!(!found.is_empty(), "without barrier {planted} every schedule still gives right results");
    }
    for schedule in SCHEDULES {
        assert!(right(0, schedule), "the kernels as they are, schedule {schedule}");
    }
}
