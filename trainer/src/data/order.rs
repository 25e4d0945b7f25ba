//! The order of training data, as a function: batch t depends on (seed, t, rows) alone, so a run's cursor is one integer.
//!
//! Each epoch permutes blocks of consecutive tokens (what a disk reads well), takes a window's worth of them at a time,
//! and permutes the tokens of the window. The windows of an epoch cover every token exactly once.

use crate::random::Permutation;

/// Tokens of a block.
pub const BLOCK: usize = 64;

/// The order of `rows` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Tokens of the data set.
    pub rows: usize,
    /// Blocks of a window.
    pub window_blocks: usize,
    /// Seed of all permutations.
    pub seed: u64,
}

/// One window: a number of blocks of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Which pass over the data.
    pub epoch: usize,
    /// Which window of the epoch.
    pub index: usize,
}

/// Where a position of the endless stream of tokens lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The window.
    pub window: Window,
    /// Position within the window's order.
    pub offset: usize,
    /// Tokens of the window.
    pub len: usize,
}

impl Order {
    fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK)
    }

    /// Windows of an epoch.
    fn windows(&self) -> usize {
        self.blocks().div_ceil(self.window_blocks)
    }

    fn block_order(&self, epoch: usize) -> Permutation {
        Permutation::new(self.blocks(), self.seed, &[1, epoch as u64])
    }

    /// Tokens of the epoch before its window `index`.
    fn start(&self, epoch: usize, index: usize) -> usize {
        let blocks = (index * self.window_blocks).min(self.blocks());
        // The last block of the data may be short; the permutation says in which window it went.
        let missing = self.blocks() * BLOCK - self.rows;
        let short_at = self.block_order(epoch).invert(self.blocks() - 1);
        blocks * BLOCK - if short_at < blocks { missing } else { 0 }
    }

    /// Where position `at` of the endless stream lies.
    ///
    /// # Panics
    /// If there are no rows.
    #[must_use]
    pub fn place(&self, at: u64) -> Place {
        let epoch = (at / self.rows as u64) as usize;
        let within = (at % self.rows as u64) as usize;
        let mut index = (within / (self.window_blocks * BLOCK)).min(self.windows() - 1);
        // A window that holds the short block starts the following ones earlier.
        if index + 1 < self.windows() && self.start(epoch, index + 1) <= within {
            index += 1;
        }
        let start = self.start(epoch, index);
        let len = self.start(epoch, index + 1) - start;
        Place { window: Window { epoch, index }, offset: within - start, len }
    }

    /// The window after `window` in the stream.
    #[must_use]
    pub fn next(&self, window: Window) -> Window {
        if window.index + 1 < self.windows() {
            Window { index: window.index + 1, ..window }
        } else {
            Window { epoch: window.epoch + 1, index: 0 }
        }
    }

    /// The rows of a window's blocks, block by block.
    pub fn block_rows(&self, window: Window) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let order = self.block_order(window.epoch);
        let first = window.index * self.window_blocks;
        let last = (first + self.window_blocks).min(self.blocks());
        let rows = self.rows;
        (first..last).map(move |at| {
            let block = order.apply(at);
            block * BLOCK..((block + 1) * BLOCK).min(rows)
        })
    }

    /// The order of the `len` tokens of a window.
    #[must_use]
    pub fn within(&self, window: Window, len: usize) -> Permutation {
        Permutation::new(len, self.seed, &[2, window.epoch as u64, window.index as u64])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_token_once() {
        for rows in [1, 63, 64, 65, 1000, 1024, 5003] {
            for window_blocks in [1, 3, 7, 1000] {
                let order = Order { rows, window_blocks, seed: 5 };
                for epoch in 0..3_u64 {
                    let mut seen = vec![false; rows];
                    for at in 0..rows as u64 {
                        let place = order.place(epoch * rows as u64 + at);
                        assert_eq!(place.window.epoch as u64, epoch);
                        let rows: Vec<_> = order.block_rows(place.window).flatten().collect();
                        assert_eq!(rows.len(), place.len);
                        let row = rows[order.within(place.window, place.len).apply(place.offset)];
                        assert!(!std::mem::replace(&mut seen[row], true), "row {row} twice");
                    }
                }
                if rows > 2000 {
                    break;
                }
            }
        }
    }

    #[test]
    fn windows_follow_one_another() {
        let order = Order { rows: 1000, window_blocks: 3, seed: 9 };
        let mut last = order.place(0);
        for at in 1..5000 {
            let place = order.place(at);
            if place.window != last.window {
                assert_eq!(place.window, order.next(last.window));
                assert_eq!((place.offset, last.offset), (0, last.len - 1));
            }
            last = place;
        }
    }
}
