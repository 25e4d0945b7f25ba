//! From what tokens touched to what touched each row: the sort of `cuda/sort.cuh`, and its memory.

use super::abi::{Address, ByRow, SortPass};
use super::launch::Launcher;
use kronsae::Result;
use kronsae::cuda::{Arguments, Device, DeviceMemory, Kernel};

/// As in `cuda/sort.cuh`.
const TILE: usize = 2048;
const DIGITS: usize = 256;
/// As in `cuda/row.cuh`: pairs of a part of a long row.
const HOT: usize = 512;

/// Memory that one list after the other is sorted in: of latents, then of encoder rows.
pub(super) struct SortSpace {
    keys: [DeviceMemory; 2],
    positions: [DeviceMemory; 2],
    histograms: DeviceMemory,
    totals: DeviceMemory,
    counts: DeviceMemory,
    pieces: DeviceMemory,
    piece_coefficients: DeviceMemory,
    tile_stride: u32,
}

/// A list of what tokens touched, `[tokens, slots]`.
#[derive(Clone, Copy)]
pub(super) struct Touched {
    /// u32 rows; 0xFFFFFFFF: nothing.
    pub(super) keys: Address,
    /// u32 `[tokens]`, how many of a token's slots count; 0: all.
    pub(super) counts: Address,
    /// f32, by position.
    pub(super) coefficients: Address,
    pub(super) slots: usize,
    /// Of the rows they name.
    pub(super) rows: usize,
    /// u32 `[rows + 1]`: where each row's pairs start.
    pub(super) starts: Address,
    /// What the coefficients multiply.
    pub(super) source: Address,
    /// Device scalar; where it is 0 the list is empty. 0: no gate.
    pub(super) gate: Address,
    /// Where the number of pairs goes; 0: nowhere.
    pub(super) count_out: Address,
}

impl SortSpace {
    /// For lists of at most `pairs` pairs and gradients of `stride` elements.
    pub(super) fn new(device: &dyn Device, pairs: usize, stride: usize) -> Result<Self> {
        let what = "the lists of touched rows";
        let words = |count: usize| device.allocate(count * 4, what);
        let (tiles, parts) = (pairs.div_ceil(TILE), 2 * pairs.div_ceil(HOT));
        Ok(SortSpace {
            keys: [words(pairs)?, words(pairs)?],
            positions: [words(pairs)?, words(pairs)?],
            histograms: words(DIGITS * tiles)?,
            totals: words(DIGITS)?,
            counts: words(2)?,
            pieces: words(parts * stride)?,
            piece_coefficients: words(parts)?,
            tile_stride: tiles as u32,
        })
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> usize {
        let SortSpace { keys, positions, histograms, totals, counts, pieces, piece_coefficients, tile_stride: _ } =
            self;
        let single = [histograms, totals, counts, pieces, piece_coefficients];
        single.into_iter().chain(keys).chain(positions).map(DeviceMemory::bytes).sum()
    }

    /// Enqueues the sort of a list of `tokens` tokens. What comes back is valid until the next sort in this memory.
    pub(super) fn sort(&self, on: &Launcher<'_>, list: &Touched, tokens: usize) -> Result<ByRow> {
        let n = (tokens * list.slots) as u32;
        let bits = u32::BITS - (list.rows as u32 - 1).leading_zeros();
        let passes = bits.div_ceil(8).max(1);
        for pass in 0..passes {
            let (to, from) = ((pass % 2) as usize, (pass % 2 == 0) as usize);
            let last = pass + 1 == passes;
            let first = pass == 0;
            let p = SortPass {
                keys: if first { list.keys } else { self.keys[from].address() },
                positions: if first { 0 } else { self.positions[from].address() },
                counts: if first { list.counts } else { 0 },
                count: if first { 0 } else { self.counts.at(4 * from) },
                gate: list.gate,
                histograms: self.histograms.address(),
                totals: self.totals.address(),
                keys_out: self.keys[to].address(),
                positions_out: self.positions[to].address(),
                count_out: if last && list.count_out != 0 { list.count_out } else { self.counts.at(4 * to) },
                n,
                slots: if first && list.counts != 0 { list.slots as u32 } else { 1 },
                shift: 8 * pass,
                tile_stride: self.tile_stride,
            };
            let tiles = n.div_ceil(TILE as u32);
            on.start(Kernel("kronsae_sort_histogram"), tiles, 256, 0, Arguments::new().push(p))?;
            on.start(Kernel("kronsae_sort_scan"), 32, 256, 0, Arguments::new().push(p))?;
            on.start(Kernel("kronsae_sort_scatter"), tiles, 256, 8 * 1024, Arguments::new().push(p))?;
        }
        let to = ((passes - 1) % 2) as usize;
        let count = if list.count_out != 0 { list.count_out } else { self.counts.at(4 * to) };
        on.start(
            Kernel("kronsae_row_starts"),
            (list.rows as u32 + 1).div_ceil(256),
            256,
            0,
            Arguments::new().push(self.keys[to].address()).push(count).push(list.rows as u32).push(list.starts),
        )?;
        Ok(ByRow {
            keys: self.keys[to].address(),
            positions: self.positions[to].address(),
            starts: list.starts,
            coefficients: list.coefficients,
            source: list.source,
            pieces: self.pieces.address(),
            piece_coefficients: self.piece_coefficients.address(),
            slots: list.slots as u32,
            reserved: 0,
        })
    }
}
