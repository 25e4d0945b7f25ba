//! A whole step as a list of kernels, none of which needs the host: it can be captured in a graph and replayed.

use super::abi::{Address, BiasUpdate, ByRow, Revival, RowUpdate, SUM_LISTS, SumLists};
use super::launch::{Launcher, kernel, of, row_block};
use super::parameters::{DeviceState, NORMS};
use super::sort::Touched;
use super::space::{Lists, Sizes, Space, found};
use crate::backend::{Moments, StepSettings};
use crate::collective::{Collective, Gathered, Share};
use kronsae::Result;
use kronsae::cuda::{Arguments, DeviceMemory, Element, Kernel, Product, Selecting, Shape, selection_shared_bytes};

/// Threads of blocks that have no better number.
const BLOCK: u32 = 256;
/// Threads of a block that selects a token's latents.
const SELECT_BLOCK: u32 = 512;

/// Where the gradients of a step go instead of into an update: encoder weight and bias, decoder weight and bias, as the
/// parameters are.
pub(super) struct Capture {
    pub(super) parameters: [DeviceMemory; 4],
}

/// What a step works on.
pub(super) struct Step<'a> {
    pub(super) on: Launcher<'a>,
    pub(super) collective: &'a dyn Collective,
    pub(super) sizes: &'a Sizes,
    pub(super) settings: &'a StepSettings,
    pub(super) state: &'a DeviceState,
    pub(super) space: &'a Space,
}

impl Step<'_> {
    /// Enqueues the step of `tokens` tokens, which lie in `space.x`; its numbers lie in `space.numbers`.
    pub(super) fn enqueue(&self, tokens: usize, capture: Option<&Capture>) -> Result<()> {
        let (space, settings) = (self.space, self.settings);
        self.on.device().fill(&space.found, 0)?;
        if settings.clip.is_some() {
            let mut arguments = Arguments::new();
            arguments.memory(&space.numbers).memory(&self.state.norms).memory(&space.factors);
            self.on.start(Kernel("kronsae_clip_factors"), 1, 32, 0, &mut arguments)?;
        }
        self.list_dead(&self.state.fired_at, self.sizes.encoder.latents(), false)?;
        let share = Share::of(tokens, self.collective.rank(), self.collective.ranks());
        for first in share.own.clone().step_by(self.sizes.chunk) {
            self.chunk(first, self.sizes.chunk.min(share.own.end - first), tokens)?;
        }
        self.gather(share.each)?;
        self.sum_flags()?;
        // From here on every rank does the same with the same.
        self.sum_squares(tokens)?;
        if let (Some(aux), Some(auxk)) = (&space.aux, settings.auxk) {
            for (list, slots) in [(&aux.values, aux.k), (&aux.row_coefficients, aux.row_slots)] {
                self.scale_by_total(list, tokens * slots, auxk.coefficient)?;
            }
        }
        self.update_decoder(tokens, capture)?;
        self.update_encoder(tokens, capture)?;
        self.update_decoder_bias(tokens, capture)?;
        if capture.is_some() {
            // Nothing lives by it.
            return self.on.device().fill(&space.positive, 0);
        }
        if settings.clip.is_some() || settings.revive_rows {
            self.sum_norms()?;
        }
        self.note_alive()?;
        self.list_dead(&self.state.positive_at, self.sizes.encoder.rows(), true)?;
        if settings.revive_rows {
            self.revive(tokens)?;
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        Shape::of(self.sizes.encoder)
    }

    fn stride(&self) -> u32 {
        self.sizes.stride as u32
    }

    /// The address of token `first`'s row in a matrix of `row` bytes a token.
    fn row(memory: &DeviceMemory, first: usize, row: usize) -> Address {
        memory.at(first * row)
    }

    /// Pre-activations, selection and decoding of `count` of all `tokens` tokens, from `first` on.
    fn chunk(&self, first: usize, count: usize, tokens: usize) -> Result<()> {
        let (sizes, space) = (self.sizes, self.space);
        let row = sizes.stride * sizes.element.size();
        let x = Self::row(&space.x, first, row);
        self.on.product(&Product {
            tokens: count as u32,
            rows: sizes.encoder.rows() as u32,
            inner: sizes.d as u32,
            input: sizes.element,
            output: sizes.element,
            x,
            x_stride: self.stride(),
            w: self.state.encoder.read(),
            w_stride: self.stride(),
            bias: self.state.encoder_bias.read(),
            y: space.y.address(),
            y_stride: sizes.ldy as u32,
            workspace: 0,
        })?;

        let main = &space.main;
        let mut arguments = Arguments::new();
        arguments.push(self.shape()).memory(&space.y).push(sizes.ldy as u32).push(count as u32).push(sizes.k as u32);
        // TopK, no thresholds.
        arguments.push(0_u32).push(0.0_f32).null();
        arguments.push(Self::row(&main.counts, first, 4));
        arguments.push(Self::row(&main.indices, first, 4 * main.k)).push(Self::row(&main.values, first, 4 * main.k));
        arguments.push(main.k as u32).null().null();
        let rank = self.collective.rank() as usize;
        arguments.push(space.positive.at(4 * rank * sizes.row_words())).push(space.flags.at(8 * rank));
        let selecting = Selecting::Rows { positive: true };
        self.select(kernel!(sizes.element, "select"), main.k, selecting, count, &mut arguments)?;

        let scale = 2.0 / (tokens as f32 * sizes.d as f32);
        let residual = Self::row(&main.residual, first, row);
        let mut arguments = Arguments::new();
        self.push_lists(&mut arguments, main, first, count);
        arguments.push(self.state.decoder.read()).push(self.state.decoder_bias.value()).push(x);
        arguments.memory(&space.y).push(sizes.ldy as u32).push(scale).push(self.settings.mand_epsilon).push(residual);
        arguments.push(Self::row(&main.squares, first, 4)).push(Self::row(&space.norms, first, 4));
        self.push_rows(&mut arguments, main, first);
        self.decode(kernel!(sizes.element, "decode"), count, &mut arguments)?;

        let Some(aux) = &space.aux else { return Ok(()) };
        let gate = space.found(found::DEAD_LATENTS);
        let mut arguments = Arguments::new();
        arguments.push(self.shape()).memory(&space.y).push(sizes.ldy as u32).push(count as u32);
        arguments.memory(&space.dead_latents).push(gate).push(aux.k as u32).push(Self::row(&aux.counts, first, 4));
        arguments.push(Self::row(&aux.indices, first, 4 * aux.k)).push(Self::row(&aux.values, first, 4 * aux.k));
        arguments.push(aux.k as u32);
        self.select(kernel!(sizes.element, "select_dead"), aux.k, Selecting::Lists, count, &mut arguments)?;

        let mut arguments = Arguments::new();
        self.push_lists(&mut arguments, aux, first, count);
        arguments.push(self.state.decoder.read()).memory(&space.y).push(sizes.ldy as u32).push(residual).push(scale);
        // Without the factor coefficient * 2 / total: the total of all chunks is not known yet.
        arguments.push(self.settings.mand_epsilon).memory(&space.two).push(1.0_f32);
        arguments.push(Self::row(&aux.residual, first, row)).push(Self::row(&aux.squares, first, 4));
        self.push_rows(&mut arguments, aux, first);
        arguments.push(gate);
        self.decode(kernel!(sizes.element, "decode_aux"), count, &mut arguments)
    }

    /// What each rank found of its tokens, `each` of them with padding, to all.
    fn gather(&self, each: usize) -> Result<()> {
        let (sizes, space) = (self.sizes, self.space);
        let mut parts = vec![
            Gathered { all: &space.flags, bytes_each: 8 },
            Gathered { all: &space.positive, bytes_each: 4 * sizes.row_words() },
            Gathered { all: &space.norms, bytes_each: 4 * each },
        ];
        for lists in [Some(&space.main), space.aux.as_ref()].into_iter().flatten() {
            for (all, bytes) in [
                (&lists.counts, 4),
                (&lists.indices, 4 * lists.k),
                (&lists.values, 4 * lists.k),
                (&lists.row_ids, 4 * lists.row_slots),
                (&lists.row_coefficients, 4 * lists.row_slots),
                (&lists.residual, sizes.stride * sizes.element.size()),
                (&lists.squares, 4),
            ] {
                parts.push(Gathered { all, bytes_each: each * bytes });
            }
        }
        // SAFETY: the memory lives as long as the backend, whose graph ends with it, and is used on the device's own stream
        // alone.
        unsafe { self.collective.all_gather(self.on.device(), &parts) }
    }

    /// How many tokens of all ranks are not finite, and how many ranks wish to stop.
    fn sum_flags(&self) -> Result<()> {
        const { assert!(found::STOPPING == found::NOT_FINITE + 4) };
        let mut arguments = Arguments::new();
        arguments.memory(&self.space.flags).push(self.collective.ranks()).push(2_u32);
        arguments.push(self.space.found(found::NOT_FINITE));
        self.on.start(Kernel("kronsae_sum_counts"), 1, 32, 0, &mut arguments)
    }

    fn push_lists(&self, arguments: &mut Arguments, lists: &Lists, first: usize, count: usize) {
        arguments.push(self.shape()).push(count as u32).push(self.stride()).push(lists.k as u32);
        arguments.push(Self::row(&lists.counts, first, 4)).push(Self::row(&lists.indices, first, 4 * lists.k));
        arguments.push(Self::row(&lists.values, first, 4 * lists.k));
    }

    fn push_rows(&self, arguments: &mut Arguments, lists: &Lists, first: usize) {
        arguments.push(Self::row(&lists.row_ids, first, 4 * lists.row_slots));
        arguments.push(Self::row(&lists.row_coefficients, first, 4 * lists.row_slots)).push(lists.row_slots as u32);
    }

    fn select(
        &self,
        kernel: Kernel,
        k: usize,
        selecting: Selecting,
        tokens: usize,
        arguments: &mut Arguments,
    ) -> Result<()> {
        let shared = selection_shared_bytes(&self.shape(), k, selecting, self.on.device().shared_bytes());
        self.on.start(kernel, tokens as u32, SELECT_BLOCK, shared, arguments)
    }

    fn decode(&self, kernel: Kernel, tokens: usize, arguments: &mut Arguments) -> Result<()> {
        let block = row_block(self.sizes.stride, self.sizes.element);
        self.on.start(kernel, tokens as u32, block, 4 * self.stride(), arguments)
    }

    /// Multiplies AuxK's coefficients by what the whole batch decides.
    fn scale_by_total(&self, values: &DeviceMemory, count: usize, coefficient: f32) -> Result<()> {
        let mut arguments = Arguments::new();
        arguments.memory(values).push(count as u64).push(self.space.found(found::SQUARES)).push(coefficient);
        arguments.push(self.space.found(found::DEAD_LATENTS));
        let blocks = count.div_ceil(BLOCK as usize) as u32;
        self.on.start(Kernel("kronsae_scale_by_total"), blocks, BLOCK, 0, &mut arguments)
    }

    fn sum(&self, lists: &[(Address, usize)], totals: Address, roots: u32) -> Result<()> {
        let mut sums = SumLists { totals, roots, lists: lists.len() as u32, ..SumLists::default() };
        assert!(lists.len() <= SUM_LISTS, "more lists than are summed at once");
        for (at, &(values, length)) in lists.iter().enumerate() {
            (sums.values[at], sums.lengths[at]) = (values, length as u32);
        }
        sums.partial = self.space.partial.address();
        sums.chunks = lists.iter().map(|l| l.1).max().unwrap_or(0).div_ceil(1024) as u32;
        let warps = sums.lists * sums.chunks;
        self.on.start(Kernel("kronsae_sum_chunks"), warps.div_ceil(8), BLOCK, 0, Arguments::new().push(sums))?;
        self.on.start(Kernel("kronsae_sum_totals"), 1, BLOCK, 0, Arguments::new().push(sums))
    }

    fn sum_squares(&self, tokens: usize) -> Result<()> {
        let space = self.space;
        let mut lists = vec![(space.main.squares.address(), tokens), (space.norms.address(), tokens)];
        if let Some(aux) = &space.aux {
            lists.push((aux.squares.address(), tokens));
        }
        const { assert!(found::SQUARES == 0 && found::NORMS == 8 && found::AUX_SQUARES == 16) };
        self.sum(&lists, space.found(found::SQUARES), 0)
    }

    /// Norms of the four gradients, and the square of W's after its update.
    fn sum_norms(&self) -> Result<()> {
        let encoder = self.sizes.encoder;
        let lengths = [encoder.rows(), encoder.rows(), encoder.latents(), self.sizes.stride, encoder.rows()];
        let lists: Vec<_> = self.space.squares.iter().map(DeviceMemory::address).zip(lengths).collect();
        assert_eq!(lists.len(), NORMS, "a place for each");
        self.sum(&lists, self.state.norms.address(), 0b1111)
    }

    /// What touched each latent, with the gradients by its value, in the order of latents.
    fn sorted_latents(&self, lists: &Lists, tokens: usize, gate: Address, count_out: Address) -> Result<ByRow> {
        let list = Touched {
            keys: lists.indices.address(),
            counts: lists.counts.address(),
            coefficients: lists.values.address(),
            slots: lists.k,
            rows: self.sizes.encoder.latents(),
            starts: lists.latent_starts.address(),
            source: lists.residual.address(),
            gate,
            count_out,
        };
        lists.sort.sort(&self.on, &list, tokens)
    }

    /// What touched each encoder row, in the order of rows.
    fn sorted_rows(&self, lists: &Lists, tokens: usize, gate: Address) -> Result<ByRow> {
        let list = Touched {
            keys: lists.row_ids.address(),
            counts: 0,
            coefficients: lists.row_coefficients.address(),
            slots: lists.row_slots,
            rows: self.sizes.encoder.rows(),
            starts: lists.row_starts.address(),
            source: self.space.x.address(),
            gate,
            count_out: 0,
        };
        lists.sort.sort(&self.on, &list, tokens)
    }

    fn update_decoder(&self, tokens: usize, capture: Option<&Capture>) -> Result<()> {
        let space = self.space;
        let gate = space.found(found::DEAD_LATENTS);
        let main = self.sorted_latents(&space.main, tokens, 0, space.found(found::LATENTS))?;
        let aux = match &space.aux {
            Some(aux) => Some(self.sorted_latents(aux, tokens, gate, 0)?),
            None => None,
        };
        let update = RowUpdate {
            weight: self.state.decoder.weights(),
            factors: self.factor(2),
            row_squares: space.squares[2].address(),
            gradient: capture.map_or(0, |c| c.parameters[2].address()),
            rows: self.sizes.encoder.latents() as u32,
            project: 1,
            parameter: 1,
            ..self.update(main, aux)
        };
        self.update_rows(&update, tokens * space.main.k)
    }

    fn update_encoder(&self, tokens: usize, capture: Option<&Capture>) -> Result<()> {
        let space = self.space;
        let gate = space.found(found::DEAD_LATENTS);
        let main = self.sorted_rows(&space.main, tokens, 0)?;
        let aux = match &space.aux {
            Some(aux) => Some(self.sorted_rows(aux, tokens, gate)?),
            None => None,
        };
        let update = RowUpdate {
            weight: self.state.encoder.weights(),
            bias: self.state.encoder_bias.weights(),
            factors: self.factor(0),
            row_squares: space.squares[0].address(),
            bias_squares: space.squares[1].address(),
            value_squares: space.squares[4].address(),
            gradient: capture.map_or(0, |c| c.parameters[0].address()),
            bias_gradient: capture.map_or(0, |c| c.parameters[1].address()),
            rows: self.sizes.encoder.rows() as u32,
            ..self.update(main, aux)
        };
        self.update_rows(&update, tokens * space.main.row_slots)
    }

    /// Where the factor of parameter `which` lies: 0 where nothing is clipped.
    fn factor(&self, which: usize) -> Address {
        if self.settings.clip.is_some() { self.space.factors.at(4 * which) } else { 0 }
    }

    /// What both updates have in common.
    fn update(&self, main: ByRow, aux: Option<ByRow>) -> RowUpdate {
        RowUpdate {
            main,
            aux: aux.unwrap_or_default(),
            aux_gate: if aux.is_some() { self.space.found(found::DEAD_LATENTS) } else { 0 },
            numbers: self.space.numbers.address(),
            halt: self.space.found(found::NOT_FINITE),
            stride: self.stride(),
            ..RowUpdate::default()
        }
    }

    fn update_rows(&self, update: &RowUpdate, pairs: usize) -> Result<()> {
        let element = self.sizes.element;
        let block = row_block(self.sizes.stride, element);
        let lists = [(update.main, 0), (update.aux, update.aux_gate)];
        for (list, gate) in lists.into_iter().take(if update.aux_gate == 0 { 1 } else { 2 }) {
            let mut arguments = Arguments::new();
            arguments.push(list).push(update.rows).push(update.stride).push(gate);
            let blocks = 2 * pairs.div_ceil(512) as u32;
            self.on.start(kernel!(element, "hot_rows"), blocks, block, 0, &mut arguments)?;
        }
        let shared = 11 * self.stride();
        let kernel = match self.settings.moments {
            Moments::F32 => kernel!(element, "update_rows"),
            Moments::Bf16 => {
                of(element, "kronsae_update_rows_f32_moments_bf16", "kronsae_update_rows_bf16_moments_bf16")
            }
        };
        self.on.start(kernel, update.rows, block, shared, Arguments::new().push(*update))
    }

    fn update_decoder_bias(&self, tokens: usize, capture: Option<&Capture>) -> Result<()> {
        let (space, stride) = (self.space, self.stride());
        let mut arguments = Arguments::new();
        arguments.memory(&space.main.residual).push(tokens as u32).push(stride).memory(&space.column_sums);
        let chunks = tokens.div_ceil(64) as u32;
        let warps = chunks * stride.div_ceil(32 * 16 / self.sizes.element.size() as u32);
        self.on.start(kernel!(self.sizes.element, "column_sums"), warps.div_ceil(8), BLOCK, 0, &mut arguments)?;
        let update = BiasUpdate {
            partial: space.column_sums.address(),
            weight: self.state.decoder_bias.weights(),
            numbers: space.numbers.address(),
            factor: self.factor(3),
            halt: space.found(found::NOT_FINITE),
            squares: space.squares[3].address(),
            gradient: capture.map_or(0, |c| c.parameters[3].address()),
            chunks,
            stride,
        };
        let kernel = Kernel("kronsae_update_decoder_bias");
        self.on.start(kernel, stride.div_ceil(BLOCK), BLOCK, 0, Arguments::new().push(update))
    }

    fn note_alive(&self) -> Result<()> {
        let (space, state, encoder) = (self.space, self.state, self.sizes.encoder);
        let mut arguments = Arguments::new();
        arguments.memory(&space.main.latent_starts).push(encoder.latents() as u32).memory(&state.fired_at);
        arguments.memory(&space.positive).push(self.collective.ranks());
        arguments.push(encoder.rows() as u32).memory(&state.positive_at);
        arguments.memory(&space.numbers).push(space.found(found::NOT_FINITE));
        let blocks = (encoder.latents().max(encoder.rows()) as u32).div_ceil(BLOCK);
        self.on.start(Kernel("kronsae_note_alive"), blocks, BLOCK, 0, &mut arguments)
    }

    /// Lists the latents that are dead as the step begins, or the rows that are as it ends.
    fn list_dead(&self, last: &DeviceMemory, count: usize, rows: bool) -> Result<()> {
        let space = self.space;
        let arguments = || {
            let mut arguments = Arguments::new();
            arguments.memory(last).push(count as u32).memory(&space.numbers).push(u32::from(rows));
            arguments.push(self.settings.dead_after).memory(&space.tile_counts);
            arguments
        };
        let tiles = count.div_ceil(1024) as u32;
        self.on.start(Kernel("kronsae_count_dead"), tiles, BLOCK, 0, &mut arguments())?;
        let (list, found) = match rows {
            true => (&space.dead_rows, found::DEAD_ROWS),
            false => (&space.dead_latents, found::DEAD_LATENTS),
        };
        let mut arguments = arguments();
        arguments.memory(list).push(space.found(found));
        self.on.start(Kernel("kronsae_list_dead"), tiles, BLOCK, 0, &mut arguments)
    }

    fn revive(&self, tokens: usize) -> Result<()> {
        let (space, state) = (self.space, self.state);
        let dead_count = space.found(found::DEAD_ROWS);
        let eligible = space.found(found::ELIGIBLE);
        let mut arguments = Arguments::new();
        arguments.memory(&space.main.squares).push(tokens as u32).push(dead_count);
        arguments.memory(&space.order).push(eligible);
        self.on.start(Kernel("kronsae_revive_rank"), (tokens as u32).div_ceil(8), BLOCK, 0, &mut arguments)?;
        let revival = Revival {
            dead: space.dead_rows.address(),
            dead_count,
            order: space.order.address(),
            eligible,
            residual: space.main.residual.address(),
            value_squares: state.norms.at(8 * (NORMS - 1)),
            encoder: state.encoder.weights(),
            bias: state.encoder_bias.weights(),
            decoder: state.decoder.weights(),
            positive_at: state.positive_at.address(),
            numbers: space.numbers.address(),
            halt: space.found(found::NOT_FINITE),
            revived: space.found(found::REVIVED),
            stride: self.stride(),
            moment_bytes: self.settings.moments.bytes() as u32,
        };
        let element: Element = self.sizes.element;
        let rows = (self.sizes.encoder.rows() as u32).div_ceil(8);
        for kernel in [kernel!(element, "revive_rows"), kernel!(element, "revive_decoder")] {
            self.on.start(kernel, rows, BLOCK, 0, Arguments::new().push(self.shape()).push(revival))?;
        }
        Ok(())
    }
}
