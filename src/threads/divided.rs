//! A mutable slice that several threads write to.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that the threads of one call divide among themselves.
#[derive(Debug)]
pub struct Divided<'a, T> {
    pointer: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: handed to threads that take disjoint parts, as each use argues.
unsafe impl<T: Send> Sync for Divided<'_, T> {}

impl<'a, T> Divided<'a, T> {
    /// The slice, to be divided.
    pub fn of(slice: &'a mut [T]) -> Self {
        Divided { pointer: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The start of the slice.
    #[must_use]
    pub fn pointer(&self) -> *mut T {
        self.pointer
    }

    /// A part of the slice, for this thread alone.
    ///
    /// # Panics
    /// If the range is outside.
    ///
    /// # Safety
    /// Nobody else may access the range while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise, as with a raw pointer")]
    #[must_use]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice this was made of; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) }
    }

    /// A part of the slice, to read.
    ///
    /// # Panics
    /// If the range is outside.
    ///
    /// # Safety
    /// Nobody may write to the range while the slice lives.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice this was made of; unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer.add(range.start), range.len()) }
    }
}
