//! A barrier that threads spin at, and that a panic opens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How often a thread looks whether the others are done before it gives its core to them.
pub(super) const SPINS: u32 = 4096;

#[derive(Debug, Default)]
pub(super) struct Barrier {
    arrived: AtomicUsize,
    generation: AtomicUsize,
    panicked: AtomicBool,
}

impl Barrier {
    /// Before a call, while no other thread is in one.
    pub(super) fn reset(&self) {
        self.panicked.store(false, Ordering::Relaxed);
        self.arrived.store(0, Ordering::Relaxed);
    }

    /// A thread of the call panicked: nobody waits for it any more.
    pub(super) fn give_up(&self) {
        self.panicked.store(true, Ordering::Relaxed);
    }

    /// Whether a thread of the call panicked.
    pub(super) fn is_given_up(&self) -> bool {
        self.panicked.load(Ordering::Relaxed)
    }

    /// Waits until `count` threads are here.
    pub(super) fn wait(&self, count: usize) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.fetch_add(1, Ordering::Release);
        } else {
            let mut spins = 0_u32;
            while self.generation.load(Ordering::Acquire) == generation {
                self.pause(&mut spins);
            }
        }
        assert!(!self.is_given_up(), "another thread of this call panicked");
    }

    /// One turn of waiting for others.
    pub(super) fn pause(&self, spins: &mut u32) {
        assert!(!self.is_given_up(), "another thread of this call panicked");
        *spins = spins.saturating_add(1);
        if *spins < SPINS {
            std::hint::spin_loop();
        } else {
            // The others may be waiting for this very core.
            std::thread::yield_now();
        }
    }
}
