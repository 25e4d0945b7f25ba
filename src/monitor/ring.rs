//! The queue of one tap: one producer, one consumer, bounded, allocated once.
//!
//! Tokens lie in slots of equal size, so that neighbours of one dtype are an [`Activations`] view which the encoder
//! reads in place. Control records have slots of their own, which tokens cannot take; each carries the number of tokens
//! that were queued before it, and so keeps its place among them:
//!
//! ```text
//! tokens    0  1  2  3  4  5 ...        sequence numbers; slot = number % capacity
//! controls           ^3     ^5          "before token 3", "before token 5"
//! ```
//!
//! The consumer reads the tail of the tokens first and the tail of the controls after it. A control that was pushed
//! before a token was published is then always seen together with that token, because the producer wrote them in that
//! order.

use super::sync::{AtomicU64, Ordering, UnsafeCell};
use super::tag::TokenTag;
use crate::activations::Activations;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::memory::{ALIGNMENT, Aligned};
use std::sync::Arc;

/// What lies beside a token's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) tag: TokenTag,
    /// When it was submitted, in nanoseconds of the monitor's clock.
    pub(crate) nanos: u64,
    pub(crate) dtype: Dtype,
    /// Of a token whose row is not here but in a batch of somebody else's: which row of it. Otherwise 0.
    pub(crate) row: u32,
}

/// What happens to a request, in order with its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// The request is over.
    End { request: u64 },
    /// Its tokens from this position on are taken back.
    Rewind { request: u64, position: i32 },
}

#[derive(Debug, Clone, Copy)]
struct ControlSlot {
    /// Tokens queued before it.
    before: u64,
    control: Control,
}

/// A counter on a cache line of its own: producer and consumer must not slow each other down by writing neighbours.
#[derive(Debug)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    fn new() -> Self {
        Line(AtomicU64::new(0))
    }
}

/// What producer and consumer share.
pub(crate) struct Ring {
    slots: Box<[UnsafeCell<Slot>]>,
    controls: Box<[UnsafeCell<ControlSlot>]>,
    /// Start of `memory`; row `i` is at `i * stride`.
    rows: *mut u8,
    stride: usize,
    d_model: usize,
    widest: Dtype,
    /// Tokens published, tokens released, and the same of controls; they only grow.
    tail: Line,
    head: Line,
    control_tail: Line,
    control_head: Line,
    /// Owns what `rows` points to.
    _memory: Aligned<u8>,
}

// SAFETY: a slot and its row are written by the one Producer while `tail - head < capacity` excludes them from what is
// published, and read by the one Consumer between publication (release of tail, acquire by the consumer) and release
// (release of head, acquire by the producer). The memory itself is owned by this struct.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} tokens of {} {})", self.capacity(), self.d_model, self.widest)
    }
}

/// Bytes from one row's slot to the next: rows start on cache lines.
fn stride_of(d_model: usize, widest: Dtype) -> Option<usize> {
    d_model.checked_mul(widest.size())?.checked_next_multiple_of(ALIGNMENT)
}

impl Ring {
    /// Bytes that a ring of this shape takes; None where that is no size.
    pub(crate) fn bytes(capacity: usize, controls: usize, d_model: usize, widest: Dtype) -> Option<usize> {
        let rows = stride_of(d_model, widest)?.checked_mul(capacity)?;
        let slots = capacity.checked_mul(size_of::<Slot>())?;
        rows.checked_add(slots)?.checked_add(controls.checked_mul(size_of::<ControlSlot>())?)
    }

    /// The two ends of an empty ring of `capacity` tokens and `controls` control records.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] for an extent of 0, [`crate::Status::OutOfMemory`].
    pub(crate) fn new(
        capacity: usize,
        controls: usize,
        d_model: usize,
        widest: Dtype,
    ) -> Result<(Producer, Consumer, Arc<Ring>)> {
        if d_model == 0 {
            return Err(Error::invalid("a tap's queue of d_model 0, expected at least 1"));
        }
        Self::make(capacity, controls, d_model, widest)
    }

    /// As [`Ring::new`], of tokens whose rows are elsewhere.
    ///
    /// # Errors
    /// As [`Ring::new`].
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn without_rows(capacity: usize, controls: usize) -> Result<(Producer, Consumer, Arc<Ring>)> {
        Self::make(capacity, controls, 0, Dtype::F32)
    }

    fn make(
        capacity: usize,
        controls: usize,
        d_model: usize,
        widest: Dtype,
    ) -> Result<(Producer, Consumer, Arc<Ring>)> {
        if capacity == 0 || controls == 0 {
            return Err(Error::invalid(format!(
                "a tap's queue of {capacity} tokens of d_model {d_model} and {controls} control records: every extent \
                 must be at least 1"
            )));
        }
        let what = "a tap's queue";
        let bytes = Self::bytes(capacity, controls, d_model, widest);
        let stride = stride_of(d_model, widest);
        let (Some(_), Some(stride)) = (bytes, stride) else {
            return Err(Error::out_of_memory(what, usize::MAX));
        };
        let mut memory = Aligned::<u8>::zeroed(stride * capacity, what)?;
        let rows = memory.as_bytes_mut().as_mut_ptr();
        let slot = Slot { tag: TokenTag::default(), nanos: 0, dtype: widest, row: 0 };
        let control = ControlSlot { before: 0, control: Control::End { request: 0 } };
        let ring = Arc::new(Ring {
            slots: cells(capacity, slot, what)?,
            controls: cells(controls, control, what)?,
            rows,
            stride,
            d_model,
            widest,
            tail: Line::new(),
            head: Line::new(),
            control_tail: Line::new(),
            control_head: Line::new(),
            _memory: memory,
        });
        let producer = Producer { ring: Arc::clone(&ring), tail: 0, head: 0, control_tail: 0 };
        let consumer = Consumer { ring: Arc::clone(&ring), head: 0, control_head: 0 };
        Ok((producer, consumer, ring))
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Tokens published since the ring was made.
    pub(crate) fn published(&self) -> u64 {
        self.tail.0.load(Ordering::Acquire)
    }

    /// Tokens that the consumer is done with.
    pub(crate) fn released(&self) -> u64 {
        self.head.0.load(Ordering::Acquire)
    }

    /// Control records published, and those that the consumer is done with.
    pub(crate) fn controls(&self) -> (u64, u64) {
        (self.control_tail.0.load(Ordering::Acquire), self.control_head.0.load(Ordering::Acquire))
    }

    /// Whether nothing waits, as either end or anybody else sees it now.
    pub(crate) fn is_empty(&self) -> bool {
        let (tail, head) = self.controls();
        tail == head && self.published() == self.released()
    }

    fn row(&self, slot: usize) -> *mut u8 {
        self.rows.wrapping_add(slot * self.stride)
    }

    fn slot_of(&self, number: u64) -> usize {
        (number % self.slots.len() as u64) as usize
    }
}

fn cells<T: Copy>(len: usize, value: T, what: &str) -> Result<Box<[UnsafeCell<T>]>> {
    let mut cells = Vec::new();
    cells.try_reserve_exact(len).map_err(|_| Error::out_of_memory(what, len.saturating_mul(size_of::<T>())))?;
    cells.extend((0..len).map(|_| UnsafeCell::new(value)));
    Ok(cells.into_boxed_slice())
}

/// The end that tokens enter by.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Arc<Ring>,
    tail: u64,
    /// The consumer's head when last looked at: the true one is at least this.
    head: u64,
    control_tail: u64,
}

impl Producer {
    /// Tokens there is room for, at least.
    #[inline]
    pub(crate) fn room(&mut self, wanted: usize) -> usize {
        let capacity = self.ring.slots.len() as u64;
        let mut room = capacity - (self.tail - self.head);
        if room < wanted as u64 {
            self.head = self.ring.head.0.load(Ordering::Acquire);
            room = capacity - (self.tail - self.head);
        }
        room as usize
    }

    /// Checks that rows like these fit the slots.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`].
    #[inline]
    pub(crate) fn check(&self, x: &Activations<'_>) -> Result<()> {
        if x.d_model() != self.ring.d_model {
            return Err(Error::invalid(format!(
                "activations have d_model {}, this tap's site has {}",
                x.d_model(),
                self.ring.d_model
            )));
        }
        if x.dtype().size() > self.ring.widest.size() {
            return Err(Error::invalid(format!(
                "activations are {}, this tap was made for elements of at most {} bytes ({}); make it with dtype {}",
                x.dtype(),
                self.ring.widest.size(),
                self.ring.widest,
                x.dtype()
            )));
        }
        Ok(())
    }

    /// Writes `count` rows of `x`, from row `from` on, into free slots without publishing them; `tag(i)` is the tag of the
    /// i-th row written, `nanos` the time of all.
    ///
    /// # Panics
    /// If there is no room for them or they do not fit (see [`Producer::room`], [`Producer::check`]).
    pub(crate) fn write(
        &mut self,
        x: &Activations<'_>,
        from: usize,
        count: usize,
        nanos: u64,
        tag: impl Fn(usize) -> TokenTag,
    ) {
        assert!(count as u64 <= self.ring.slots.len() as u64 - (self.tail - self.head), "no room in the queue");
        assert!(from + count <= x.rows() && self.check(x).is_ok(), "rows do not fit the queue");
        let ring = &*self.ring;
        let row_bytes = ring.d_model * x.dtype().size();
        let mut done = 0;
        while done < count {
            let start = ring.slot_of(self.tail + done as u64);
            let run = (count - done).min(ring.slots.len() - start);
            let source = x.as_ptr().wrapping_add((from + done).wrapping_mul(x.row_stride()));
            // SAFETY: rows from + done .. + run of `x` are readable by its constructor's promise; slots start .. start +
            // run are free (asserted above), hence this thread's alone, and lie inside the memory; `x` cannot overlap
            // them, as views of the ring exist only inside the consumer.
            unsafe {
                if x.row_stride() == ring.stride && row_bytes == ring.stride {
                    // One call, so that large batches take the system's way of copying large blocks.
                    std::ptr::copy_nonoverlapping(source, ring.row(start), run * row_bytes);
                } else {
                    for row in 0..run {
                        let source = source.wrapping_add(row.wrapping_mul(x.row_stride()));
                        std::ptr::copy_nonoverlapping(source, ring.row(start + row), row_bytes);
                    }
                }
            }
            for row in 0..run {
                let slot = Slot { tag: tag(from + done + row), nanos, dtype: x.dtype(), row: 0 };
                // SAFETY: as above, the slot is this thread's alone.
                ring.slots[start + row].with_mut(|to| unsafe { to.write(slot) });
            }
            done += run;
        }
        self.tail += count as u64;
    }

    /// Makes everything written visible to the consumer.
    #[inline]
    pub(crate) fn publish(&self) {
        self.ring.tail.0.store(self.tail, Ordering::Release);
    }

    /// Writes a token without its row into a free slot, without publishing it; false if there is none.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn write_tag(&mut self, tag: TokenTag, row: u32, nanos: u64) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        let ring = &*self.ring;
        let slot = Slot { tag, nanos, dtype: ring.widest, row };
        // SAFETY: the slot is free, as just found, and this is the only producer.
        ring.slots[ring.slot_of(self.tail)].with_mut(|to| unsafe { to.write(slot) });
        self.tail += 1;
        true
    }

    /// Tokens written so far, published or not: the number of the next one.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn written(&self) -> u64 {
        self.tail
    }

    /// Takes back what was written and not published.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn abandon(&mut self) {
        self.tail = self.ring.published();
    }

    /// Queues a control record behind all tokens written so far; false if its slots are full.
    pub(crate) fn control(&mut self, control: Control) -> bool {
        // Tokens that were written and not published (a host's closure panicked between the two) would hold it up for ever.
        self.publish();
        let ring = &*self.ring;
        let capacity = ring.controls.len() as u64;
        if self.control_tail - ring.control_head.0.load(Ordering::Acquire) >= capacity {
            return false;
        }
        let slot = ControlSlot { before: self.tail, control };
        let at = (self.control_tail % capacity) as usize;
        // SAFETY: the slot is free (just checked), and this is the only producer.
        ring.controls[at].with_mut(|to| unsafe { to.write(slot) });
        self.control_tail += 1;
        ring.control_tail.0.store(self.control_tail, Ordering::Release);
        true
    }
}

/// What comes next out of a ring.
#[derive(Debug)]
pub(crate) enum Next {
    /// So many tokens of one dtype, in neighbouring slots; see [`Consumer::view`].
    Tokens(usize),
    /// A control record; see [`Consumer::release_control`].
    Control(Control),
    /// Nothing at the moment.
    Empty,
}

/// The end that tokens leave by.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: Arc<Ring>,
    head: u64,
    control_head: u64,
}

impl Consumer {
    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The number of the token that comes next.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// What comes next, at most `most` tokens.
    pub(crate) fn next(&mut self, most: usize) -> Next {
        let ring = &*self.ring;
        // In this order: see the module's documentation.
        let tail = ring.tail.0.load(Ordering::Acquire);
        let control_tail = ring.control_tail.0.load(Ordering::Acquire);
        let mut end = tail;
        if self.control_head < control_tail {
            let at = (self.control_head % ring.controls.len() as u64) as usize;
            // SAFETY: published (acquired above) and not yet released, so nobody writes it.
            let slot = ring.controls[at].with(|slot| unsafe { *slot });
            if slot.before <= self.head {
                return Next::Control(slot.control);
            }
            // Tokens up to the control, some of which may not be published yet.
            end = end.min(slot.before);
        }
        let start = ring.slot_of(self.head);
        let run = (end - self.head).min(most as u64).min((ring.slots.len() - start) as u64) as usize;
        if run == 0 {
            return Next::Empty;
        }
        let dtype = self.slot(0).dtype;
        Next::Tokens((1..run).find(|&i| self.slot(i).dtype != dtype).unwrap_or(run))
    }

    /// What lies beside the `at`-th of the tokens that [`Consumer::next`] gave.
    pub(crate) fn slot(&self, at: usize) -> Slot {
        let ring = &*self.ring;
        // SAFETY: published and not yet released, so nobody writes it.
        ring.slots[ring.slot_of(self.head + at as u64)].with(|slot| unsafe { *slot })
    }

    /// The rows of the `count` tokens that [`Consumer::next`] gave, where they lie.
    pub(crate) fn view(&self, count: usize) -> Activations<'_> {
        let ring = &*self.ring;
        let start = ring.slot_of(self.head);
        debug_assert!(start + count <= ring.slots.len(), "a view does not go round");
        let dtype = self.slot(0).dtype;
        // SAFETY: `count` rows from here on are published, and not released before `&mut self` is used again, so nobody
        // writes them while the view lives; they are neighbours, `stride` bytes apart, inside the memory.
        let view = unsafe { Activations::from_raw(ring.row(start), dtype, count, ring.d_model, ring.stride) };
        view.expect("the ring's extents were checked when it was made")
    }

    /// Gives the slot of the control record that [`Consumer::next`] gave back: once what it asks for was done, so that
    /// whoever sees its slot free sees that, too.
    pub(crate) fn release_control(&mut self) {
        self.control_head += 1;
        self.ring.control_head.0.store(self.control_head, Ordering::Release);
    }

    /// Gives the first `count` tokens' slots back.
    pub(crate) fn release(&mut self, count: usize) {
        self.head += count as u64;
        self.ring.head.0.store(self.head, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
