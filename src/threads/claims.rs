//! Pieces of work that threads claim.

use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Work in pieces that threads claim: each first its own share, in order, then what is left of the others'.
#[derive(Debug)]
pub struct Claims {
    /// The next piece of each share, each on a cache line of its own.
    next: Vec<OwnLine>,
    pieces: usize,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct OwnLine(AtomicUsize);

impl Claims {
    /// For at most `threads` threads.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub fn new(threads: usize) -> Result<Self> {
        let mut next = Vec::new();
        let bytes = threads.saturating_mul(size_of::<OwnLine>());
        next.try_reserve_exact(threads).map_err(|_| Error::out_of_memory("claims", bytes))?;
        next.resize_with(threads, OwnLine::default);
        Ok(Claims { next, pieces: 0 })
    }

    fn share(&self, index: usize) -> Range<usize> {
        let (pieces, threads) = (self.pieces, self.next.len());
        pieces * index / threads..pieces * (index + 1) / threads
    }

    /// Lays out `pieces` pieces. No thread may be claiming.
    pub fn reset(&mut self, pieces: usize) {
        self.pieces = pieces;
        for index in 0..self.next.len() {
            self.next[index].0 = AtomicUsize::new(self.share(index).start);
        }
    }

    /// The next piece for the thread of this index, if any is left. Each is given out once.
    #[must_use]
    pub fn claim(&self, index: usize) -> Option<usize> {
        let threads = self.next.len();
        (0..threads).map(|offset| (index + offset) % threads).find_map(|of| {
            let end = self.share(of).end;
            // Looked at first, so that a share that is spent is not counted on for ever.
            if self.next[of].0.load(Ordering::Relaxed) >= end {
                return None;
            }
            Some(self.next[of].0.fetch_add(1, Ordering::Relaxed)).filter(|&piece| piece < end)
        })
    }
}
