//! The caller's buffers: pointers become slices only after everything that can be checked was.

use crate::error::{Error, Result};
use std::ops::Range;

/// Whether `len` elements at `pointer` can be memory at all.
fn check<T>(pointer: *const T, len: usize, what: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{what} is null, expected room for {len} entries")));
    }
    if !pointer.is_aligned() {
        return Err(Error::invalid(format!(
            "{what} at {pointer:p} is misaligned, expected a multiple of {}",
            align_of::<T>()
        )));
    }
    let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    if bytes.and_then(|bytes| pointer.addr().checked_add(bytes)).is_none() {
        return Err(Error::invalid(format!("{what}: {len} entries at {pointer:p} reach past the end of memory")));
    }
    Ok(())
}

/// `len` elements to read. Of none, the pointer is not looked at.
///
/// # Safety
/// A pointer that is not null or misaligned has `len` readable elements that nobody writes during `'a`.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, len: usize, what: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check(pointer, len, what)?;
    // SAFETY: not null, aligned, of a possible size; readable by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// `len` elements to write. Of none, the pointer is not looked at.
///
/// # Safety
/// A pointer that is not null or misaligned has `len` writable elements that nobody else touches during `'a`.
pub(super) unsafe fn slice_mut<'a, T>(pointer: *mut T, len: usize, what: &str) -> Result<&'a mut [T]> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(pointer.cast_const(), len, what)?;
    // SAFETY: not null, aligned, of a possible size; writable and exclusive by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

/// Where a handle or a value goes.
///
/// # Errors
/// [`crate::Status::InvalidArgument`] if it is null or misaligned.
pub(super) fn output<T>(pointer: *mut T, what: &str) -> Result<*mut T> {
    check(pointer.cast_const(), 1, what)?;
    Ok(pointer)
}

/// A buffer of a call, by name and address, to be compared with the others.
pub(super) struct Extent {
    what: &'static str,
    addresses: Range<usize>,
}

impl Extent {
    /// `len` elements at `pointer`, as checked before; nothing where there are none or the pointer is null.
    pub(super) fn new<T>(what: &'static str, pointer: *const T, len: usize) -> Self {
        let bytes = if pointer.is_null() { 0 } else { len.saturating_mul(size_of::<T>()) };
        Extent { what, addresses: pointer.addr()..pointer.addr().saturating_add(bytes) }
    }
}

/// Refuses outputs that share memory with each other or with an input: threads would race on them.
pub(super) fn disjoint(outputs: &[Extent], inputs: &[Extent]) -> Result<()> {
    for (at, a) in outputs.iter().enumerate() {
        for b in outputs[at + 1..].iter().chain(inputs) {
            let (x, y) = (&a.addresses, &b.addresses);
            if !x.is_empty() && !y.is_empty() && x.start < y.end && y.start < x.end {
                return Err(Error::invalid(format!("{} and {} overlap; each needs memory of its own", a.what, b.what)));
            }
        }
    }
    Ok(())
}
