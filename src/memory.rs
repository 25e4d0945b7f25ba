//! Aligned memory whose size may come from a file or a caller: allocated fallibly, zeroed, never grown.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Alignment of all weights and workspaces: a cache line, and one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// The size of a huge page. Arrays of at least two of them ask for such pages: weights are read whole at every call, and
/// with pages of 4 KB the walks of the page table cost more than a call of the encoder can hide.
const HUGE_PAGE: usize = 2 << 20;

/// The layout of an array of `bytes` bytes; None where that is not a size.
fn layout_of(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT }).ok()
}

/// Asks for huge pages; where the system has none to give, nothing changes.
fn advise_huge_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice about memory that is ours; it changes no content, and its failure changes nothing.
    unsafe {
        libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// Element types that [`Aligned`] may hold: plain numbers, for which all bytes zero is a value.
///
/// # Safety
/// Any bit pattern is a valid value, and the type has no drop glue.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers; every bit pattern is valid.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}

/// A fixed-size, zero-initialised array aligned to [`ALIGNMENT`] bytes.
pub struct Aligned<T: Plain> {
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory like a Vec; T is Send + Sync plain data.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `len` zeroes.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`] naming `what`, if the allocator refuses or the size overflows.
    pub fn zeroed(len: usize, what: &str) -> Result<Self> {
        if len == 0 {
            return Ok(Aligned { pointer: NonNull::dangling(), len: 0 });
        }
        let bytes = len.saturating_mul(size_of::<T>());
        let layout = layout_of(bytes).ok_or_else(|| Error::out_of_memory(what, bytes))?;
        // SAFETY: the layout has a non-zero size (len > 0, T is not zero-sized).
        let raw = unsafe { alloc(layout) };
        let pointer = NonNull::new(raw.cast::<T>()).ok_or_else(|| Error::out_of_memory(what, bytes))?;
        if layout.align() == HUGE_PAGE {
            advise_huge_pages(raw, bytes);
        }
        // SAFETY: the allocation is `bytes` long. Written only now, so that the first touch finds the advice.
        unsafe { raw.write_bytes(0, bytes) };
        Ok(Aligned { pointer, len })
    }

    /// The elements as bytes, to read a file into.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation spans len * size_of::<T>() bytes, u8 has no alignment, and Plain accepts any bytes.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().cast::<u8>(), self.len * size_of::<T>()) }
    }
}

impl<T: Plain> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: pointer is valid for len initialised elements (zeroed at allocation), or dangling with len 0.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in deref, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        if self.len > 0
            && let Some(layout) = layout_of(self.len * size_of::<T>())
        {
            // SAFETY: allocated by this allocator with the layout that the same function gave for the same size.
            unsafe { dealloc(self.pointer.as_ptr().cast::<u8>(), layout) }
        }
    }
}

impl<T: Plain> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aligned<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

/// A `Vec` of `len` copies of `value`, allocated fallibly.
///
/// # Errors
/// [`crate::Status::OutOfMemory`] naming `what`.
pub(crate) fn try_vec<T: Clone>(len: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::out_of_memory(what, len.saturating_mul(size_of::<T>())))?;
    vec.resize(len, value);
    Ok(vec)
}
