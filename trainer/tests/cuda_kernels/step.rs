//! A whole training step from the kernels, launched as a backend launches them; only the products and the selection,
//! which have kernels and tests of their own, are the CPU's here.

use crate::device::{Device, Sorted};
use crate::emulator::{Buffer, Element, Emulator, Run, arguments};
use crate::selection::{Lists, products, select, select_dead};
use crate::structs::{BiasUpdate, ByRow, Numbers, Revival, RowUpdate, Shape, Weights};
use kronsae::sae::{Encoder, padded};
use kronsae_trainer::backend::{Moments, Parameter, StepSettings, TrainState, moment_seed};

/// As in `cuda/row.cuh`: rows that more pairs touch are summed in parts.
pub(crate) const HOT: usize = 512;

/// What a step starts from.
pub(crate) struct Problem<'a> {
    pub(crate) state: &'a TrainState,
    pub(crate) settings: StepSettings,
    /// `[tokens, padded(d)]`.
    pub(crate) x: &'a [f32],
    pub(crate) tokens: usize,
    pub(crate) step: u64,
    pub(crate) learning_rate: f32,
    /// Gradients are written, nothing is changed.
    pub(crate) capture: bool,
    /// Says that tokens were not finite: nothing may change.
    pub(crate) halt: bool,
}

/// A parameter on the device.
pub(crate) struct Resident<T> {
    pub(crate) value: Buffer<f32>,
    pub(crate) first: Buffer<f32>,
    pub(crate) second: Buffer<f32>,
    pub(crate) copy: Buffer<T>,
    /// Both moments in bf16, where they are kept so: `first` and `second` are not used then.
    pub(crate) narrow: Option<[Buffer<half::bf16>; 2]>,
}

impl<T: Element> Resident<T> {
    fn new(from: &Parameter, moments: Moments) -> Self {
        let narrow = |values: &[f32]| Buffer::of(&values.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>());
        let copy: Vec<T> = from.value.iter().map(|&v| T::round(v)).collect();
        Resident {
            value: Buffer::of(&from.value),
            first: Buffer::of(&from.first),
            second: Buffer::of(&from.second),
            copy: Buffer::of(&copy),
            narrow: (moments == Moments::Bf16).then(|| [narrow(&from.first), narrow(&from.second)]),
        }
    }

    fn weights(&self) -> Weights {
        let (first, second) = match &self.narrow {
            Some([first, second]) => (first.address(), second.address()),
            None => (self.first.address(), self.second.address()),
        };
        Weights { value: self.value.address(), first, second, copy: self.copy.address() }
    }
}

/// What AuxK left.
pub(crate) struct Aux<T> {
    pub(crate) lists: Lists,
    pub(crate) residual: Buffer<T>,
    pub(crate) row_ids: Buffer<u32>,
    pub(crate) row_coefficients: Buffer<f32>,
}

/// Everything a step left behind.
pub(crate) struct Outcome<T> {
    pub(crate) parameters: [Resident<T>; 4],
    /// In the order of the parameters; garbage if they were not captured.
    pub(crate) gradients: [Buffer<f32>; 4],
    pub(crate) y: Buffer<T>,
    pub(crate) ldy: usize,
    pub(crate) lists: Lists,
    pub(crate) residual: Buffer<T>,
    pub(crate) squares: Buffer<f32>,
    pub(crate) norms: Buffer<f32>,
    pub(crate) row_ids: Buffer<u32>,
    pub(crate) row_coefficients: Buffer<f32>,
    pub(crate) by_latent: Sorted,
    pub(crate) by_encoder_row: Sorted,
    pub(crate) aux: Option<Aux<T>>,
    /// Its latents, its encoder rows.
    pub(crate) aux_sorted: Option<(Sorted, Sorted)>,
    pub(crate) dead_latents: Vec<u32>,
    pub(crate) dead_rows: Vec<u32>,
    pub(crate) revived: u32,
    /// Sums over the batch: |x_hat - x|^2, |x|^2.
    pub(crate) sums: Buffer<f64>,
    pub(crate) aux_loss: f64,
    pub(crate) gradient_norms: Buffer<f64>,
    pub(crate) fired_at: Buffer<u64>,
    pub(crate) positive_at: Buffer<u64>,
}

pub(crate) fn shape(encoder: Encoder) -> Shape {
    let (rows, latents) = (encoder.rows() as u32, encoder.latents() as u32);
    match encoder {
        Encoder::Kron { heads, base, extension } => {
            Shape { kind: 0, heads: heads as u32, base: base as u32, extension: extension as u32, rows, latents }
        }
        Encoder::Dense { .. } => Shape { kind: 1, heads: 0, base: 0, extension: 0, rows, latents },
    }
}

/// Adam's numbers of a step, as the CPU backend has them.
pub(crate) fn numbers(problem: &Problem<'_>) -> Numbers {
    let StepSettings { betas, adam_epsilon, clip, .. } = problem.settings;
    let power = |beta: f32| f64::from(beta).powf(problem.step as f64 + 1.0);
    Numbers {
        beta1: betas.0,
        beta2: betas.1,
        epsilon: adam_epsilon,
        rate: (f64::from(problem.learning_rate) / (1.0 - power(betas.0))) as f32,
        root: (1.0 - power(betas.1)).sqrt().recip() as f32,
        clip: clip.unwrap_or(0.0),
        tokens_before: problem.state.tokens,
        tokens_after: problem.state.tokens + problem.tokens as u64,
        seed: moment_seed(problem.step),
        reserved: 0,
    }
}

/// One step in elements of type T.
pub(crate) fn step<T: Element>(emulator: &Emulator, run: Run, problem: &Problem<'_>) -> Outcome<T> {
    let device = Device { emulator, run };
    let (state, settings, tokens) = (problem.state, problem.settings, problem.tokens);
    let (encoder, d) = (state.encoder, state.d_model());
    let (s, stride, k) = (shape(encoder), padded(d), settings.k);
    let (rows, latents) = (encoder.rows(), encoder.latents());
    let slots_a_latent = if s.kind == 0 { 2 } else { 1 };
    let (n, d_stride) = (tokens as u32, stride as u32);

    let moments = settings.moments;
    // Those of biases are f32 always.
    let parameters = {
        let [w, b, decoder, b_dec] = state.parameters().map(|(_, parameter)| parameter);
        [(w, moments), (b, Moments::F32), (decoder, moments), (b_dec, Moments::F32)]
            .map(|(parameter, moments)| Resident::<T>::new(parameter, moments))
    };
    let [w, b, decoder, b_dec] = &parameters;
    let x = Buffer::of(&problem.x[..tokens * stride].iter().map(|&v| T::round(v)).collect::<Vec<_>>());
    let (y, ldy) = products::<T>(&x, w, b, rows, d, tokens);
    let (lists, positive) = select(encoder, &y, ldy, tokens, k);
    let halt = Buffer::of(&[u32::from(problem.halt)]);
    let numbers = Buffer::of(&[numbers(problem)]);
    let gradient_norms = Buffer::of(&state.gradient_norms);
    let factors = Buffer::<f32>::garbage(4);
    device.launch("kronsae_clip_factors", arguments![numbers.address(), gradient_norms.address(), factors.address()]);

    let scale = 2.0 / (tokens as f32 * d as f32);
    let row_slots = slots_a_latent * k;
    let residual = Buffer::of(&vec![T::round(f32::NAN); tokens * stride]);
    let (squares, norms) = (Buffer::<f32>::garbage(tokens), Buffer::<f32>::garbage(tokens));
    let row_ids = Buffer::<u32>::of(&vec![7; tokens * row_slots]);
    let row_coefficients = Buffer::<f32>::garbage(tokens * row_slots);
    device.typed::<T>(
        "kronsae_decode",
        4 * stride,
        arguments![
            s,
            n,
            d_stride,
            k as u32,
            lists.counts.address(),
            lists.indices.address(),
            lists.values.address(),
            decoder.copy.address(),
            b_dec.value.address(),
            x.address(),
            y.address(),
            ldy as u32,
            scale,
            settings.mand_epsilon,
            residual.address(),
            squares.address(),
            norms.address(),
            row_ids.address(),
            row_coefficients.address(),
            row_slots as u32,
        ],
    );
    let sums = device.sums(&[&squares, &norms], false);

    let fired_at = Buffer::of(&state.fired_at);
    let positive_at = Buffer::of(&state.positive_at);
    let (dead, dead_count) = device.dead(&fired_at, &numbers, false, settings.dead_after);
    let dead_latents = dead.get()[..dead_count.get()[0] as usize].to_vec();
    let aux_squares = Buffer::<f32>::garbage(tokens);
    let aux = settings.auxk.map(|auxk| {
        let lists = select_dead(encoder, &y, ldy, tokens, &dead_latents, auxk.k);
        let row_slots = slots_a_latent * auxk.k;
        let aux = Aux {
            residual: Buffer::<T>::of(&vec![T::round(f32::NAN); tokens * stride]),
            row_ids: Buffer::<u32>::of(&vec![7; tokens * row_slots]),
            row_coefficients: Buffer::<f32>::garbage(tokens * row_slots),
            lists,
        };
        device.typed::<T>(
            "kronsae_decode_aux",
            4 * stride,
            arguments![
                s,
                n,
                d_stride,
                auxk.k as u32,
                aux.lists.counts.address(),
                aux.lists.indices.address(),
                aux.lists.values.address(),
                decoder.copy.address(),
                y.address(),
                ldy as u32,
                residual.address(),
                scale,
                settings.mand_epsilon,
                sums.address(),
                auxk.coefficient,
                aux.residual.address(),
                aux_squares.address(),
                aux.row_ids.address(),
                aux.row_coefficients.address(),
                row_slots as u32,
                dead_count.address(),
            ],
        );
        aux
    });
    let aux_loss = match aux {
        Some(_) => device.sums(&[&aux_squares], false).get()[0] / sums.get()[0].max(1e-30),
        None => 0.0,
    };

    // What touched each row.
    let gate = dead_count.address();
    let of_lists = |lists: &Lists, gate: u64| {
        let n = tokens * lists.slots;
        device.sort(lists.indices.address(), lists.counts.address(), lists.slots, n, latents, gate)
    };
    let of_rows = |ids: &Buffer<u32>, gate: u64| device.sort(ids.address(), 0, 1, ids.get().len(), rows, gate);
    let by_latent = of_lists(&lists, 0);
    let by_encoder_row = of_rows(&row_ids, 0);
    let mut kept = Vec::new();
    let mut by_row =
        |sorted: &Sorted, coefficients: &Buffer<f32>, slots: usize, source: u64, rows: usize, gate: u64| {
            let parts = 2 * (tokens * slots).div_ceil(HOT);
            let (pieces, sums) = (Buffer::<f32>::garbage(parts * stride), Buffer::<f32>::garbage(parts));
            let list = ByRow {
                keys: sorted.keys.address(),
                positions: sorted.positions.address(),
                starts: sorted.starts.address(),
                coefficients: coefficients.address(),
                source,
                pieces: pieces.address(),
                piece_coefficients: sums.address(),
                slots: slots as u32,
                reserved: 0,
            };
            device.typed::<T>("kronsae_hot_rows", 0, arguments![list, rows as u32, d_stride, gate]);
            kept.push((pieces, sums));
            list
        };
    let mut encoder_update = RowUpdate {
        main: by_row(&by_encoder_row, &row_coefficients, row_slots, x.address(), rows, 0),
        rows: rows as u32,
        weight: w.weights(),
        bias: b.weights(),
        factors: factors.address(),
        ..RowUpdate::default()
    };
    let mut decoder_update = RowUpdate {
        main: by_row(&by_latent, &lists.values, k, residual.address(), latents, 0),
        rows: latents as u32,
        weight: decoder.weights(),
        factors: factors.address() + 8,
        project: 1,
        parameter: 1,
        ..RowUpdate::default()
    };
    let mut aux_sorted = None;
    if let Some(aux) = &aux {
        let (by_latent, by_row_) = (of_lists(&aux.lists, gate), of_rows(&aux.row_ids, gate));
        let slots = aux.lists.slots;
        encoder_update.aux = by_row(&by_row_, &aux.row_coefficients, slots_a_latent * slots, x.address(), rows, gate);
        decoder_update.aux = by_row(&by_latent, &aux.lists.values, slots, aux.residual.address(), latents, gate);
        (encoder_update.aux_gate, decoder_update.aux_gate) = (gate, gate);
        aux_sorted = Some((by_latent, by_row_));
    }

    // Gradients and updates.
    let mut gradients = [w, b, decoder, b_dec].map(|p| Buffer::<f32>::garbage(p.value.get().len()));
    // A bias has as many elements as there are rows; what pads it stays as it is.
    let padding = (0..gradients[1].get().len()).map(|row| if row < rows { f32::NAN } else { 0.0 });
    gradients[1] = Buffer::of(&padding.collect::<Vec<_>>());
    let row_squares = [rows, rows, latents, rows].map(Buffer::<f32>::garbage);
    for (update, squares) in [(&mut encoder_update, 0), (&mut decoder_update, 2)] {
        update.numbers = numbers.address();
        update.halt = halt.address();
        update.stride = d_stride;
        update.row_squares = row_squares[squares].address();
    }
    encoder_update.bias_squares = row_squares[1].address();
    encoder_update.value_squares = row_squares[3].address();
    let column_squares = Buffer::<f32>::garbage(stride);
    let partial = Buffer::<f32>::garbage(tokens.div_ceil(64) * stride);
    let mut bias_update = BiasUpdate {
        partial: partial.address(),
        weight: b_dec.weights(),
        numbers: numbers.address(),
        factor: factors.address() + 12,
        halt: halt.address(),
        squares: column_squares.address(),
        gradient: 0,
        chunks: n.div_ceil(64),
        stride: d_stride,
    };
    if problem.capture {
        (encoder_update.gradient, encoder_update.bias_gradient) = (gradients[0].address(), gradients[1].address());
        decoder_update.gradient = gradients[2].address();
        bias_update.gradient = gradients[3].address();
    }
    for update in [encoder_update, decoder_update] {
        let kernel =
            format!("kronsae_update_rows_{}{}", T::NAME, if moments == Moments::Bf16 { "_moments_bf16" } else { "" });
        device.emulator.launch(&kernel, device.run, 11 * stride, arguments![update]);
    }
    device.typed::<T>("kronsae_column_sums", 0, arguments![residual.address(), n, d_stride, partial.address()]);
    device.launch("kronsae_update_decoder_bias", arguments![bias_update]);

    let mut outcome = Outcome {
        gradients,
        y,
        ldy,
        residual,
        squares,
        norms,
        row_ids,
        row_coefficients,
        by_latent,
        by_encoder_row,
        aux,
        aux_sorted,
        dead_latents,
        dead_rows: Vec::new(),
        revived: 0,
        sums,
        aux_loss,
        gradient_norms,
        fired_at,
        positive_at,
        lists,
        parameters,
    };
    if problem.capture {
        return outcome;
    }
    if !problem.halt {
        outcome.gradient_norms =
            device.sums(&[&row_squares[0], &row_squares[1], &row_squares[2], &column_squares], true);
    }
    device.launch(
        "kronsae_note_alive",
        arguments![
            outcome.by_latent.starts.address(),
            latents as u32,
            outcome.fired_at.address(),
            positive.address(),
            1_u32,
            rows as u32,
            outcome.positive_at.address(),
            numbers.address(),
            halt.address(),
        ],
    );
    assert!(positive.get().iter().all(|&word| word == 0), "the mask is to be cleared for the next step");
    let (dead, count) = device.dead(&outcome.positive_at, &numbers, true, settings.dead_after);
    outcome.dead_rows = dead.get()[..count.get()[0] as usize].to_vec();
    if settings.revive_rows {
        let (order, eligible) = (Buffer::<u32>::garbage(tokens), Buffer::<u32>::garbage(1));
        device.launch(
            "kronsae_revive_rank",
            arguments![outcome.squares.address(), n, count.address(), order.address(), eligible.address()],
        );
        let revived = Buffer::<u32>::garbage(1);
        let value_squares = device.sums(&[&row_squares[3]], false);
        let [w, b, decoder, _] = &outcome.parameters;
        let revival = Revival {
            dead: dead.address(),
            dead_count: count.address(),
            order: order.address(),
            eligible: eligible.address(),
            residual: outcome.residual.address(),
            value_squares: value_squares.address(),
            encoder: w.weights(),
            bias: b.weights(),
            decoder: decoder.weights(),
            positive_at: outcome.positive_at.address(),
            numbers: numbers.address(),
            halt: halt.address(),
            revived: revived.address(),
            stride: d_stride,
            moment_bytes: moments.bytes() as u32,
        };
        device.typed::<T>("kronsae_revive_rows", 0, arguments![s, revival]);
        device.typed::<T>("kronsae_revive_decoder", 0, arguments![s, revival]);
        outcome.revived = revived.get()[0];
    }
    outcome
}
