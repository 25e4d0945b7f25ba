//! Memory of an emulated device: addresses of this process, freed under a watchful eye. Copies back to the host and events may be
//! late, as on a device that is behind.

use super::device::{Address, Release, Stream};
use super::event::DeviceEvent;
use super::pinned::Unpin;
use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Alignment of memory, as of a GPU's.
const ALIGNMENT: usize = 256;
/// The device's own stream, which is never behind.
pub(super) const OWN_STREAM: usize = 0x10;

/// Allocates like a device, and knows how much is in use.
#[derive(Debug, Default)]
pub(super) struct HostMemory {
    bytes: AtomicUsize,
    held: Mutex<Held>,
    moves: Condvar,
}

/// What is held up.
#[derive(Debug, Default)]
struct Held {
    /// Whether what is enqueued now waits.
    holds: bool,
    /// Copies that wait: from where, to where, how long.
    copies: Vec<(usize, usize, usize)>,
    /// Recordings of events so far, and those of them that were reached.
    recorded: u64,
    reached: u64,
    /// Allocations that were freed under a copy that waits.
    freed_in_use: usize,
}

impl Held {
    fn touches(&self, start: usize, bytes: usize) -> bool {
        let overlap = |at: usize, long: usize| at < start + bytes && start < at + long;
        self.copies.iter().any(|&(from, to, long)| overlap(from, long) || overlap(to, long))
    }
}

/// A point behind so many recordings of the device's.
pub(super) struct Recorded {
    number: AtomicU64,
    memory: Arc<HostMemory>,
}

impl Recorded {
    pub(super) fn new(memory: &Arc<HostMemory>) -> Self {
        Recorded { number: AtomicU64::new(0), memory: Arc::clone(memory) }
    }
}

impl DeviceEvent for Recorded {
    unsafe fn record(&self, stream: Stream) -> Result<()> {
        let mut held = self.memory.held();
        if stream.0.addr() == OWN_STREAM {
            self.number.store(0, Ordering::Release);
            return Ok(());
        }
        held.recorded += 1;
        if !held.holds {
            held.reached = held.recorded;
        }
        self.number.store(held.recorded, Ordering::Release);
        Ok(())
    }

    fn reached(&self) -> Result<bool> {
        Ok(self.number.load(Ordering::Acquire) <= self.memory.held().reached)
    }

    fn wait(&self) -> Result<()> {
        let number = self.number.load(Ordering::Acquire);
        let mut held = self.memory.held();
        while number > held.reached {
            held = self.memory.moves.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    unsafe fn hold(&self, _stream: Stream) -> Result<()> {
        Ok(())
    }
}

fn layout(bytes: usize, what: &str) -> Result<Layout> {
    // Exactly as long as asked for: a sanitizer sees what is beyond.
    Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| Error::out_of_memory(what, bytes))
}

impl HostMemory {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allocate(&self, bytes: usize, what: &str) -> Result<NonNull<u8>> {
        let layout = layout(bytes, what)?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| Error::out_of_memory(what, bytes))?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(start)
    }

    /// # Safety
    /// `start` and `bytes` are of one [`HostMemory::allocate`], not used any more.
    unsafe fn free(&self, start: *mut u8, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        {
            let mut held = self.held();
            if held.touches(start.addr(), bytes) {
                // Left to the copy that still uses it; a test asks for the number.
                held.freed_in_use += 1;
                return;
            }
        }
        if let Ok(layout) = layout(bytes, "") {
            // SAFETY: the caller's promise; the layout is a function of `bytes`.
            unsafe { dealloc(start, layout) }
        }
    }

    /// Bytes in use.
    pub(super) fn in_use(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Allocations that were freed under a copy that waits.
    pub(super) fn freed_in_use(&self) -> usize {
        self.held().freed_in_use
    }

    /// See [`super::EmulatedDevice::hold`].
    pub(super) fn hold(&self, holds: bool) {
        let mut held = self.held();
        held.holds = holds;
        if !holds {
            for (from, to, bytes) in std::mem::take(&mut held.copies) {
                // SAFETY: both were live when the copy was enqueued, and what is freed under a copy is left where it is.
                unsafe { std::ptr::copy_nonoverlapping(pointer(from as u64), pointer(to as u64), bytes) };
            }
            held.reached = held.recorded;
            self.moves.notify_all();
        }
    }

    /// Copies, or has the copy wait.
    ///
    /// # Safety
    /// Both are of that length, and nobody else's until it is over.
    pub(super) unsafe fn copy_back(&self, stream: Stream, from: Address, to: *mut u8, bytes: usize) {
        let mut held = self.held();
        if held.holds && stream.0.addr() != OWN_STREAM {
            held.copies.push((from as usize, to.expose_provenance(), bytes));
        } else {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(pointer(from), to, bytes) };
        }
    }
}

impl Release for HostMemory {
    unsafe fn release(&self, address: Address, bytes: usize) {
        // SAFETY: the caller's promise; addresses of this device are of this process.
        unsafe { self.free(pointer(address), bytes) }
    }
}

impl Unpin for HostMemory {
    unsafe fn unpin(&self, start: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.free(start, bytes) }
    }
}

/// An address of the device is one of this process.
pub(super) fn pointer(address: Address) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
