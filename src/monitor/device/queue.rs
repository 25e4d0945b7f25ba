//! Batches on their way from a submit to the worker: one producer, one consumer, bounded, allocated once.
//!
//! Batch number n has slot n % slots of its lane, whichever that is: it is made when batch n - slots was given up, so that
//! slot is free in every lane. A batch is published before its tokens are, so that the worker finds it when it finds them.

use super::cut::Cut;
use super::lane::{Found, Lane};
use super::options::DeviceTapOptions;
use crate::cuda::{Device, DeviceActivations, Stream};
use crate::error::Result;
use crate::monitor::intake::{Arrived, Elsewhere};
use crate::monitor::site::{TapShared, lock};
use crate::sae::Sae;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A batch.
struct Batch {
    /// What encodes it. Taken out by the worker alone, since the last of a lane may wait for the device.
    lane: Option<Arc<Lane>>,
    /// The number of its first token in the tap's ring.
    first: u64,
    tokens: usize,
    /// Rows that are encoded, and how far apart they lie in the submit.
    rows: usize,
    stride: usize,
}

/// What a device tap, its worker, and whoever replaces its model share.
pub(super) struct Queue {
    pub(super) device: Arc<dyn Device>,
    pub(super) options: DeviceTapOptions,
    /// The lane of batches to come. Held for as long as it takes to copy a pointer.
    lane: Mutex<Arc<Lane>>,
    batches: Box<[UnsafeCell<Batch>]>,
    /// Batches published, and those given up.
    tail: AtomicU64,
    head: AtomicU64,
}

// SAFETY: a batch is the one Filling's while `tail - head < slots` excludes it from what is published, and the one Taking's
// between publication (release of tail, acquired) and release (release of head, acquired). All else is Sync.
unsafe impl Sync for Queue {}
// SAFETY: as above; everything inside is Send.
unsafe impl Send for Queue {}

/// The two ends of an empty queue.
pub(super) fn ends(
    device: Arc<dyn Device>,
    options: DeviceTapOptions,
    lane: Lane,
    tap: &Arc<TapShared>,
) -> (Filling, Taking) {
    let batch = || UnsafeCell::new(Batch { lane: None, first: 0, tokens: 0, rows: 0, stride: 1 });
    let queue = Arc::new(Queue {
        device,
        options,
        lane: Mutex::new(Arc::new(lane)),
        batches: (0..options.slots).map(|_| batch()).collect(),
        tail: AtomicU64::new(0),
        head: AtomicU64::new(0),
    });
    let filling = Filling { queue: Arc::clone(&queue), tail: 0, last: None };
    (filling, Taking { queue, tap: Arc::clone(tap), head: 0, taken: 0, arrived: State::Unknown })
}

impl Queue {
    /// The lane of batches to come.
    pub(super) fn lane(&self) -> Arc<Lane> {
        Arc::clone(&lock(&self.lane))
    }

    /// Puts another lane in its place, and that into `lane`.
    pub(super) fn exchange(&self, lane: &mut Arc<Lane>) {
        std::mem::swap(&mut *lock(&self.lane), lane);
    }

    fn slot(&self, number: u64) -> usize {
        (number % self.batches.len() as u64) as usize
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Both ends are gone. What the device still writes must stay until it is done.
        for number in *self.head.get_mut()..*self.tail.get_mut() {
            let slot = self.slot(number);
            if let Some(lane) = &self.batches[slot].get_mut().lane {
                lane.wait(slot);
            }
        }
    }
}

/// The end that a tap has.
pub(super) struct Filling {
    pub(super) queue: Arc<Queue>,
    tail: u64,
    /// The lane, slot and stream of the last batch.
    last: Option<(u64, usize, Stream)>,
}

/// A default stream that is another one on every thread, under one number: `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

impl Filling {
    /// Takes a slot for a batch; false if there is none.
    pub(super) fn claim(&mut self) -> bool {
        let queue = &*self.queue;
        if self.tail - queue.head.load(Ordering::Acquire) >= queue.batches.len() as u64 {
            return false;
        }
        // SAFETY: the batch is not published and its last one was given up: it is this end's.
        let batch = unsafe { &mut *queue.batches[queue.slot(self.tail)].get() };
        if batch.lane.is_none() {
            // Somebody replaces the model at this very moment: no wait for that, a batch without room.
            let Ok(lane) = queue.lane.try_lock() else { return false };
            batch.lane = Some(Arc::clone(&lane));
        }
        // Else a call that took it panicked in the host's tags, and left it.
        true
    }

    /// Enqueues the batch that was claimed last, of these rows of `x`. Its first token is number `first`.
    ///
    /// # Errors
    /// As [`Lane::enqueue`]; the batch is not published then, and no other may be claimed.
    ///
    /// # Safety
    /// As [`crate::cuda::DeviceSae::encode`] of `x` and `stream`.
    pub(super) unsafe fn enqueue(
        &mut self,
        x: &DeviceActivations,
        cut: &Cut,
        stream: Stream,
        first: u64,
    ) -> Result<()> {
        let queue = &*self.queue;
        let slot = queue.slot(self.tail);
        // SAFETY: as in `claim`.
        let batch = unsafe { &mut *queue.batches[slot].get() };
        (batch.first, batch.tokens, batch.rows, batch.stride) = (first, cut.tokens, cut.rows(), cut.stride());
        let lane = batch.lane.as_ref().expect("claimed");
        let part = DeviceActivations {
            data: x.data + (cut.first * x.row_stride) as u64,
            rows: cut.rows(),
            row_stride: x.row_stride * cut.stride(),
            ..*x
        };
        // SAFETY: the caller's promise; rows of a cut are rows of `x`. The slot is free, as claimed. The lane's workspace
        // was last used by the last batch, on the same stream or waited for here.
        unsafe {
            if let Some((number, slot, last)) = self.last
                && number == lane.number
                && (last != stream || last.0.addr() == PER_THREAD)
            {
                lane.hold(slot, stream)?;
            }
            lane.enqueue(slot, &part, stream)?;
        }
        self.last = Some((lane.number, slot, stream));
        Ok(())
    }

    /// Makes the batch visible to the worker. Its tokens are published after.
    pub(super) fn publish(&mut self) {
        self.tail += 1;
        self.queue.tail.store(self.tail, Ordering::Release);
    }
}

/// How it stands with the first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Here,
    Lost,
}

/// The end that a worker has.
pub(super) struct Taking {
    queue: Arc<Queue>,
    tap: Arc<TapShared>,
    head: u64,
    /// Tokens of the first batch that were released.
    taken: usize,
    arrived: State,
}

impl Taking {
    /// The first batch and its slot; None if there is none.
    fn front(&self) -> Option<(&Batch, usize)> {
        let queue = &*self.queue;
        if self.head == queue.tail.load(Ordering::Acquire) {
            return None;
        }
        let slot = queue.slot(self.head);
        // SAFETY: published (acquired above) and not yet given up, so nobody writes it.
        Some((unsafe { &*queue.batches[slot].get() }, slot))
    }

    fn found(&self) -> Option<Found<'_>> {
        let (batch, slot) = self.front()?;
        // SAFETY: asked for only where the event was reached; the slot has its next batch when this end gives it up.
        Some(unsafe { batch.lane.as_ref()?.latents(slot, batch.rows) })
    }

    fn ask(&self, sae: Option<&Arc<Sae>>) -> Option<State> {
        let (batch, slot) = self.front()?;
        let lane = batch.lane.as_ref()?;
        let checked = match lane.reached(slot) {
            Ok(false) => return None,
            // What another model found means nothing to this one's statistics and rules.
            Ok(true) if !sae.is_some_and(|sae| Arc::ptr_eq(sae, &lane.of)) => return Some(State::Lost),
            Ok(true) => self.found()?.check(),
            Err(error) => Err(error),
        };
        match checked {
            Ok(()) => Some(State::Here),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = self.tap.failure.set(format!("the device failed: {error}"));
                Some(State::Lost)
            }
        }
    }
}

impl Elsewhere for Taking {
    fn arrived(&mut self, from: u64, most: usize, sae: Option<&Arc<Sae>>) -> Arrived {
        if self.arrived == State::Unknown {
            match self.ask(sae) {
                None => return Arrived::NotYet,
                Some(state) => self.arrived = state,
            }
        } else if self.arrived == State::Here && !self.is_of(sae) {
            // The model was replaced in the middle of the batch.
            self.arrived = State::Lost;
        }
        let (first, tokens) = self.front().map_or((from, 0), |(batch, _)| (batch.first, batch.tokens));
        assert_eq!(first + self.taken as u64, from, "tokens and batches went apart");
        let tokens = most.min(tokens - self.taken);
        if self.arrived == State::Here { Arrived::Here(tokens) } else { Arrived::Lost(tokens) }
    }

    fn row(&self, row: u32) -> Option<(&[u32], &[f32])> {
        debug_assert_eq!(self.arrived, State::Here, "asked for what is not here");
        let stride = self.front()?.0.stride;
        self.found()?.row(row as usize / stride)
    }

    fn release(&mut self, tokens: usize) {
        self.taken += tokens;
        let queue = &*self.queue;
        let slot = queue.slot(self.head);
        // SAFETY: published and not yet given up: this end's.
        let batch = unsafe { &mut *queue.batches[slot].get() };
        if self.taken < batch.tokens {
            return;
        }
        // Here and not in a submit: the last of a lane frees memory of the device.
        drop(batch.lane.take());
        (self.taken, self.arrived) = (0, State::Unknown);
        self.head += 1;
        queue.head.store(self.head, Ordering::Release);
    }
}

impl Taking {
    fn is_of(&self, sae: Option<&Arc<Sae>>) -> bool {
        let lane = self.front().and_then(|(batch, _)| batch.lane.as_ref());
        lane.zip(sae).is_some_and(|(lane, sae)| Arc::ptr_eq(sae, &lane.of))
    }
}
