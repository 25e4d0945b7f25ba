//! Kernels that a step launches more than once, and what they leave.

use crate::emulator::{Arguments, Buffer, Element, Emulator, Run, arguments};
use crate::structs::{Numbers, SortPass, SumLists};

/// As in `cuda/sort.cuh`.
const TILE: usize = 2048;

/// Pairs by row.
pub(crate) struct Sorted {
    pub(crate) keys: Buffer<u32>,
    pub(crate) positions: Buffer<u32>,
    pub(crate) count: Buffer<u32>,
    pub(crate) starts: Buffer<u32>,
}

/// Kernels with the run they are launched by.
pub(crate) struct Device<'a> {
    pub(crate) emulator: &'a Emulator,
    pub(crate) run: Run,
}

impl Device<'_> {
    pub(crate) fn launch(&self, kernel: &str, arguments: Arguments) {
        self.emulator.launch(kernel, self.run, 0, arguments);
    }

    pub(crate) fn typed<T: Element>(&self, kernel: &str, shared: usize, arguments: Arguments) {
        self.emulator.launch(&format!("{kernel}_{}", T::NAME), self.run, shared, arguments);
    }

    /// Sorts pairs by row, and finds where rows begin.
    pub(crate) fn sort(&self, keys: u64, counts: u64, slots: usize, n: usize, rows: usize, gate: u64) -> Sorted {
        let tiles = n.div_ceil(TILE).max(1);
        let histograms = Buffer::<u32>::garbage(256 * tiles);
        let totals = Buffer::<u32>::garbage(256);
        let buffers =
            [(); 2].map(|()| (Buffer::<u32>::garbage(n), Buffer::<u32>::garbage(n), Buffer::<u32>::garbage(1)));
        let bits = 32 - (rows as u32 - 1).leading_zeros();
        let passes = bits.div_ceil(8).max(1);
        for pass in 0..passes {
            let (from, to) = (&buffers[1 - pass as usize % 2], &buffers[pass as usize % 2]);
            let first = pass == 0;
            let p = SortPass {
                keys: if first { keys } else { from.0.address() },
                positions: if first { 0 } else { from.1.address() },
                counts: if first { counts } else { 0 },
                count: if first { 0 } else { from.2.address() },
                gate,
                histograms: histograms.address(),
                totals: totals.address(),
                keys_out: to.0.address(),
                positions_out: to.1.address(),
                count_out: to.2.address(),
                n: n as u32,
                slots: slots as u32,
                shift: 8 * pass,
                tile_stride: tiles as u32,
            };
            self.launch("kronsae_sort_histogram", arguments![p]);
            self.launch("kronsae_sort_scan", arguments![p]);
            self.emulator.launch("kronsae_sort_scatter", self.run, self.run.block as usize * 32, arguments![p]);
        }
        let [even, odd] = buffers;
        let (keys, positions, count) = if passes % 2 == 1 { even } else { odd };
        let starts = Buffer::<u32>::garbage(rows + 1);
        self.launch("kronsae_row_starts", arguments![keys.address(), count.address(), rows as u32, starts.address()]);
        Sorted { keys, positions, count, starts }
    }

    /// Sums lists in f64, or takes the roots of their sums.
    pub(crate) fn sums(&self, lists: &[&Buffer<f32>], roots: bool) -> Buffer<f64> {
        let mut s =
            SumLists { lists: lists.len() as u32, roots: if roots { u32::MAX } else { 0 }, ..Default::default() };
        for (i, list) in lists.iter().enumerate() {
            (s.values[i], s.lengths[i]) = (list.address(), list.get().len() as u32);
        }
        s.chunks = s.lengths.iter().max().unwrap().div_ceil(1024);
        let partial = Buffer::<f64>::garbage(lists.len() * s.chunks as usize);
        let totals = Buffer::<f64>::garbage(lists.len());
        (s.partial, s.totals) = (partial.address(), totals.address());
        self.launch("kronsae_sum_chunks", arguments![s]);
        self.launch("kronsae_sum_totals", arguments![s]);
        totals
    }

    /// The dead by their last sign of life: the list and its length.
    pub(crate) fn dead(
        &self,
        last: &Buffer<u64>,
        numbers: &Buffer<Numbers>,
        after: bool,
        window: u64,
    ) -> (Buffer<u32>, Buffer<u32>) {
        let n = last.get().len();
        let counts = Buffer::<u32>::garbage(n.div_ceil(1024));
        let (list, count) = (Buffer::<u32>::garbage(n), Buffer::<u32>::garbage(1));
        let (after, last, n) = (u32::from(after), last.address(), n as u32);
        self.launch("kronsae_count_dead", arguments![last, n, numbers.address(), after, window, counts.address()]);
        self.launch(
            "kronsae_list_dead",
            arguments![last, n, numbers.address(), after, window, counts.address(), list.address(), count.address()],
        );
        (list, count)
    }
}
