//! Sleeping and waking without a lock, and without a system call while the worker is awake.
//!
//! The worker announces that it will sleep, then looks at its queues once more; a producer publishes, then looks for
//! that announcement. A sequentially consistent fence between the two steps on either side means that at least one of
//! them sees the other: either the worker finds the work, or the producer finds the worker asleep and unparks it.

use super::sync::{AtomicU32, Ordering, Sleeper, fence};
use std::time::Duration;

/// It runs, or will look at its queues before it sleeps.
const AWAKE: u32 = 0;
/// It rests for a bounded time; tokens can wait for the end of that, commands cannot.
const RESTING: u32 = 1;
/// It sleeps until it is woken.
const ASLEEP: u32 = 2;

/// How one worker sleeps and is woken.
#[derive(Debug)]
pub(crate) struct Wake {
    state: AtomicU32,
    worker: Sleeper,
}

impl Wake {
    /// For the thread of `worker`, which alone may call [`Wake::sleep`] and [`Wake::rest`].
    pub(crate) fn new(worker: Sleeper) -> Self {
        Wake { state: AtomicU32::new(AWAKE), worker }
    }

    /// For producers, after they published tokens: wakes a sleeping worker. One fence and one load otherwise.
    #[inline]
    pub(crate) fn after_publish(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ASLEEP {
            self.wake();
        }
    }

    /// Wakes the worker from sleep and from rest, whatever the reason. The first of several callers pays for all.
    #[cold]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.state.swap(AWAKE, Ordering::AcqRel) != AWAKE {
            self.worker.unpark();
        }
    }

    /// Sleeps until woken, for at most `time`, unless `work_waits` (asked after the announcement) finds something to do.
    /// May return early.
    pub(crate) fn sleep(&self, time: Option<Duration>, work_waits: impl FnOnce() -> bool) {
        self.announced(ASLEEP, work_waits, time);
    }

    /// As [`Wake::sleep`], but for at most `time`, and tokens do not end it.
    pub(crate) fn rest(&self, time: Duration, command_waits: impl FnOnce() -> bool) {
        self.announced(RESTING, command_waits, Some(time));
    }

    fn announced(&self, how: u32, waits: impl FnOnce() -> bool, time: Option<Duration>) {
        // Swaps, not stores: each reads the one before, so that all changes of the state are in one plain order.
        self.state.swap(how, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if !waits() {
            // A permit left over from an earlier wake ends this at once; the caller looks again and comes back.
            self.worker.park(time);
        }
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}
