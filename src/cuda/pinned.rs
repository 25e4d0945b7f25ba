//! Pinned memory of the host, and copies from it that run beside the device's work.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Frees pinned memory. Implemented by what keeps the device alive.
pub trait Unpin: Send + Sync {
    /// Frees pinned memory.
    ///
    /// # Safety
    /// `start` and `bytes` are of one allocation of this device, which nobody uses any more.
    unsafe fn unpin(&self, start: *mut u8, bytes: usize);
}

/// Memory of the host that a device copies from and to at full speed. Freed on drop; keeps its device alive.
///
/// It is cached like any other memory (not write-combined), so reading it is no slower than reading a `Vec`.
pub struct PinnedMemory {
    start: NonNull<u8>,
    bytes: usize,
    owner: Arc<dyn Unpin>,
}

// SAFETY: it owns its memory like a Vec<u8>, and its owner is Send + Sync.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Memory that `owner` will free.
    ///
    /// # Safety
    /// `bytes` initialised bytes at `start` are an allocation of the owner's, handed over to this.
    pub unsafe fn from_raw(start: NonNull<u8>, bytes: usize, owner: Arc<dyn Unpin>) -> Self {
        PinnedMemory { start, bytes, owner }
    }

    /// Where it starts, for a device to write; dereferencing this memory meanwhile is a data race.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Refuses to hold more than there is room for.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] naming both.
    pub fn check(&self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            return Err(Error::invalid(format!("{bytes} bytes of pinned memory of {}", self.bytes)));
        }
        Ok(())
    }
}

impl Deref for PinnedMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the promise of `from_raw`; while a device copies, the memory is inside an `Arrival` and out of reach.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for PinnedMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: the allocation was handed over in `from_raw`, and this is its one owner's end.
        unsafe { self.owner.unpin(self.start.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedMemory[{} bytes]", self.bytes)
    }
}

/// The end of a copy, which a device reaches at some time.
pub trait Landing: Send + Sync {
    /// Waits for it.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device failed before.
    fn wait(&self) -> Result<()>;

    /// What the device that made it knows it by.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A copy that is under way, and the memory it reads. Dropped early, it waits for the copy's end.
pub struct Arrival {
    from: Option<PinnedMemory>,
    landing: Box<dyn Landing>,
}

impl Arrival {
    /// A copy from `from` that is done when `landing` is.
    #[must_use]
    pub fn new(from: PinnedMemory, landing: Box<dyn Landing>) -> Self {
        Arrival { from: Some(from), landing }
    }

    /// Waits for the copy's end and gives its memory back, to be filled anew.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device failed before.
    pub fn reclaim(mut self) -> Result<PinnedMemory> {
        self.landing.wait()?;
        match self.from.take() {
            Some(from) => Ok(from),
            None => unreachable!("only this function takes it, and it takes the arrival too"),
        }
    }

    /// The end of the copy.
    #[must_use]
    pub fn landing(&self) -> &dyn Landing {
        &*self.landing
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // A device that failed copies no more.
        if self.from.is_some() {
            let _ = self.landing.wait();
        }
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrival[{:?}]", self.from)
    }
}
