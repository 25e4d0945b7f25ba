//! The problems that all kernels are tried on.

use crate::emulator::Run;
use crate::step::Problem;
use kronsae::Aligned;
use kronsae::sae::{Encoder, padded};
use kronsae_trainer::backend::{AuxK, Moments, Precision, StepSettings, TrainState};
use kronsae_trainer::random::Stream;

/// A problem by its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) encoder: Encoder,
    pub(crate) d: usize,
    pub(crate) tokens: usize,
    pub(crate) k: usize,
    /// Dead latents a token may use; 0: no AuxK.
    pub(crate) k_aux: usize,
    /// Every how manieth latent is dead; 0: none.
    pub(crate) dead: usize,
    /// Encoder rows whose bias keeps them silent and that were so for the window.
    pub(crate) silent: &'static [usize],
    /// Added to every bias.
    pub(crate) bias: f32,
    pub(crate) clip: Option<f32>,
    pub(crate) mand_epsilon: f32,
}

const fn kron(heads: usize, base: usize, extension: usize) -> Encoder {
    Encoder::Kron { heads, base, extension }
}

const PLAIN: Case = Case {
    name: "",
    encoder: kron(3, 2, 3),
    d: 11,
    tokens: 9,
    k: 3,
    k_aux: 0,
    dead: 0,
    silent: &[],
    bias: 0.0,
    clip: None,
    mand_epsilon: 1e-6,
};

/// Odd sizes, and what is at the edges.
pub(crate) const CASES: [Case; 12] = [
    Case { name: "d not a multiple of 8, m != n, AuxK", k_aux: 4, dead: 3, ..PLAIN },
    Case { name: "one token", encoder: kron(5, 1, 2), d: 16, tokens: 1, k: 4, k_aux: 3, dead: 2, ..PLAIN },
    Case { name: "rows shared by latents of a token", encoder: kron(2, 4, 4), d: 37, tokens: 40, k: 9, ..PLAIN },
    Case {
        name: "dense, AuxK, clipped",
        encoder: Encoder::Dense { latents: 24 },
        d: 16,
        tokens: 33,
        k: 5,
        k_aux: 6,
        dead: 2,
        clip: Some(0.05),
        ..PLAIN
    },
    Case {
        name: "K above what is positive, rows of more than 512 pairs",
        encoder: kron(1, 3, 5),
        d: 8,
        tokens: 700,
        k: 16,
        bias: 0.5,
        ..PLAIN
    },
    Case {
        name: "rows of more than 512 pairs, of AuxK too",
        encoder: kron(2, 2, 3),
        d: 13,
        tokens: 610,
        k: 3,
        k_aux: 6,
        dead: 2,
        bias: 3.0,
        ..PLAIN
    },
    Case { name: "no latents at all", tokens: 3, bias: -1000.0, k_aux: 2, dead: 4, ..PLAIN },
    Case { name: "more pieces than threads", d: 530, tokens: 5, k: 6, k_aux: 3, dead: 3, ..PLAIN },
    Case {
        name: "dead rows, more than tokens",
        encoder: kron(4, 2, 2),
        tokens: 3,
        silent: &[0, 1, 2, 5, 7],
        k_aux: 4,
        dead: 3,
        ..PLAIN
    },
    Case {
        name: "dead rows, both of a latent",
        encoder: kron(3, 3, 2),
        tokens: 20,
        silent: &[0, 3, 4, 11],
        clip: Some(0.02),
        ..PLAIN
    },
    Case { name: "dense dead rows", encoder: Encoder::Dense { latents: 40 }, silent: &[3, 39], tokens: 70, ..PLAIN },
    Case { name: "eps 0", mand_epsilon: 0.0, tokens: 30, encoder: kron(7, 2, 3), k: 5, ..PLAIN },
];

/// Ways to run kernels that must not show.
pub(crate) const RUNS: [Run; 6] = [
    Run { grid: 3, block: 64, schedule: 0 },
    Run { grid: 1, block: 32, schedule: 1 },
    Run { grid: 7, block: 96, schedule: 2 },
    Run { grid: 2, block: 256, schedule: 3 },
    Run { grid: 40, block: 128, schedule: 4 },
    Run { grid: 1, block: 1024, schedule: 5 },
];

/// As many of them as there is time for: `KRONSAE_CUDA_CASES` is set where the sanitizers' library is tested.
pub(crate) fn runs() -> &'static [Run] {
    if std::env::var_os("KRONSAE_CUDA_CASES").is_some() { &RUNS[2..5] } else { &RUNS }
}

/// A case with its numbers filled in.
pub(crate) struct Filled {
    pub(crate) state: TrainState,
    pub(crate) settings: StepSettings,
    pub(crate) x: Aligned<f32>,
    tokens: usize,
}

impl Case {
    pub(crate) fn settings(&self) -> StepSettings {
        StepSettings {
            k: self.k,
            precision: Precision::F32,
            auxk: (self.k_aux > 0).then_some(AuxK { k: self.k_aux, coefficient: 0.25 }),
            dead_after: 5000,
            revive_rows: true,
            mand_epsilon: self.mand_epsilon,
            betas: (0.9, 0.999),
            adam_epsilon: 1e-8,
            moments: Moments::F32,
            clip: self.clip,
        }
    }

    /// A state in the middle of training, and a batch.
    pub(crate) fn fill(&self) -> Filled {
        let seed = self.name.len() as u64;
        let mut state = TrainState::new(self.encoder, self.d, seed).unwrap();
        let mut stream = Stream::new(seed, &[7]);
        let (d, rows) = (self.d, self.encoder.rows());
        for v in &mut state.encoder_bias.value[..rows] {
            *v = stream.normals().0 as f32 * 0.3 + self.bias;
        }
        for v in &mut state.decoder_bias.value[..d] {
            *v = stream.normals().0 as f32 * 0.2;
        }
        for (_, parameter) in state.parameters_mut() {
            for row in 0..parameter.rows {
                for at in row * parameter.stride..row * parameter.stride + parameter.cols {
                    let (a, b) = stream.normals();
                    parameter.first[at] = a as f32 * 0.01;
                    parameter.second[at] = (b * b + 0.1) as f32 * 1e-4;
                }
            }
        }
        state.tokens = 100_000;
        state.positive_at.fill(99_000);
        for (latent, at) in state.fired_at.iter_mut().enumerate() {
            let dead = self.dead > 0 && latent.is_multiple_of(self.dead);
            *at = if dead { 95_000 - latent as u64 } else { 95_001 };
        }
        for &row in self.silent {
            state.encoder_bias.value[row] = -1000.0;
            state.positive_at[row] = 95_000;
        }
        state.gradient_norms = [0.03, 0.06, 0.04, 0.2];
        let stride = padded(d);
        let mut x = Aligned::zeroed(self.tokens * stride, "a batch").unwrap();
        for row in x.chunks_mut(stride) {
            row[..d].iter_mut().for_each(|v| *v = stream.normals().0 as f32);
        }
        Filled { state, settings: self.settings(), x, tokens: self.tokens }
    }
}

impl Filled {
    pub(crate) fn problem(&self, capture: bool) -> Problem<'_> {
        Problem {
            state: &self.state,
            settings: self.settings,
            x: &self.x,
            tokens: self.tokens,
            step: 6,
            learning_rate: 2e-3,
            capture,
            halt: false,
        }
    }
}
